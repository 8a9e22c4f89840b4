"""The GroundMoRe importer: the golden dataset becomes a manifest, and every fault is named with its question."""

import json
import shutil
from pathlib import Path

import click
import pytest
import yaml

from gmcli.cli.manifest import manifest as manifest_command
from gmcli.data import GroundTruth
from gmcli.datasets.groundmore import write_groundmore_manifest
from gmcli.errors import ConfigError, ManifestError
from gmcli.manifest import read_manifest

DATASET = Path(__file__).parent.parent / "goldens" / "dataset"
CLIP = "abc_0012_0017"
GOOD = {
    "question": "Who moves?",
    "answer": "The cat",
    "obj_id": "1",
    "q_type": "Causal",
    "action_start": "00:13",
    "action_end": "00:16",
}


def golden_manifest(output: Path) -> Path:
    write_groundmore_manifest(DATASET, output, DATASET / "groundmore_test.json")
    return output


def layout(folder: Path, videos: dict, name: str = "test.json") -> Path:
    """Write a dataset; a video's folders are made where its id can be a folder's name."""
    for video in videos:
        if video and "/" not in video and len(video) < 200 and not video.startswith("."):
            (folder / "videos" / video / "images").mkdir(parents=True, exist_ok=True)
            (folder / "videos" / video / "masks").mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"videos": videos}))
    return folder


def one(folder: Path, **changes) -> Path:
    fields = {k: v for k, v in (GOOD | changes).items() if v is not None}
    return layout(folder, {CLIP: {"questions": {"0": fields}}})


def problems(folder: Path) -> list[str]:
    output = folder / "out.yaml"
    with pytest.raises(ManifestError) as caught:
        write_groundmore_manifest(folder, output)
    assert not output.exists()
    assert not list(folder.glob(".*"))
    prefix = f"{folder / 'test.json'}: "
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return [problem.removeprefix(prefix) for problem in caught.value.problems]


@pytest.mark.parametrize("suffix", [".yaml", ".jsonl"])
def test_the_golden_dataset(tmp_path, suffix):
    output = golden_manifest(tmp_path / f"m{suffix}")
    family, ball = read_manifest(output)
    videos = DATASET / "groundmore_videos"
    assert family.id == "famA1bcD_0012_0017"
    assert (family.video, family.fps) == (str(videos / family.id / "images"), 6)
    assert (family.start, family.end) == (None, None)
    masks = str(videos / family.id / "masks")
    assert [q.ground_truth for q in family.questions] == [
        GroundTruth(masks, (1,), 1, 4, "The man in the red shirt"),
        GroundTruth(masks, (2,), 0, 5, "The woman"),
        GroundTruth(masks, (3,), 2, 3, "The child"),
    ]
    assert [(q.id, q.type) for q in family.questions] == [("0", "Causal"), ("1", "Sequential"), ("2", "Counterfactual")]
    assert family.questions[0].text == "Who lifts the box to reach the shelf?"
    assert [(q.ground_truth.start, q.ground_truth.end) for q in ball.questions] == [(0, 8), (2, 5), (7, 8)]


def test_yaml_and_jsonl_say_the_same(tmp_path):
    golden_manifest(tmp_path / "m.yaml")
    golden_manifest(tmp_path / "m.ndjson")
    top = yaml.safe_load((tmp_path / "m.yaml").read_text())
    header, *videos = map(json.loads, (tmp_path / "m.ndjson").read_text().splitlines())
    assert top == header | {"videos": videos}


def test_a_manifest_above_the_videos_moves_with_them(tmp_path):
    (tmp_path / "data").mkdir()
    one(tmp_path / "data")
    write_groundmore_manifest(tmp_path / "data", tmp_path / "data" / "m.yaml")
    assert yaml.safe_load((tmp_path / "data" / "m.yaml").read_text())["root"] == "videos"
    shutil.move(tmp_path / "data", tmp_path / "moved")
    (task,) = read_manifest(tmp_path / "moved" / "m.yaml")
    assert task.video == str(tmp_path / "moved" / "videos" / CLIP / "images")


def test_videos_may_lie_beside_the_json(tmp_path):
    one(tmp_path)
    shutil.move(tmp_path / "videos" / CLIP, tmp_path / CLIP)
    assert write_groundmore_manifest(tmp_path, tmp_path / "m.yaml") == (1, 1)


