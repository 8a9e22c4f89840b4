"""Read a manifest, YAML or JSON Lines, into VideoTasks, and report everything that is wrong with it at once.

One validator serves both formats: `yaml_lines` turns either into values that know their line. Videos are looked up
(`os.stat`) and never opened.
"""

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from gmcli.data import GroundTruth, Question, VideoTask
from gmcli.errors import ManifestError
from gmcli.manifest_fields import (
    CONTROL_IN_TEXT,
    fields_of,
    id_of,
    items_of,
    number_of,
    object_ids_of,
    string_of,
    type_of,
    window_of,
)
from gmcli.manifest_paths import absolute, check_inside, is_inside, look_up, real_path
from gmcli.yaml_lines import (
    BROKEN,
    INTEGER,
    MAPPING,
    Node,
    Problems,
    Stop,
    load_yaml,
    quote,
    read_json_lines,
)

VERSION = 1
MAX_YAML_BYTES = 256 << 20
MAX_HELD_BYTES = 768 << 20  # what the questions may take in memory: two or three million short ones do
PLACEHOLDER = "<image>"  # the prompt puts the video there

_YAML_SUFFIXES = (".yaml", ".yml", ".json")
_JSONL_SUFFIXES = (".jsonl", ".ndjson")

_HEADER = ("version", "root", "defaults")
_YAML_TOP = ("version", "root", "defaults", "videos")
_VIDEO = ("id", "path", "start", "end", "fps", "questions")
_QUESTION = ("id", "text", "type", "ground_truth")
_GROUND_TRUTH = ("masks", "object_ids", "start", "end", "answer")

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
    fields = fields_of(problems, top, "the manifest", _YAML_TOP, required=("version", "videos"))
    scope = _scope(problems, path, fields, inside_root)
    return _videos(scope, items_of(problems, fields, "videos"))


def _read_jsonl(path: str | Path, stream: BinaryIO, problems: Problems, inside_root: bool) -> list[VideoTask]:
    nodes = read_json_lines(stream, problems)
    first = next(nodes, None)
    if first is None:
        if not problems:
            problems.add(1, "the manifest is empty")
        return []
    has_header = _is_header(first)
    fields = fields_of(problems, first, "the header", _HEADER, required=("version",)) if has_header else {}
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
        defaults = fields_of(problems, fields["defaults"], "'defaults'", ("type",), required=())
        default_type = type_of(problems, defaults)
    return _Scope(problems, root, default_type, inside)


def _videos(scope: _Scope, nodes: Iterable[Node]) -> list[VideoTask]:
    tasks = (_video(scope, node) for node in nodes)
    return [task for task in tasks if task is not None]


def _video(scope: _Scope, node: Node) -> VideoTask | None:
    """Return the task, or None; in that case, and in others, problems have been noted."""
    problems = scope.problems
    fields = fields_of(problems, node, "a video", _VIDEO, required=("id", "path", "questions"))
    video_id = id_of(problems, fields, "video", scope.video_ids)
    start, end = window_of(problems, fields)
    fps = number_of(problems, fields, "fps")
    if fps is not None and fps <= 0:
        problems.add(fields["fps"].at, f"'fps' must be greater than 0, not {fields['fps'].raw}")
    video, size = _video_path(scope, fields)
    if fps is not None and video is not None and size is not None:
        problems.add(fields["fps"].at, "'fps' is for folders of frames: a video file carries its own times")
    question_ids: dict[str, tuple[str, int]] = {}
    questions = [_question(scope, item, question_ids) for item in items_of(problems, fields, "questions")]
    if video_id is None or video is None:
        return None
    kept = tuple(question for question in questions if question is not None)
    scope.hold(node.line, _VIDEO_BYTES + sys.getsizeof(video))
    return VideoTask(video_id, video, kept, start, end, fps, size or 0, node.line)


def _question(scope: _Scope, node: Node, seen: dict[str, tuple[str, int]]) -> Question | None:
    problems = scope.problems
    fields = fields_of(problems, node, "a question", _QUESTION, required=("id", "text"))
    question_id = id_of(problems, fields, "question", seen)
    text = string_of(problems, fields, "text", forbidden=CONTROL_IN_TEXT)
    if text is not None and PLACEHOLDER in text:
        problems.add(fields["text"].at, f"'text' must not contain the reserved {PLACEHOLDER!r}")
    question_type = type_of(problems, fields) if "type" in fields else scope.default_type
    truth = _ground_truth(scope, fields["ground_truth"]) if "ground_truth" in fields else None
    if question_id is None or text is None:
        return None
    scope.hold(node.line, _QUESTION_BYTES + sys.getsizeof(text))
    return Question(question_id, text, question_type, truth, node.line)


def _ground_truth(scope: _Scope, node: Node) -> GroundTruth | None:
    problems = scope.problems
    fields = fields_of(problems, node, "'ground_truth'", _GROUND_TRUTH, required=("masks", "object_ids"))
    masks = _masks(scope, fields)
    object_ids = object_ids_of(problems, fields)
    start, end = window_of(problems, fields)
    answer = string_of(problems, fields, "answer", forbidden=CONTROL_IN_TEXT)
    if masks is None:
        return None
    scope.hold(node.line, _TRUTH_BYTES + sys.getsizeof(masks) + sys.getsizeof(answer) + 40 * len(object_ids))
    return GroundTruth(masks, object_ids, start, end, answer)


def _video_path(scope: _Scope, fields: dict[str, Node]) -> tuple[str | None, int | None]:
    """Return the video's absolute path and its size in bytes (None for a folder of frames)."""
    if string_of(scope.problems, fields, "path", forbidden=_NOT_IN_PATH) is None:
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
    if string_of(problems, fields, name, forbidden=_NOT_IN_PATH) is None:
        return None
    found = look_up(problems, fields[name], base, f"missing folder ({name!r})")
    if found is None:
        return None
    path, status = found
    if not stat.S_ISDIR(status.st_mode):
        problems.add(fields[name].at, f"not a folder ({name!r}): {quote(path, 1024)}")
        return None
    return path
