"""The model's parts, uncompiled and compiled: found again, verified before they are stored, never exchanged in silence."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gmcli import engines as module
from gmcli.agreement import make_sample, mask_agreement, sample_masks
from gmcli.backends.store import Store
from gmcli.checkpoints.load import load_checkpoint
from gmcli.config import RunConfig
from gmcli.engines import (
    Reference,
    eager_engines,
    ensure_engine,
    plan_engines,
    prepare_engines,
    shared_copy,
    weights_sha256,
)
from gmcli.errors import EngineError
from gmcli.manifest import read_manifest
from gmcli.masks.rle import decode_rle
from gmcli.model.linear import FastLinear
from gmcli.model.preprocess import clip_pixels, sam_pixels
from gmcli.segmenter import Segmenter
from gmcli.video import open_video, read_frames


@pytest.fixture(scope="module")
def small(small_folder):
    return load_checkpoint(str(small_folder))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "engines")


class Fake:
    """A backend that stores a note and runs the module itself, or something else."""

    STORES = True

    def __init__(self, spoil=lambda out: out, version="1"):
        self.spoil, self.version, self.built = spoil, version, []

    def versions(self, device):
        return {"fake": self.version}

    def build(self, component, folder):
        self.built.append(component.name)
        (folder / "note").write_text(component.name)

    def load(self, component, folder):
        assert (folder / "note").read_text() == component.name
        return lambda *inputs: self.spoil(component.module(*inputs))


@pytest.fixture
def fake(monkeypatch):
    def use(**options):
        backend = Fake(**options)
        monkeypatch.setattr(module, "choose_backend", lambda name: backend)
        return backend

    return use


def test_uncompiled_parts_share_the_weights_and_leave_the_model_alone(small):
    engines = eager_engines(small.model)
    assert any(isinstance(m, FastLinear) for m in engines.model.modules())
    assert not any(isinstance(m, FastLinear) for m in small.model.modules())
    ours = {name: tensor.data_ptr() for name, tensor in engines.model.state_dict().items()}
    assert ours == {name: tensor.data_ptr() for name, tensor in small.model.state_dict().items()}
    assert set(engines.used.values()) == {"eager"}


def test_uncompiled_parts_equal_the_models_own(small, clips):
    engines, model = eager_engines(small.model), small.model
    with open_video(clips / "a.mp4") as reader, torch.inference_mode():
        frames = read_frames(reader, [0, 5])
        pixels = clip_pixels(frames)
        torch.testing.assert_close(engines.clip(pixels), model.clip_features(pixels), atol=2e-5, rtol=0)
        want = model.visual_model.image_encoder(sam_pixels(frames, 128))
        torch.testing.assert_close(engines.encode(sam_pixels(frames, 128)), want, atol=2e-5, rtol=0)
        prompts = torch.randn(2, 256)
        sam = model.visual_model
        for got, wanted in zip(
            engines.decode(want, prompts), sam.decode_masks(want, prompts, sam.dense_pe()), strict=True
        ):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_an_engine_is_built_once_and_found_by_the_next_process(small, store, fake):
    backend = fake()
    first = prepare_engines(small, "openvino", questions=4, store=store)
    assert backend.built == ["clip", "sam_image_encoder", "sam_mask_decoder", "llm"]
    assert all("openvino" in label for label in first.used.values())
    again = prepare_engines(small, "openvino", questions=4, store=Store(store.root))
    assert len(backend.built) == 4
    assert again.used == first.used


def test_the_key_tells_weights_recipe_shapes_dtype_and_libraries_apart(small, small_folder, fake, monkeypatch):
    fake()

    def keys(checkpoint=small, questions=4):
        return [plan.key.digest for plan in plan_engines(checkpoint, "openvino", questions=questions)]

    plain = keys()
    assert keys() == plain
    assert [a == b for a, b in zip(keys(questions=5), plain, strict=True)] == [True, True, True, False]
    assert not set(keys(load_checkpoint(str(small_folder), dtype="bf16"))) & set(plain)
    changed = shared_copy(small.model)
    with torch.no_grad():
        encoder = changed.visual_model.image_encoder
        encoder.pos_embed = nn.Parameter(encoder.pos_embed + 1e-3, requires_grad=False)
    other = keys(dataclasses.replace(small, model=changed))
    assert [a == b for a, b in zip(other, plain, strict=True)] == [True, False, True, True]
    fake(version="2")
    assert not set(keys()) & set(plain)
    fake()
    real = module.load_recipe
    monkeypatch.setattr(
        module, "load_recipe", lambda name: dataclasses.replace(real(name), tolerance={"full": 0.5, "reduced": 0.5})
    )
    assert not set(keys()) & set(plain)


def test_weights_are_hashed_by_name_type_and_value():
    layer = nn.Linear(2, 2)
    same = nn.Linear(2, 2)
    same.load_state_dict(layer.state_dict())
    assert weights_sha256(layer) == weights_sha256(same)
    assert weights_sha256(layer.double()) != weights_sha256(same)
    assert weights_sha256(nn.ModuleDict({"a": same})) != weights_sha256(nn.ModuleDict({"b": same}))


def spoil_masks(out):
    """Flip the sign of a fifth of the mask logits, and of nothing that other components give."""
    if isinstance(out, tuple) and out[1].shape[-1] == 1:
        low_res = out[0].clone()
        low_res[..., : low_res.shape[-1] // 5] *= -1
        return low_res, out[1]
    return out


def test_an_engine_that_draws_other_masks_is_not_stored(small, store, fake):
    fake(spoil=spoil_masks)
    plans = {plan.component.name: plan for plan in plan_engines(small, "openvino", questions=4)}
    assert ensure_engine(Reference(small), plans["sam_image_encoder"], store).facts["mask_iou"] == 1.0
    with pytest.raises(EngineError, match=r"the compiled sam_mask_decoder draws other masks: IoU 0\.\d+") as caught:
        ensure_engine(Reference(small), plans["sam_mask_decoder"], store)
    assert "asks for 0.999" in caught.value.message
    assert store.find(plans["sam_mask_decoder"].key) is None
    with pytest.raises(EngineError):
        prepare_engines(small, "openvino", questions=4, store=store)


def test_nan_is_not_mistaken_for_agreement(small, store, fake):
    def nan(out):
        return (out[0] * float("nan"), out[1]) if isinstance(out, tuple) and out[1].shape[-1] == 1 else out

    fake(spoil=nan)
    plan = plan_engines(small, "openvino", questions=4, only=["sam_mask_decoder"])[0]
    with pytest.raises(EngineError, match="draws other masks"):
        ensure_engine(Reference(small), plan, store)


def test_a_recipe_can_leave_a_backend_out_and_the_record_says_so(small, store, fake, monkeypatch, caplog):
    fake()
    real = module.load_recipe

    def without_llm(name):
        recipe = real(name)
        return dataclasses.replace(recipe, backends=("eager",)) if name == "llm" else recipe

    monkeypatch.setattr(module, "load_recipe", without_llm)
    with caplog.at_level(logging.INFO, "gmcli.engines"):
        engines = prepare_engines(small, "openvino", questions=4, store=store)
    assert engines.used["llm"] == "eager"
    assert "llm eager" in caplog.text


def test_agreement_counts_pixels():
    want = np.zeros((2, 2, 2), bool)
    want[0, 0] = want[1, 1] = True
    got = want.copy()
    got[1, 0, 0] = True
    agreement = mask_agreement(want, got)
    assert agreement.iou == pytest.approx(4 / 5)
    assert agreement.least == pytest.approx(2 / 3)
    assert agreement.count == 2
    for nothing in (np.zeros((1, 2, 2), bool), np.ones((1, 2, 2), bool)):
        with pytest.raises(EngineError, match="nothing can be verified"):
            mask_agreement(nothing, nothing)


def test_sample_masks_do_not_depend_on_the_way_but_on_the_weights(small):
    engines = eager_engines(small.model)
    sample = make_sample(small, engines)
    want = sample_masks(small, engines, sample)
    assert want.shape == (12, 192, 192)
    assert (want == sample_masks(small, eager_engines(small.model), sample)).all()
    changed = shared_copy(small.model)
    with torch.no_grad():
        layer = changed.text_hidden_fcs[0][2]
        layer.weight = nn.Parameter(-layer.weight, requires_grad=False)
    other = sample_masks(dataclasses.replace(small, model=changed), eager_engines(changed), sample)
    assert (want != other).any()


def test_answers_of_the_sample_are_the_models_own_where_they_point_at_something():
    trained = load_checkpoint("mora-tiny")
    sample = make_sample(trained, eager_engines(trained.model))
    assert all(trained.special.seg in ids for ids in sample.answers)
    assert all("[SEG] [LOC]" in trained.tokenizer.answer(ids) for ids in sample.answers)


def test_a_model_that_points_at_nothing_is_made_to(small):
    sample = make_sample(small, eager_engines(small.model))
    assert {small.tokenizer.answer(ids) for ids in sample.answers} == {"It is [SEG]."}


@pytest.mark.slow
def test_mora_tiny_answers_and_masks_on_openvino_as_it_does_uncompiled(tmp_path):
    pytest.importorskip("openvino")
    trained = load_checkpoint("mora-tiny")
    root = Path(__file__).parents[2] / "examples"
    tasks = read_manifest(root / "manifest.yaml")
    engines = prepare_engines(trained, "openvino", questions=16, store=Store(tmp_path / "engines"))
    assert "eager" not in engines.used.values()
    config = RunConfig(mask_frames="sampled")
    plain, compiled = Segmenter(trained, config, "cpu"), Segmenter(trained, config, "cpu", engines)
    for asked in tasks:
        want, got = plain.segment(asked).results, compiled.segment(asked).results
        for a, b in zip(want, got, strict=True):
            assert (a.answer, a.status, a.span) == (b.answer, b.status, b.span)
            pairs = [(decode_rle(x), decode_rle(y)) for x, y in zip(a.masks, b.masks, strict=True)]
            common, either = sum((x & y).sum() for x, y in pairs), sum((x | y).sum() for x, y in pairs)
            assert common >= 0.999 * either > 0


@pytest.mark.slow
def test_a_real_engine_is_found_rebuilt_when_damaged_and_passed_over_when_versions_change(
    small, store, monkeypatch, caplog
):
    openvino = pytest.importorskip("gmcli.backends.openvino")
    pytest.importorskip("openvino")

    def decoder():
        return plan_engines(small, "openvino", questions=4, only=["sam_mask_decoder"])[0]

    reference = Reference(small)
    first = ensure_engine(reference, decoder(), store)
    assert first.facts["mask_iou"] >= 0.999
    weights = first.path / openvino.WEIGHTS
    written = weights.stat().st_ino
    assert ensure_engine(reference, decoder(), Store(store.root)).path == first.path
    assert weights.stat().st_ino == written, "built again"
    content = bytearray(weights.read_bytes())
    content[100] ^= 255
    weights.chmod(0o600)
    weights.write_bytes(content)
    with pytest.raises(EngineError, match=openvino.WEIGHTS):
        store.find(decoder().key)
    with caplog.at_level(logging.WARNING):
        ensure_engine(reference, decoder(), store)
    assert openvino.WEIGHTS in caplog.text
    assert weights.read_bytes() != bytes(content)
    real = openvino.versions
    monkeypatch.setattr(openvino, "versions", lambda device: real(device) | {"openvino": "1900.1"})
    assert store.find(decoder().key) is None
