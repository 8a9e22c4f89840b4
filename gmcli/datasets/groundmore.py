"""Turn a GroundMoRe folder, real or synthetic, into a manifest with ground truth.

The annotations are one JSON file, {"videos": {vid: {"questions": {qid: {question, answer, obj_id, q_type, action_start,
action_end}}}}}, where the answer may be missing; the frames lie in <videos>/<vid>/images, the indexed masks in
<videos>/<vid>/masks. A clip is called <ytid>_MMSS_MMSS after its start and end in the source video, on whose clock the
actions are timed, too.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gmcli.data import is_id
from gmcli.errors import ConfigError, ManifestError
from gmcli.manifest import PLACEHOLDER, VERSION, read_manifest
from gmcli.manifest_fields import CONTROL, CONTROL_IN_TEXT, MAX_OBJECT_ID, MAX_TYPE_CHARS
from gmcli.text import json_text, shorten

FPS = 6
MAX_JSON_BYTES = 256 << 20

_YAML_SUFFIXES = (".yaml", ".yml")
_JSONL_SUFFIXES = (".jsonl", ".ndjson")


_CLIP = re.compile(r".+_([0-9]{0,2})([0-9]{2})([0-9]{2})_([0-9]{0,2})([0-9]{2})([0-9]{2})")
_TIME = re.compile(r"(?:([0-9]{1,2}):)?([0-9]{1,2}):([0-9]{2})")
_OBJECTS = re.compile(r"\s*[0-9]{1,10}\s*(,\s*[0-9]{1,10}\s*)*")


def write_groundmore_manifest(folder: Path, output: Path, annotations: Path | None = None) -> tuple[int, int]:
    """Write the manifest of a GroundMoRe `folder` to `output`, YAML or JSONL by its extension, replacing an older one.

    annotations: the JSON file; None takes the only one in `folder`. The videos lie in `folder` or in one folder in it.
    Returns the numbers of videos and questions. Raises ConfigError for a folder that is not of this layout, ManifestError
    with every problem found in it, each named with its video and question; then nothing is written.

    Source: the data format of dengandong/GroundMoRe.
    """
    suffix = output.suffix.lower()
    if suffix not in _YAML_SUFFIXES + _JSONL_SUFFIXES:
        raise ConfigError(f"{output}: a manifest is .yaml, .yml, .jsonl or .ndjson")
    annotations = annotations or _only_json(folder)
    problems: list[str] = []
    described = _read_json(annotations, problems)
    root = _videos_folder(folder, annotations, described)
    videos = list(_videos(described, root, problems))
    if problems:
        raise ManifestError([f"{annotations}: {problem}" for problem in problems])
    header = {"version": VERSION, "root": _root(root, output)}
    _write(output, _to_jsonl(header, videos) if suffix in _JSONL_SUFFIXES else _to_yaml(header, videos))
    return len(videos), sum(len(video["questions"]) for video in videos)


def _only_json(folder: Path) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder")
    found = sorted(folder.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:8]) or "none"
        raise ConfigError(f"{folder}: one JSON file is wanted, found: {names}", "Name the annotations with --json.")
    return found[0]


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the annotations' videos; note keys that are there twice, of which JSON readers drop one."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                problems.append(f"the key {_shown(key)} is there twice in one object")
            found[key] = value
        return found

    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB, so not GroundMoRe's annotations")
        value = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    videos = value.get("videos") if isinstance(value, dict) else None
    if not isinstance(videos, dict) or not videos:
        raise ConfigError(f'{path}: not GroundMoRe\'s annotations, which are {{"videos": {{id: …}}}}')
    return videos


def _videos_folder(folder: Path, annotations: Path, described: dict[str, Any]) -> Path:
    """Find the folder that holds the clips: `folder` itself, or the one folder in it that does."""
    candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    found = [path for path in candidates if any(entry.name in described for entry in path.iterdir())]
    if not found:
        raise ConfigError(
            f"{folder}: holds none of the videos that {annotations} names", "Is it another split's folder?"
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path in found[:8])
        raise ConfigError(f"{folder}: several folders hold videos: {names}", "Give one of them, and --json.")
    return found[0]


def _videos(described: dict[str, Any], root: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield each video as the manifest has it, and note everything that is wrong."""
    seen: dict[str, str] = {}
    for video, value in described.items():
        name = _shown(video)
        if not _good_id(video, name, seen, problems):
            continue
        clip = _clip_times(video)
        if clip is None:
            problems.append(f"{name}: the id does not end in _MMSS_MMSS, the clip's start and end")
        for part in ("images", "masks"):
            if not (root / video / part).is_dir():
                problems.append(f"{name}: missing folder {root / video / part}")
        questions = value.get("questions") if isinstance(value, dict) else None
        if not isinstance(questions, dict) or not questions:
            problems.append(f"{name}: has no questions")
            continue
        ids: dict[str, str] = {}
        yield {
            "id": video,
            "path": f"{video}/images",
            "fps": FPS,
            "questions": [_question(video, q, fields, clip, ids, problems) for q, fields in questions.items()],
        }


