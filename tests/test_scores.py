"""What stands beside the protocol's figures: true answers, baselines, intervals; each against a second opinion."""

import hashlib
import re
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gmcli.data import TemporalSpan
from gmcli.errors import ConfigError
from gmcli.evaluate import (
    METRICS,
    answer_accuracy,
    draw_object,
    evaluate,
    interval95,
    normalise_answer,
    score_question,
    score_uniform,
)
from gmcli.manifest import read_manifest
from tests.test_evaluate import EXPECTED, OBJECTS, QUESTIONS, VIDEOS, golden_manifest, true_masks, write_run

exactly = {"rel": 0, "abs": 1e-12}


@pytest.fixture
def manifest(tmp_path) -> Path:
    return golden_manifest(tmp_path)


# Words


def squad(text: str) -> str:
    """normalize_answer of SQuAD's evaluate-v1.1.py, from its description: lower, punctuation, articles, spaces."""
    text = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(st.text(st.sampled_from("aAn the T-'.,!+=$ \t\nmx7é"), max_size=30))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_answers_are_normalised_as_in_squad(text):
    assert normalise_answer(text) == squad(text)


@pytest.mark.parametrize(
    ("answer", "truth", "accuracy"),
    [
        ("The man in the red shirt [SEG].", "man in red shirt", 1),
        ("[LOC] [SEG] The Woman!", "the woman", 1),
        ("It is [SEG]", "It is", 1),
        ("“The cat”…", "cat", 1),
        ("The\n child", "a child", 1),
        ("Theo", "o", 0),
        ("man's", "man", 0),
        ("It is the man", "man", 0),
        ("", "a", 1),
        (None, "a", 0),
        ("x", None, None),
        (None, None, None),
    ],
)
def test_accuracy_is_equality_of_normalised_answers(answer, truth, accuracy):
    assert answer_accuracy(truth, answer) == accuracy


# Baselines


@pytest.mark.parametrize("seed", range(20))
def test_uniform_answers_score_as_their_masks_would(seed):
    generator = np.random.default_rng(seed)
    truth = generator.random((6, 9, 13)) < generator.choice([0, 0.03, 0.4, 1], 6)[:, None, None]
    frames, window = [0, 3, 6, 9, 12, 15], TemporalSpan(int(generator.integers(0, 8)), int(generator.integers(8, 20)))
    for full, span in ((False, TemporalSpan(0, 0)), (True, TemporalSpan(0, 20))):
        prediction = np.full_like(truth, full)
        assert score_uniform(truth, frames, window, span, full=full) == score_question(
            truth, prediction, frames, window, span
        )


def all_numbers(video: str) -> list[int]:
    """Read the objects of all of a clip's frames without gmcli."""
    found: set[int] = set()
    for path in (VIDEOS / video / "masks").glob("*.png"):
        with Image.open(path) as image:
            found |= set(np.unique(np.array(image)).tolist())
    return sorted(found - {0})


def test_the_random_object(tmp_path, manifest):
    tasks = read_manifest(manifest)
    got = evaluate(write_run(tmp_path / "run", tasks), tasks)["baselines"]["random_object"]
    scores, right = [], []
    for video, question in QUESTIONS:
        facts = EXPECTED["windows"][f"{video}/{question}"]
        numbers = all_numbers(video)
        drawn = numbers[int(hashlib.sha256(f"{video}/{question}".encode()).hexdigest(), 16) % len(numbers)]
        right.append(drawn == OBJECTS[video, question])
        frames, size = (
            facts["sample_indices"],
            np.array(Image.open(next((VIDEOS / video / "masks").glob("*.png")))).shape,
        )
        first, last = facts["window_inclusive"]
        truth = true_masks(video, OBJECTS[video, question], frames, size)
        answer = true_masks(video, drawn, frames, size)
        window, whole = TemporalSpan(first, last + 1), TemporalSpan(0, facts["n_frames"])
        scores.append(score_question(truth, answer, frames, window, whole))
    for name in ("j", "f", "window_j_and_f", "t_iou"):
        assert got["overall"][name] == pytest.approx(np.mean([getattr(s, name) for s in scores]), **exactly)
    assert got["overall"]["answer_accuracy"] == np.mean(right)
    assert 0 < np.mean(right) < 1, "the golden questions see both"


def test_objects_are_drawn_uniformly_and_always_alike():
    drawn = [draw_object(f"v{number}", "0", (3, 5, 9)) for number in range(3000)]
    # Three standard deviations of a fair draw are 77.
    assert all(abs(drawn.count(number) - 1000) < 80 for number in (3, 5, 9))
    assert drawn[:6] == [draw_object(f"v{number}", "0", (3, 5, 9)) for number in range(6)]
    assert draw_object("v", "0", ()) is None


def test_a_question_about_two_objects_has_no_right_object(tmp_path, manifest):
    text = manifest.read_text()
    manifest.write_text(re.sub(r"object_ids:\n( *)- 1\n", r"object_ids:\n\1- 1\n\1- 2\n", text))
    tasks = read_manifest(manifest)
    baselines = evaluate(write_run(tmp_path / "run", tasks), tasks)["baselines"]
    several = [q.type for t in tasks for q in t.questions if len(q.ground_truth.object_ids) == 2]
    assert several
    table = baselines["random_object"]["by_type"]
    alone = [q.type for t in tasks for q in t.questions if len(q.ground_truth.object_ids) == 1]
    for name, summary in table.items():
        assert (summary["answer_accuracy"] is None) == (name not in alone)


