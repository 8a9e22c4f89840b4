"""Every rule of the manifest, hostile files, and two oracles: yaml.safe_load, and the other format."""

import copy
import json
import math
import os
import string
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmcli import manifest as manifest_module
from gmcli import yaml_lines
from gmcli.data import GroundTruth, Question, VideoTask
from gmcli.errors import EXIT_CONFIG, ManifestError
from gmcli.manifest import read_manifest

BOUNDED = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a video file, a folder of frames and a folder of masks; it is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"12345")
    (tmp_path / "frames").mkdir()
    (tmp_path / "masks").mkdir()
    return tmp_path


def write(text: str | bytes, name: str = "m.yaml") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return name


def read(text: str | bytes, name: str = "m.yaml") -> tuple[VideoTask, ...]:
    return read_manifest(write(text, name))


def problems(text: str | bytes, name: str = "m.yaml") -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        read(text, name)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert caught.value.exit_code == EXIT_CONFIG
    return caught.value.problems


def problem(text: str | bytes, name: str = "m.yaml") -> str:
    found = problems(text, name)
    assert len(found) == 1, found
    return found[0]


def question_problems(question: str) -> list[str]:
    """Problems of one question, which is on line 3 together with its video; without the file and the line."""
    text = f"version: 1\nvideos:\n  - {{id: v, path: a.mp4, questions: [{question}]}}\n"
    return [message.removeprefix("m.yaml:3: ") for message in problems(text)]


def video_problems(fields: str, path: str = "a.mp4") -> list[str]:
    text = f"version: 1\nvideos:\n  - {{id: v, path: {path}, {fields}, questions: [{{id: q, text: t}}]}}\n"
    return [message.removeprefix("m.yaml:3: ") for message in problems(text)]


def manifest(*videos: dict[str, Any], **header: Any) -> dict[str, Any]:
    return {"version": 1, **header, "videos": list(videos)}


def video(**fields: Any) -> dict[str, Any]:
    return {"id": "v", "path": "a.mp4", "questions": [{"id": "q", "text": "t"}], **fields}


