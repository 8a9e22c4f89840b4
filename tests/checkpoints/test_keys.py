"""Every key of the published 7B and 13B checkpoints lands on a module of the same shape, none left over."""

import json

import pytest

from gmcli.checkpoints.keys import original_config, original_to_own, sam_sizes, tower_to_own
from gmcli.checkpoints.load import key_problems
from gmcli.model.config import ClipSizes, MoraConfig, SamSizes
from gmcli.model.mora import build_on_meta
from tests.conftest import GOLDENS

CLIP_L = ClipSizes(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)


def published(name):
    facts = json.loads((GOLDENS / f"{name}_keys.json").read_text())
    shapes = {}
    for key, shape, *_ in facts["merged"]:
        if (ours := original_to_own(key)) is not None:
            shapes[ours] = tuple(shape)
    # Both name the same tower; the list is in one of the files.
    tower = json.loads((GOLDENS / "lisa7b_keys.json").read_text())["vision_tower_plain"]
    for key, shape, *_ in tower:
        if (ours := tower_to_own(key.removeprefix("model.vision_tower.vision_tower."))) is not None:
            shapes[ours] = tuple(shape)
    return facts, shapes


@pytest.mark.parametrize(("name", "keys"), [("lisa7b", 923), ("lisa13b", 1003)])
def test_all_published_keys_land_on_the_meta_device(name, keys):
    facts, shapes = published(name)
    assert len(facts["merged"]) == keys
    config = original_config(facts["config_json"], CLIP_L, shapes)
    assert config.sam == SamSizes()
    assert config.localizer_bins == 0
    assert key_problems(config, shapes) == []


def test_only_rotary_buffers_are_skipped():
    facts, _ = published("lisa7b")
    skipped = [key for key, *_ in facts["merged"] if original_to_own(key) is None]
    assert skipped == [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(32)]


def test_missing_surplus_and_misshapen_keys_are_all_listed():
    facts, shapes = published("lisa7b")
    config = original_config(facts["config_json"], CLIP_L, shapes)
    del shapes["mm_projector.bias"]
    shapes["model.seg_token_temporal_module.x"] = (3,)
    shapes["language_model.lm_head.weight"] = (32000, 4096)
    assert key_problems(config, shapes) == [
        "missing: mm_projector.bias [4096]",
        "unknown: model.seg_token_temporal_module.x [3]",
        "wrong shape: language_model.lm_head.weight is [32000, 4096], the model needs [32004, 4096]",
    ]


def test_a_localizer_is_recognised_by_its_weights():
    facts, shapes = published("lisa7b")
    shapes |= {
        "localizer.0.weight": (4096, 4096),
        "localizer.0.bias": (4096,),
        "localizer.2.weight": (20, 4096),
        "localizer.2.bias": (20,),
    }
    config = original_config(facts["config_json"], CLIP_L, shapes)
    assert config.localizer_bins == 20
    assert key_problems(config, shapes) == []


@pytest.mark.parametrize(
    "sizes",
    [
        SamSizes(),
        SamSizes(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, global_attn_indexes=(2, 5, 8, 11)),
        SamSizes(
            image_size=256, embed_dim=96, depth=5, num_heads=3, mlp_dim=200, global_attn_indexes=(0, 4), window_size=7
        ),
        SamSizes(
            image_size=128, embed_dim=64, depth=2, num_heads=4, mlp_dim=256, global_attn_indexes=(1,), window_size=4
        ),
    ],
)
def test_sam_sizes_are_read_off_the_shapes(sizes, checkpoint):
    import dataclasses

    config = dataclasses.replace(checkpoint.model.config, sam=sizes)
    shapes = {k: tuple(v.shape) for k, v in build_on_meta(config).state_dict().items()}
    assert sam_sizes(shapes) == sizes


def test_configuration_survives_json(checkpoint):
    config: MoraConfig = checkpoint.model.config
    assert MoraConfig.from_json(json.loads(json.dumps(config.to_json())), "x") == config
