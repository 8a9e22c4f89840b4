import hashlib

import numpy as np
import pytest
import torch

from gmcli.model.preprocess import clip_pixels, resized_size, sam_pixels

FRAMES = range(4)


@pytest.mark.parametrize("i", FRAMES)
def test_frames_are_the_recorded_ones(golden_frames, facts, i):
    assert hashlib.sha1(golden_frames[i].tobytes()).hexdigest() == facts["preprocess"][f"frame_{i}"]["png_sha1"]


@pytest.mark.parametrize("i", FRAMES)
def test_clip_input_equals_the_originals(golden, golden_frames, facts, i):
    pixels = clip_pixels([golden_frames[i]])
    want = golden("preprocess")
    torch.testing.assert_close(pixels[..., ::4, ::4], want[f"clip_pixel_values_{i}_stride4"], atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels[0][:, [0, 111, 112, 223]], want[f"clip_rows_{i}"], atol=1e-6, rtol=0)
    assert pixels.double().sum().item() == pytest.approx(facts["preprocess"][f"frame_{i}"]["clip_sum64"], rel=1e-6)


@pytest.mark.parametrize("i", FRAMES)
def test_sam_input_equals_the_originals(golden, golden_frames, facts, i):
    fact = facts["preprocess"][f"frame_{i}"]
    pixels = sam_pixels([golden_frames[i]])
    h, _ = resized_size(golden_frames[i].shape[:2])
    want = golden("preprocess")
    torch.testing.assert_close(pixels[..., ::16, ::16], want[f"sam_input_{i}_stride16"], atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels[0][:, [0, h // 2, h - 1], ::4], want[f"sam_rows_{i}"], atol=1e-6, rtol=0)
    assert pixels.double().sum().item() == pytest.approx(fact["sam_sum64"], abs=1e-5 * fact["sam_abs_sum64"])


def test_resized_sizes_equal_the_originals(facts):
    for name, want in facts["resize_shapes"].items():
        h, w = map(int, name.split("x"))
        assert resized_size((h, w)) == tuple(want)


def test_padding_is_zero_after_normalising():
    pixels = sam_pixels([np.full((10, 20, 3), 255, np.uint8)], image_size=64)
    assert pixels.shape == (1, 3, 64, 64)
    assert (pixels[:, :, 32:] == 0).all()
    assert (pixels[:, :, :32] > 1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 7)])
def test_extreme_shapes_pass(size):
    frame = np.zeros((*size, 3), np.uint8)
    assert sam_pixels([frame], image_size=64).shape == (1, 3, 64, 64)
    assert clip_pixels([frame]).shape == (1, 3, 224, 224)


def test_no_frames_give_empty_batches():
    assert clip_pixels([]).shape == (0, 3, 224, 224)
    assert sam_pixels([]).shape == (0, 3, 1024, 1024)
