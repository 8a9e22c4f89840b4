"""Keep a run's tasks in its directory, as a manifest of its own, so that the run can be scored without the first one."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gmcli.data import GroundTruth, Question, VideoTask
from gmcli.errors import ConfigError, ManifestError
from gmcli.ledger import MANIFEST
from gmcli.manifest import VERSION, read_manifest
from gmcli.text import json_text

KEPT_MANIFEST = MANIFEST


def manifest_content(tasks: Iterable[VideoTask]) -> bytes:
    """Write tasks as a JSONL manifest with absolute paths; equal tasks give equal bytes."""
    lines = ({"version": VERSION}, *map(_video, tasks))
    return b"".join(json_text(line).encode() + b"\n" for line in lines)


def read_kept_manifest(run: Path) -> tuple[VideoTask, ...]:
    """Read the tasks of the last run in a run directory.

    Raises ConfigError where the directory has none, and ManifestError as `read_manifest` does, for instance where the
    videos have been moved since.
    """
    path = run / KEPT_MANIFEST
    if not path.is_file():
        raise ConfigError(
            f"{run}: holds no {KEPT_MANIFEST}, which says what is true",
            "Name the manifest that the run was made from with --manifest, or run `gmcli infer` once more.",
        )
    try:
        return read_manifest(path)
    except ManifestError as error:
        raise ManifestError(error.problems, "Have the data been moved? Then use --manifest.") from None


def _video(task: VideoTask) -> dict[str, Any]:
    window = {"start": task.start, "end": task.end, "fps": task.fps}
    questions = [_question(question) for question in task.questions]
    return {"id": task.id, "path": task.video, **_known(window), "questions": questions}


def _question(question: Question) -> dict[str, Any]:
    optional = {"type": question.type, "ground_truth": _truth(question.ground_truth)}
    return {"id": question.id, "text": question.text, **_known(optional)}


def _truth(truth: GroundTruth | None) -> dict[str, Any] | None:
    if truth is None:
        return None
    optional = {"start": truth.start, "end": truth.end, "answer": truth.answer}
    return {"masks": truth.masks, "object_ids": list(truth.object_ids), **_known(optional)}


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