def jsonl(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def without_lines(tasks: tuple[VideoTask, ...]) -> tuple[VideoTask, ...]:
    return tuple(
        replace(task, line=0, questions=tuple(replace(question, line=0) for question in task.questions))
        for task in tasks
    )


FULL = """\
version: 1                      # the format of this file
root: .
defaults: {type: Descriptive}
videos:
  - id: clip01
    path: a.mp4
    start: 1.5
    end: 9
    questions:
      - {id: q0, text: "Who?", type: Counterfactual,
         ground_truth: {masks: masks, object_ids: [1, 2], start: 0.5, end: 3, answer: She}}
      - id: q1
        text: >
          Two
          lines
  - path: frames
    id: clip02
    fps: 6
    questions:
      - {id: q0, text: t, ground_truth: {masks: masks, object_ids: 7}}
"""


# What is read


def test_every_field(here: Path) -> None:
    masks = str(here / "masks")
    assert read(FULL) == (
        VideoTask(
            "clip01",
            str(here / "a.mp4"),
            (
                Question("q0", "Who?", "Counterfactual", GroundTruth(masks, (1, 2), 0.5, 3.0, "She"), line=10),
                Question("q1", "Two lines\n", "Descriptive", line=12),
            ),
            start=1.5,
            end=9.0,
            size_bytes=5,
            line=5,
        ),
        VideoTask(
            "clip02",
            str(here / "frames"),
            (Question("q0", "t", "Descriptive", GroundTruth(masks, (7,)), line=20),),
            fps=6.0,
            line=16,
        ),
    )


@pytest.mark.parametrize("name", ["m.yaml", "m.yml", "m.YAML", "m.json"])
def test_yaml_extensions(name: str) -> None:
    assert len(read(FULL, name)) == 2


@pytest.mark.parametrize("name", ["m.jsonl", "m.ndjson"])
def test_json_lines(name: str, here: Path) -> None:
    text = "\n" + jsonl({"version": 1, "defaults": {"type": "D"}}) + " \n\n" + jsonl(video(id="a"), video(id="b"))
    first, second = read(text, name)
    assert (first.id, first.line, first.questions[0]) == ("a", 5, Question("q", "t", "D", line=5))
    assert (second.id, second.line, second.video) == ("b", 6, str(here / "a.mp4"))
    assert len(read(jsonl(video(id="a"), video(id="b")).rstrip(), name)) == 2  # no header, no last newline


def test_root_is_relative_to_the_manifest(here: Path) -> None:
    (here / "sub" / "videos").mkdir(parents=True)
    (here / "sub" / "videos" / "x.mp4").write_bytes(b"")
    text = "version: 1\nroot: videos\nvideos: [{id: v, path: x.mp4, questions: [{id: q, text: t}]}]"
    assert read(text, "sub/m.yaml")[0].video == str(here / "sub" / "videos" / "x.mp4")
    assert read(text.replace("x.mp4", "../../a.mp4"), "sub/m.yaml")[0].video == str(here / "a.mp4")
    assert read(text.replace("x.mp4", str(here / "a.mp4")), "sub/m.yaml")[0].video == str(here / "a.mp4")
    assert read_manifest(here / "sub" / "m.yaml")[0].video == str(here / "a.mp4")


def test_links_keep_their_name_and_dotdot_follows_them(here: Path) -> None:
    (here / "link.mp4").symlink_to("a.mp4")
    (here / "far" / "deep").mkdir(parents=True)
    (here / "far" / "b.mp4").write_bytes(b"")
    (here / "linked").symlink_to("far/deep")
    assert read(json.dumps(manifest(video(path="link.mp4"))))[0].video == str(here / "link.mp4")
    assert read(json.dumps(manifest(video(path="linked/../b.mp4"))))[0].video == str(here / "far" / "b.mp4")


@pytest.mark.parametrize("indent", [None, 1, "\t"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_json_document(indent: Any, ascii_only: bool) -> None:
    text = "tab\there \U0001f600 \\ud83d \\\\ \u2028\u2029 é / \n end"
    content = manifest(video(start=1e-07, end=1e5, questions=[{"id": "q", "text": text}]))
    (task,) = read("\n\t " + json.dumps(content, indent=indent, ensure_ascii=ascii_only) + "\n\t\n", "m.json")
    assert (task.questions[0].text, task.start, task.end) == (text, 1e-07, 1e5)
    (task,) = read(
        '\ufeff\n\n{"version":1,\r\n"videos":[{"id":"v","path":"a.mp4","questions":[{"id":"q","text":"\\/"}]}]}'
    )
    assert (task.line, task.questions[0].text) == (4, "/")


def test_an_escaped_backslash_begins_no_surrogate_pair() -> None:
    text = json.dumps(manifest(video())).replace('"t"', r'"\\\ud83d\ude00 \\ud83d"')
    assert read(text, "m.json")[0].questions[0].text == "\\\U0001f600 \\ud83d"
    assert problem(text.replace(r"\\\u", r"\\u"), "m.json").startswith("m.json:1: not valid YAML")


def test_yaml_1_1_numbers() -> None:
    assert read("version: 1\nvideos: [{id: v, path: a.mp4, start: 1:30, end: 1_00.5, questions: [{id: q, text: t}]}]")[
        0
    ].start == pytest.approx(90)


def test_a_byte_order_mark_and_windows_line_ends() -> None:
    assert read(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())[1].line == 16
    assert read("\ufeff" + jsonl(video()).replace("\n", "\r\n"), "m.jsonl")[0].id == "v"


def test_lines_are_those_of_an_editor() -> None:
    head = 'version: 1\n# \u2028 \u0085\ndefaults: {type: "a\u2029b"}\n'
    assert read(head + "videos: [{id: v, path: a.mp4, questions: [{id: q, text: t}]}]")[0].line == 4
    assert problem(head + "videos: []") == "m.yaml:4: 'videos' is empty"
    assert problem(head + "videos: ]").startswith("m.yaml:4: not valid YAML")


def test_the_pure_python_parser_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(FULL)
    monkeypatch.setattr(yaml_lines, "_Loader", yaml.SafeLoader)
    assert read(FULL) == expected
    assert problem("version: 1\nvideos: ]").startswith("m.yaml:2: not valid YAML: ")
    assert problem("version: 1\nvideos: \a").startswith("m.yaml:2: not valid YAML: ")
    assert problem("a: " + "[" * 100_000) == "m.yaml:1: nested more than 16 deep"


# The file as a whole


def test_a_manifest_that_cannot_be_read(here: Path) -> None:
    def whole(path: str | Path) -> str:
        with pytest.raises(ManifestError) as caught:
            read_manifest(path)
        assert len(caught.value.problems) == 1
        return caught.value.problems[0]

    assert whole("no/such.yaml") == "no/such.yaml: No such file or directory"
    assert whole(here / "no.yaml") == f"{here}/no.yaml: No such file or directory"
    assert whole("a.mp4/m.yaml") == "a.mp4/m.yaml: Not a directory"
    assert whole("masks") == "masks: a folder, not a file"
    assert whole("a.mp4") == ("a.mp4: unknown extension '.mp4': a manifest is .yaml, .yml, .json, .jsonl or .ndjson")
    assert whole("a\0\n.yaml") == r"'a\x00\n.yaml': not a possible file name: embedded null byte"
    os.mkfifo("pipe.yaml")
    assert whole("pipe.yaml") == "pipe.yaml: not a regular file"
    Path("loop.yaml").symlink_to("loop.yaml")
    assert whole("loop.yaml") == "loop.yaml: Too many levels of symbolic links"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(here: Path) -> None:
    Path(write(FULL)).chmod(0)
    with pytest.raises(ManifestError, match=r"^m\.yaml: Permission denied$"):
        read_manifest("m.yaml")


@pytest.mark.parametrize("name", ["m.yaml", "m.json", "m.jsonl"])
@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_manifest(name: str, text: str) -> None:
    assert problem(text, name) == f"{name}:1: the manifest is empty"


def test_a_manifest_without_videos() -> None:
    assert problem("# nothing") == "m.yaml:1: the manifest is empty"
    assert problem("version: 1\nvideos: []") == "m.yaml:2: 'videos' is empty"
    assert problem("version: 1\nvideos:") == "m.yaml:2: 'videos' has no value"
    assert problem("version: 1\nvideos: {a: 1}") == "m.yaml:2: 'videos' must be a list, not a mapping"
    assert problem("version: 1\nvideos: x") == "m.yaml:2: 'videos' must be a list, not the string 'x'"
    assert problem("version: 1") == "m.yaml:1: 'videos' is missing in the manifest"
    assert problem(jsonl({"version": 1}), "m.jsonl") == "m.jsonl:1: no video follows the header"


def test_the_top_level_must_be_a_mapping() -> None:
    assert problem("- a") == "m.yaml:1: the manifest must be a mapping, not a list"
    assert problem("a") == "m.yaml:1: the manifest must be a mapping, not the string 'a'"
    assert problem("---\n...") == "m.yaml:2: the manifest must be a mapping, not null"
    assert problem("[]", "m.json") == "m.json:1: the manifest must be a mapping, not a list"
    assert problem("[]", "m.jsonl") == "m.jsonl:1: a video must be a mapping, not a list"


VIDEOS = "videos: [{id: v, path: a.mp4, questions: [{id: q, text: t}]}]\n"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "1: 'version' is missing in the manifest"),
        ("version: 2\n", "1: 'version' must be 1, not an integer (2)"),
        ("version: true\n", "1: 'version' must be 1, not a boolean (true)"),
        ("version: 1.0\n", "1: 'version' must be 1, not a number (1.0)"),
        ("version: '1'\n", "1: 'version' must be 1, not the string '1'"),
        ("version: 1\nroots: x\n", "2: unknown field 'roots' in the manifest (did you mean 'root'?)"),
        ("version: 1\nroot: ''\n", "2: 'root' is empty"),
        ("version: 1\nroot: ~\n", "2: 'root' has no value"),
        ("version: 1\nroot: 5\n", "2: 'root' must be a string, not an integer (5): put it in quotes"),
        ("version: 1\nroot: a.mp4\n", "2: not a folder ('root'): '{here}/a.mp4'"),
        ("version: 1\nroot: nowhere\n", "2: missing folder ('root'): '{here}/nowhere'"),
        ("version: 1\ndefaults: 3\n", "2: 'defaults' must be a mapping, not an integer (3)"),
        ("version: 1\ndefaults: {type: ''}\n", "2: 'type' is empty"),
        ("version: 1\ndefaults: {fps: 6}\n", "2: unknown field 'fps' in 'defaults'"),
    ],
)
def test_the_header(header: str, message: str, here: Path) -> None:
    assert problem(header + VIDEOS) == "m.yaml:" + message.format(here=here)
    if "version" in header:
        lines = jsonl(yaml.safe_load(header), video())
        expected = message.format(here=here).partition(": ")[2].replace("in the manifest", "in the header")
        if "~" not in header:
            assert problem(lines, "m.jsonl") == "m.jsonl:1: " + expected