@pytest.mark.parametrize(
    ("changes", "objects", "window"),
    [
        ({"obj_id": "1, 2"}, (1, 2), (1, 4)),
        ({"obj_id": " 3 ,3,10"}, (3, 10), (1, 4)),
        ({"obj_id": 7}, (7,), (1, 4)),
        ({"action_start": "0:00:12", "action_end": "0:00:17"}, (1,), (0, 5)),
        # Sloppy, and without effect on any score.
        ({"action_end": "00:20"}, (1,), (1, 8)),
    ],
)
def test_forms_of_objects_and_times(tmp_path, changes, objects, window):
    write_groundmore_manifest(one(tmp_path, **changes), tmp_path / "m.yaml")
    ((question,),) = (task.questions for task in read_manifest(tmp_path / "m.yaml"))
    truth = question.ground_truth
    assert (truth.object_ids, (truth.start, truth.end)) == (objects, window)


@pytest.mark.parametrize(("answer", "expected"), [("A  cat\t!", "A  cat\t!"), (None, None), (7, None), (" ", None)])
def test_answers_that_are_text_are_copied(tmp_path, answer, expected):
    write_groundmore_manifest(one(tmp_path, answer=answer), tmp_path / "m.yaml")
    ((question,),) = (task.questions for task in read_manifest(tmp_path / "m.yaml"))
    assert question.ground_truth.answer == expected


def test_an_answer_that_no_manifest_can_hold_is_named(tmp_path):
    (problem,) = problems(one(tmp_path, answer="The\x07cat"))
    assert "'answer' holds a control character" in problem


@pytest.mark.parametrize(
    ("clip", "start", "end", "window"),
    [
        ("a_b-_x_0130_0138", "01:32", "01:35", (2, 5)),
        ("abc_7510_7520", "1:15:11", "75:15", (1, 5)),
        ("abc_10000_10010", "1:00:01", "60:02", (1, 2)),
    ],
)
def test_clips_late_in_their_video(tmp_path, clip, start, end, window):
    question = GOOD | {"action_start": start, "action_end": end}
    layout(tmp_path, {clip: {"questions": {"0": question}}})
    write_groundmore_manifest(tmp_path, tmp_path / "m.yaml")
    ((question,),) = (task.questions for task in read_manifest(tmp_path / "m.yaml"))
    assert (question.ground_truth.start, question.ground_truth.end) == window


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"question": None}, "'question' is missing"),
        ({"question": " "}, "'question' is not text:  "),
        ({"question": "a <image> b"}, "'question' must not contain the reserved '<image>'"),
        ({"question": "a\x00b"}, r"'question' holds a control character: 'a\x00b'"),
        ({"question": "a\ud800b"}, r"'question' holds a control character: 'a\ud800b'"),
        ({"q_type": 3}, "'q_type' is not text: 3"),
        ({"q_type": "a\nb"}, r"'q_type' holds a control character: 'a\nb'"),
        ({"q_type": "t" * 65}, f"'q_type' is longer than 64 characters: {'t' * 65}"),
        ({"obj_id": "one"}, 'obj_id\' must be object numbers such as "1" or "1, 2", not one'),
        ({"obj_id": "0"}, "not 0"),
        ({"obj_id": "1,,2"}, "not 1,,2"),
        ({"obj_id": "²"}, "not ²"),
        ({"obj_id": True}, "not True"),
        ({"obj_id": "9999999999"}, "not 9999999999"),
        ({"obj_id": None}, "not None"),
        ({"action_start": None}, "'action_start' is missing"),
        ({"action_start": "13"}, "'action_start' is not MM:SS or H:MM:SS: 13"),
        ({"action_end": "00:61"}, "'action_end' is not MM:SS or H:MM:SS: 00:61"),
        ({"action_end": "0:61:01"}, "'action_end' is not MM:SS or H:MM:SS: 0:61:01"),
        ({"action_end": 16}, "'action_end' is not MM:SS or H:MM:SS: 16"),
        ({"action_end": "00:13"}, "'action_end' is not after 'action_start'"),
        ({"action_start": "00:11"}, f"'action_start' lies outside the clip that the id {CLIP} names"),
        ({"action_start": "00:17", "action_end": "00:18"}, "'action_start' lies outside the clip"),
    ],
)
def test_a_fault_is_named_with_its_question(tmp_path, changes, expected):
    (problem,) = problems(one(tmp_path, **changes))
    assert problem.startswith(f"{CLIP}/0: ")
    assert expected in problem


