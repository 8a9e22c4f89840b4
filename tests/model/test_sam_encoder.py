"""The fast image encoder equals segment-anything's own forward; the linear layers equal torch's."""

import copy

import pytest
import torch
from torch import nn

from gmcli.model.config import SamSizes
from gmcli.model.linear import FastLinear, choose_linear, onednn_linear, plain_linear, use_linear
from gmcli.model.sam import Sam
from gmcli.model.sam_encoder import encode

KINDS = ["rows", "bias", "folded"]
LINEARS = [plain_linear, onednn_linear]


def random_encoder(**sizes):
    torch.manual_seed(5)
    sam = Sam(SamSizes(**sizes)).eval().requires_grad_(False)
    for name, parameter in sam.image_encoder.named_parameters():
        # Zero in a fresh module, and then nothing that depends on them would be tested.
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.5)
    return sam.image_encoder


@pytest.fixture(scope="module", params=["padded windows", "whole windows", "a large image"])
def encoder(request):
    make = {"embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_dim": 40, "global_attn_indexes": (1,), "prompt_dim": 16}
    match request.param:
        case "padded windows":
            return random_encoder(image_size=160, patch_size=16, window_size=4, **make)
        case "whole windows":
            return random_encoder(image_size=128, patch_size=16, window_size=4, **make)
        case _:
            return random_encoder(image_size=288, patch_size=16, window_size=7, **make)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("linear", LINEARS, ids=["torch", "onednn"])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_segment_anythings_forward(encoder, kind, linear, batch):
    pixels = torch.randn(batch, 3, encoder.img_size, encoder.img_size)
    want = encoder(pixels)
    torch.testing.assert_close(encode(encoder, pixels, kind, linear), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_made_for_another_size_are_interpolated_alike(encoder, kind):
    encoder = copy.deepcopy(encoder)
    for block in encoder.blocks:
        torch.manual_seed(8)
        block.attn.rel_pos_h = nn.Parameter(torch.randn(9, 12) * 0.5)
        block.attn.rel_pos_w = nn.Parameter(torch.randn(21, 12) * 0.5)
    pixels = torch.randn(1, 3, encoder.img_size, encoder.img_size)
    torch.testing.assert_close(encode(encoder, pixels, kind), encoder(pixels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_goldens(checkpoint, golden, golden_frames, kind):
    from gmcli.model.preprocess import sam_pixels

    got = encode(checkpoint.model.visual_model.image_encoder, sam_pixels([golden_frames[0]]), kind, onednn_linear)
    want = golden("sam")
    torch.testing.assert_close(got[..., ::4, ::4], want["image_embeddings_0_stride4"], atol=1e-4, rtol=0)
    torch.testing.assert_close(got[:, :8], want["image_embeddings_0_c0_7_full"], atol=1e-4, rtol=0)


def test_frames_of_a_batch_do_not_touch_each_other(encoder):
    pixels = torch.randn(3, 3, encoder.img_size, encoder.img_size)
    together = encode(encoder, pixels, "rows", onednn_linear)
    alone = torch.cat([encode(encoder, pixels[i : i + 1], "rows", onednn_linear) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 7), (5, 7), (2, 3, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
def test_onednn_equals_torch(shape, bias, gelu):
    torch.manual_seed(2)
    layer = nn.Linear(7, 4, bias=bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        want = plain_linear(x, layer.weight, layer.bias, gelu=gelu)
        torch.testing.assert_close(onednn_linear(x, layer.weight, layer.bias, gelu=gelu), want, atol=1e-6, rtol=0)


def test_linear_layers_are_exchanged_and_brought_back_with_their_parameters():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.ModuleDict({"x": nn.Linear(4, 2, bias=False)})["x"]).eval()
    before, names = [id(p) for p in module.parameters()], list(module.state_dict())
    x = torch.randn(3, 4)
    with torch.inference_mode():
        want = module(x)
        use_linear(module, onednn_linear)
        assert [type(m) for m in module] == [FastLinear, nn.ReLU, FastLinear]
        torch.testing.assert_close(module(x), want, atol=1e-6, rtol=0)
        assert [id(p) for p in module.parameters()] == before
        assert list(module.state_dict()) == names
        assert not any(m.training for m in module.modules())
        use_linear(module, plain_linear)
        assert [type(m) for m in module] == [nn.Linear, nn.ReLU, nn.Linear]


def test_onednn_is_for_float32_on_the_cpu_only(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_linear(cpu, torch.float32) is onednn_linear
    assert choose_linear(cpu, torch.bfloat16) is plain_linear
    assert choose_linear(torch.device("cuda"), torch.float32) is plain_linear
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_linear(cpu, torch.float32) is plain_linear