def _question(
    video: str, question: str, fields: Any, clip: tuple[int, int] | None, ids: dict[str, str], problems: list[str]
) -> dict[str, Any]:
    """Return a question as the manifest has it; where something is wrong it is noted, and the value means nothing."""
    name = f"{_shown(video)}/{_shown(question)}"
    _good_id(question, name, ids, problems)
    if not isinstance(fields, dict):
        problems.append(f"{name}: not an object")
        return {}
    start, end = (_time(fields, field, name, problems) for field in ("action_start", "action_end"))
    if start is not None and end is not None and clip is not None:
        if end <= start:
            problems.append(f"{name}: 'action_end' is not after 'action_start'")
        elif start < clip[0] or start >= clip[1]:
            problems.append(f"{name}: 'action_start' lies outside the clip that the id {_shown(video)} names")
        # An end beyond the clip's is a sloppy annotation that changes no score: there are no frames to score.
        start, end = start - clip[0], end - clip[0]
    text = _text(fields, "question", name, CONTROL_IN_TEXT, problems)
    if PLACEHOLDER in text:
        problems.append(f"{name}: 'question' must not contain the reserved {PLACEHOLDER!r}")
    question_type = _text(fields, "q_type", name, CONTROL, problems)
    if len(question_type) > MAX_TYPE_CHARS:
        problems.append(f"{name}: 'q_type' is longer than {MAX_TYPE_CHARS} characters: {_shown(question_type)}")
    objects = _object_ids(fields.get("obj_id"), name, problems)
    truth = {"masks": f"{video}/masks", "object_ids": objects, "start": start, "end": end}
    answer = fields.get("answer")
    # Scores of masks do not need it, so a file without answers is as good.
    if isinstance(answer, str) and answer.strip():
        truth["answer"] = _text(fields, "answer", name, CONTROL_IN_TEXT, problems)
    return {"id": question, "text": text, "type": question_type, "ground_truth": truth}


def _good_id(value: str, name: str, seen: dict[str, str], problems: list[str]) -> bool:
    """Ask whether the manifest allows an id. File systems may ignore case, so the manifest does too.

    The manifest's rules are repeated here to name the question; `read_manifest` has the last word.
    """
    if not is_id(value):
        problems.append(f"{name}: an id is 1 to 128 of A-Z, a-z, 0-9, '.', '_', '-', without '..' and '.' in front")
        return False
    first = seen.setdefault(value.lower(), value)
    if first != value:
        problems.append(f"{name}: the id differs only by letter case from {_shown(first)}")
        return False
    return True


def _text(fields: dict[str, Any], field: str, name: str, forbidden: re.Pattern[str], problems: list[str]) -> str:
    value = fields.get(field)
    if not isinstance(value, str) or not value.strip():
        problems.append(f"{name}: {field!r} is {_state(fields, field, 'text')}")
        return ""
    if forbidden.search(value):
        problems.append(f"{name}: {field!r} holds a control character: {_shown(value)}")
    return value


def _object_ids(value: Any, name: str, problems: list[str]) -> list[int]:
    text = str(value) if type(value) is int else value
    if isinstance(text, str) and text.isascii() and _OBJECTS.fullmatch(text):
        ids = list(dict.fromkeys(int(part) for part in text.split(",")))
        # In the masks 0 is the background.
        if all(1 <= number <= MAX_OBJECT_ID for number in ids):
            return ids
    problems.append(f'{name}: \'obj_id\' must be object numbers such as "1" or "1, 2", not {_shown(value)}')
    return []


def _time(fields: dict[str, Any], field: str, name: str, problems: list[str]) -> int | None:
    value = fields.get(field)
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    seconds = _seconds(*match.groups()) if match else None
    if seconds is None:
        problems.append(f"{name}: {field!r} is {_state(fields, field, 'MM:SS or H:MM:SS')}")
    return seconds


def _clip_times(video: str) -> tuple[int, int] | None:
    """Read the clip's start and end, in seconds of the source video, off its id."""
    match = _CLIP.fullmatch(video)
    if match is None:
        return None
    start, end = _seconds(*match.groups()[:3]), _seconds(*match.groups()[3:])
    return (start, end) if start is not None and end is not None and start < end else None


def _seconds(hours: str | None, minutes: str, seconds: str) -> int | None:
    # Without hours the minutes may go on past 59.
    if int(seconds) > 59 or (hours and int(minutes) > 59):
        return None
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)


def _state(fields: dict[str, Any], field: str, wanted: str) -> str:
    return f"not {wanted}: {_shown(fields[field])}" if field in fields else "missing"


def _shown(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return shorten(text, 80)


def _root(videos: Path, output: Path) -> str:
    """Name the videos' folder relative to a manifest above it, so that both can be moved together."""
    videos, base = videos.resolve(), output.resolve().parent
    return str(videos.relative_to(base)) if videos.is_relative_to(base) else str(videos)


def _to_jsonl(header: dict[str, Any], videos: list[dict[str, Any]]) -> str:
    return "".join(json_text(line) + "\n" for line in (header, *videos))


def _to_yaml(header: dict[str, Any], videos: list[dict[str, Any]]) -> str:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(header | {"videos": videos}, Dumper=dumper, sort_keys=False, allow_unicode=True, width=1000))


def _write(output: Path, content: str) -> None:
    """Put the manifest at `output` once `read_manifest` has accepted it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, because `root` is relative to the manifest.
    draft = output.with_name(f".{output.stem}-{os.getpid()}{output.suffix}")
    try:
        draft.write_text(content, encoding="utf-8")
        read_manifest(draft)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
