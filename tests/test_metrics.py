"""J, F and their statistics equal the published ones: recorded numbers, and a plain second implementation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from gmcli.masks.rle import decode_rle, rle_from_json
from gmcli.metrics import (
    boundary,
    boundary_f,
    boundary_fs,
    boundary_radius,
    region_similarities,
    region_similarity,
    statistics,
    temporal_iou,
)

TESTS = Path(__file__).parent
GOLDEN: dict[str, Any] = json.loads((TESTS / "goldens" / "metrics.json").read_text())
REAL = json.loads((TESTS / "data" / "real_masks.json").read_text())["masks"]

Mask = NDArray[np.bool_]

exactly = {"rel": 0, "abs": 1e-12, "nan_ok": True}


def golden_mask(name: str) -> Mask:
    with Image.open(TESTS / "goldens" / "metrics_masks" / f"{name}.png") as image:
        return np.array(image.convert("1"), dtype=np.bool_)


def golden_pair(number: int) -> tuple[Mask, Mask]:
    return golden_mask(f"p{number:02}_gt"), golden_mask(f"p{number:02}_pred")


def number(value: float | None) -> float:
    return math.nan if value is None else value


# The second implementation: the published steps one by one, over the whole frame, with nothing left out.


def plain_j(truth: Mask, prediction: Mask, void: Mask | None = None) -> float:
    counted = np.ones_like(truth) if void is None else ~void
    union = int(((truth | prediction) & counted).sum())
    return int((truth & prediction & counted).sum()) / union if union else 1.0


def plain_boundary(mask: Mask) -> Mask:
    """_seg2bmap: compare with the east, south and south-east neighbours, then overwrite the last row and column."""
    east, south, south_east = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1] = mask[1:]
    south_east[:-1, :-1] = mask[1:, 1:]
    found: Mask = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
    found[-1] = mask[-1] ^ east[-1]
    found[:, -1] = mask[:, -1] ^ south[:, -1]
    found[-1, -1] = False
    return found


def plain_dilation(mask: Mask, radius: int) -> Mask:
    """cv2.dilate with skimage's disk: OR the frame shifted by each offset of the disk; outside the frame is nothing."""
    height, width = mask.shape
    padded = np.pad(mask, radius)
    grown = np.zeros_like(mask)
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            if x * x + y * y <= radius * radius:
                grown |= padded[radius + y : radius + y + height, radius + x : radius + x + width]
    return grown


def plain_f(truth: Mask, prediction: Mask, void: Mask | None = None, bound_th: float = 0.008) -> float:
    radius = bound_th if bound_th >= 1 else np.ceil(bound_th * np.linalg.norm(truth.shape))
    counted = np.ones_like(truth) if void is None else ~void
    in_prediction, in_truth = plain_boundary(prediction & counted), plain_boundary(truth & counted)
    right = in_prediction & plain_dilation(in_truth, int(radius))
    found = in_truth & plain_dilation(in_prediction, int(radius))
    n_prediction, n_truth = int(in_prediction.sum()), int(in_truth.sum())
    if n_prediction == 0 and n_truth == 0:
        precision, recall = 1.0, 1.0
    elif n_prediction == 0:
        precision, recall = 1.0, 0.0
    elif n_truth == 0:
        precision, recall = 0.0, 1.0
    else:
        precision, recall = int(right.sum()) / n_prediction, int(found.sum()) / n_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# Goldens


@pytest.mark.parametrize("pair", GOLDEN["pairs"], ids=lambda pair: f"{pair['pair']}-{pair['note']}")
def test_pairs_score_as_published(pair: dict[str, Any]) -> None:
    truth, prediction = golden_pair(pair["pair"])
    assert list(truth.shape) == pair["shape"]
    assert [truth.sum(), prediction.sum()] == [pair["gt_area"], pair["pred_area"]]
    assert region_similarity(truth, prediction) == pytest.approx(pair["J"], **exactly)
    assert boundary_f(truth, prediction) == pytest.approx(pair["F"], **exactly)
    assert boundary_radius(truth.shape) == pair["bound_pix"]
    assert [boundary(truth).sum(), boundary(prediction).sum()] == pair["boundary_pixels_gt_pred"]