def test_json_lines_header() -> None:
    assert problem(jsonl({"root": "."}, video()), "m.jsonl") == "m.jsonl:1: 'version' is missing in the header"
    joined = jsonl({"version": 1}, video(), {"version": 1}, video(id="w"))
    assert problem(joined, "m.jsonl") == "m.jsonl:3: a header can only be the first line"
    with_version = problems(jsonl(video(version=1)), "m.jsonl")
    assert with_version == ("m.jsonl:1: unknown field 'version' in a video",)


# Videos and questions


def test_missing_and_unknown_fields() -> None:
    text = "version: 1\nvideos:\n  - id: v\n    pth: a.mp4\n    questions:\n      -\n        id: q\n        txt: who\n"
    assert problems(text) == (
        "m.yaml:3: 'path' is missing in a video",
        "m.yaml:4: unknown field 'pth' in a video (did you mean 'path'?)",
        "m.yaml:7: 'text' is missing in a question",
        "m.yaml:8: unknown field 'txt' in a question (did you mean 'text'?)",
    )
    assert problem("version: 1\nvideos:\n- 7") == "m.yaml:3: a video must be a mapping, not an integer (7)"
    assert question_problems("7") == ["a question must be a mapping, not an integer (7)"]
    assert question_problems("{id: q, text: t, ground_truth: {}}") == [
        "'masks' is missing in 'ground_truth'",
        "'object_ids' is missing in 'ground_truth'",
    ]
    assert question_problems("{id: q, text: t, ground_truth: x}") == [
        "'ground_truth' must be a mapping, not the string 'x'"
    ]
    assert question_problems("") == ["'questions' is empty"]


def test_an_unknown_field_is_reported_where_it_stands() -> None:
    text = "version: 1\nvideos:\n- id: v\n  path: a.mp4\n  extra:\n    - 1\n  questions:\n    id: q\n"
    assert problems(text) == (
        "m.yaml:5: unknown field 'extra' in a video",
        "m.yaml:7: 'questions' must be a list, not a mapping",
    )


ID_CHARACTERS = "may contain only A-Z, a-z, 0-9, '.', '_' and '-'"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("''", "'id' is empty"),
        ("12", "'id' must be a string, not an integer (12): put it in quotes"),
        ("no", "'id' must be a string, not a boolean (no): put it in quotes"),
        ("12:30", "'id' must be a string, not an integer (12:30): put it in quotes"),
        ("1.5", "'id' must be a string, not a number (1.5): put it in quotes"),
        ("2024-13-45", "'id' must be a string, not a date (2024-13-45): put it in quotes"),
        ("0b_", "{} id '0b_' is used twice"),
        ("[a]", "'id' must be a string, not a list"),
        ("null", "'id' has no value"),
        ("a/b", f"{{}} id 'a/b' {ID_CHARACTERS}"),
        ("' '", f"{{}} id ' ' {ID_CHARACTERS}"),
        ("é", f"{{}} id 'é' {ID_CHARACTERS}"),
        ('"a\\n"', f"{{}} id 'a\\n' {ID_CHARACTERS}"),
        ('"a\\e[31m"', f"{{}} id 'a\\x1b[31m' {ID_CHARACTERS}"),
        ("..", "{} id '..' must not start with '.'"),
        (".a", "{} id '.a' must not start with '.'"),
        ("a..b", "{} id 'a..b' must not contain '..'"),
        ("a" * 129, "{} id '" + "a" * 59 + "…' is longer than 128 characters"),
        ("1" * 5000, "'id' must be a string, not a number with too many digits (" + "1" * 59 + "…): put it in quotes"),
    ],
)
def test_ids(value: str, message: str) -> None:
    if value == "0b_":  # to YAML a string that looks like a number
        assert read(f"version: 1\nvideos: [{{id: {value}, path: a.mp4, questions: [{{id: q, text: t}}]}}]")
        return
    text = f"version: 1\nvideos:\n  - {{id: {value}, path: a.mp4, questions: [{{id: q, text: t}}]}}\n"
    assert problem(text) == "m.yaml:3: " + message.format("video")
    assert question_problems(f"{{id: {value}, text: t}}") == [message.format("question")]


def test_good_ids() -> None:
    for value in ("a", "-", "_", "a.b", "a.", "A" * 128, "0-9", "12_a"):
        assert read(json.dumps(manifest(video(id=value))))[0].id == value


