"""Read a manifest, YAML or JSON Lines, into VideoTasks, and report everything that is wrong with it at once.

One validator serves both formats: `yaml_lines` turns either into values that know their line. Videos are looked up
(`os.stat`) and never opened.
"""

import math
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from gmcli.data import GroundTruth, Question, VideoTask
from gmcli.errors import ManifestError
from gmcli.manifest_paths import absolute, check_inside, is_inside, look_up, real_path
from gmcli.text import shorten
from gmcli.yaml_lines import (
    BOOLEAN,
    BROKEN,
    DATE,
    INTEGER,
    LIST,
    LONG_NUMBER,
    MAPPING,
    NULL,
    NUMBER,
    STRING,
    Node,
    Problems,
    Stop,
    load_yaml,
    quote,
    read_json_lines,
)

VERSION = 1
MAX_YAML_BYTES = 256 << 20
MAX_TYPE_CHARS = 64
MAX_HELD_BYTES = 768 << 20  # what the questions may take in memory: two or three million short ones do
MAX_OBJECT_ID = 2**31 - 1
PLACEHOLDER = "<image>"  # the prompt puts the video there

_YAML_SUFFIXES = (".yaml", ".yml", ".json")
_JSONL_SUFFIXES = (".jsonl", ".ndjson")

_HEADER = ("version", "root", "defaults")
_YAML_TOP = ("version", "root", "defaults", "videos")
_VIDEO = ("id", "path", "start", "end", "fps", "questions")
_QUESTION = ("id", "text", "type", "ground_truth")
_GROUND_TRUTH = ("masks", "object_ids", "start", "end", "answer")

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# C0 and C1 control characters, and halves of surrogate pairs, which no file can be written with.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_PATH = re.compile(r"[\x00\ud800-\udfff]")


# What these take besides their longer strings, measured on a million of them.
_VIDEO_BYTES = 400
_QUESTION_BYTES = 160
_TRUTH_BYTES = 200


def read_manifest(path: str | Path, *, inside_root: bool = False) -> tuple[VideoTask, ...]:
    """Read and validate the manifest at `path`: YAML (.yaml, .yml, .json) or one JSON object a line (.jsonl, .ndjson).

    Every file and folder that the manifest names is looked up; none is opened. Paths are relative to the manifest's
    `root`, which is relative to the manifest. Times are seconds.

    inside_root: refuse videos and masks that lie outside `root` once links are followed, folders with links that lead out
    of it, and a root outside the manifest's own folder. What is linked after this look is not seen.

    Raise ManifestError with every problem found, in file order, each as `file:line: message`.
    """
    problems = Problems()
    tasks: list[VideoTask] = []
    try:
        suffix = _suffix(path, problems)
        with Path(path).open("rb") as stream:
            if suffix in _YAML_SUFFIXES:
                tasks = _read_yaml(path, stream, problems, inside_root, is_json=suffix == ".json")
            else:
                tasks = _read_jsonl(path, stream, problems, inside_root)
    except Stop:
        pass  # the reason is among the problems
    except OSError as error:
        problems.add(0, error.strerror or str(error))
    if problems:
        raise ManifestError(problems.in_file_order(str(path)))
    return tuple(tasks)


def _suffix(path: str | Path, problems: Problems) -> str:
    """Return the manifest's extension. Raise Stop if it is unknown or the manifest is no file, OSError if missing."""
    suffix = Path(path).suffix.lower()
    try:
        mode = Path(path).stat().st_mode
    except ValueError as error:  # NUL, or a name that the file system's encoding cannot express
        problems.stop(0, f"not a possible file name: {error}")
    if not stat.S_ISREG(mode):  # reading a pipe would wait for its writer for ever
        problems.stop(0, "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")
    if suffix not in _YAML_SUFFIXES + _JSONL_SUFFIXES:
        problems.stop(0, f"unknown extension {quote(suffix)}: a manifest is .yaml, .yml, .json, .jsonl or .ndjson")
    return suffix


@dataclass(slots=True)
class _Scope:
    """What the videos of one manifest share."""

    problems: Problems
    root: str | None  # None: it is wrong, which has been said once; do not look for 50,000 videos in it
    default_type: str | None
    inside: str | None  # everything must lie in this folder, whose own path has no links
    video_ids: dict[str, tuple[str, int]] = field(default_factory=dict)
    held_bytes: int = 0

    def hold(self, line: int, size: int) -> None:
        """Count memory that stays taken; end the reading where it is too much."""
        self.held_bytes += size
        if self.held_bytes > MAX_HELD_BYTES:
            self.problems.stop(
                line, f"up to here takes more than {MAX_HELD_BYTES >> 20} MiB of memory: split the manifest"
            )