def test_all_faults_are_named_at_once(tmp_path):
    layout(
        tmp_path,
        {
            CLIP: {"questions": {"0": GOOD | {"obj_id": "x", "action_start": "?"}, "../1": GOOD, "2": []}},
            "ABC_0012_0017": {"questions": {"0": GOOD}},
            "../up_0012_0017": {"questions": {"0": GOOD}},
            "nope": {"questions": {"0": GOOD}},
            "gone_0012_0017": {"questions": {}},
            "late_0017_0012": 3,
        },
    )
    shutil.rmtree(tmp_path / "videos" / "gone_0012_0017" / "masks")
    found = problems(tmp_path)
    rule = "an id is 1 to 128 of A-Z, a-z, 0-9, '.', '_', '-', without '..' and '.' in front"
    no_times = "the id does not end in _MMSS_MMSS, the clip's start and end"
    assert found == [
        f"{CLIP}/0: 'action_start' is not MM:SS or H:MM:SS: ?",
        f'{CLIP}/0: \'obj_id\' must be object numbers such as "1" or "1, 2", not x',
        f"{CLIP}/../1: {rule}",
        f"{CLIP}/2: not an object",
        f"ABC_0012_0017: the id differs only by letter case from {CLIP}",
        f"../up_0012_0017: {rule}",
        f"nope: {no_times}",
        f"gone_0012_0017: missing folder {tmp_path / 'videos/gone_0012_0017/masks'}",
        "gone_0012_0017: has no questions",
        f"late_0017_0012: {no_times}",
        "late_0017_0012: has no questions",
    ]


@pytest.mark.parametrize("bad", ["", ".", "..", ".hidden", "a..b", "a/b", "a b", "é", "a" * 129, "a\n"])
def test_ids_that_the_manifest_does_not_allow(tmp_path, bad):
    layout(tmp_path, {CLIP: {"questions": {bad: GOOD}}, bad: {"questions": {"0": GOOD}}})
    assert len([p for p in problems(tmp_path) if "an id is 1 to 128 of" in p]) == 2


def test_a_key_that_is_there_twice(tmp_path):
    one(tmp_path)
    text = (tmp_path / "test.json").read_text()
    (tmp_path / "test.json").write_text(text.replace('"obj_id"', '"q_type": "x", "obj_id"'))
    assert problems(tmp_path) == ["the key q_type is there twice in one object"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1", "not JSON"),
        ("[" * 200_000, "not JSON"),
        ("\xff", "not JSON"),
        ("[]", "not GroundMoRe's annotations"),
        ('{"videos": {}}', "not GroundMoRe's annotations"),
        ('{"videos": {"a_0012_0013": {}}}', "holds none of the videos"),
    ],
)
def test_files_of_another_kind(tmp_path, text, expected):
    (tmp_path / "test.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=expected):
        write_groundmore_manifest(tmp_path, tmp_path / "m.yaml")


def test_folders_that_leave_a_choice(tmp_path):
    one(tmp_path)
    shutil.copytree(tmp_path / "videos", tmp_path / "videos2")
    with pytest.raises(ConfigError, match="several folders hold videos"):
        write_groundmore_manifest(tmp_path, tmp_path / "m.yaml")
    (tmp_path / "second.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"found: second\.json, test\.json"):
        write_groundmore_manifest(tmp_path, tmp_path / "m.yaml")
    assert write_groundmore_manifest(tmp_path / "videos", tmp_path / "m.yaml", tmp_path / "test.json") == (1, 1)


@pytest.mark.parametrize(
    ("folder", "output", "annotations"),
    [("gone", "m.yaml", None), (".", "m.txt", "test.json"), ("gone", "m.yaml", "test.json"), (".", "m.yaml", "gone")],
)
def test_paths_that_are_wrong(tmp_path, folder, output, annotations):
    one(tmp_path)
    with pytest.raises(ConfigError):
        write_groundmore_manifest(tmp_path / folder, tmp_path / output, annotations and tmp_path / annotations)


def test_what_only_the_manifest_refuses_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(path):
        raise ManifestError("no")

    monkeypatch.setattr("gmcli.datasets.groundmore.read_manifest", refuse)
    with pytest.raises(ManifestError, match="no"):
        write_groundmore_manifest(one(tmp_path), tmp_path / "m.yaml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test.json", "videos"]


def test_the_command(tmp_path):
    from click.testing import CliRunner

    output = tmp_path / "m.yaml"
    arguments = ["groundmore", str(DATASET), "-o", str(output), "--json", str(DATASET / "groundmore_test.json")]
    result = CliRunner().invoke(manifest_command, arguments)
    assert result.exit_code == 0, result.output
    assert result.output == f"{output}: 2 videos, 6 questions\n"
    assert isinstance(manifest_command, click.Group)
    assert len(read_manifest(output)) == 2
