"""Leave run directories as `gmcli infer` does, over clips of shapes that move; no model takes part."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gmcli.data import GroundTruth, ItemResult, Question, TemporalSpan, VideoTask
from gmcli.items import write_item
from gmcli.ledger import RUN, Identity, Ledger
from gmcli.masks.rle import empty_rle, encode_rle
from gmcli.records import Record, inputs_of

IDENTITY = Identity(
    settings={
        "checkpoint": "groundmore/mora-ft-lisa7b",
        "visual_tokens": "pooled",
        "frames": 20,
        "mask_frames": "all",
        "formats": ["rle"],
        "dtype": "bf16",
        "max_new_tokens": 64,
    },
    decisive={"frames": 20},
    checkpoint_sha256="c0ffee" + "0" * 58,
)
COLOURS = ((214, 74, 60), (58, 110, 196), (236, 180, 60))
NAMES = ("red ball", "blue block", "yellow kite")
TEXTS = (
    ("Causal", "Who has to move aside before the {} can reach the other side?"),
    ("Sequential", "What does the {} do after it has passed the middle, and who is with it?"),
    ("Counterfactual", "Who needs to be passed, or else the {} could not get to the corner?"),
    ("Descriptive", "Which of the shapes moves as the {} does?"),
)


@dataclass(frozen=True)
class Scene:
    """A clip of three shapes on a lawn: `size` is (H, W)."""

    seed: int
    frames: int = 36
    size: tuple[int, int] = (180, 320)

    def place(self, shape: int, frame: int) -> tuple[float, float, float]:
        """Return the centre (x, y) and the radius of a shape."""
        height, width = self.size
        turn = 2 * np.pi * (frame / self.frames * (0.5 + 0.2 * shape) + 0.13 * self.seed + shape / 3)
        x, y = width * (0.5 + 0.36 * np.cos(turn)), height * (0.52 + 0.28 * np.sin(turn * (1 + 0.1 * (self.seed % 4))))
        return float(x), float(y), height * (0.09 + 0.015 * shape)

    def draw(self, image: Image.Image, shape: int, frame: int, fill: object) -> None:
        x, y, r = self.place(shape, frame)
        draw = ImageDraw.Draw(image)
        if shape == 0:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif shape == 1:
            draw.rounded_rectangle((x - r, y - r, x + r, y + r), r / 4, fill=fill)
        else:
            draw.polygon([(x, y - 1.3 * r), (x + r, y), (x, y + 1.3 * r), (x - r, y)], fill=fill)

    def picture(self, frame: int) -> Image.Image:
        height, width = self.size
        hue = np.array([(96, 124, 92), (120, 116, 104), (88, 112, 132), (124, 104, 112)][self.seed % 4], float)
        light = np.linspace(1.25, 0.7, height)[:, None, None] + 0.06 * (np.arange(width)[None, :, None] // 40 % 2)
        image = Image.fromarray(np.broadcast_to(hue * light, (height, width, 3)).clip(0, 255).astype(np.uint8))
        for shape in range(3):
            self.draw(image, shape, frame, COLOURS[shape])
        return image

    def mask(self, shape: int, frame: int) -> np.ndarray:
        image = Image.new("L", self.size[::-1], 0)
        self.draw(image, shape, frame, 255)
        return np.array(image) > 0

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the frames, and the true masks with objects 1 to 3; return their folders."""
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        for frame in range(self.frames):
            self.picture(frame).save(folder / "images" / f"frame_{frame:06}.jpg", quality=92)
            ids = Image.new("L", self.size[::-1], 0)
            for shape in range(3):
                self.draw(ids, shape, frame, shape + 1)
            ids.save(folder / "masks" / f"frame_{frame:06}.png")
        return folder / "images", folder / "masks"


def make_tasks(
    folder: Path, *, videos: int = 3, questions: int = 4, scenes: int = 8, truth: bool = True, frames: int = 36
) -> tuple[list[VideoTask], list[Scene]]:
    """Write the scenes, and return tasks that ask about them; several videos may share a scene's files."""
    drawn = [Scene(seed, frames=frames) for seed in range(min(scenes, videos))]
    places = [scene.write(folder / f"scene{scene.seed}") for scene in drawn]
    tasks = []
    for number in range(videos):
        images, masks = places[number % len(places)]
        asked = []
        for position in range(questions):
            kind, text = TEXTS[position % len(TEXTS)]
            start = round(0.5 + (number * 7 + position * 5) % 20 / 10, 2)
            ground = GroundTruth(
                str(masks), (position % 3 + 1,), start, start + 1.5 + position % 3 * 0.5, f"The {NAMES[position % 3]}."
            )
            asked.append(
                Question(f"q{position}", text.format(NAMES[(position + 1) % 3]), kind, ground if truth else None)
            )
        tasks.append(VideoTask(f"match{number:03}", str(images), tuple(asked), fps=6.0))
    return tasks, drawn


