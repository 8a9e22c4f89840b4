from pathlib import Path

import pytest

from gmcli.errors import ConfigError
from gmcli.resources import share_dir
from gmcli.train.config import MoraOptions, StageSettings, load_train_config

GOOD = """\
seed: 3
init: demo
stages:
  - kind: mora
    manifest: a.yaml
    validation: b.yaml
    steps: 200
    lr: 3e-4
    betas: [0.8, 0.9]
    lr_scale: {mora.localizer.: 0.5}
"""

PUBLISHED = sorted(p.stem for p in share_dir("configs").glob("mora-lisa*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_train_config(write(folder, text), overrides)
    return raised.value.message.replace(f"{folder}/", "").splitlines()


def test_fields_and_defaults(tmp_path):
    config = load_train_config(write(tmp_path, GOOD))
    assert (config.seed, config.init) == (3, "demo")
    (stage,) = config.stages
    assert stage.name == "mora"
    assert stage.settings == StageSettings(steps=200, betas=(0.8, 0.9), lr_scale={"mora.localizer.": 0.5})
    assert stage.options == MoraOptions("a.yaml", "b.yaml")


def test_all_mistakes_are_reported_at_once_with_their_lines(tmp_path):
    text = """\
seed: -1
stages:
  - kind: mora
    manifest: a.yaml
    steps: many
    lr: .nan
    warmpu_steps: 3
    answers: ["no token"]
  - kind: dance
  - 7
"""
    assert problems(tmp_path, text) == [
        "c.yaml:1: 'seed' must be a whole number from 0 to 2147483648, not an integer (-1)",
        "c.yaml:3: 'validation' is missing in stage 'mora'",
        "c.yaml:5: 'steps' must be a whole number from 1 to 2147483648, not the string 'many'",
        "c.yaml:6: 'lr' must be a number from 0, not a number (.nan)",
        *[line for line in problems(tmp_path, text) if ":7: unknown field 'warmpu_steps'; known: name, kind" in line],
        "c.yaml:9: 'kind' must be one of mora, tower, sam, motion, language",
        "c.yaml:10: a stage must be a mapping, not an integer (7)",
    ]


def test_fields_that_contradict_each_other(tmp_path):
    more = "    warmup_steps: 300\n    localizer_bins: 4\n    visual_tokens: frame\n    answers: ['[SEG] [SEG]']\n"
    assert problems(tmp_path, GOOD + more) == [
        "c.yaml:11: 'warmup_steps' must not exceed steps (200)",
        "c.yaml:12: 'localizer_bins' must be 0 with visual_tokens frame: one frame says nothing of time",
        "c.yaml:14: 'answers' must each have one [SEG]: '[SEG] [SEG]'",
        "c.yaml:14: 'answers' must each have one [LOC] with 4 bins: '[SEG] [SEG]'",
    ]


def test_two_stages_of_one_name(tmp_path):
    twice = GOOD + GOOD[GOOD.index("  - kind") :]
    assert problems(tmp_path, twice) == ["c.yaml:11: two stages are named 'mora': give each a 'name'"]


@pytest.mark.parametrize("text", ["", "7", "stages: []", "seed: 1"])
def test_nothing_to_train(tmp_path, text):
    assert len(problems(tmp_path, text)) == 1


def test_overrides_lie_over_the_file(tmp_path):
    config = load_train_config(write(tmp_path, GOOD), ["init=other", "steps=5", "warmup_steps=1", "answers=['[SEG]']"])
    assert config.init == "other"
    assert config.stages[0].settings.steps == 5
    assert config.stages[0].options.answers == ("[SEG]",)


def test_overrides_are_checked_like_fields(tmp_path):
    assert problems(tmp_path, GOOD, "steps=0", "nose=1", "steps") == [
        "c.yaml: --set nose: no stage has such a field",
        "c.yaml: --set 'steps' must be KEY=VALUE, the value in YAML",
        "c.yaml: 'steps' must be a whole number from 1 to 2147483648, not an integer (0)",
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_configurations_are_as_published(name):
    (stage,) = load_train_config(name).stages
    settings, options = stage.settings, stage.options
    assert (settings.steps, settings.accumulation, settings.warmup_steps) == (20 * 500, 10, 100)
    assert (settings.lr, settings.betas, settings.weight_decay, settings.clip_grad) == (3e-4, (0.9, 0.95), 0, 1)
    assert (settings.schedule, settings.precision) == ("linear", "bf16")
    assert (options.lora_r, options.lora_alpha, options.lora_dropout) == (8, 16, 0.05)
    assert options.lora_targets == ("q_proj", "v_proj")
    assert (options.ce_weight, options.bce_weight, options.dice_weight) == (1, 2, 0.5)
    assert options.localizer_bins == (20 if name.endswith("-ft") else 0)
    assert options.frames == 20


def test_three_published_configurations_ship():
    assert PUBLISHED == ["mora-lisa13b-ft", "mora-lisa7b-ft", "mora-lisa7b-zs"]


def test_an_unknown_name_lists_those_that_train():
    with pytest.raises(ConfigError) as raised:
        load_train_config("nosuch")
    assert "mora-lisa7b-ft" in (raised.value.hint or "")
    assert "default" not in (raised.value.hint or "")
