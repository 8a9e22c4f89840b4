"""Masks survive RLE and PNG bit for bit, and nothing that others write brings the process down."""

import io
import json
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

import gmcli
from gmcli.data import Rle
from gmcli.errors import GmcliError
from gmcli.masks.png import Bits, encode_png, read_indices
from gmcli.masks.rle import MAX_PIXELS, area, decode_rle, empty_rle, encode_rle, rle_from_json, rle_to_json

REAL = json.loads((Path(__file__).parent / "data" / "real_masks.json").read_text())["masks"]

Mask = NDArray[np.bool_]


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    density = draw(st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 2**32))).random((height, width)) < density


@st.composite
def rectangles(draw: st.DrawFn) -> Mask:
    """Draw few long runs, with many ends at the edges, where one column goes over into the next."""
    height, width = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    mask = np.zeros((height, width), np.bool_)
    for _ in range(draw(st.integers(0, 4))):
        top, bottom = sorted(draw(st.tuples(st.integers(0, height), st.integers(0, height))))
        left, right = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
        mask[top:bottom, left:right] ^= True
    return mask


def disk(height: int, width: int) -> Mask:
    y, x = np.ogrid[:height, :width]
    return np.asarray(np.hypot((y - height / 2) / height, (x - width / 2) / width) < 0.3)


def coco_counts(mask: Mask) -> str:
    counts: bytes = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts.decode()


def coco_mask(obj: dict[str, Any]) -> Mask:
    with warnings.catch_warnings():
        # pycocotools 2.0.11 subclasses ndarray in a way that NumPy 2.4 warns about.
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.ascontiguousarray(coco.decode(obj)).astype(np.bool_)


def real_mask(index: int) -> Mask:
    return coco_mask(REAL[index])


# RLE


@pytest.mark.parametrize("index", range(len(REAL)))
def test_real_masks_round_trip_as_pycocotools_has_them(index: int) -> None:
    rle = rle_from_json(REAL[index])
    mask = decode_rle(rle)
    assert mask.dtype == np.bool_
    assert mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, real_mask(index))
    assert encode_rle(mask) == rle
    assert area(rle) == int(mask.sum()) == int(coco.area(REAL[index]))


@given(masks() | rectangles())
@example(np.zeros((1, 1), np.bool_))
@example(np.ones((1, 1), np.bool_))
@example(np.ones((7, 13), np.bool_))
@example(np.indices((31, 17)).sum(axis=0) % 2 == 0)
@example(disk(300, 500))
@example(~disk(480, 640))
@settings(deadline=None)
def test_random_masks_round_trip_as_pycocotools_has_them(mask: Mask) -> None:
    rle = encode_rle(mask)
    assert rle.counts == coco_counts(mask)
    assert rle_from_json(json.loads(json.dumps(rle_to_json(rle)))) == rle
    np.testing.assert_array_equal(decode_rle(rle), mask)
    assert area(rle) == mask.sum()


def test_memory_layout_does_not_matter() -> None:
    mask = real_mask(1)
    assert encode_rle(np.asfortranarray(mask)) == encode_rle(mask)
    assert encode_rle(mask[::2, ::-3]) == encode_rle(mask[::2, ::-3].copy())
    for bits in (1, 8):
        assert encode_png(np.asfortranarray(mask), bits) == encode_png(mask, bits)
        assert encode_png(mask[::2, ::-3], bits) == encode_png(mask[::2, ::-3].copy(), bits)


@pytest.mark.parametrize("mask", [disk(1080, 1920), np.zeros((720, 1280), np.bool_), np.ones((720, 1280), np.bool_)])
def test_only_noise_is_turned_to_encode_it(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).random(mask.shape) < 0.5
    want, want_noise = coco_counts(mask), coco_counts(noise)
    turned = []

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        turned.append(array.shape)
        return np.array(array, order="F")

    monkeypatch.setattr(np, "asfortranarray", turn)
    assert encode_rle(mask).counts == want
    assert turned == []
    assert encode_rle(noise).counts == want_noise
    assert turned == [mask.shape]


def test_large_mask_with_long_runs() -> None:
    mask = np.zeros((4096, 8192), np.bool_)
    mask[-1, -1] = True
    rle = encode_rle(mask)
    assert area(rle) == 1
    np.testing.assert_array_equal(decode_rle(rle), mask)


def test_empty_rle_is_what_an_empty_mask_encodes_to() -> None:
    assert empty_rle((5, 7)) == encode_rle(np.zeros((5, 7), np.bool_))
    assert area(empty_rle((5, 7))) == 0