def test_damaged_masks_of_frames_that_are_not_sampled_are_named(tmp_path, manifest):
    tasks = read_manifest(manifest)
    video = tasks[1].id
    sampled = EXPECTED["windows"][f"{video}/0"]["sample_indices"]
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (VIDEOS / video / "masks").glob("*.png"):
        (masks / path.name).write_bytes(path.read_bytes())
    other = next(p for p in sorted(masks.iterdir()) if int(p.stem.split("_")[1]) not in sampled)
    other.write_bytes(b"\x89PNG")
    text = manifest.read_text().replace(f"{video}/masks", str(masks))
    manifest.write_text(text)
    tasks = read_manifest(manifest)
    with pytest.raises(ConfigError, match=f"{other.name}: cannot be read as a mask"):
        evaluate(write_run(tmp_path / "run", tasks), tasks)


# Answers and intervals in whole runs


def test_a_run_says_how_many_answers_are_right(tmp_path, manifest):
    tasks = read_manifest(manifest)
    truths = {(t.id, q.id): q.ground_truth.answer for t in tasks for q in t.questions}
    wrong = next(iter(truths))

    def answer(result):
        key = result.video_id, result.question_id
        return replace(result, answer="Nobody [SEG]." if key == wrong else f"{truths[key].upper()} [SEG].")

    scores = evaluate(write_run(tmp_path / "run", tasks, change=answer), tasks)
    assert scores["overall"]["answer_accuracy"] == pytest.approx(5 / 6)
    assert scores["by_type"]["Causal"]["answer_accuracy"] == 0.5
    assert [row["answer_accuracy"] for row in scores["questions_table"]] == [0, 1, 1, 1, 1, 1]
    row = scores["questions_table"][0]
    assert (row["answer"], row["true_answer"], row["status"]) == ("Nobody [SEG].", "The man in the red shirt", "done")
    for name in ("all_empty", "every_pixel"):
        assert scores["baselines"][name]["overall"]["answer_accuracy"] is None


def test_every_summary_has_its_keys_and_intervals_enclose(tmp_path, manifest):
    tasks = read_manifest(manifest)
    scores = evaluate(write_run(tmp_path / "run", tasks), tasks)
    for summary in (scores["overall"], *scores["by_type"].values()):
        assert set(summary) == {"questions", "ci95", *METRICS}
        for name, bounds in summary["ci95"].items():
            assert bounds is None or bounds[0] - 1e-12 <= summary[name] <= bounds[1] + 1e-12
    assert scores["overall"]["ci95"]["j"] is not None
    for table in scores["baselines"].values():
        for summary in (table["overall"], *table["by_type"].values()):
            assert set(summary) == {"questions", *METRICS}
    assert len(scores["questions_table"]) == 6


def slow_interval(values: list[float], videos: list[int]) -> list[float]:
    """Do the same draws with lists: as many videos as there are, each with all its values."""
    kept = [(v, g) for v, g in zip(values, videos, strict=True) if v == v]
    names = sorted({g for _, g in kept})
    groups = [[v for v, g in kept if g == name] for name in names]
    draws = np.random.default_rng(20241114).integers(0, len(groups), size=(1000, len(groups)))
    means = []
    for draw in draws:
        drawn = [v for index in draw for v in groups[index]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    bounds = []
    for position in (0.025 * 999, 0.975 * 999):
        low = int(position)
        bounds.append(means[low] + (means[min(low + 1, 999)] - means[low]) * (position - low))
    return bounds


@pytest.mark.parametrize("seed", range(5))
def test_intervals_equal_the_plain_bootstrap(seed):
    generator = np.random.default_rng(seed)
    values = generator.random(40)
    values[generator.random(40) < 0.2] = np.nan
    videos = generator.integers(0, 9, 40)
    got = interval95(values, videos)
    assert got == pytest.approx(slow_interval(values.tolist(), videos.tolist()), rel=0, abs=1e-12)
    assert got == interval95(values, videos)


def test_intervals_are_those_of_independent_videos():
    values = np.random.default_rng(1).normal(0.5, 0.2, 900)
    videos = np.arange(900)
    low, high = interval95(values, videos)
    half = 1.96 * values.std() / 30
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    # Nine equal questions a video tell no more than one.
    assert interval95(np.repeat(values, 9), np.repeat(videos, 9)) == pytest.approx([low, high], abs=1e-12)


def test_one_video_has_no_interval():
    assert interval95(np.array([0.1, 0.9]), np.array([4, 4])) is None
    assert interval95(np.array([0.1, np.nan]), np.array([4, 5])) is None
    assert interval95(np.array([np.nan, np.nan]), np.array([4, 5])) is None


def test_many_videos_are_drawn_in_blocks(monkeypatch):
    values, videos = np.random.default_rng(2).random(50), np.arange(50)
    whole = interval95(values, videos)
    monkeypatch.setattr("gmcli.evaluate.summary._BLOCK", 333)
    assert interval95(values, videos) == whole
