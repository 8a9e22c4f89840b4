import pytest
import torch

from gmcli.model.visual_tokens import pool, with_changes


def test_clip_features_equal_the_originals(checkpoint, golden):
    want = golden("clip_tower")
    got = checkpoint.model.clip_features(want["pixel_values_f16"].float())
    torch.testing.assert_close(got, want["features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(got, want["hidden_states_minus2"][:, 1:], atol=1e-4, rtol=0)


def test_clip_features_are_transformers_own_second_to_last_state(checkpoint):
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    states = checkpoint.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(checkpoint.model.clip_features(pixels), states[-2][:, 1:], atol=1e-6, rtol=0)


def test_five_frames_equal_the_originals_plain_tower(checkpoint, golden):
    pixels = golden("clip_tower")["pixel_values_f16"].float()
    five = torch.cat([pixels, pixels[1:2].flip(-1), pixels[0:1].flip(-1)])
    want = golden("clip_adapted_tower")["features_plain5_stride8"]
    torch.testing.assert_close(checkpoint.model.clip_features(five)[:, ::8], want, atol=1e-4, rtol=0)


def test_pooled_features_equal_the_originals(checkpoint, golden):
    want = golden("pooled")
    features = want["frame_features_f16"].float()
    pooled = pool(features)
    torch.testing.assert_close(pooled, want["pooled_unpadded"], atol=1e-6, rtol=0)
    torch.testing.assert_close(pooled[:20], want["temporal_tokens"], atol=1e-6, rtol=0)
    torch.testing.assert_close(pooled[20:], want["spatial_tokens"], atol=1e-6, rtol=0)
    torch.testing.assert_close(pool(features, padded=True), want["pooled_padded100"], atol=1e-6, rtol=0)
    projected = checkpoint.model.visual_embeddings(features, "pooled")
    torch.testing.assert_close(projected[0], want["projected_unpadded"], atol=1e-6, rtol=0)
    torch.testing.assert_close(projected[0], want["projected_frame_then_pooled"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("layout", "shape"), [("frame", (3, 256)), ("pooled", (1, 259)), ("pooled_padded", (1, 356)), ("temporal", (1, 3))]
)
def test_layouts_have_their_token_counts(checkpoint, layout, shape):
    assert checkpoint.model.visual_embeddings(torch.zeros(3, 256, 32), layout).shape == (*shape, 64)


def test_changes_are_the_differences_of_neighbours():
    temporal = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(3))
    tokens = with_changes(temporal)
    torch.testing.assert_close(tokens[..., :7], temporal, atol=0, rtol=0)
    torch.testing.assert_close(tokens[:, 1:, 7:], torch.diff(temporal, dim=1), atol=0, rtol=0)
    assert not tokens[:, 0, 7:].any()


def test_padded_layout_refuses_more_than_100_frames():
    with pytest.raises(ValueError, match="101 frames"):
        pool(torch.zeros(101, 4, 2), padded=True)
