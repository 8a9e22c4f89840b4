import numpy as np
import pytest
import torch
from PIL import Image

from gmcli.model.preprocess import resized_size, sam_pixels
from gmcli.model.sam import postprocess_masks
from tests.conftest import GOLDENS


@pytest.fixture(scope="module")
def recipe() -> torch.Tensor:
    values = np.random.RandomState(7).standard_normal((1, 256, 64, 64)).astype(np.float32)
    return torch.from_numpy(values)


@pytest.fixture(scope="module")
def sam(checkpoint):
    return checkpoint.model.visual_model


def paired(sam, embeddings, prompts):
    return sam.decode_masks(embeddings, prompts, sam.dense_pe())


def test_image_embeddings_equal_the_originals(sam, golden, golden_frames):
    want = golden("sam")
    got = sam.encode_images(sam_pixels(golden_frames[:2]))
    for i in range(2):
        torch.testing.assert_close(
            got[i : i + 1, :, ::4, ::4], want[f"image_embeddings_{i}_stride4"], atol=1e-4, rtol=0
        )
    torch.testing.assert_close(got[:1, :8], want["image_embeddings_0_c0_7_full"], atol=1e-4, rtol=0)


def test_dense_pe_equals_the_originals(sam, golden):
    torch.testing.assert_close(sam.dense_pe()[..., ::4, ::4], golden("sam")["dense_pe_stride4"], atol=1e-4, rtol=0)


def test_one_prompt_equals_the_originals(sam, golden, recipe):
    want = golden("sam")
    masks, iou = paired(sam, recipe, want["text_embeds"][:1, 0])
    torch.testing.assert_close(masks[..., ::2, ::2], want["one_low_res_masks_stride2"], atol=5e-4, rtol=0)
    torch.testing.assert_close(iou, want["one_iou"], atol=5e-4, rtol=0)


def test_two_prompts_on_one_frame_equal_the_originals(sam, golden, recipe):
    want = golden("sam")
    masks, iou = paired(sam, recipe.expand(2, -1, -1, -1), want["text_embeds"][:, 0])
    torch.testing.assert_close(masks[..., ::2, ::2], want["two_low_res_masks_stride2"], atol=5e-4, rtol=0)
    torch.testing.assert_close(iou, want["two_iou"], atol=5e-4, rtol=0)


def test_pairs_equal_the_originals(sam, golden, recipe):
    want = golden("sam")
    masks, iou = paired(sam, torch.cat([recipe, recipe.flip(-1)]), want["text_embeds"][:, 0])
    torch.testing.assert_close(masks[..., ::4, ::4], want["paired_low_res_masks_stride4"], atol=5e-4, rtol=0)
    torch.testing.assert_close(iou, want["paired_iou"], atol=5e-4, rtol=0)


def test_all_four_mask_tokens_and_the_dense_prompt_equal_the_originals(sam, golden, recipe):
    """The weights of the tokens that are not used are the right ones, too."""
    want = golden("sam")
    torch.testing.assert_close(sam.prompt_encoder.no_mask_embed.weight[0], want["dense_vector"], atol=1e-6, rtol=0)
    masks, iou = sam.mask_decoder.predict_masks(
        image_embeddings=recipe,
        image_pe=sam.dense_pe(),
        sparse_prompt_embeddings=want["text_embeds"][:1],
        dense_prompt_embeddings=want["dense_vector"].view(1, -1, 1, 1).expand(1, -1, 64, 64),
    )
    torch.testing.assert_close(masks[..., ::8, ::8], want["all4_low_res_stride8"], atol=5e-4, rtol=0)
    torch.testing.assert_close(iou, want["all4_iou"], atol=5e-4, rtol=0)


def test_pairs_equal_segment_anythings_own_forward(sam, recipe):
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randn(3, 256, generator=generator)
    embeddings = torch.cat([recipe, recipe.flip(-1), recipe.flip(-2)])
    masks, iou = paired(sam, embeddings, prompts)
    dense = sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, 64, 64)
    for i in range(3):
        own_masks, own_iou = sam.mask_decoder(
            image_embeddings=embeddings[i : i + 1],
            image_pe=sam.dense_pe(),
            sparse_prompt_embeddings=prompts[i].view(1, 1, -1),
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        torch.testing.assert_close(masks[i : i + 1], own_masks, atol=1e-4, rtol=0)
        torch.testing.assert_close(iou[i : i + 1], own_iou, atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [(720, 1280), (480, 854), (480, 640), (1280, 720)])
def test_postprocess_equals_the_originals(golden, size):
    want = golden("sam")
    name = f"{size[0]}x{size[1]}"
    logits = postprocess_masks(want["post_in_low_res"], resized_size(size), size, 1024)
    torch.testing.assert_close(logits[:, ::4, ::4], want[f"post_{name}_stride4"][0], atol=1e-4, rtol=0)
    picture = np.array(Image.open(GOLDENS / f"frames/post_{name}_gt0.png")) > 0
    assert (picture != (logits[0] > 0).numpy()).sum() <= 4


def test_postprocess_is_float32_whatever_comes_in():
    logits = postprocess_masks(torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16), (32, 16), (100, 50), 32)
    assert logits.dtype == torch.float32
    assert logits.shape == (1, 100, 50)