def test_ids_must_be_unique() -> None:
    other = video()["questions"]
    lines = [video(id="a"), video(id="b"), video(id="a"), video(id="A"), video(id="a"), video(id="c", questions=other)]
    assert problems(jsonl(*lines), "m.jsonl") == (
        "m.jsonl:3: video id 'a' is used twice (first on line 1)",
        "m.jsonl:4: video id 'A' differs only by letter case from 'a' (line 1)",
        "m.jsonl:5: video id 'a' is used twice (first on line 1)",
    )
    assert question_problems("{id: x, text: t}, {id: X, text: t}, {id: x, text: t}") == [
        "question id 'X' differs only by letter case from 'x' (line 3)",
        "question id 'x' is used twice (first on line 3)",
    ]


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ("text: ''", ["'text' is empty"]),
        ("text: ' \t '", ["'text' is empty"]),
        ('text: "\\n\\u00a0"', ["'text' is empty"]),
        ("text: ", ["'text' has no value"]),
        ("text: yes", ["'text' must be a string, not a boolean (yes): put it in quotes"]),
        ("text: 2024-01-02", ["'text' must be a string, not a date (2024-01-02): put it in quotes"]),
        ("text: <<", ["'text' must be a string, not a merge key (<<)"]),
        ('text: "a\\x07b"', [r"'text' must not contain the character '\x07': 'a\x07b'"]),
        ('text: "a\\rb"', [r"'text' must not contain the character '\r': 'a\rb'"]),
        ('text: "a\\Nb"', [r"'text' must not contain the character '\x85': 'a\x85b'"]),
        ('text: "a <image> b"', ["'text' must not contain the reserved '<image>'"]),
        ("text: t, type: ''", ["'type' is empty"]),
        ("text: t, type: 4", ["'type' must be a string, not an integer (4): put it in quotes"]),
        ('text: t, type: "a\\tb"', [r"'type' must not contain the character '\t': 'a\tb'"]),
        ("text: t, type: " + "x" * 65, ["'type' is longer than 64 characters: '" + "x" * 59 + "…'"]),
        (
            "text: '', type: '', txt: 1",
            ["'text' is empty", "'type' is empty", "unknown field 'txt' in a question (did you mean 'text'?)"],
        ),
    ],
)
def test_texts_and_types(fields: str, messages: list[str]) -> None:
    assert sorted(question_problems(f"{{id: q, {fields}}}")) == sorted(messages)


def test_good_texts() -> None:
    for text in ("a\tb\nc", "<Image>", "=", "…", "x" * 100_000, "'\"", "\U0001f600"):
        assert read(json.dumps(manifest(video(questions=[{"id": "q", "text": text, "type": "x" * 64}]))), "m.json")
    assert read("version: 1\nvideos: [{id: v, path: a.mp4, questions: [{id: q, text: =}]}]")


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ("start: -1", ["'start' must not be negative, not -1"]),
        ("start: true", ["'start' must be a number, not a boolean (true)"]),
        ("start: '1'", ["'start' must be a number, not the string '1'"]),
        ("start: .nan", ["'start' must be a finite number, not .nan"]),
        ("end: .inf", ["'end' must be a finite number, not .inf"]),
        ("end: null", ["'end' has no value"]),
        ("end: 0", ["'end' must be greater than 'start' (0), not 0"]),
        ("start: 5, end: 5.0", ["'end' must be greater than 'start' (5), not 5.0"]),
        (
            "start: -5, end: -3",
            ["'start' must not be negative, not -5", "'end' must be greater than 'start' (0), not -3"],
        ),
        ("start: " + "1" * 101, ["'start' must be a number, not a number with too many digits (" + "1" * 59 + "…)"]),
        ("fps: 6", ["'fps' is for folders of frames: a video file carries its own times"]),
    ],
)
def test_times(fields: str, messages: list[str]) -> None:
    assert video_problems(fields) == messages


def test_frame_rates() -> None:
    assert video_problems("fps: 0", "frames") == ["'fps' must be greater than 0, not 0"]
    assert video_problems("fps: -0.5", "frames") == ["'fps' must be greater than 0, not -0.5"]
    assert video_problems("fps: [6]", "frames") == ["'fps' must be a number, not a list"]
    assert video_problems("fps: 1:1", "nowhere") == [f"missing file: '{Path.cwd()}/nowhere'"]


def test_paths(here: Path) -> None:
    os.mkfifo(here / "pipe")
    (here / "loop").symlink_to("loop")
    (here / "dangling").symlink_to("gone")

    def of(path: Any) -> str:
        return problem(json.dumps(manifest(video(path=path))), "m.json").removeprefix("m.json:1: ")

    assert of("no.mp4") == f"missing file: '{here}/no.mp4'"
    assert of("~/no.mp4") == f"missing file: '{here}/~/no.mp4'"
    assert of("/no/such") == "missing file: '/no/such'"
    assert of("../no.mp4") == f"missing file: '{here.parent}/no.mp4'"
    assert of("a.mp4/b") == f"missing file: '{here}/a.mp4/b'"
    assert of("dangling") == f"missing file: '{here}/dangling'"
    assert of("loop") == f"Too many levels of symbolic links: '{here}/loop'"
    assert of("pipe") == f"neither a regular file nor a folder: '{here}/pipe'"
    assert of("/dev/null") == "neither a regular file nor a folder: '/dev/null'"
    assert of("") == "'path' is empty"
    assert of("a\0b") == r"'path' must not contain the character '\x00': 'a\x00b'"
    assert of(5) == "'path' must be a string, not an integer (5): put it in quotes"
    assert of("a\nb") == f"missing file: {str(here) + '/a' + chr(10) + 'b'!r}"
    assert of("x" * 5000).startswith("File name too long: ")
    assert len(of("x" * 5000)) < 1100


def test_a_name_that_the_locale_cannot_express() -> None:
    write(jsonl(video(path="\u4e2d.mp4")), "m.jsonl")
    code = "from gmcli.manifest import read_manifest; read_manifest('m.jsonl')"
    source = str(Path(__file__).parents[1])
    environment = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "ManifestError: m.jsonl:1: not a possible file name here: '" in done.stderr


