"""The published joint stage: losses against the originals' numbers, LoRA against peft's own forward."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gmcli.checkpoints.load import load_checkpoint, special_ids
from gmcli.manifest import read_manifest
from gmcli.model.preprocess import clip_pixels, resized_size, sam_pixels
from gmcli.train.config import MoraOptions
from gmcli.train.data import MoraBatches, list_questions, teach
from gmcli.train.lora import add_lora, merge_lora, merged_state, trainable_names
from gmcli.train.losses import mask_bce_loss, mask_dice_loss
from gmcli.train.mora import MoraModule, MoraStage
from gmcli.train.prepare import prepare
from tests.random_tiny import RANDOM_TINY
from tests.train.sample import write_dataset

LOC = "Sure, the target object is [SEG], and the temporal boundary is [LOC]."
LORA = {"r": 8, "alpha": 16, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def original():
    """The checkpoint of the goldens, in the layout they were made with."""
    checkpoint = load_checkpoint(RANDOM_TINY)
    checkpoint.model.config = dataclasses.replace(checkpoint.model.config, visual_tokens="frame")
    return checkpoint


@pytest.fixture(scope="module")
def sample(original, golden_frames, facts):
    """Frame 0 of the recorded training step; its true masks are noise of a known seed."""
    model, frame = original.model, golden_frames[0]
    question = facts["prompts"][0]["question"]
    before, after, labels = teach(question, "It is [SEG].", model.config, original.tokenizer)
    truth = np.random.RandomState(31).rand(2, 720, 1280) > 0.5
    return {
        "before": torch.tensor(before),
        "after": torch.tensor(after),
        "labels": torch.tensor(labels),
        "clip": clip_pixels([frame]),
        "sam": sam_pixels([frame]),
        "resized": torch.tensor(resized_size(frame.shape[:2])),
        "masks": torch.from_numpy(truth.astype(np.uint8)),
    }


@torch.no_grad()
def test_the_training_forward_is_the_originals(original, sample, golden):
    """Frame 0 is compared exactly. Frame 10 of the step is not stored, only every 8th row and column of its logits.

    So its part of BCE and DICE is estimated from these, which shows weights and normalisation but no last digits.
    """
    values = golden("train_forward")
    loss, ce, bce, dice, mask = values["losses"].tolist()
    module = MoraModule(original.model, MoraOptions("", ""), original.special)
    truth = sample["masks"].float()
    one = sample | {"masks": sample["masks"][:1]}
    found, losses = module.predict(one), module(one)
    assert (found.masks[0, ::8, ::8] - values["pred_masks_stride8"][0]).abs().max() < 1e-4
    assert float(losses["ce_loss"]) == pytest.approx(ce, abs=1e-4)
    tenth = values["pred_masks_stride8"][1:], truth[1:, ::8, ::8]
    bce_10, dice_10 = float(mask_bce_loss(*tenth, 1)), float(mask_dice_loss(*tenth, 1))
    assert (float(losses["mask_bce_loss"]) + 2.0 * bce_10) / 2 == pytest.approx(bce, rel=0.01)
    assert (float(losses["mask_dice_loss"]) + 0.5 * dice_10) / 2 == pytest.approx(dice, rel=0.01)
    assert mask == pytest.approx(bce + dice, abs=1e-5)
    assert loss == pytest.approx(ce + mask, abs=1e-5)
    parts = sum(float(losses[name]) for name in ("ce_loss", "mask_bce_loss", "mask_dice_loss"))
    assert float(losses["loss"]) == pytest.approx(parts, abs=1e-5)


@torch.no_grad()
def test_the_states_that_predict_seg_are_the_originals(original, sample, golden, facts):
    """With the recorded pixels, which were rounded to float16."""
    recorded = golden("llava_forward")
    pixels = golden("clip_tower")["pixel_values_f16"][:1].float()
    module = MoraModule(original.model, MoraOptions("", ""), original.special)
    batch = sample | {"clip": pixels, "masks": sample["masks"][:1]}
    assert float(module(batch)["ce_loss"]) == pytest.approx(facts["teacher_forced"]["loss"], abs=1e-4)
    tail = module._tail(batch)
    place = sample["labels"].tolist().index(original.special.seg)
    prompts = original.model.segmentation_prompts(tail[:, place])
    torch.testing.assert_close(prompts, recorded["pred_embeddings"], rtol=0, atol=2e-5)


def perturb(model) -> None:
    """Give LoRA's B values: at zero it would add nothing."""
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.3)


def states(model) -> torch.Tensor:
    torch.manual_seed(5)
    hidden = model.config.llm.hidden_size
    return model.language_model.model(inputs_embeds=torch.randn(2, 17, hidden), use_cache=False).last_hidden_state