def test_empty_rle_makes_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_more(*arguments: object, **more: object) -> NDArray[Any]:
        raise AssertionError("an array was made")

    for name in ("zeros", "empty", "full"):
        monkeypatch.setattr(np, name, nothing_more)
    assert empty_rle((4096, 8192)) == Rle((4096, 8192), counts="PPPPP1")
    for size in ((0, 3), (3, 0), (-2, -2), (1, MAX_PIXELS + 1)):
        with pytest.raises(ValueError, match=r"a mask has 1 to"):
            empty_rle(size)


@given(st.integers(1, 12), st.lists(st.integers(0, 9), min_size=1, max_size=12))
@example(2, [3, 0, 3])
@example(2, [0, 0, 6])
@example(3, [0, 6])
@settings(deadline=None)
def test_runs_of_no_length_are_read_anywhere(height: int, runs: list[int]) -> None:
    runs[-1] += -sum(runs) % height or (0 if sum(runs) else height)
    size = [height, sum(runs) // height]
    counts = coco.frPyObjects({"size": size, "counts": runs}, *size)["counts"].decode()
    np.testing.assert_array_equal(
        decode_rle(Rle((size[0], size[1]), counts)), coco_mask({"size": size, "counts": counts})
    )


def test_inner_runs_of_no_length_are_read() -> None:
    runs = [3, 2, 0, 4, 1]
    counts = coco.frPyObjects({"size": [2, 5], "counts": runs}, 2, 5)["counts"].decode()
    rle = Rle(size=(2, 5), counts=counts)
    np.testing.assert_array_equal(decode_rle(rle), coco_mask({"size": [2, 5], "counts": counts}))
    assert area(rle) == 6


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2), np.bool_), np.zeros((0, 3), np.bool_)]
)
def test_what_is_no_mask_is_refused(mask: Mask) -> None:
    with pytest.raises(ValueError, match=r"a mask"):
        encode_rle(mask)
    with pytest.raises(ValueError, match=r"a mask"):
        encode_png(mask)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (None, "an object"),
        ([], "an object"),
        ("d4", "an object"),
        ({}, "'size'"),
        ({"size": 4, "counts": "d4"}, "'size'"),
        ({"size": "22", "counts": "d4"}, "'size'"),
        ({"size": [2], "counts": "4"}, "'size'"),
        ({"size": [2.0, 2.0], "counts": "4"}, "'size'"),
        ({"size": [True, 4], "counts": "4"}, "'size'"),
        ({"size": [None, 4], "counts": "4"}, "'size'"),
        ({"size": [0, 4], "counts": "0"}, "out of bounds"),
        ({"size": [-2, -2], "counts": "4"}, "out of bounds"),
        ({"size": [2, MAX_PIXELS], "counts": "4"}, "out of bounds"),
        ({"size": [10**30, 1], "counts": "4"}, "out of bounds"),
        ({"size": [2, 2]}, "ASCII string"),
        ({"size": [2, 2], "counts": None}, "ASCII string"),
        ({"size": [2, 2], "counts": "4é"}, "ASCII string"),
        ({"size": [2, 2], "counts": "\ud800"}, "ASCII string"),
        ({"size": [2, 2], "counts": [1, 3]}, "uncompressed"),
        ({"size": [2, 2], "counts": "0" * 1000}, "too many"),
    ],
)
def test_bad_json_is_refused(obj: object, message: str) -> None:
    with pytest.raises(GmcliError, match=message):
        rle_from_json(obj)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "empty"),
        (" ", "no encoder"),
        ("\x00", "no encoder"),
        ("p", "no encoder"),
        ("P", "within a number"),
        ("4P", "within a number"),
        ("PPPPPP0", "too long"),
        ("3", "add up"),
        ("5", "add up"),
        ("O5", "add up"),  # -1, 5
        ("2220N", "add up"),  # the fifth run is 2 - 2, the fourth 2 + 0
        ("ooooo?", "add up"),  # the largest number
        ("\ud800", "no encoder"),
        ("é", "no encoder"),
    ],
)
def test_counts_that_do_not_fit_the_size_are_refused(counts: str, message: str) -> None:
    for read in (decode_rle, area):
        with pytest.raises(GmcliError, match=message):
            read(Rle(size=(2, 2), counts=counts))


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.text(st.characters(max_codepoint=127), max_size=12))
@settings(max_examples=300, deadline=None)
def test_decoding_agrees_with_pycocotools_or_refuses(size: tuple[int, int], counts: str) -> None:
    try:
        mask = decode_rle(Rle(size=size, counts=counts))
    except GmcliError:
        return
    # What we accept is safe to hand to C, and means the same there.
    np.testing.assert_array_equal(mask, coco_mask({"size": list(size), "counts": counts}))