def test_a_wrong_root_is_reported_once(here: Path) -> None:
    videos = [video(id=f"v{i}", path="no.mp4") for i in range(3)] + [video(path="/no/such")]
    assert problems(jsonl({"version": 1, "root": "gone"}, *videos), "m.jsonl") == (
        f"m.jsonl:1: missing folder ('root'): '{here}/gone'",
        "m.jsonl:5: missing file: '/no/such'",
    )


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ("masks: masks, object_ids: []", ["'object_ids' is empty"]),
        ("masks: masks, object_ids: [-1]", ["'object_ids' must be integers from 0 to 2147483647, not an integer (-1)"]),
        ("masks: masks, object_ids: -1", ["'object_ids' must be integers from 0 to 2147483647, not an integer (-1)"]),
        (
            "masks: masks, object_ids: [1, true, x]",
            ["'object_ids' must be integers from 0 to 2147483647, not a boolean (true)"],
        ),
        (
            "masks: masks, object_ids: 1" + "0" * 70,
            ["'object_ids' must be integers from 0 to 2147483647, not an integer (1" + "0" * 58 + "…)"],
        ),
        ("masks: masks, object_ids: '1'", ["'object_ids' must be a list, not the string '1'"]),
        ("masks: masks, object_ids: 1.0", ["'object_ids' must be a list, not a number (1.0)"]),
        ("masks: '', object_ids: ", ["'masks' is empty", "'object_ids' has no value"]),
        ("masks: '', object_ids: 1", ["'masks' is empty"]),
        ("masks: a.mp4, object_ids: 1", ["not a folder ('masks'): '{here}/a.mp4'"]),
        ("masks: gone, object_ids: 1", ["missing folder ('masks'): '{here}/gone'"]),
        ("masks: masks, object_ids: 1, start: 2, end: 1", ["'end' must be greater than 'start' (2), not 1"]),
        ("masks: masks, object_ids: 1, answer: ' '", ["'answer' is empty"]),
        ("masks: masks, object_ids: 1, answer: 7", ["'answer' must be a string, not an integer (7): put it in quotes"]),
        (
            "masks: masks, objects: 1",
            [
                "'object_ids' is missing in 'ground_truth'",
                "unknown field 'objects' in 'ground_truth' (did you mean 'object_ids'?)",
            ],
        ),
    ],
)
def test_ground_truth(fields: str, messages: list[str], here: Path) -> None:
    expected = [message.format(here=here) for message in messages]
    assert question_problems(f"{{id: q, text: t, ground_truth: {{{fields}}}}}") == expected


def test_all_problems_at_once_in_file_order(here: Path) -> None:
    text = """\
videos:
  - id: a/b
    path: gone.mp4
    fps: x
    questions: []
  - &anchor
    id: v
    path: a.mp4
    start: 3
    end: 2
    questions:
      - {id: q, text: '', type: 1}
      - *anchor
      - {id: q, id: r, text: !!str t}
      - {id: Q, text: t, 5: 6, [a]: b, <<: {x: y}}
  - good
root: .
version: 3
"""
    assert problems(text) == (
        f"m.yaml:2: video id 'a/b' {ID_CHARACTERS}",
        f"m.yaml:3: missing file: '{here}/gone.mp4'",
        "m.yaml:4: 'fps' must be a number, not the string 'x'",
        "m.yaml:5: 'questions' is empty",
        "m.yaml:6: anchors are not allowed (aliases to them can expand without bound)",
        "m.yaml:10: 'end' must be greater than 'start' (3), not 2",
        "m.yaml:12: 'text' is empty",
        "m.yaml:12: 'type' must be a string, not an integer (1): put it in quotes",
        "m.yaml:13: aliases are not allowed (they can expand without bound)",
        "m.yaml:14: field 'id' is given twice",
        "m.yaml:14: tags are not allowed ('tag:yaml.org,2002:str')",
        "m.yaml:14: question id 'q' is used twice (first on line 12)",
        "m.yaml:15: a field name must be a string, not an integer (5)",
        "m.yaml:15: a field name must be a string, not a list",
        "m.yaml:15: merge keys ('<<') are not allowed",
        "m.yaml:15: question id 'Q' differs only by letter case from 'q' (line 12)",
        "m.yaml:16: a video must be a mapping, not the string 'good'",
        "m.yaml:18: 'version' must be 1, not an integer (3)",
    )


# Hostile files


def test_repeated_keys() -> None:
    text = (
        "version: 1\nversion: 1\nvideos:\n  - id: v\n    path: a.mp4\n    questions: [{id: q, text: t}]\n    path: b\n"
    )
    assert problems(text) == (
        "m.yaml:2: field 'version' is given twice (first on line 1)",
        "m.yaml:7: field 'path' is given twice (first on line 5)",
    )
    line = '{"id": "v", "path": "a.mp4", "questions": [{"id": "q", "text": "t", "text": "u"}], "id": "w"}\n'
    assert problems(line, "m.jsonl") == (
        "m.jsonl:1: field 'text' is given twice",
        "m.jsonl:1: field 'id' is given twice",
    )


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!foo", "!", "!!str", "!!binary", "!<tag:x>", "!!python/none"]
)
def test_tags(tag: str, here: Path) -> None:
    for value in ('["touch pwned"]', "x", "{a: b}"):
        found = problems(f"version: 1\n{VIDEOS}x: {tag} {value}\n")
        assert found[0].startswith("m.yaml:3: tags are not allowed ('")
        assert found[1:] == ("m.yaml:3: unknown field 'x' in the manifest",)
    assert not (here / "pwned").exists()
    assert problems(f"version: 1\nvideos: {tag} [{{id: v, path: a.mp4, questions: [{{id: q, text: t}}]}}]")


def test_a_tagged_document_and_an_unknown_handle() -> None:
    assert problem("!!python/object:os.x {version: 1,\n" + VIDEOS.strip() + "}") == (
        "m.yaml:1: tags are not allowed ('tag:yaml.org,2002:python/object:os.x')"
    )
    assert question_problems("{id: q, text: t, ground_truth: {masks: masks, object_ids: [!x 1, 2]}}") == [
        "tags are not allowed ('!x')"
    ]
    assert problems("version: 1\n!x a: 1\n" + VIDEOS) == ("m.yaml:2: tags are not allowed ('!x')",)
    assert problem("version: 1\nvideos: !a!b c") == (
        "m.yaml:2: not valid YAML: while parsing a node: found undefined tag handle"
    )


def test_aliases_and_merge_keys() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 60))
    began = time.monotonic()
    found = problems(bomb + "version: 1\n" + VIDEOS)
    assert time.monotonic() - began < 5
    assert "m.yaml:2: aliases are not allowed (they can expand without bound)" in found
    assert len(found) == 60 + 590 + 60
    assert problem("version: 1\nvideos: *v") == "m.yaml:2: aliases are not allowed (they can expand without bound)"
    assert problems("version: 1\n" + VIDEOS + "<<: *v") == (
        "m.yaml:3: aliases are not allowed (they can expand without bound)",
        "m.yaml:3: merge keys ('<<') are not allowed",
    )
    assert problem("version: 1\n" + VIDEOS + "'<<': 1") == "m.yaml:3: unknown field '<<' in the manifest"


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000, "version: 1\nvideos: " + "[" * 17 + "]" * 17],
)
def test_deep_yaml(text: str) -> None:
    began = time.monotonic()
    assert problem(text).endswith(": nested more than 16 deep")
    assert time.monotonic() - began < 2