@torch.no_grad()
def test_merging_lora_changes_no_output(small_folder):
    model = load_checkpoint(str(small_folder)).model
    before = states(model)
    names = [name for name, _ in model.named_parameters()]
    add_lora(model, **LORA)
    model.eval()
    assert torch.equal(states(model), before)
    perturb(model)
    adapted = states(model)
    assert (adapted - before).abs().max() > 0.1
    state = merged_state(model)
    torch.testing.assert_close(states(model), adapted, rtol=0, atol=0)
    merge_lora(model)
    assert [name for name, _ in model.named_parameters()] == names
    torch.testing.assert_close(states(model), adapted, rtol=0, atol=1e-5)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_what_is_trained_and_what_is_frozen(small_folder):
    model = load_checkpoint(str(small_folder), dtype="bf16").model
    add_lora(model, **LORA)
    trained = trainable_names(model)
    assert sorted({name for name in trained if ".lora_" in name}) == sorted(
        f"language_model.model.layers.{layer}.self_attn.{p}.lora_{half}.default.weight"
        for layer in range(2)
        for p in ("q_proj", "v_proj")
        for half in "AB"
    )
    rooms = {
        name.split(".")[0] if not name.startswith(("language", "visual")) else ".".join(name.split(".")[:2])
        for name in trained
    }
    assert rooms == {
        "text_hidden_fcs",
        "localizer",
        "visual_model.mask_decoder",
        "language_model.lm_head",
        "language_model.model",
    }
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert frozen == {"vision_tower", "mm_projector", "language_model", "visual_model"}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def make_stage(folder: Path, manifest: Path, *, dtype: str = "fp32", answers=(LOC,), **changes) -> MoraStage:
    options = MoraOptions(str(manifest), str(manifest), answers=answers, **{"localizer_bins": 20} | changes)
    checkpoint = load_checkpoint(str(folder), dtype=dtype)
    ready = prepare(checkpoint, options, 1)
    tasks = read_manifest(manifest)
    batches = MoraBatches(tasks, list_questions(tasks), options, ready.model.config, ready.tokenizer, 1, True)
    module = MoraModule(ready.model, options, ready.special)
    return MoraStage("mora", module, ready.tokenizer, checkpoint.files.tokenizer, batches, batches)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("layout", ["frame", "pooled", "pooled_padded"])
def test_every_trained_part_gets_a_gradient(small_folder, manifest, layout):
    bins = 0 if layout == "frame" else 20
    answers = ("It is [SEG].",) if layout == "frame" else (LOC,)
    stage = make_stage(small_folder, manifest, visual_tokens=layout, localizer_bins=bins, answers=answers)
    perturb(stage.module.mora)
    stage.module.train()
    losses = stage.module(stage.batch(0))
    assert ("window_bce_loss" in losses) == (bins > 0)
    losses["loss"].backward()
    without = {n for n, p in stage.module.named_parameters() if p.requires_grad and p.grad is None}
    # Only mask token 0 is used, and no IoU: as in LISA, these stay as they are.
    assert all("output_hypernetworks_mlps" in name or "iou_prediction_head" in name for name in without)
    assert all(p.grad is None for p in stage.module.parameters() if not p.requires_grad)


def test_gradient_checkpointing_changes_no_gradient(small_folder, manifest):
    found = []
    for checkpointing in (False, True):
        stage = make_stage(small_folder, manifest, gradient_checkpointing=checkpointing, lora_dropout=0.0)
        perturb(stage.module.mora)
        stage.module.train()
        losses = stage.module(stage.batch(0))
        losses["loss"].backward()
        weight = stage.module.mora.get_parameter("language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight")
        found.append((losses["loss"].detach(), weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)


def test_a_seg_in_the_question_is_no_prompt(small_folder, manifest):
    """Questions come from users; only what is taught is answered."""
    stage = make_stage(small_folder, manifest)
    batch = stage.batch(0)
    stage.module.eval()
    plain = stage.module.predict(batch)
    seg, at = stage.module.special.seg, 3
    spoken = batch | {
        "after": torch.cat([batch["after"][:at], torch.tensor([seg]), batch["after"][at:]]),
        "labels": torch.cat([batch["labels"][:at], torch.tensor([-100]), batch["labels"][at:]]),
    }
    assert stage.module.predict(spoken).masks.shape == plain.masks.shape


def test_a_localizer_and_its_token_are_made(tmp_path, small_folder):
    """As for LISA's checkpoints, whose vocabulary has no [LOC] and which have no localizer."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    from gmcli.checkpoints.convert import write_config

    folder = tmp_path / "lisa"
    shutil.copytree(small_folder, folder)
    checkpoint = load_checkpoint(str(small_folder))
    config = checkpoint.model.config
    config = dataclasses.replace(config, localizer_bins=0, llm=dataclasses.replace(config.llm, vocab_size=2003))
    write_config(folder, config)
    added = {name: i for name, i in checkpoint.tokenizer.added.items() if name != "[LOC]"}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    state = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("localizer.")}
    tables = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")
    state |= {name: state[name][:2003].contiguous() for name in tables}
    save_file(state, folder / "model.safetensors")

    lisa = load_checkpoint(str(folder))
    assert special_ids(lisa.tokenizer, lisa.model.config).loc is None
    ready = prepare(lisa, MoraOptions("", "", localizer_bins=20, answers=(LOC,)), 1)
    assert ready.special.loc == 2003
    assert ready.model.config.llm.vocab_size == 2004
    assert ready.model.config.localizer_bins == 20
    for name in tables:
        table = ready.model.get_parameter(name)
        assert table.shape[0] == 2004
        assert table.requires_grad
        torch.testing.assert_close(table[:2003], state[name])
        torch.testing.assert_close(table[2003], state[name].mean(dim=0))
    again = prepare(load_checkpoint(str(folder)), MoraOptions("", "", localizer_bins=20, answers=(LOC,)), 1)
    assert torch.equal(again.model.localizer[0].weight, ready.model.localizer[0].weight)


def test_bf16_trains_and_saves_a_checkpoint(tmp_path, small_folder, manifest):
    from gmcli.train.config import StageSettings
    from gmcli.train.loop import train_stage

    stage = make_stage(small_folder, manifest, dtype="bf16", validation_questions=2, frames=4, mask_frames=2)
    settings = StageSettings(steps=2, warmup_steps=1, precision="bf16", validate_every=2)
    train_stage(stage, settings, tmp_path, seed=1)
    saved = load_checkpoint(str(tmp_path / "best"))
    assert saved.model.config == stage.module.mora.config
    assert saved.tokenizer.added == stage._tokenizer.added