GARBAGE = """
import json, random, sys
sys.path.append(sys.argv[1])
from gmcli.errors import GmcliError
from gmcli.masks.rle import area, decode_rle, rle_from_json
chance, refused = random.Random(0), 0
real = json.load(open(sys.argv[2]))["masks"]
for turn in range(4000):
    rle = dict(chance.choice(real))
    counts = list(rle["counts"])
    match turn % 4:
        case 0: counts[chance.randrange(len(counts))] = chr(chance.randrange(128))
        case 1: counts = counts[: chance.randrange(len(counts))]
        case 2: counts = [chr(chance.randrange(48, 112)) for _ in range(chance.randrange(200))]
        case 3: rle["size"] = [chance.randrange(-1, 2000), chance.randrange(-1, 2000)]
    rle["counts"] = "".join(counts)
    for read in (decode_rle, area):
        try:
            read(rle_from_json(rle))
        except GmcliError:
            refused += 1
print(refused)
"""


def test_malformed_rle_never_crashes_the_process() -> None:
    arguments = [str(Path(gmcli.__file__).parents[1]), str(Path(__file__).parent / "data" / "real_masks.json")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GARBAGE, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 7500  # the rest are real masks that stayed themselves


# PNG


def with_ffmpeg(png: bytes, pixels: str) -> NDArray[np.uint8]:
    """Decode with FFmpeg's own PNG decoder, which shares no code with Pillow."""
    with av.open(io.BytesIO(png), format="png_pipe") as container:
        frame = next(container.decode(video=0))
        assert frame.format.name == pixels
        array: NDArray[np.uint8] = frame.reformat(format="gray").to_ndarray()
        return array


def check_png(mask: Mask, bits: Bits) -> None:
    png = encode_png(mask, bits)
    assert png == encode_png(mask.copy(), bits)
    assert png.startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR")
    width, height, depth, colour = struct.unpack_from(">IIBB", png, 16)
    assert (height, width, depth, colour) == (*mask.shape, bits, 0)
    white = np.where(mask, 255, 0)
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == {1: "1", 8: "L"}[bits]
        np.testing.assert_array_equal(np.asarray(image), mask if bits == 1 else white)
    with Image.open(io.BytesIO(png)) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("L")), white)
    np.testing.assert_array_equal(with_ffmpeg(png, {1: "monob", 8: "gray"}[bits]), white)


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("index", range(5))
def test_real_masks_as_png(index: int, bits: Bits) -> None:
    check_png(real_mask(index), bits)


@pytest.mark.parametrize("bits", [1, 8])
@given(mask=masks() | rectangles())
@example(mask=np.zeros((1, 1), np.bool_))
@example(mask=np.ones((1, 1), np.bool_))
@example(mask=np.ones((3, 9), np.bool_))
@settings(max_examples=50, deadline=None)
def test_random_masks_as_png(mask: Mask, bits: Bits) -> None:
    check_png(mask, bits)


@pytest.mark.parametrize("bits", [1, 8])
def test_opencv_reads_the_same(bits: Bits) -> None:
    cv2 = pytest.importorskip("cv2")
    for index in range(5):
        mask = real_mask(index)
        png = np.frombuffer(encode_png(mask, bits), np.uint8)
        for flag in (cv2.IMREAD_GRAYSCALE, cv2.IMREAD_UNCHANGED):
            np.testing.assert_array_equal(cv2.imdecode(png, flag), np.where(mask, 255, 0))


@pytest.mark.parametrize("bits", [1, 8])
def test_pngs_are_no_larger_than_the_librarys(bits: Bits) -> None:
    for mask in [disk(720, 1280), np.zeros((480, 854), np.bool_), *map(real_mask, range(5))]:
        theirs = io.BytesIO()
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(theirs, format="PNG", compress_level=1)
        assert len(encode_png(mask, bits)) <= len(theirs.getvalue())


@pytest.mark.parametrize("bits", [1, 8])
def test_our_reader_finds_the_foreground(bits: Bits, tmp_path: Path) -> None:
    for index in range(5):
        mask = real_mask(index)
        (tmp_path / "mask.png").write_bytes(encode_png(mask, bits))
        pixels = read_indices(tmp_path / "mask.png")
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels > 0, mask)