def test_deep_json() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    lines = f'{deep}\n{{"id": {"[" * 20 + "]" * 20}}}\n' + '{"a":' * 100_000 + "\n" + jsonl(video())
    assert problems(lines, "m.jsonl") == tuple(f"m.jsonl:{line}: nested more than 16 deep" for line in (1, 2, 3))
    assert problem(deep, "m.json") == "m.json:1: nested more than 16 deep"


def test_syntax_errors_say_why_on_one_line() -> None:
    assert problem("version: 1\nvideos: [a\nb: c") == (
        "m.yaml:3: not valid YAML: while parsing a flow sequence: did not find expected ',' or ']'"
    )
    assert problem("version: 1\n\tvideos: []").startswith("m.yaml:2: not valid YAML: ")
    assert problem("version: 1\nvideos: \0") == (
        "m.yaml:2: not valid YAML: unacceptable character #x0000: control characters are not allowed"
    )
    tagged, broken = problems("version: !x 1\nvideos: ]")
    assert tagged == "m.yaml:1: tags are not allowed ('!x')"
    assert broken.startswith("m.yaml:2: not valid YAML: ")
    lines = '{"id": 1,}\n{"a" 1}\n\n{} x\n' + jsonl(video()) + "nope\n"
    found = problems(lines, "m.jsonl")
    assert [message.split(" (")[0] for message in found][1:] == [
        "m.jsonl:2: not valid JSON: Expecting ':' delimiter",
        "m.jsonl:4: not valid JSON: Extra data",
        "m.jsonl:6: not valid JSON: Expecting value",
    ]
    assert found[1].endswith("(column 6)")


def test_two_documents() -> None:
    assert problem(f"version: 1\n{VIDEOS}---\nversion: 1\n") == (
        "m.yaml:3: a second YAML document: a manifest is one document"
    )
    assert problems("---\nversion: 1\nvideos: []\n---\n--- [\n") == (
        "m.yaml:3: 'videos' is empty",
        "m.yaml:4: a second YAML document: a manifest is one document",
    )


def test_not_utf8() -> None:
    assert problem(b"version: 1\nvideos: \xff") == "m.yaml:2: not UTF-8: byte 0xff at offset 19"
    assert problem(FULL.encode("utf-16")) == "m.yaml:1: not UTF-8: byte 0xff at offset 0"
    assert problem("version: é".encode("latin-1"), "m.json") == "m.json:1: not UTF-8: byte 0xe9 at offset 9"
    good = jsonl(video()).encode()
    assert problem(good + b'{"id": "\xe9"}\n', "m.jsonl") == "m.jsonl:2: not UTF-8: byte 0xe9 at offset 8 of the line"


def test_json_oddities() -> None:
    huge = "1" * 5000
    line = json.dumps(video()).replace('"path"', '"start": %s, "path"')
    for value, message in [
        ("NaN", "'start' must be a finite number, not NaN"),
        ("-Infinity", "'start' must be a finite number, not -Infinity"),
        ("1e999", "'start' must be a finite number, not Infinity"),
        (huge, "'start' must be a number, not a number with too many digits (" + "1" * 59 + "…)"),
        ('"1"', "'start' must be a number, not the string '1'"),
        ("null", "'start' has no value"),
        ("false", "'start' must be a number, not a boolean (false)"),
    ]:
        assert problem(line % value, "m.jsonl") == "m.jsonl:1: " + message
    assert problem(jsonl(video(id=5)), "m.jsonl") == (
        "m.jsonl:1: 'id' must be a string, not an integer (5): put it in quotes"
    )
    for name in ("path", "id"):
        assert "\\ud800" in problem(jsonl(video(**{name: "a\ud800"})), "m.jsonl")
    assert problem(jsonl(video(questions=[{"id": "q", "text": "a\ud800"}])), "m.jsonl") == (
        r"m.jsonl:1: 'text' must not contain the character '\ud800': 'a\ud800'"
    )


def test_messages_stay_short_and_on_one_line() -> None:
    long = "\x1b[2J\n" * 1000
    for value in (
        video(id=long),
        video(**{long: 1}),
        video(start=long),
        video(questions=[{"id": "q", "text": long}]),
        video(questions=long),
        {long: long},
        long,
        [long] * 1000,
    ):
        for message in problems(jsonl(value), "m.jsonl"):
            assert message.isprintable()
            assert len(message) < 500


def test_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("huge.yaml").open("wb") as stream:
        stream.truncate((256 << 20) + 1)  # a hole: costs nothing
    with pytest.raises(ManifestError, match=r"^huge\.yaml: larger than 256 MiB: use JSONL \(one video a line\)$"):
        read_manifest("huge.yaml")
    limit = yaml_lines.MAX_LINE_BYTES
    fits = jsonl(video()).rstrip("\n")
    fits += " " * (limit - len(fits)) + "\n"
    assert len(read(fits, "m.jsonl")) == 1
    found = problems(" " + fits + "x" * 3 * limit + "\n" + jsonl(video(id="w")) + "x" * (limit + 1), "m.jsonl")
    assert found == tuple(f"m.jsonl:{line}: a line of more than 16 MiB" for line in (1, 2, 4))
    monkeypatch.setattr(yaml_lines, "MAX_VALUES", 20)
    assert problem("version: 1\nvideos:\n" + "- []\n" * 30) == (
        "m.yaml:18: more than 20 values: use JSONL (one video a line)"
    )
    monkeypatch.setattr(yaml_lines, "MAX_LINE_VALUES", 20)
    assert problem(jsonl(video(), [1] * 30), "m.jsonl") == "m.jsonl:2: more than 20 values in one line"
    monkeypatch.setattr(yaml_lines, "MAX_PROBLEMS", 3)
    assert problems(jsonl(*[1] * 10), "m.jsonl")[2:] == (
        "m.jsonl:3: a video must be a mapping, not an integer (1)",
        "m.jsonl: stopped after 3 problems",
    )


