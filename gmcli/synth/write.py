"""Write a MotionShapes dataset: GroundMoRe's layout, a real video file for each clip, and a manifest."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gmcli.datasets.groundmore import write_groundmore_manifest
from gmcli.errors import UsageError
from gmcli.synth.draw import draw, make_look
from gmcli.synth.questions import TYPES, Asked
from gmcli.synth.samples import Split, scene_with_questions, stream
from gmcli.synth.scene import FPS, FRAMES, SECONDS, Scene

PER_VIDEO = 6
ANNOTATIONS = "annotations.json"
MANIFEST = "manifest.yaml"
VIDEOS = "videos"

_JPEG_QUALITY = 92
# More than one thread, or frames looked at ahead, and equal frames give other bytes each time.
_H264 = {"crf": "16", "x264-params": "threads=1:lookahead-threads=1:sync-lookahead=0:rc-lookahead=0"}
# Background, then the things: any colours will do, what counts is the index.
_PALETTE = [0, 0, 0, 230, 90, 60, 60, 160, 90, 70, 110, 220, 220, 190, 60]


def write_dataset(
    folder: Path, *, seed: int, questions: int, split: Split = "test", progress: Callable[[int], None] | None = None
) -> int:
    """Write clips until they hold `questions` questions; return the number of clips.

    folder: must not exist, or be empty; it appears whole or not at all. Of each clip at most six questions are taken, of the
    type first that is rarest so far. Equal arguments give equal bytes.
    progress: called with the number of questions of each clip that is written.
    Raises UsageError where `folder` holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists already", "Name a folder that does not exist yet.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    annotations: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        work = Path(temporary) / "dataset"
        index = 0
        while counts.total() < questions:
            rng = stream(split, seed, index)
            facts, asked = scene_with_questions(rng)
            chosen = choose_questions(asked, counts, min(PER_VIDEO, questions - counts.total()), rng)
            clip = f"{split}{seed}-{index:05d}_0000_00{SECONDS:02d}"
            pixels, masks = draw(facts.scene, make_look(facts.scene, FRAMES, rng), range(FRAMES))
            _write_clip(work / VIDEOS / clip, pixels, masks)
            annotations[clip] = {
                "questions": {f"q{k}": _question(facts.scene, question) for k, question in enumerate(chosen)}
            }
            index += 1
            if progress is not None:
                progress(len(chosen))
        (work / ANNOTATIONS).write_text(json.dumps({"videos": annotations}, indent=1) + "\n", encoding="utf-8")
        write_groundmore_manifest(work, work / MANIFEST)
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    return len(annotations)


def choose_questions(asked: Sequence[Asked], counts: Counter[str], most: int, rng: np.random.Generator) -> list[Asked]:
    """Take at most `most` of the questions, each time of the type that is rarest in `counts`, and count them there."""
    left = [asked[i] for i in rng.permutation(len(asked))]
    chosen: list[Asked] = []
    while left and len(chosen) < most:
        best = min(left, key=lambda question: (counts[question.type], TYPES.index(question.type)))
        left.remove(best)
        chosen.append(best)
        counts[best.type] += 1
    return chosen


def _question(scene: Scene, asked: Asked) -> dict[str, str]:
    """Return a question as GroundMoRe's annotations have it."""
    return {
        "question": asked.text,
        "answer": scene.things[asked.answer].name,
        "obj_id": str(asked.answer + 1),
        "q_type": asked.type,
        "action_start": f"00:{asked.start:02d}",
        "action_end": f"00:{asked.end:02d}",
    }


def _write_clip(folder: Path, pixels: NDArray[np.uint8], masks: NDArray[np.uint8]) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number, (frame, mask) in enumerate(zip(pixels, masks, strict=True)):
        Image.fromarray(frame).save(folder / "images" / f"frame_{number:06d}.jpg", quality=_JPEG_QUALITY)
        indexed = Image.fromarray(mask).convert("P")
        indexed.putpalette(_PALETTE)
        indexed.save(folder / "masks" / f"frame_{number:06d}.png")
    write_video(folder / "video.mp4", pixels)


def write_video(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write RGB frames [T,H,W,3] as H.264 at FPS frames a second. H and W: even."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options=_H264)
        video.height, video.width = pixels.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.time_base = Fraction(1, FPS)
        for frame in pixels:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
