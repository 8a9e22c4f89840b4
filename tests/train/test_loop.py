import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gmcli.errors import ConfigError
from gmcli.train.loop import train_stage
from tests.train.toy import ToyStage, make_batch, toy_settings

ROOT = Path(__file__).parents[2]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train_stage(ToyStage(), toy_settings(), out, seed=1)
    return out


@pytest.fixture(scope="module")
def undisturbed_apart(tmp_path_factory) -> Path:
    """The same in a process of its own: another process's arithmetic may differ in the last digits."""
    out = tmp_path_factory.mktemp("undisturbed-apart")
    assert run_toy(out, None) == 0
    return out


def run_toy(out: Path, kill_at: int | None, number: int = 0, workers: int = 0) -> int:
    arguments = [str(out), "-" if kill_at is None else str(kill_at), str(number), str(workers)]
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.train.toy", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    ).returncode


def same(first: Path, second: Path) -> None:
    for name in ("losses.jsonl", "scores.jsonl"):
        assert (first / name).read_text() == (second / name).read_text()
    for name in ("last/model.safetensors", "best/head.pt", "final/head.pt"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_training_learns_and_leaves_its_files(undisturbed):
    losses = lines(undisturbed / "losses.jsonl")
    assert [line["step"] for line in losses] == list(range(1, 13))
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert {"loss", "absolute", "lr", "grad_norm"} < losses[0].keys()
    scores = lines(undisturbed / "scores.jsonl")
    assert [line["step"] for line in scores] == [4, 8, 12]
    assert (undisturbed / "best/head.pt").is_file()
    head = torch.load(undisturbed / "final/head.pt", weights_only=True)
    last = load_file(undisturbed / "last/model.safetensors")
    assert all(torch.equal(value, last[f"head.{name}"]) for name, value in head.items())
    assert not [p.name for p in undisturbed.iterdir() if p.name.startswith(".")]


def test_tensorboard_has_scalars_and_pictures(undisturbed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(undisturbed / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [2, 4, 6, 8, 10, 12]
    assert [e.step for e in events.Scalars("validation/score")] == [4, 8, 12]
    assert [e.step for e in events.Images("dots")] == [4, 8, 12]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_training_goes_on_with_the_same_curve(undisturbed_apart, tmp_path, workers):
    """SIGKILL comes within step 6 (micro-batch 11), four steps being saved, and within the first step of all."""
    if workers == 0:
        assert run_toy(tmp_path, 1, signal.SIGKILL) == -signal.SIGKILL
        assert run_toy(tmp_path, 11, signal.SIGKILL) == -signal.SIGKILL
        assert [line["step"] for line in lines(tmp_path / "losses.jsonl")] == [1, 2, 3, 4, 5]
    assert run_toy(tmp_path, None, workers=workers) == 0
    same(undisturbed_apart, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step(undisturbed, tmp_path, number):
    """The signal comes within step 8, whose validation is left to the next run."""
    stage = ToyStage(kill_at=15, number=number)
    with pytest.raises(KeyboardInterrupt):
        train_stage(stage, toy_settings(), tmp_path, seed=1)
    assert json.loads((tmp_path / "last/step.json").read_text())["step"] == 8
    again = ToyStage()
    train_stage(again, toy_settings(), tmp_path, seed=1)
    assert again.batches[0] == 16
    same(undisturbed, tmp_path)


class Body(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 8)])

    def forward(self, x):
        return self.layers[0](x)


class Blocks(ToyStage):
    """Has a matrix that Muon steps."""

    def __init__(self, **how):
        super().__init__(**how)
        torch.manual_seed(4)
        self.module.frozen = Body()


def test_muon_goes_on_with_the_same_curve(tmp_path):
    settings = toy_settings(optimizer="muon")
    train_stage(Blocks(), settings, tmp_path / "undisturbed", seed=1)
    with pytest.raises(KeyboardInterrupt):
        train_stage(Blocks(kill_at=9, number=signal.SIGTERM), settings, tmp_path / "stopped", seed=1)
    assert json.loads((tmp_path / "stopped/last/step.json").read_text())["step"] == 5
    train_stage(Blocks(), settings, tmp_path / "stopped", seed=1)
    same(tmp_path / "undisturbed", tmp_path / "stopped")
    adamw = tmp_path / "adamw"
    train_stage(Blocks(), toy_settings(), adamw, seed=1)
    assert lines(adamw / "losses.jsonl")[-1] != lines(tmp_path / "stopped/losses.jsonl")[-1]


def test_a_finished_stage_is_left_alone(undisturbed):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    stage = ToyStage()
    train_stage(stage, toy_settings(), undisturbed, seed=1)
    assert stage.batches == []
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path):
    """Without dropout and running means, two micro-batches a step train as their union does."""

    class Plain(ToyStage):
        def __init__(self, joined):
            super().__init__()
            self.module.norm, self.module.drop = torch.nn.Identity(), torch.nn.Identity()
            self.joined = joined

        def batch(self, index):
            if not self.joined:
                return make_batch(index)
            one, two = make_batch(2 * index), make_batch(2 * index + 1)
            return {"x": torch.cat([one["x"], two["x"]]), "nested": [torch.cat([one["nested"][0], two["nested"][0]])]}

    small, large = Plain(False), Plain(True)
    train_stage(small, toy_settings(), tmp_path / "small", seed=1)
    train_stage(large, toy_settings(accumulation=1), tmp_path / "large", seed=1)
    torch.testing.assert_close(small.module.head.weight, large.module.head.weight, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped(tmp_path):
    """AdamW does not heed the gradient's length; plain differences of its first moment do."""
    stage = ToyStage()
    train_stage(stage, toy_settings(steps=1, clip_grad=1e-3), tmp_path, seed=1)
    state = torch.load(tmp_path / "last/optimizers.pt", weights_only=True)[0]["state"]
    moments = torch.cat([s["exp_avg"].flatten() for s in state.values()]) / (1 - 0.9)
    assert float(moments.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_frozen_weights_stay_and_are_not_saved(undisturbed):
    assert set(load_file(undisturbed / "last/model.safetensors")) == {
        "head.bias",
        "head.weight",
        "norm.bias",
        "norm.num_batches_tracked",
        "norm.running_mean",
        "norm.running_var",
        "norm.weight",
    }


def test_other_settings_are_refused(undisturbed):
    with pytest.raises(ConfigError) as raised:
        train_stage(ToyStage(), toy_settings(lr=0.1, accumulation=3), undisturbed, seed=2)
    assert "seed: 1 there, 2 now" in raised.value.message
    assert "lr: 0.05 there, 0.1 now" in raised.value.message
    assert "accumulation: 2 there, 3 now" in raised.value.message


def test_bf16_trains(tmp_path):
    train_stage(ToyStage(), toy_settings(precision="bf16"), tmp_path, seed=1)
    losses = lines(tmp_path / "losses.jsonl")
    assert losses[-1]["loss"] < losses[0]["loss"]


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    stage = ToyStage()
    with torch.no_grad():
        stage.module.head.bias.fill_(float("nan"))
    with pytest.raises(ConfigError, match="the loss of step 1 is nan"):
        train_stage(stage, toy_settings(), tmp_path, seed=1)
    assert not (tmp_path / "last").exists()


class Broken(ToyStage):
    def __init__(self):
        super().__init__()
        self.batch = broken_batch  # what loader processes get: no method, so no stage


def broken_batch(index):
    if index == 3:
        raise ConfigError("mask.png: cannot be read", "Mend it.")
    return make_batch(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_data_is_said_plainly(tmp_path, workers):
    with pytest.raises(ConfigError) as raised:
        train_stage(Broken(), toy_settings(loader_workers=workers), tmp_path, seed=1)
    assert (raised.value.message, raised.value.hint) == ("mask.png: cannot be read", "Mend it.")
    assert not multiprocessing.active_children()