def answer(task: VideoTask, number: int, scene: Scene, *, every: int = 1) -> ItemResult:
    """Answer a question almost rightly: the mask lags behind by a frame, the window is a little off."""
    question = task.questions[number]
    start = int((2 + number * 5 + scene.seed * 3) % (scene.frames // 2))
    span = TemporalSpan(start, min(start + 10 + 3 * number % 7, scene.frames))
    frames = tuple(range(0, scene.frames, every))
    empty = empty_rle(scene.size)
    masks = tuple(
        encode_rle(scene.mask(number % 3, max(f - 1, 0)) | scene.mask(number % 3, f)) if f in span else empty
        for f in frames
    )
    names = tuple(f"frame_{f:06}" for f in frames)
    words = f"The {NAMES[number % 3]} [SEG] [LOC]."
    return ItemResult(task.id, question.id, "done", words, True, frames, names, masks, span, 0.62 + 0.07 * (number % 5))


def write_run(out: Path, tasks: list[VideoTask], scenes: list[Scene], *, formats=("rle",), spoil: bool = True) -> Path:
    """Leave the directory of a run that is still under way if `spoil`: some failed, named nobody, or are pending."""
    with Ledger.open(out, IDENTITY) as ledger:
        serial = 0
        for index, task in enumerate(tasks):
            for number, question in enumerate(task.questions):
                serial += 1
                result = answer(task, number, scenes[index % len(scenes)])
                if spoil and serial % 11 == 10:
                    continue
                if spoil and serial % 13 == 5:
                    error = (
                        f"{task.video}: corrupt: frame {serial % 40} could not be decoded"
                        if serial % 2
                        else "CUDA out of memory"
                    )
                    ledger.append(Record(task.id, question.id, "failed", inputs_of(task, question), error=error))
                    continue
                if spoil and serial % 7 == 3:
                    nothing = (empty_rle(scenes[0].size),) * len(result.masks)
                    result = replace(result, status="no_target", masks=nothing, score=None, answer="Nobody does.")
                sha256 = write_item(ledger.path, result, question, formats)
                ledger.append(Record(task.id, question.id, result.status, inputs_of(task, question), sha256=sha256))
        total = sum(len(task.questions) for task in tasks)
        write_run_file(out, len(tasks), total, "finished" if len(ledger.records) == total else "interrupted")
    return out


def write_run_file(out: Path, videos: int, questions: int, state: str) -> None:
    value = {
        "state": state,
        "totals": {"videos": videos, "questions": questions},
        "fingerprints": {"checkpoint": "c0ffee"},
        "started": "2026-11-21T02:00:05+00:00",
        "wall_seconds": 5423.118,
        "stage_seconds": {"decode": 312.4, "clip": 701.9, "llm": 2512.8, "sam": 1803.3},
        "counts": {"decoded_frames": 91214, "llm_prefixes": 412, "sam_frames": 60311},
        "workers": [{"device": "NVIDIA H100 80GB HBM3", "torch": "2.9.0"}] * 2,
        "versions": {"gmcli": "0.1.0", "python": "3.11.7", "torch": "2.9.0"},
        "host": "secret-host",
    }
    (out / RUN).write_text(json.dumps(value))


def write_manifest(path: Path, tasks: list[VideoTask]) -> Path:
    """Write the tasks as a JSONL manifest."""
    lines = [json.dumps({"version": 1})]
    for task in tasks:
        questions = []
        for q in task.questions:
            value = {"id": q.id, "text": q.text, "type": q.type}
            if q.ground_truth:
                t = q.ground_truth
                value["ground_truth"] = {"masks": t.masks, "object_ids": list(t.object_ids), "answer": t.answer}
                value["ground_truth"] |= {"start": t.start, "end": t.end}
            questions.append({k: v for k, v in value.items() if v is not None})
        video = {"id": task.id, "path": task.video, "questions": questions}
        lines.append(json.dumps(video | ({"fps": task.fps} if task.fps else {})))
    path.write_text("\n".join(lines) + "\n")
    return path
