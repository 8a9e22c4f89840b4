"""`gmcli train` from the published configurations, on a small copy of the same architecture."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from gmcli.checkpoints.load import load_checkpoint
from gmcli.cli.main import cli
from tests.train.sample import write_dataset

ZS = "mora-lisa7b-zs"
FT = "mora-lisa7b-ft"


def gmcli(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def settings(manifest, init, **more) -> list[str]:
    values = {
        "init": init,
        "manifest": manifest,
        "validation": manifest,
        "steps": 3,
        "warmup_steps": 1,
        "accumulation": 2,
        "validation_questions": 2,
        "precision": "fp32",
        "loader_workers": 0,
        "save_every": 1,
        "validate_every": 3,
        "mask_frames": 2,
    }
    return [part for key, value in (values | more).items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, manifest, small_folder):
    """Stage 2 as published, three steps on the small model."""
    out = tmp_path_factory.mktemp("trained") / "out"
    result = gmcli("train", FT, "-o", out, *settings(manifest, small_folder))
    assert result.exit_code == 0, result.output
    return out


def losses(out) -> list[dict]:
    return [json.loads(line) for line in (out / "mora/losses.jsonl").read_text().splitlines()]


def test_three_steps_are_trained(trained):
    lines = losses(trained)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    assert {"ce_loss", "mask_bce_loss", "mask_dice_loss", "window_bce_loss", "iou", "grad_norm"} < lines[0].keys()
    # In three steps only the language model's own loss moves visibly.
    assert lines[-1]["ce_loss"] < lines[0]["ce_loss"]


def test_a_finished_training_is_left_alone(trained, manifest, small_folder):
    before = (trained / "mora/losses.jsonl").stat().st_mtime_ns
    result = gmcli("train", FT, "-o", trained, *settings(manifest, small_folder))
    assert result.exit_code == 0
    assert (trained / "mora/losses.jsonl").stat().st_mtime_ns == before


def test_merged_weights_answer_as_the_adapters_do(tmp_path, trained, small_folder):
    """The oracle is peft's own forward; `best` was saved at the same step and must hold the same weights."""
    from gmcli.train.config import MoraOptions
    from gmcli.train.prepare import prepare

    result = gmcli("convert", small_folder, tmp_path / "merged", "--merge-lora", trained / "mora")
    assert result.exit_code == 0, result.output
    merged = load_checkpoint(str(tmp_path / "merged"))
    base = load_checkpoint(str(small_folder))
    options = MoraOptions("", "", localizer_bins=20, answers=("[SEG] [LOC]",))
    adapted = prepare(base, options, 0).model.eval()
    weights = load_file(trained / "mora/last/model.safetensors")
    missing, unknown = adapted.load_state_dict({k.removeprefix("mora."): v for k, v in weights.items()}, strict=False)
    assert not unknown
    assert not [name for name in missing if "lora_" in name]
    assert any(v.abs().max() > 0 for k, v in weights.items() if ".lora_B." in k)
    torch.manual_seed(1)
    embeddings = torch.randn(1, 40, 64)
    with torch.no_grad():
        expected = adapted.language_model.model(inputs_embeds=embeddings).last_hidden_state
        found = merged.model.language_model.model(inputs_embeds=embeddings).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        expected, found = adapted.language_model.lm_head(expected), merged.model.language_model.lm_head(found)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
        states = torch.randn(2, 64)
        for head in ("localizer", "text_hidden_fcs.0"):
            expected = adapted.get_submodule(head)(states)
            torch.testing.assert_close(merged.model.get_submodule(head)(states), expected, rtol=0, atol=1e-6)
    best = load_file(trained / "mora/best/model.safetensors")
    state = load_file(tmp_path / "merged/model.safetensors")
    assert best.keys() == state.keys()
    assert all(torch.allclose(best[name], state[name], rtol=0, atol=1e-6) for name in best)
    assert "nothing was trained" not in (tmp_path / "merged/README.md").read_text()


def test_merging_into_another_checkpoint_is_refused(tmp_path, trained):
    result = gmcli("convert", "mora-tiny", tmp_path / "merged", "--merge-lora", trained / "mora")
    assert result.exit_code == 5
    assert "was not trained from mora-tiny" in result.output
    assert not (tmp_path / "merged").exists()


def test_merging_what_is_no_stage_is_refused(tmp_path, small_folder):
    result = gmcli("convert", small_folder, tmp_path / "merged", "--merge-lora", tmp_path)
    assert result.exit_code == 5
    assert "Name the folder of a stage of kind mora" in result.output


