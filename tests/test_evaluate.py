"""Scores equal those of the original scoring loop, and a run that cannot be scored is refused, never scored in part."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from gmcli.cli.evaluate import evaluate as eval_command
from gmcli.data import ItemResult, TemporalSpan
from gmcli.datasets.groundmore import write_groundmore_manifest
from gmcli.errors import ConfigError
from gmcli.evaluate import SAMPLES, evaluate, score_question, window_frames
from gmcli.items import write_item
from gmcli.ledger import Ledger
from gmcli.manifest import read_manifest
from gmcli.masks.rle import encode_rle
from gmcli.records import Record, inputs_of
from gmcli.video import sample_indices
from tests.fakes import IDENTITY

DATASET = Path(__file__).parent / "goldens" / "dataset"
VIDEOS = DATASET / "groundmore_videos"
EXPECTED: dict[str, Any] = json.loads((DATASET / "expected_scores.json").read_text())
QUESTIONS = {(q["video"], q["exp_id"]): q for q in EXPECTED["per_question"]}
OBJECTS = {
    (video, number): int(fields["obj_id"])
    for video, value in json.loads((DATASET / "groundmore_test.json").read_text())["videos"].items()
    for number, fields in value["questions"].items()
}

exactly = {"rel": 0, "abs": 1e-12}


def predicted(video: str, question: str) -> np.ndarray:
    with Image.open(DATASET / "predictions" / f"{video}__{question}.png") as image:
        stacked = np.array(image, dtype=bool)
    return stacked.reshape(20, -1, stacked.shape[1])


def true_masks(video: str, number: int, frames: list[int], size: tuple[int, int]) -> np.ndarray:
    """Read the truth without gmcli: one object, numbered frames, a missing file is empty."""
    masks = np.zeros((len(frames), *size), bool)
    for row, frame in enumerate(frames):
        path = VIDEOS / video / "masks" / f"frame_{frame:06}.png"
        if path.exists():
            with Image.open(path) as image:
                masks[row] = np.array(image) == number
    return masks


def golden_manifest(folder: Path) -> Path:
    write_groundmore_manifest(DATASET, folder / "m.yaml", DATASET / "groundmore_test.json")
    return folder / "m.yaml"


@pytest.fixture
def manifest(tmp_path) -> Path:
    return golden_manifest(tmp_path)


def write_run(out: Path, tasks, *, formats=("png", "rle"), without=(), failed=(), change=lambda result: result) -> Path:
    """Leave the run directory of a run that answered with the golden predictions on the sampled frames."""
    with Ledger.open(out, IDENTITY) as ledger:
        for task in tasks:
            names = sorted(p.stem for p in Path(task.video).iterdir())
            sampled = EXPECTED["windows"][f"{task.id}/0"]["sample_indices"]
            for question in task.questions:
                key = task.id, question.id
                if key in without:
                    continue
                if key in failed:
                    ledger.append(Record(*key, "failed", inputs_of(task, question), error="no"))
                    continue
                first, last = EXPECTED["windows"]["/".join(key)]["window_inclusive"]
                result = ItemResult(
                    *key,
                    "done",
                    frames=tuple(sampled),
                    names=tuple(names[frame] for frame in sampled),
                    masks=tuple(encode_rle(mask) for mask in predicted(*key)),
                    span=TemporalSpan(first, last + 1),
                )
                result = change(result)
                sha256 = write_item(out, result, question, formats)
                ledger.append(Record(*key, result.status, inputs_of(task, question), sha256))
    return out


def golden_means(question_type: str | None = None) -> dict[str, float]:
    chosen = [q for q in QUESTIONS.values() if question_type in (None, q["q_type"])]
    j, f = np.mean([q["J"] for q in chosen]), np.mean([q["F"] for q in chosen])
    return {"questions": len(chosen), "j": j, "f": f, "j_and_f": (j + f) / 2}


def masks_only(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in ("answer_accuracy", "ci95")}


def assert_golden(scores) -> None:
    for name, summary in (*scores["by_type"].items(), (None, scores["overall"])):
        for key, value in golden_means(name).items():
            assert summary[key] == pytest.approx(value, **exactly), (name, key)


# The protocol, on plain arrays


@pytest.mark.parametrize("key", QUESTIONS, ids="/".join)
def test_a_question_scores_as_in_the_original(key):
    facts = EXPECTED["windows"]["/".join(key)]
    frames = facts["sample_indices"]
    first, last = facts["window_inclusive"]
    prediction = predicted(*key)
    truth = true_masks(key[0], OBJECTS[key], frames, prediction.shape[1:])
    score = score_question(truth, prediction, frames, TemporalSpan(first, last + 1), TemporalSpan(first, last + 1))
    assert score.j == pytest.approx(QUESTIONS[key]["J"], **exactly)
    assert score.f == pytest.approx(QUESTIONS[key]["F"], **exactly)
    assert score.t_iou == 1


@pytest.mark.parametrize("key", QUESTIONS, ids="/".join)
def test_frames_and_windows_are_the_originals(key, manifest):
    facts = EXPECTED["windows"]["/".join(key)]
    assert list(sample_indices(0, facts["n_frames"], SAMPLES)) == facts["sample_indices"]
    (question,) = (q for t in read_manifest(manifest) for q in t.questions if (t.id, q.id) == key)
    window = window_frames(question.ground_truth.start, question.ground_truth.end, 6, facts["n_frames"])
    assert [window.start, window.end - 1] == facts["window_inclusive"]
    assert [f for f in facts["sample_indices"] if f in window] == facts["sampled_in_window"]


@pytest.mark.parametrize(
    ("start", "end", "count", "expected"),
    [
        (None, None, 30, (0, 30)),
        (1, None, 30, (6, 30)),
        (7 / 6, 11 / 6, 30, (7, 11)),  # whole frames, though 7 / 6 * 6 need not be 7
        (0.1 + 0.2, 0.5, 30, (2, 3)),
        (4, 9, 30, (24, 30)),
        (7, 9, 30, (30, 30)),
    ],
)
def test_windows_in_frames(start, end, count, expected):
    window = window_frames(start, end, 6, count)
    assert (window.start, window.end) == expected


def test_a_short_clip_repeats_frames():
    frames = sample_indices(0, 3, SAMPLES)
    assert len(frames) == 20
    assert set(frames) == {0, 1, 2}


def test_the_window_alone_is_scored_apart():
    truth, prediction = np.zeros((2, 4, 4, 4), bool)
    truth[:, :2] = True
    prediction[1, :2] = True
    window = TemporalSpan(10, 30)
    # Frames 0 and 40 lie outside: true masks there do not count, and emptiness is right.
    score = score_question(truth, prediction, [0, 10, 20, 40], window, TemporalSpan(10, 20))
    assert (score.j, score.f) == (0.75, 0.75)
    assert score.window_j_and_f == 0.5
    assert score.t_iou == 0.5


def test_no_sampled_frame_in_the_window():
    nothing = np.zeros((2, 4, 4), bool)
    score = score_question(nothing, nothing, [0, 10], TemporalSpan(3, 5), TemporalSpan(0, 0))
    assert (score.j, score.f, score.window_j_and_f, score.t_iou) == (1, 1, None, 0)


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="prediction is"):
        score_question(np.zeros((2, 4, 4), bool), np.zeros((2, 4, 5), bool), [0, 1], *[TemporalSpan(0, 1)] * 2)


# Whole runs


@pytest.mark.parametrize("formats", [("rle",), ("png",), ("png", "rle")])
def test_a_run_with_the_golden_predictions_gives_the_golden_table(tmp_path, manifest, formats):
    tasks = read_manifest(manifest)
    scores = evaluate(write_run(tmp_path / "run", tasks, formats=formats), tasks)
    assert_golden(scores)
    assert scores["missing"] == []
    assert list(scores["by_type"]) == ["Causal", "Sequential", "Counterfactual", "Descriptive"]
    assert scores["overall"]["t_iou"] == 1
    printed = re.findall(r"^Final (?:(\w+) )?(JF|J|F)\b.*: ([\d.]+)$", EXPECTED["printed_table"], re.MULTILINE)
    assert len(printed) == 15
    for name, metric, figure in printed:
        summary = scores["by_type"][name] if name else scores["overall"]
        assert f"{summary[{'J': 'j', 'F': 'f', 'JF': 'j_and_f'}[metric]]:.4f}" == figure


def test_the_figures_beside_the_protocols(tmp_path, manifest):
    tasks = read_manifest(manifest)
    scores = evaluate(write_run(tmp_path / "run", tasks), tasks)
    windows = []
    for key in QUESTIONS:
        facts = EXPECTED["windows"]["/".join(key)]
        frames, inside = facts["sample_indices"], facts["sampled_in_window"]
        prediction = predicted(*key)
        rows = [frames.index(frame) for frame in inside]
        truth = true_masks(key[0], OBJECTS[key], inside, prediction.shape[1:])
        whole = TemporalSpan(0, 100)
        alone = score_question(truth, prediction[rows], inside, whole, whole)
        windows.append((alone.j + alone.f) / 2)
    assert scores["overall"]["window_j_and_f"] == pytest.approx(np.mean(windows), **exactly)


def test_the_baselines(tmp_path, manifest):
    tasks = read_manifest(manifest)
    baselines = evaluate(write_run(tmp_path / "run", tasks), tasks)["baselines"]
    silent, full, lengths = [], [], []
    for key in QUESTIONS:
        facts = EXPECTED["windows"]["/".join(key)]
        first, last = facts["window_inclusive"]
        lengths.append((last - first + 1) / facts["n_frames"])
        size = predicted(*key).shape[1:]
        truth = true_masks(key[0], OBJECTS[key], facts["sampled_in_window"], size)
        # In the other frames the truth is empty; so it is where the object is not to be seen.
        silent.append(1 - truth.any(axis=(1, 2)).sum() / 20)
        full.append(truth.mean(axis=(1, 2)).sum() / 20)
    empty, every = baselines["all_empty"]["overall"], baselines["every_pixel"]["overall"]
    assert empty["j"] == pytest.approx(np.mean(silent), **exactly)
    assert empty["f"] == pytest.approx(np.mean(silent), **exactly)
    assert empty["t_iou"] == 0
    assert every["j"] == pytest.approx(np.mean(full), **exactly)
    assert every["t_iou"] == pytest.approx(np.mean(lengths), **exactly)
    assert (
        baselines["all_empty"]["by_type"].keys()
        == baselines["every_pixel"]["by_type"].keys()
        == {
            "Causal",
            "Sequential",
            "Counterfactual",
            "Descriptive",
        }
    )


def test_an_answer_without_a_target_has_an_empty_span(tmp_path, manifest):
    tasks = read_manifest(manifest)

    def nothing(result):
        empty = encode_rle(np.zeros(result.masks[0].size, bool))
        # A span beside it would not count.
        return replace(result, status="no_target", masks=(empty,) * 20)

    scores = evaluate(write_run(tmp_path / "run", tasks, change=nothing), tasks)
    assert masks_only(scores["overall"]) == masks_only(scores["baselines"]["all_empty"]["overall"])


def test_masks_of_all_frames_do_as_well(tmp_path, manifest):
    tasks = read_manifest(manifest)[:1]

    def spread(result):
        sampled = dict(zip(result.frames, result.masks, strict=True))
        empty = encode_rle(np.zeros(result.masks[0].size, bool))
        names = tuple(sorted(p.stem for p in Path(tasks[0].video).iterdir()))
        return replace(
            result, frames=tuple(range(30)), names=names, masks=tuple(sampled.get(i, empty) for i in range(30))
        )

    scores = evaluate(write_run(tmp_path / "run", tasks, change=spread), tasks)
    assert scores["by_type"]["Causal"]["j"] == pytest.approx(QUESTIONS["famA1bcD_0012_0017", "0"]["J"], **exactly)


LOST, FAILED = ("famA1bcD_0012_0017", "1"), ("ballX-9_z_0130_0138", "2")


def test_an_incomplete_run_is_refused_by_name(tmp_path, manifest):
    tasks = read_manifest(manifest)
    out = write_run(tmp_path / "run", tasks, without={LOST}, failed={FAILED})
    with pytest.raises(ConfigError) as caught:
        evaluate(out, tasks)
    assert caught.value.exit_code == 3
    assert caught.value.message.splitlines()[1:] == ["  famA1bcD_0012_0017/1", "  ballX-9_z_0130_0138/2"]
    scores = evaluate(out, tasks, allow_missing=True)
    assert scores["missing"] == ["famA1bcD_0012_0017/1", "ballX-9_z_0130_0138/2"]
    # Both Sequential questions are missing.
    silent = scores["baselines"]["all_empty"]["by_type"]["Sequential"]
    assert masks_only(scores["by_type"]["Sequential"]) == masks_only(silent)
    assert scores["by_type"]["Sequential"]["answer_accuracy"] == 0
    statuses = {f"{row['video']}/{row['question']}": row["status"] for row in scores["questions_table"]}
    assert sorted(name for name, status in statuses.items() if status == "missing") == sorted(scores["missing"])
    assert scores["by_type"]["Causal"]["j"] == pytest.approx(golden_means("Causal")["j"], **exactly)


def test_a_lost_item_is_missing(tmp_path, manifest):
    tasks = read_manifest(manifest)
    out = write_run(tmp_path / "run", tasks)
    (out / "items" / LOST[0] / f"{LOST[1]}.json").unlink()
    with pytest.raises(ConfigError, match=r"without an answer \(1\):\n  famA1bcD_0012_0017/1$"):
        evaluate(out, tasks)


def test_answers_to_other_questions_are_refused(tmp_path, manifest):
    out = write_run(tmp_path / "run", read_manifest(manifest))
    manifest.write_text(manifest.read_text().replace("Who lifts the box", "Who drops the box"))
    with pytest.raises(ConfigError, match=r"other questions under the same ids:\n  famA1bcD_0012_0017/0$"):
        evaluate(out, read_manifest(manifest), allow_missing=True)


def test_a_changed_item_is_refused(tmp_path, manifest):
    tasks = read_manifest(manifest)
    out = write_run(tmp_path / "run", tasks)
    path = out / "items" / LOST[0] / "1.json"
    path.write_text(path.read_text().replace("done", "DONE"))
    with pytest.raises(ConfigError, match=r"1\.json: cannot be read \(its content differs"):
        evaluate(out, tasks)


def test_masks_that_do_not_fit_are_refused(tmp_path, manifest):
    tasks = read_manifest(manifest)
    small = encode_rle(np.zeros((6, 8), bool))
    cases = {
        "is (6, 8), the frame (144, 256)": lambda r: replace(r, masks=(small,) * 20),
        "has no mask of frame 3": lambda r: replace(r, frames=(0, 1, 2), names=r.names[:3], masks=r.masks[:3]),
        "in the clip it is 'frame_000000'": lambda r: replace(r, names=("x", *r.names[1:])),
    }
    for number, (message, change) in enumerate(cases.items()):
        out = write_run(tmp_path / f"run{number}", tasks, formats=("rle",), change=change)
        with pytest.raises(ConfigError) as caught:
            evaluate(out, tasks)
        assert message in caught.value.message


def test_lost_mask_files_are_refused(tmp_path, manifest):
    tasks = read_manifest(manifest)
    out = write_run(tmp_path / "run", tasks, formats=("png",))
    (out / "masks" / LOST[0] / LOST[1] / "frame_000003.png").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        evaluate(out, tasks)


def test_what_is_no_run_is_refused(tmp_path, manifest):
    with pytest.raises(ConfigError, match="not a run directory"):
        evaluate(tmp_path, read_manifest(manifest))


# The truth


def small_dataset(folder: Path, *, mask: Image.Image | None = None, name: str = "frame_2.png") -> Path:
    """Write a clip of 12 frames of 8 x 6, numbered without leading zeros, with the mask of one frame."""
    for part in ("images", "masks"):
        (folder / "clip" / part).mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (8, 6)).save(folder / "clip" / "images" / f"frame_{number}.jpg")
    if mask is not None:
        mask.save(folder / "clip" / "masks" / name)
    truth = {"masks": "clip/masks", "object_ids": [1, 3], "start": 0, "end": 1}
    question = {"id": "q", "text": "Who?", "ground_truth": truth}
    video = {"id": "clip", "path": "clip/images", "fps": 6, "questions": [question]}
    (folder / "m.yaml").write_text(json.dumps({"version": 1, "videos": [video]}))
    return folder / "m.yaml"


def silent_scores(manifest: Path) -> dict[str, Any]:
    """Score a run that answered nothing."""
    tasks = read_manifest(manifest)
    with Ledger.open(manifest.parent / "run", IDENTITY):
        pass
    return evaluate(manifest.parent / "run", tasks, allow_missing=True)


def indexed(*numbers: int, size=(8, 6)) -> Image.Image:
    image = Image.new("P", size)
    image.putpalette([i % 256 for i in range(768)])
    for x, number in enumerate(numbers):
        image.putpixel((x + 1, 2), number)
    return image


def test_several_objects_are_one_truth_and_frames_are_in_natural_order(tmp_path):
    scores = silent_scores(small_dataset(tmp_path, mask=indexed(1, 2, 3)))
    # Frame 2 of 12 is sampled once or twice among the 20; sorted as text, frame_2 would be the fifth.
    seen = sample_indices(0, 12, SAMPLES).count(2)
    assert scores["overall"]["j"] == pytest.approx(1 - seen / 20, **exactly)
    full = scores["baselines"]["every_pixel"]["overall"]["j"]
    assert full == pytest.approx(seen * 2 / 48 / 20, **exactly)
    assert list(scores["by_type"]) == ["untyped"]


def test_no_masks_at_all_is_an_empty_truth(tmp_path):
    scores = silent_scores(small_dataset(tmp_path))
    assert scores["overall"]["j"] == 1


@pytest.mark.parametrize(
    ("mask", "name", "expected"),
    [
        (Image.new("RGB", (8, 6)), "frame_2.png", "its pixels are RGB, not indices"),
        (indexed(1, size=(9, 6)), "frame_2.png", r"it is \(6, 9\), the frame \(6, 8\)"),
        (indexed(1), "frame_000002.png", "no mask is named after a frame"),
    ],
)
def test_truth_that_does_not_fit_is_refused(tmp_path, mask, name, expected):
    manifest = small_dataset(tmp_path, mask=mask, name=name)
    with pytest.raises(ConfigError, match=expected):
        silent_scores(manifest)


def test_a_damaged_mask_is_refused(tmp_path):
    manifest = small_dataset(tmp_path)
    (tmp_path / "clip" / "masks" / "frame_2.png").write_bytes(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot be read as a mask"):
        silent_scores(manifest)


def test_frames_that_cannot_be_read_are_refused(tmp_path):
    manifest = small_dataset(tmp_path)
    (tmp_path / "clip" / "images" / "frame_0.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"frame_0\.jpg: the image cannot be read"):
        silent_scores(manifest)
    for path in (tmp_path / "clip" / "images").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="a folder without images"):
        silent_scores(manifest)


def test_manifests_that_cannot_be_scored_are_refused(tmp_path):
    manifest = small_dataset(tmp_path)
    top = json.loads(manifest.read_text())
    (tmp_path / "a.mp4").write_bytes(b"x")
    top["videos"][0]["end"] = 1
    top["videos"] += [{"id": "file", "path": "a.mp4", "questions": [{"id": "q", "text": "Who?"}]}]
    manifest.write_text(json.dumps(top))
    with pytest.raises(ConfigError) as caught:
        silent_scores(manifest)
    assert caught.value.message.splitlines()[1:] == [
        "  clip: 'start' or 'end' is set; the protocol scores whole clips",
        f"  file: {tmp_path / 'a.mp4'} is not a folder of frames, whose names the true masks have, "
        "nor is there a folder 'images' beside the masks, or a mask for every frame",
        "  file/q: has no ground truth",
    ]


# The command


def test_the_command_prints_a_table_and_writes_json(tmp_path, manifest):
    tasks = read_manifest(manifest)
    out = write_run(tmp_path / "run", tasks, without={LOST})
    runner = CliRunner()
    refused = runner.invoke(eval_command, [str(out), "--manifest", str(manifest)])
    assert isinstance(refused.exception, ConfigError)
    arguments = [str(out), "--manifest", str(manifest), "--json", str(tmp_path / "x" / "s.json"), "--allow-missing"]
    arguments += ["--workers", "1"]
    result = runner.invoke(eval_command, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "x" / "s.json").read_text()) == evaluate(out, tasks, allow_missing=True)
    lines = result.output.splitlines()
    row = next(line for line in lines if line.startswith("  Causal"))
    assert row.split()[:5] == ["Causal", "2", "39.58", "42.03", "40.80"]
    baselines = [line.split()[1] for line in lines if line.startswith("baseline")]
    assert baselines == ["all_empty", "every_pixel", "random_object"]
    assert "1 without an answer, counted as empty:\n  famA1bcD_0012_0017/1" in result.output
    assert "reward silence" in result.output
    widths = {len(line) for line in lines[: lines.index("1 without an answer, counted as empty:")] if "  " in line}
    assert len(widths) == 1, "the columns line up"


def test_a_figure_that_does_not_exist_is_a_dash(tmp_path):
    # No frame lies in this window: both spans are empty.
    manifest = small_dataset(tmp_path)
    manifest.write_text(manifest.read_text().replace('"start": 0, "end": 1', '"start": 0.17, "end": 0.3'))
    silent_scores(manifest)
    result = CliRunner().invoke(eval_command, [str(tmp_path / "run"), "--manifest", str(manifest), "--allow-missing"])
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if line.startswith("  untyped"))
    assert row.split() == ["untyped", "1", "100.00", "100.00", "100.00", "–", "100.00", "–"]
