import dataclasses

import pytest
import yaml

from gmcli.backends.recipe import COMPONENTS, load_recipe
from gmcli.config import BACKENDS, FREE, RunConfig, load_config
from gmcli.errors import ConfigError, EngineError
from gmcli.resources import share_dir

# Those with stages are for `gmcli train`.
RUN_CONFIGS = [path for path in sorted(share_dir("configs").glob("*.yaml")) if "stages:" not in path.read_text("utf-8")]


def test_the_shipped_default_is_the_default():
    assert load_config("default", {}) == RunConfig() == load_config(None, {})


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_are_complete_and_load(path):
    assert set(yaml.safe_load(path.read_text())) == {f.name for f in dataclasses.fields(RunConfig)}
    assert load_config(str(path), {}) == load_config(path.stem, {})


def test_options_win_over_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("frames: 7\nformats: rle\nmask_frames: 2.5\ngpus: 0\n")
    config = load_config(str(tmp_path / "c.yaml"), {"frames": 9, "dtype": None})
    assert config == RunConfig(frames=9, formats=("rle",), mask_frames=2.5, gpus="0")


def test_every_wrong_field_is_named_with_its_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "frames: many\nspeed: 9\ngpus: '0,0'\n\nmask_frames: -1\nformats: [gif]\ndtype: int4\nworkers: true\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), {})
    lines = caught.value.message.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{n}" for n in (1, 2, 3, 5, 6, 7, 8)]
    assert lines[0] == f"{path}:1: 'frames' must be a whole number from 1 to 1000, not 'many'"
    assert "unknown field 'speed'" in lines[1]


@pytest.mark.parametrize(
    "text", ["!!python/object:os.system {}", "a: &x 1\nb: *x\n", "[1, 2]", "\xff", "a: [", "a: 1\na: 2\n"]
)
def test_hostile_files_are_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(str(path), {})


def test_every_wrong_option_is_named():
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"frames": 0, "mask_frames": "never"})
    assert caught.value.message.splitlines() == [
        "--frames must be a whole number from 1 to 1000, not 0",
        "--mask-frames must be all, sampled or a number of frames per second, not 'never'",
    ]


def test_the_padded_layout_limits_frames():
    with pytest.raises(ConfigError, match="at most 100"):
        load_config(None, {"visual_tokens": "pooled_padded", "frames": 101})


def test_weights_in_few_bits_are_for_what_is_not_compiled_ahead():
    for backend in BACKENDS:
        settings = {"llm_weights": "int8", "backend": backend}
        if backend in ("eager", "inductor"):
            assert load_config(None, settings) == RunConfig(**settings)
            continue
        with pytest.raises(ConfigError, match=f"^llm_weights int8 needs .* what {backend} compiles ahead holds float"):
            load_config(None, settings)
    with pytest.raises(ConfigError, match="--llm-weights must be one of int8, int4, not 'int2'"):
        load_config(None, {"llm_weights": "int2"})


def test_what_decides_the_masks_is_separate_from_what_does_not():
    names = {f.name for f in dataclasses.fields(RunConfig)}
    assert names >= FREE
    assert set(RunConfig().decisive()) == names - FREE - {
        "checkpoint",
        "revision",
        "vision_tower",
        "require_sha256",
    }


def test_every_component_has_a_recipe():
    for component in COMPONENTS:
        recipe = load_recipe(component)
        assert recipe.backends == BACKENDS
        assert set(recipe.batch) == {"cpu", "cuda"}
        assert recipe.tolerance == {"full": 0.999, "reduced": 0.99}


def test_wrong_recipes_are_named_with_their_line(tmp_path):
    (tmp_path / "clip.yaml").write_text(
        "component: clip\nbackends: [magic]\nbatch: {cpu: 0, cuda: 1}\ntolerance: {full: 2, reduced: 0.5}\n"
    )
    with pytest.raises(EngineError) as caught:
        load_recipe("clip", tmp_path)
    assert [line.split(":")[1] for line in caught.value.message.splitlines()] == ["2", "3", "4"]
    (tmp_path / "clip.yaml").write_text("component: clip\n")
    with pytest.raises(EngineError, match="missing: batch, backends, tolerance"):
        load_recipe("clip", tmp_path)


def test_limits_by_stage(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("stage_timeouts_s: {decode: 600, llm: 300}\n")
    assert load_config(str(path), {}).stage_timeouts_s == {"decode": 600, "llm": 300}
    for wrong in ("{dekode: 600}", "{llm: 0}", "600", "[llm]"):
        path.write_text(f"stage_timeouts_s: {wrong}\n")
        with pytest.raises(ConfigError, match=r"c\.yaml:1: 'stage_timeouts_s' must"):
            load_config(str(path), {})