def _read_yaml(
    path: str | Path, stream: BinaryIO, problems: Problems, inside_root: bool, *, is_json: bool
) -> list[VideoTask]:
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_YAML_BYTES:
        problems.stop(0, f"larger than {MAX_YAML_BYTES >> 20} MiB: use JSONL (one video a line)")
    top = load_yaml(stream.read(size), problems, is_json=is_json)
    if top is None:
        problems.stop(1, "the manifest is empty")
    fields = _fields(problems, top, "the manifest", _YAML_TOP, required=("version", "videos"))
    scope = _scope(problems, path, fields, inside_root)
    return _videos(scope, _items(problems, fields, "videos"))


def _read_jsonl(path: str | Path, stream: BinaryIO, problems: Problems, inside_root: bool) -> list[VideoTask]:
    nodes = read_json_lines(stream, problems)
    first = next(nodes, None)
    if first is None:
        if not problems:
            problems.add(1, "the manifest is empty")
        return []
    has_header = _is_header(first)
    fields = _fields(problems, first, "the header", _HEADER, required=("version",)) if has_header else {}
    scope = _scope(problems, path, fields, inside_root)
    tasks = _videos(scope, _without_headers(nodes if has_header else chain([first], nodes), problems))
    if not tasks and not problems:
        problems.add(first.line, "no video follows the header")
    return tasks


def _without_headers(nodes: Iterable[Node], problems: Problems) -> Iterator[Node]:
    for node in nodes:
        if _is_header(node):  # somebody joined two manifests
            problems.add(node.line, "a header can only be the first line")
        else:
            yield node


def _is_header(node: Node) -> bool:
    return node.kind == MAPPING and "id" not in node.value and any(name in node.value for name in _HEADER)


def _scope(problems: Problems, manifest: str | Path, fields: dict[str, Node], inside_root: bool) -> _Scope:
    version = fields.get("version")
    if version is not None and version.kind != BROKEN and (version.kind != INTEGER or version.value != VERSION):
        problems.add(version.at, f"'version' must be {VERSION}, not {version}")
    folder = str(Path(absolute(str(manifest))).parent)
    root: str | None = folder
    inside = real_path(folder) if inside_root else None
    if "root" in fields:
        root = _folder(problems, fields, "root", folder)
        # The manifest's word alone must not open other folders: it is what is not trusted here.
        if root is not None and inside is not None:
            if is_inside(root, inside):
                inside = real_path(root)
            else:
                problems.add(fields["root"].at, f"'root' leads out of the manifest's folder: {quote(root, 1024)}")
                root = None
    default_type = None
    if "defaults" in fields:
        defaults = _fields(problems, fields["defaults"], "'defaults'", ("type",), required=())
        default_type = _type(problems, defaults)
    return _Scope(problems, root, default_type, inside)


def _videos(scope: _Scope, nodes: Iterable[Node]) -> list[VideoTask]:
    tasks = (_video(scope, node) for node in nodes)
    return [task for task in tasks if task is not None]


def _video(scope: _Scope, node: Node) -> VideoTask | None:
    """Return the task, or None; in that case, and in others, problems have been noted."""
    problems = scope.problems
    fields = _fields(problems, node, "a video", _VIDEO, required=("id", "path", "questions"))
    video_id = _id(problems, fields, "video", scope.video_ids)
    start, end = _window(problems, fields)
    fps = _number(problems, fields, "fps")
    if fps is not None and fps <= 0:
        problems.add(fields["fps"].at, f"'fps' must be greater than 0, not {fields['fps'].raw}")
    video, size = _video_path(scope, fields)
    if fps is not None and video is not None and size is not None:
        problems.add(fields["fps"].at, "'fps' is for folders of frames: a video file carries its own times")
    question_ids: dict[str, tuple[str, int]] = {}
    questions = [_question(scope, item, question_ids) for item in _items(problems, fields, "questions")]
    if video_id is None or video is None:
        return None
    kept = tuple(question for question in questions if question is not None)
    scope.hold(node.line, _VIDEO_BYTES + sys.getsizeof(video))
    return VideoTask(video_id, video, kept, start, end, fps, size or 0, node.line)