def test_what_stops_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of these could go on for hours: nothing behind them is read.
    monkeypatch.setattr(yaml_lines, "MAX_LINES", 20)
    assert problem("\n" * 30 + jsonl(1), "m.jsonl") == "m.jsonl:21: more than 20 lines: split the manifest"
    monkeypatch.setattr(yaml_lines, "MAX_LINE_VALUES", 20)
    assert problem(jsonl([1] * 30, 1, 1), "m.jsonl") == "m.jsonl:1: more than 20 values in one line"
    directives = "".join(f"%TAG !a{number}! b\n" for number in range(200))
    assert problem(f"# x\n{directives}---\n{FULL}") == "m.yaml:2: tags are not allowed (%TAG)"


def test_questions_beyond_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_HELD_BYTES", 1 << 20)
    short = [{"id": f"q{i}", "text": "t"} for i in range(9000)]
    found = problem(jsonl(video(questions=short), video(id="w")), "m.jsonl")
    assert found == "m.jsonl:1: up to here takes more than 1 MiB of memory: split the manifest"
    assert problem(jsonl(*(video(id=f"v{i}") for i in range(3000))), "m.jsonl").endswith("split the manifest")
    assert problem(jsonl(video(questions=[{"id": "q", "text": "🙂" * 300_000}])), "m.jsonl").endswith("manifest")
    ids = {"masks": "masks", "object_ids": list(range(30_000))}
    truth = [{"id": "q", "text": "t", "ground_truth": ids}]
    assert problem(jsonl(video(questions=truth)), "m.jsonl").endswith("split the manifest")
    assert len(read(jsonl(*(video(id=f"v{i}") for i in range(1000))), "m.jsonl")) == 1000


