import pytest
import torch

from gmcli.bench import light
from gmcli.bench.models import model_config

CPU = torch.device("cpu")


def test_flops_of_a_linear_layer_are_two_a_weight_and_row():
    layer = torch.nn.Linear(48, 80)
    assert light.flops(lambda: layer(torch.zeros(7, 48))) == 2 * 7 * 48 * 80
    assert light.flops(lambda: layer.to("meta")(torch.zeros(7, 48, device="meta"))) == 2 * 7 * 48 * 80


def test_work_of_the_published_sizes_is_what_their_papers_say():
    """Segment-anything's ViT-B encoder is known as 486 GMAC a frame, its decoder as 1.8."""
    load = light.Workload("pooled", clips=1, clip_frames=4, before=33, after=(14, 20), answers=(2, 3))
    work = light.count_work(model_config("vit_b-160m"), load)
    assert work["sam_encoder"]["ours"] == pytest.approx(4 * 2 * 486, rel=0.01)
    assert work["sam_encoder"]["published"] == 2 * work["sam_encoder"]["ours"]
    assert work["sam_decoder"]["ours"] == pytest.approx(2 * 4 * 2 * 1.8, rel=0.01)
    # 11 of 12 layers, once, against all 12, for every token of both answers.
    assert work["clip"]["published"] == pytest.approx(5 * 12 / 11 * work["clip"]["ours"], rel=0.01)


def test_language_work_is_linear_layers_and_attention():
    config = model_config("tiny")
    load = light.Workload("frame", clips=3, clip_frames=1, before=10, after=(5,), answers=(4,))
    work = light.count_work(config, load)["llm"]
    patches, h, inner, layers = config.clip.patches, 64, 128, 2

    def layer_flops(new: int, past: int) -> int:
        return 2 * new * (4 * h * h + 3 * h * inner) + 2 * 2 * new * (past + new) * h

    head = 2 * h * config.llm.vocab_size
    prefix = 10 + patches
    cached = layers * (layer_flops(prefix, 0) + layer_flops(5, prefix)) + 4 * head
    cached += layers * sum(layer_flops(1, prefix + 5 + i) for i in range(3))
    assert work["ours"] == pytest.approx(3 * cached / 1e9, rel=1e-6)
    lengths = [prefix + 5 + i for i in range(4)]
    whole = sum(layers * layer_flops(n, 0) + n * head for n in lengths)
    assert work["published"] == pytest.approx(3 * whole / 1e9, rel=1e-6)


def test_the_peak_is_the_best_of_all_ways():
    peak = light.measure_peak(CPU, torch.float32, shapes=[(64, 64, 64), (128, 128, 128)], seconds=0.01)
    assert peak.gflop_s == max(peak.best.values()) > 0
    assert peak.by.split(" ")[-1] in ("64x64x64", "128x128x128")
    assert "torch.matmul" in peak.best


def test_shares_of_the_peak():
    peak = light.Peak(100.0, "x", {"x": 100.0})
    work = {"a": {"ours": 50.0, "published": 80.0}, "b": {"ours": 10.0, "published": 10.0}}
    rows = light.speed_of_light(work, {"a": 2.0, "decode": 1.0}, peak)
    assert rows["a"] == {"gflop": 50, "seconds": 2, "gflop_s": 25, "share_of_peak": 0.25, "seconds_at_peak": 0.5}
    assert rows["b"]["gflop_s"] == 0
    assert rows["all"]["gflop_s"] == 20