def _question(scope: _Scope, node: Node, seen: dict[str, tuple[str, int]]) -> Question | None:
    problems = scope.problems
    fields = _fields(problems, node, "a question", _QUESTION, required=("id", "text"))
    question_id = _id(problems, fields, "question", seen)
    text = _string(problems, fields, "text", forbidden=CONTROL_IN_TEXT)
    if text is not None and PLACEHOLDER in text:
        problems.add(fields["text"].at, f"'text' must not contain the reserved {PLACEHOLDER!r}")
    question_type = _type(problems, fields) if "type" in fields else scope.default_type
    truth = _ground_truth(scope, fields["ground_truth"]) if "ground_truth" in fields else None
    if question_id is None or text is None:
        return None
    scope.hold(node.line, _QUESTION_BYTES + sys.getsizeof(text))
    return Question(question_id, text, question_type, truth, node.line)


def _ground_truth(scope: _Scope, node: Node) -> GroundTruth | None:
    problems = scope.problems
    fields = _fields(problems, node, "'ground_truth'", _GROUND_TRUTH, required=("masks", "object_ids"))
    masks = _masks(scope, fields)
    object_ids = _object_ids(problems, fields)
    start, end = _window(problems, fields)
    answer = _string(problems, fields, "answer", forbidden=CONTROL_IN_TEXT)
    if masks is None:
        return None
    scope.hold(node.line, _TRUTH_BYTES + sys.getsizeof(masks) + sys.getsizeof(answer) + 40 * len(object_ids))
    return GroundTruth(masks, object_ids, start, end, answer)


# Fields. Each of these reports what is wrong and returns a value to go on with. A field that is absent, or BROKEN
# (which has been reported), says nothing more.


def _fields(
    problems: Problems, node: Node, what: str, known: tuple[str, ...], required: tuple[str, ...]
) -> dict[str, Node]:
    """Return the known fields of a mapping; report unknown ones and missing ones."""
    if node.kind != MAPPING:
        if node.kind != BROKEN:
            problems.add(node.at, f"{what} must be a mapping, not {node}")
        return {}
    fields: dict[str, Node] = node.value
    for name in required:
        if name not in fields:
            problems.add(node.line, f"{name!r} is missing in {what}")
    for name, value in fields.items():
        if name not in known:
            problems.add(value.at, f"unknown field {quote(name)} in {what}{_suggestion(name, known)}")
    return fields


@lru_cache(maxsize=1024)  # the same slip is often made in every line
def _suggestion(name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.7) if len(name) <= 40 else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def _wrong_kind(problems: Problems, name: str, node: Node, expected: str) -> None:
    if node.kind == BROKEN:
        return
    if node.kind == NULL:
        problems.add(node.at, f"{name!r} has no value")
        return
    quotable = expected == STRING and node.kind in (INTEGER, NUMBER, BOOLEAN, DATE, LONG_NUMBER)
    advice = ": put it in quotes" if quotable else ""
    problems.add(node.at, f"{name!r} must be {expected}, not {node}{advice}")


def _items(problems: Problems, fields: dict[str, Node], name: str) -> list[Node]:
    node = fields.get(name)
    if node is None:
        return []
    if node.kind != LIST:
        _wrong_kind(problems, name, node, LIST)
        return []
    items: list[Node] = node.value
    if not items:
        problems.add(node.at, f"{name!r} is empty")
    return items


def _string(problems: Problems, fields: dict[str, Node], name: str, forbidden: re.Pattern[str] = CONTROL) -> str | None:
    node = fields.get(name)
    if node is None:
        return None
    if node.kind != STRING:
        _wrong_kind(problems, name, node, STRING)
        return None
    value: str = node.value
    if not value.strip():
        problems.add(node.at, f"{name!r} is empty")
        return None
    bad = forbidden.search(value)
    if bad is not None:
        problems.add(node.at, f"{name!r} must not contain the character {bad.group()!r}: {quote(value)}")
        return None
    return value