@pytest.mark.parametrize(
    "hostile",
    [
        "x" * (3 << 20),  # one line
        "\n" * (1 << 20),
        "x\n" * 200_000,  # a problem each
        "".join(f'{{"id":"v{i}","path":"a.mp4","questions":[{{"id":"q","text":"t"}}]}}\n' for i in range(30_000)),
        '{"id":"v","path":"a.mp4","questions":['
        + ",".join(f'{{"id":"q{i}","text":"t"}}' for i in range(80_000))
        + "]}\n",
    ],
    ids=["one line", "blank", "garbage", "questions", "one video"],
)
def test_memory_is_bounded_whatever_the_size(hostile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits a hundredth of what they are, and so is the memory."""
    monkeypatch.setattr(manifest_module, "MAX_HELD_BYTES", 4 << 20)
    monkeypatch.setattr(yaml_lines, "MAX_LINE_BYTES", 256 << 10)
    monkeypatch.setattr(yaml_lines, "MAX_LINE_VALUES", 10_000)
    monkeypatch.setattr(yaml_lines, "MAX_PROBLEMS", 5_000)
    monkeypatch.setattr(yaml_lines, "MAX_LINES", 100_000)
    write(hostile, "m.jsonl")
    read_problems = []
    tracemalloc.start()
    try:
        read_manifest("m.jsonl")
    except ManifestError as error:
        read_problems = list(error.problems)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read_problems
    assert peak < 10 << 20


# Size


def many(count: int, **fields: Any) -> str:
    return jsonl(*(video(id=f"clip{i:06}", **fields) for i in range(count)))


def test_fifty_thousand_videos() -> None:
    write(many(50_000), "m.jsonl")
    began = time.process_time()
    tasks = read_manifest("m.jsonl")
    assert time.process_time() - began < 15  # 2.5 s on an idle machine
    assert len(tasks) == 50_000
    assert (tasks[-1].id, tasks[-1].line) == ("clip049999", 50_000)


def test_fifty_thousand_problems() -> None:
    found = problems(many(50_000, path="gone.mp4"), "m.jsonl")
    assert len(found) == 50_000
    assert found[-1] == f"m.jsonl:50000: missing file: '{Path.cwd()}/gone.mp4'"


def test_ten_thousand_videos_in_yaml() -> None:
    item = "  - id: clip{:06}\n    path: a.mp4\n    questions:\n      - {{id: q, text: 'Who?'}}\n"
    write("version: 1\nvideos:\n" + "".join(item.format(i) for i in range(10_000)))
    began = time.process_time()
    tasks = read_manifest("m.yaml")
    assert time.process_time() - began < 10  # 1 s on an idle machine
    assert (len(tasks), tasks[-1].line, tasks[-1].questions[0].line) == (10_000, 39_999, 40_002)


def test_many_surrogate_pairs_take_little_memory() -> None:
    write('{"version": 1, "videos": [{"id": "' + r"\ud83d\ude00" * 100_000 + r"\\" * 100_000 + '"}]}', "m.json")
    tracemalloc.start()
    with pytest.raises(ManifestError):
        read_manifest("m.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * Path("m.json").stat().st_size


# Oracles


IDS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8)
TEXTS = st.text(
    st.characters(
        codec="utf-8",
        exclude_categories=("Cc", "Cs"),
        include_characters="\t\n\u2028",
        exclude_characters="\ufffe\uffff",
    ),
    max_size=30,
).filter(lambda text: bool(text.strip()) and "<image>" not in text)
SECONDS = st.floats(0, 1e6) | st.integers(0, 10**6)
WINDOWS = st.fixed_dictionaries({}, optional={"start": SECONDS, "end": SECONDS}).filter(
    lambda window: window.get("end", math.inf) > window.get("start", 0)
)
TRUTHS = st.builds(
    lambda ids, window, answer: {"masks": "masks", "object_ids": ids, **window, **answer},
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4) | st.integers(0, 300),
    WINDOWS,
    st.fixed_dictionaries({}, optional={"answer": TEXTS}),
)
QUESTIONS = st.lists(
    st.fixed_dictionaries(
        {"id": IDS, "text": TEXTS},
        optional={"type": TEXTS.filter(lambda text: not set(text) & set("\t\n")), "ground_truth": TRUTHS},
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda question: question["id"].lower(),
)
VIDEO_ITEMS = st.builds(
    lambda base, place, window: {**base, **place, **window},
    st.fixed_dictionaries({"id": IDS, "questions": QUESTIONS}),
    st.just({"path": "a.mp4"}) | st.fixed_dictionaries({"path": st.just("frames")}, optional={"fps": st.floats(1, 99)}),
    WINDOWS,
)
MANIFESTS = st.builds(
    lambda header, videos: {"version": 1, **header, "videos": videos},
    st.fixed_dictionaries({}, optional={"root": st.just("."), "defaults": st.just({"type": "D"})}),
    st.lists(VIDEO_ITEMS, min_size=1, max_size=3, unique_by=lambda item: item["id"].lower()),
)


def as_tasks(content: dict[str, Any]) -> tuple[VideoTask, ...]:
    """What the plain values of a valid manifest mean; written apart from the reader."""
    tasks = []
    for item in content["videos"]:
        questions = []
        for question in item["questions"]:
            truth = question.get("ground_truth")
            if truth is not None:
                ids = truth["object_ids"]
                truth = GroundTruth(
                    str(Path.cwd() / "masks"),
                    tuple(ids) if isinstance(ids, list) else (ids,),
                    truth.get("start"),
                    truth.get("end"),
                    truth.get("answer"),
                )
            kind = question.get("type", content.get("defaults", {}).get("type"))
            questions.append(Question(question["id"], question["text"], kind, truth))
        size = 5 if item["path"] == "a.mp4" else 0
        path = str(Path.cwd() / item["path"])
        times = (item.get("start"), item.get("end"), item.get("fps"))
        tasks.append(VideoTask(item["id"], path, tuple(questions), *times, size))
    return tuple(tasks)


@BOUNDED
@given(MANIFESTS, st.sampled_from([None, True, False]), st.booleans())
def test_safe_load_is_the_oracle(content: dict[str, Any], flow: bool | None, unicode: bool) -> None:
    text = yaml.safe_dump(content, default_flow_style=flow, allow_unicode=unicode, sort_keys=flow)
    assert without_lines(read(text)) == as_tasks(yaml.safe_load(text))


@BOUNDED
@given(MANIFESTS, st.booleans(), st.sampled_from([None, 2, "\t"]))
def test_all_formats_agree(content: dict[str, Any], ascii_only: bool, indent: Any) -> None:
    expected = as_tasks(content)
    assert without_lines(read(yaml.safe_dump(content))) == expected
    header = {name: value for name, value in content.items() if name != "videos"}
    assert without_lines(read(jsonl(header, *content["videos"]), "m.jsonl")) == expected
    text = json.dumps(content, ensure_ascii=ascii_only, indent=indent)
    assert without_lines(read(text, "m.json")) == expected


PLAIN = st.text("0123456789abcdefxyYnNoOtTrueE+-.:_ <=~", min_size=1, max_size=12)


@BOUNDED
@given(PLAIN)
def test_plain_scalars_are_read_as_safe_load_reads_them(scalar: str) -> None:
    try:
        loaded = yaml.safe_load(f"text: {scalar}")
    except (yaml.YAMLError, ValueError):
        return
    text = f"version: 1\nvideos:\n- id: v\n  path: a.mp4\n  questions:\n  - id: q\n    text: {scalar}\n"
    try:
        (task,) = read(text)
    except ManifestError:
        assert not isinstance(loaded.get("text"), str) or not loaded["text"].strip()
    else:
        assert task.questions[0].text == loaded["text"]


# Fuzz


def parses_or_explains(data: bytes, name: str) -> None:
    found: tuple[str, ...] = ()
    tasks: tuple[VideoTask, ...] = ()
    try:
        tasks = read(data, name)
    except ManifestError as error:
        found = error.problems
    assert bool(found) != bool(tasks)
    assert all(message.startswith(f"{name}:") and message.isprintable() for message in found)
    assert all(task.questions for task in tasks)


NAMES = st.sampled_from(["m.yaml", "m.json", "m.jsonl"])


@BOUNDED
@given(st.binary(max_size=200) | st.text("{}[]:,-?&*!|>'\"%@`# \n\tab1<\\", max_size=60).map(str.encode), NAMES)
def test_arbitrary_bytes(data: bytes, name: str) -> None:
    parses_or_explains(data, name)


SPLINTERS = st.sampled_from(
    [
        splinter.encode()
        for splinter in ("", *"\0\n\t\r{]\"'?\u2028", "  ", "&a ", "*a", "!x ", "<<: ", "- ", ": ", "---\n")
    ]
    + [splinter.encode() for splinter in ("null", "true", "-1", "1e999", ".nan", "9" * 5000, "\\ud800", "\\u0000")]
    + [b"\xff"]
)


@BOUNDED
@given(MANIFESTS, NAMES, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), SPLINTERS), min_size=1, max_size=4))
def test_mutated_manifests(content: dict[str, Any], name: str, cuts: list[tuple[float, int, bytes]]) -> None:
    if name == "m.yaml":
        data = yaml.safe_dump(content).encode()
    elif name == "m.json":
        data = json.dumps(content).encode()
    else:
        data = jsonl(*content["videos"]).encode()
    for place, dropped, splinter in cuts:
        at = int(place * len(data))
        data = data[:at] + splinter + data[at + dropped :]
    parses_or_explains(data, name)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("a.mp4"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@BOUNDED
@given(MANIFESTS, st.data())
def test_wrong_values_in_right_places(content: dict[str, Any], data: st.DataObject) -> None:
    content = copy.deepcopy(content)  # st.just hands out one and the same dict
    place: Any = content
    while isinstance(place, (dict, list)) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            place[key] = data.draw(VALUES)
            break
        place = place[key]
    parses_or_explains(yaml.safe_dump(content).encode("utf-8", "surrogatepass"), "m.yaml")
    parses_or_explains(json.dumps(content).encode(), "m.json")
    videos = content["videos"] if isinstance(content.get("videos"), list) else [content.get("videos")]
    parses_or_explains(jsonl(*videos).encode(), "m.jsonl")