def test_the_best_checkpoint_answers_questions(tmp_path, trained, manifest):
    best = trained / "mora/best"
    result = gmcli("infer", manifest, "--checkpoint", best, "-o", tmp_path / "run", "--gpus", "cpu", "--limit", "1")
    assert result.exit_code == 0, result.output


def test_a_killed_training_goes_on_with_the_same_curve(tmp_path, manifest, small_folder, trained):
    """SIGKILL comes right behind the first save; the rest is done by the same command."""
    program = (
        "import os, signal, sys\n"
        "import gmcli.train.loop as loop\n"
        "save = loop.save_last\n"
        "def save_and_die(*arguments):\n"
        "    save(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "loop.save_last = save_and_die\n"
        "from gmcli.cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    command = [sys.executable, "-c", program, "train", FT, "-o", str(tmp_path / "out")]
    killed = subprocess.run([*command, *settings(manifest, small_folder)], capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert [line["step"] for line in losses(tmp_path / "out")] == [1]
    result = gmcli("train", FT, "-o", tmp_path / "out", *settings(manifest, small_folder))
    assert result.exit_code == 0, result.output
    assert losses(tmp_path / "out") == losses(trained)
    last = "mora/last/model.safetensors"
    assert (tmp_path / "out" / last).read_bytes() == (trained / last).read_bytes()


def test_stage_one_as_published(tmp_path, manifest, small_folder):
    """No localizer: the base's one is left out, and the window is not learnt. In bf16, with a loader process."""
    more = {"precision": "bf16", "loader_workers": 1, "steps": 1}
    result = gmcli("train", ZS, "-o", tmp_path / "out", *settings(manifest, small_folder, **more))
    assert result.exit_code == 0, result.output
    assert "window_bce_loss" not in losses(tmp_path / "out")[0]
    assert load_checkpoint(str(tmp_path / "out/mora/best")).model.localizer is None
    merged = gmcli("convert", small_folder, tmp_path / "merged", "--merge-lora", tmp_path / "out/mora")
    assert merged.exit_code == 0, merged.output
    assert load_checkpoint(str(tmp_path / "merged")).model.config.conversation == "llava_llama_2"


def test_other_settings_in_the_same_directory_are_refused(trained, manifest, small_folder):
    result = gmcli("train", FT, "-o", trained, *settings(manifest, small_folder, lr=1, frames=4))
    assert result.exit_code == 3
    assert "mora: lr: 0.0003 there, 1.0 now" in result.output
    assert "mora: frames: 20 there, 4 now" in result.output


def test_all_is_checked_before_a_model_is_read(tmp_path, manifest, small_folder, monkeypatch):
    def never(*arguments, **more):
        raise AssertionError("a model was read")

    monkeypatch.setattr("gmcli.train.build.load_checkpoint", never)
    out = tmp_path / "out"
    bare = tmp_path / "bare.yaml"
    bare.write_text(manifest.read_text().replace("ground_truth:", "type: x #"))
    shutil.copytree(manifest.parent / "v0", tmp_path / "v0")
    shutil.copytree(manifest.parent / "v1", tmp_path / "v1")
    result = gmcli("train", FT, "-o", out, *settings(bare, small_folder))
    assert result.exit_code == 3
    assert f"{bare}: v1/q1: has no ground truth" in result.output
    result = gmcli("train", FT, "-o", out, *settings(tmp_path / "none.yaml", small_folder))
    assert result.exit_code == 3
    result = gmcli("train", FT, "-o", out, *settings(manifest, tmp_path / "nowhere"))
    assert result.exit_code == 5
    result = gmcli("train", FT, "-o", out, *settings(manifest, small_folder, steps="'x'"))
    assert result.exit_code == 3
    assert "'steps' must be a whole number" in result.output
    assert not out.exists()
    result = gmcli("train", FT, "-o", out, "--check", *settings(manifest, small_folder))
    assert result.exit_code == 0
    assert not out.exists()


def test_a_missing_extra_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    result = gmcli("train", FT, "-o", tmp_path / "out")
    assert result.exit_code == 4
    assert "training needs peft" in result.output
    assert "pip install 'gmcli[train]'" in result.output


def test_the_command_line_imports_none_of_it():
    code = "import sys, gmcli.cli.main; print([m for m in ('torch', 'accelerate', 'peft') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