def _id(problems: Problems, fields: dict[str, Node], what: str, seen: dict[str, tuple[str, int]]) -> str | None:
    node = fields.get("id")
    if node is None:
        return None
    if node.kind != STRING:
        _wrong_kind(problems, "id", node, STRING)
        return None
    value: str = node.value
    shown = f"{what} id {quote(value)}"
    if not value:
        problems.add(node.at, "'id' is empty")
    elif len(value) > 128:
        problems.add(node.at, f"{shown} is longer than 128 characters")
    elif _ID.fullmatch(value) is None:
        problems.add(node.at, f"{shown} may contain only A-Z, a-z, 0-9, '.', '_' and '-'")
    elif value.startswith("."):
        problems.add(node.at, f"{shown} must not start with '.'")
    elif ".." in value:
        problems.add(node.at, f"{shown} must not contain '..'")
    elif value.lower() in seen:
        first, line = seen[value.lower()]
        if first == value:
            problems.add(node.at, f"{shown} is used twice (first on line {line})")
        else:  # both would be written to one folder where the file system ignores case
            problems.add(node.at, f"{shown} differs only by letter case from {first!r} (line {line})")
    else:
        seen[value.lower()] = (value, node.at)
        return value
    return None


def _type(problems: Problems, fields: dict[str, Node]) -> str | None:
    value = _string(problems, fields, "type")
    if value is not None and len(value) > MAX_TYPE_CHARS:
        problems.add(fields["type"].at, f"'type' is longer than {MAX_TYPE_CHARS} characters: {quote(value)}")
    return value


def _number(problems: Problems, fields: dict[str, Node], name: str) -> float | None:
    node = fields.get(name)
    if node is None:
        return None
    if node.kind not in (INTEGER, NUMBER):
        _wrong_kind(problems, name, node, NUMBER)
        return None
    value = float(node.value)
    if not math.isfinite(value):
        problems.add(node.at, f"{name!r} must be a finite number, not {shorten(node.raw)}")
        return None
    return value


def _window(problems: Problems, fields: dict[str, Node]) -> tuple[float | None, float | None]:
    start = _number(problems, fields, "start")
    end = _number(problems, fields, "end")
    if start is not None and start < 0:
        problems.add(fields["start"].at, f"'start' must not be negative, not {shorten(fields['start'].raw)}")
    if end is not None and end <= max(start or 0.0, 0.0):
        after = fields["start"].raw if start is not None and start > 0 else "0"
        problems.add(
            fields["end"].at, f"'end' must be greater than 'start' ({shorten(after)}), not {shorten(fields['end'].raw)}"
        )
    return start, end


def _object_ids(problems: Problems, fields: dict[str, Node]) -> tuple[int, ...]:
    node = fields.get("object_ids")
    if node is None:
        return ()
    items = [node] if node.kind == INTEGER else _items(problems, fields, "object_ids")
    for item in items:
        if item.kind == BROKEN:
            continue
        if item.kind != INTEGER or not 0 <= item.value <= MAX_OBJECT_ID:
            problems.add(item.at, f"'object_ids' must be integers from 0 to {MAX_OBJECT_ID}, not {item}")
            break
    return tuple(item.value for item in items)


def _video_path(scope: _Scope, fields: dict[str, Node]) -> tuple[str | None, int | None]:
    """Return the video's absolute path and its size in bytes (None for a folder of frames)."""
    if _string(scope.problems, fields, "path", forbidden=_NOT_IN_PATH) is None:
        return None, None
    node = fields["path"]
    found = look_up(scope.problems, node, scope.root, "missing file")
    if found is None:
        return None, None
    path, status = found
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        scope.problems.add(node.at, f"neither a regular file nor a folder: {quote(path, 1024)}")
        return None, None
    if scope.inside is not None:
        check_inside(scope.problems, node, path, scope.inside)
    return path, None if stat.S_ISDIR(status.st_mode) else status.st_size


def _masks(scope: _Scope, fields: dict[str, Node]) -> str | None:
    """Return the absolute path of the folder of true masks."""
    path = _folder(scope.problems, fields, "masks", scope.root)
    if path is not None and scope.inside is not None:
        check_inside(scope.problems, fields["masks"], path, scope.inside)
        frames = Path(path).parent / "images"  # where the scores look for the masks' names
        if frames.is_dir():
            check_inside(scope.problems, fields["masks"], str(frames), scope.inside)
    return path


def _folder(problems: Problems, fields: dict[str, Node], name: str, base: str | None) -> str | None:
    if _string(problems, fields, name, forbidden=_NOT_IN_PATH) is None:
        return None
    found = look_up(problems, fields[name], base, f"missing folder ({name!r})")
    if found is None:
        return None
    path, status = found
    if not stat.S_ISDIR(status.st_mode):
        problems.add(fields[name].at, f"not a folder ({name!r}): {quote(path, 1024)}")
        return None
    return path