def test_all_pairs_are_there() -> None:
    assert [pair["pair"] for pair in GOLDEN["pairs"]] == list(range(65))


def test_void_pixels_count_as_published() -> None:
    truth, prediction, void = (golden_mask(f"void_{name}") for name in ("gt", "pred", "void"))
    want = GOLDEN["void"]
    assert void.sum() == want["void_area"]
    assert region_similarity(truth, prediction, void) == pytest.approx(want["J"], **exactly)
    assert boundary_f(truth, prediction, void) == pytest.approx(want["F"], **exactly)
    stack = [np.stack([mask, mask]) for mask in (truth, prediction, void)]
    np.testing.assert_allclose(region_similarities(*stack), [want["J"]] * 2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(boundary_fs(*stack), [want["F"]] * 2, rtol=0, atol=1e-12)
    assert region_similarity(truth, prediction) != pytest.approx(want["J"])


def test_f_is_symmetric_as_published() -> None:
    truth, prediction = golden_pair(0)
    assert boundary_f(truth, prediction) == pytest.approx(GOLDEN["symmetry"]["F_ab"], **exactly)
    assert boundary_f(prediction, truth) == pytest.approx(GOLDEN["symmetry"]["F_ba"], **exactly)


@pytest.mark.parametrize("bound_th", [key for key in GOLDEN["bound_th"] if key != "pair"])
def test_thresholds_count_as_published(bound_th: str) -> None:
    truth, prediction = golden_pair(GOLDEN["bound_th"]["pair"])
    want = GOLDEN["bound_th"][bound_th]
    assert boundary_f(truth, prediction, bound_th=float(bound_th)) == pytest.approx(want, **exactly)
    fs = boundary_fs(truth[None], prediction[None], bound_th=float(bound_th))
    np.testing.assert_allclose(fs, [want], rtol=0, atol=1e-12)


def test_sequence_scores_as_published() -> None:
    golden = load_file(TESTS / "goldens" / "metrics_sequence.safetensors")
    truths, predictions = (
        np.unpackbits(golden[name], axis=-1, count=160).astype(np.bool_) for name in ("gt_packed", "pred_packed")
    )
    assert truths.shape == (20, 90, 160)
    js, fs = region_similarities(truths, predictions), boundary_fs(truths, predictions)
    assert js.dtype == fs.dtype == np.float64
    np.testing.assert_allclose(js, golden["J"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(fs, golden["F"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", GOLDEN["statistics"])
def test_statistics_are_as_published(case: str) -> None:
    want = GOLDEN["statistics"][case]
    got = statistics([number(value) for value in want["values"]])
    assert got == pytest.approx(tuple(number(want[name]) for name in ("mean", "recall", "decay")), **exactly)


# The second implementation


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask, Mask | None, float]:
    """Two masks of rectangles and specks, that touch the frame's sides often, with void pixels at times."""
    height, width = draw(st.integers(1, 48)), draw(st.integers(1, 48))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    masks = []
    for _ in range(3):
        mask = generator.random((height, width)) < draw(st.sampled_from([0.0, 0.0, 0.005, 0.05, 0.5]))
        for _ in range(draw(st.integers(0, 2))):
            top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
            bottom, right = draw(st.integers(top, height)), draw(st.integers(left, width))
            mask[top:bottom, left:right] ^= True
        masks.append(mask)
    bound_th = draw(st.sampled_from([0.0, 0.008, 0.05, 0.2, 0.9, 1, 2, 3, 5, 12, 60]))
    return masks[0], masks[1], masks[2] if draw(st.booleans()) else None, bound_th


def assert_equals_plain(truth: Mask, prediction: Mask, void: Mask | None, bound_th: float) -> None:
    inputs = [None if mask is None else mask.copy() for mask in (truth, prediction, void)]
    assert region_similarity(truth, prediction, void) == plain_j(truth, prediction, void)
    assert boundary_f(truth, prediction, void, bound_th) == plain_f(truth, prediction, void, bound_th)
    np.testing.assert_array_equal(boundary(truth), plain_boundary(truth))
    for mask, before in zip((truth, prediction, void), inputs, strict=True):
        assert mask is None or np.array_equal(mask, before)


@given(pairs())
@example((np.zeros((1, 1), np.bool_), np.ones((1, 1), np.bool_), None, 0.008))
@example((np.eye(31, 17, dtype=np.bool_), np.eye(31, 17, dtype=np.bool_)[::-1], None, 4))
@example((np.ones((9, 9), np.bool_), np.ones((9, 9), np.bool_), np.eye(9, dtype=np.bool_), 1))
@example((np.ones((4, 4), np.bool_), np.zeros((4, 4), np.bool_), np.ones((4, 4), np.bool_), 1))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_random_masks_score_as_the_plain_code_has_them(case: tuple[Mask, Mask, Mask | None, float]) -> None:
    assert_equals_plain(*case)


def test_every_place_of_a_small_shape_scores_as_the_plain_code_has_it() -> None:
    # Each side and corner of the frame has rules of its own; the crop must not add any.
    truth = np.zeros((7, 9), np.bool_)
    truth[2:5, 3:6] = True
    for top in range(7):
        for left in range(9):
            prediction = np.zeros_like(truth)
            prediction[top : top + 2, left : left + 3] = True
            for bound_th in (0.008, 2, 3):
                assert_equals_plain(truth, prediction, None, bound_th)
                assert_equals_plain(prediction, truth, None, bound_th)
                assert_equals_plain(prediction, np.roll(prediction, 1, axis=1), None, bound_th)


@pytest.mark.parametrize("radius", [1, 2, 5, 9])
def test_boundaries_at_every_distance_score_as_the_plain_code_has_them(radius: int) -> None:
    # Beyond some distance the matching is left out; it must not be left out too soon.
    for gap in range(max(radius - 3, 0), radius + 5):
        for across, down in ((gap, 0), (0, gap), (gap, gap), (gap, -gap)):
            truth, prediction = np.zeros((2, 48, 48), np.bool_)
            truth[16:20, 16:21] = True
            prediction[20 + down : 24 + down, 21 + across : 23 + across] = True
            for mask in (prediction, prediction[::-1, ::-1]):
                assert_equals_plain(truth, mask, None, radius)
                assert_equals_plain(mask, truth, None, radius)


@pytest.mark.parametrize("radius", range(1, 31))
def test_boundaries_match_within_a_disk(radius: int) -> None:
    # A checkerboard's boundary is everywhere, so its precision is the number of pixels that the disk reaches.
    board = np.indices((75, 71)).sum(axis=0) % 2 == 0
    truth = np.zeros_like(board)
    truth[40, 33] = True
    assert_equals_plain(truth, board, None, radius)


@pytest.mark.parametrize("index", range(len(REAL)))
def test_real_masks_score_as_the_plain_code_has_them(index: int) -> None:
    truth = decode_rle(rle_from_json(REAL[index]))
    others = [decode_rle(rle_from_json(REAL[other % len(REAL)])) for other in (index + 1, index + 5)]
    for prediction in (np.roll(truth, (3, -5), axis=(0, 1)), *others):
        assert_equals_plain(truth, prediction, None, 0.008)


def test_masks_of_any_memory_layout_score_alike() -> None:
    truth, prediction = golden_pair(3)
    want = region_similarity(truth, prediction), boundary_f(truth, prediction)
    fortran = np.asfortranarray(truth), np.asfortranarray(prediction)
    wide = np.repeat(truth, 2, axis=1)[:, ::2], np.repeat(prediction, 2, axis=1)[:, ::2]
    for layout in (fortran, wide):
        assert (region_similarity(*layout), boundary_f(*layout)) == want
    for mask in (truth, prediction):
        mask.flags.writeable = False
    assert (region_similarity(truth, prediction), boundary_f(truth, prediction)) == want


# Edges of the definitions


def test_silence_is_right_where_nothing_is() -> None:
    nothing, everything = np.zeros((20, 30), np.bool_), np.ones((20, 30), np.bool_)
    assert (region_similarity(nothing, nothing), boundary_f(nothing, nothing)) == (1, 1)
    assert (region_similarity(everything, nothing), region_similarity(nothing, everything)) == (0, 0)
    # A full mask has no boundary: published so, and recorded in the goldens.
    assert (boundary_f(everything, nothing), boundary_f(nothing, everything)) == (1, 1)
    speck = nothing.copy()
    speck[7, 7] = True
    assert (region_similarity(nothing, speck), boundary_f(nothing, speck), boundary_f(speck, nothing)) == (0, 0, 0)


def test_void_everywhere_leaves_nothing_to_get_wrong() -> None:
    truth, prediction = golden_pair(3)
    void = np.ones_like(truth)
    assert (region_similarity(truth, prediction, void), boundary_f(truth, prediction, void)) == (1, 1)


def test_no_frames_have_no_scores() -> None:
    none = np.zeros((0, 4, 5), np.bool_)
    assert region_similarities(none, none).shape == boundary_fs(none, none).shape == (0,)
    assert region_similarities(none, none).dtype == boundary_fs(none, none).dtype == np.float64


@pytest.mark.parametrize("size", [(720, 1280), (480, 854), (750, 1000), (3, 4), (1, 1), (4320, 7680), (2160, 4096)])
@pytest.mark.parametrize("bound_th", [0.001, 0.008, 0.02, 0.1])
def test_radius_is_rounded_up_as_published(size: tuple[int, int], bound_th: float) -> None:
    assert boundary_radius(size, bound_th) == np.ceil(bound_th * np.linalg.norm(size))


@pytest.mark.parametrize("bound_th", [-0.1, -1, 1.5, math.nan, math.inf])
def test_thresholds_without_a_meaning_are_refused(bound_th: float) -> None:
    mask = np.zeros((4, 5), np.bool_)
    with pytest.raises(ValueError, match="bound_th"):
        boundary_f(mask, mask, bound_th=bound_th)


@pytest.mark.parametrize("score", [region_similarity, boundary_f, region_similarities, boundary_fs])
def test_other_shapes_and_dtypes_are_refused(score: Any) -> None:
    shape = (4, 5) if score in (region_similarity, boundary_f) else (2, 4, 5)
    mask = np.zeros(shape, np.bool_)
    with pytest.raises(ValueError, match=r"prediction must be .* bool, not .* uint8"):
        score(mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="truth must be"):
        score(mask.astype(np.float32), mask)
    with pytest.raises(ValueError, match="truth must be"):
        score(mask[..., 0], mask[..., 0])
    with pytest.raises(ValueError, match=r"prediction is .* but truth is"):
        score(mask, mask[..., 1:])
    with pytest.raises(ValueError, match=r"void is .* but truth is"):
        score(mask, mask, mask[..., 1:])


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ((0, 10), (0, 10), 1),
        ((0, 10), (5, 15), 1 / 3),
        ((0, 10), (10, 20), 0),
        ((0, 10), (12, 20), 0),
        ((0, 10), (2, 4), 0.2),
        ((0.5, 1.5), (1.0, 2.0), 1 / 3),
        ((-4, -2), (-3, 0), 0.25),
        ((3, 3), (7, 7), 1),
        ((3, 3), (0, 10), 0),
        ((5, 2), (0, 10), 0),
        ((5, 2), (4, 4), 1),
    ],
)
def test_temporal_iou(a: tuple[float, float], b: tuple[float, float], want: float) -> None:
    assert temporal_iou(a, b) == temporal_iou(b, a) == pytest.approx(want, rel=0, abs=1e-15)


@given(*[st.tuples(st.integers(-20, 20), st.integers(-20, 20))] * 2)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_temporal_iou_counts_frames(a: tuple[int, int], b: tuple[int, int]) -> None:
    frames_a, frames_b = set(range(*a)), set(range(*b))
    either = len(frames_a | frames_b)
    assert temporal_iou(a, b) == (len(frames_a & frames_b) / either if either else 1)


def test_spans_without_a_length_are_refused() -> None:
    for span in ((0, math.inf), (math.nan, 1)):
        with pytest.raises(ValueError, match="finite"):
            temporal_iou(span, (0, 1))


def test_statistics_of_nothing_are_not_a_number() -> None:
    assert all(math.isnan(value) for value in statistics([]))
    mean, recall, decay = statistics([math.nan, math.nan])
    assert (math.isnan(mean), recall, math.isnan(decay)) == (True, 0, True)
    with pytest.raises(ValueError, match=r"\[T\]"):
        statistics([[0.5]])
