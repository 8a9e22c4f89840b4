"""The language model in 8 and 4 bits: near the floats, a fraction of their memory, and refused early where it cannot be."""

import importlib.util
import weakref

import pytest
import torch
from torch._subclasses import FakeTensorMode

from gmcli.backends.choose import choose_backend
from gmcli.checkpoints import load as module
from gmcli.checkpoints.load import load_checkpoint
from gmcli.checkpoints.locate import locate_checkpoint
from gmcli.config import RunConfig
from gmcli.engines import eager_engines, plan_engines, shared_copy, weights_sha256
from gmcli.errors import CheckpointError, EnvironmentProblem, UsageError
from gmcli.executors.messages import WorkerSetup
from gmcli.executors.worker import _build
from gmcli.model.generate import answer_questions, prefill
from gmcli.model.linear import plain_linear
from gmcli.model.preprocess import clip_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.quantize import Int8Linear, linear_layers, quantize_language_model, quantized_linear
from gmcli.synth.draw import draw, make_look
from gmcli.synth.samples import scene_with_questions, stream
from gmcli.synth.scene import FRAMES
from gmcli.video import sample_indices
from gmcli.video.sandbox import DecoderSandbox
from tests.cli.test_infer import infer, write_manifest
from tests.model.test_generate import ask
from tests.random_tiny import RANDOM_TINY

pytest.importorskip("torchao")


def size(llm) -> int:
    """Count the bytes of the blocks' linear layers."""
    layers = [m for name, m in llm.model.named_modules() if name.endswith("_proj")]
    return sum(t.numel() * t.element_size() for m in layers for t in (*m.parameters(), *m.buffers()))


@pytest.fixture(scope="module")
def small():
    """The goldens' checkpoint in 8 bits."""
    return load_checkpoint(RANDOM_TINY, llm_weights="int8")


@pytest.mark.parametrize("i", range(4))
def test_8_bits_give_the_originals_ids_and_nearly_their_prompts(small, golden, golden_frames, facts, i):
    fact = facts["evaluate"][i]
    (answer,) = ask(small, golden_frames[i], fact["question"])
    assert list(answer.ids) == fact["new_ids"]
    want = golden("evaluate")[f"q{i}_pred_embeddings"]
    got = small.model.segmentation_prompts(answer.seg_hidden)
    assert torch.linalg.vector_norm(got - want) <= 0.02 * torch.linalg.vector_norm(want)


def test_8_bits_answer_fresh_questions_of_the_model_that_ships():
    """At least 30, nearly all as 32 bits do, with states that are near."""
    plain, small = load_checkpoint("mora-tiny"), load_checkpoint("mora-tiny", llm_weights="int8")
    same = total = index = 0
    with torch.inference_mode():
        while total < 30:
            rng = stream("test", 3, index)
            facts, questions = scene_with_questions(rng)
            frames, _ = draw(facts.scene, make_look(facts.scene, FRAMES, rng), sample_indices(0, FRAMES, 20))
            pair = []
            for checkpoint in (plain, small):
                engines, model = eager_engines(checkpoint.model), checkpoint.model
                features = engines.clip(clip_pixels(frames, model.config.clip.image_size))
                visual = model.visual_embeddings(features, model.config.visual_tokens)
                prompts = [tokenize_prompt(build_prompt(q.text, model.config), checkpoint.tokenizer) for q in questions]
                prefix = prefill(model, engines.language, prompts[0][0], visual)
                suffixes = [after for _, after in prompts]
                pair.append(answer_questions(model, engines.language, prefix, suffixes, checkpoint.special, 64).answers)
            for want, got in zip(*pair, strict=True):
                total += 1
                if got.ids == want.ids:
                    same += 1
                    far = torch.linalg.vector_norm(got.seg_hidden - want.seg_hidden)
                    assert far <= 0.1 * torch.linalg.vector_norm(want.seg_hidden)
            index += 1
    assert same >= 0.95 * total


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 0.27), ("bf16", 0.54)])
def test_8_bits_take_a_quarter_of_32_and_half_of_16(dtype, most):
    plain = load_checkpoint(RANDOM_TINY, dtype=dtype).model.language_model
    small = load_checkpoint(RANDOM_TINY, dtype=dtype, llm_weights="int8").model.language_model
    assert size(small) <= most * size(plain)
    assert small.lm_head.weight.dtype == plain.lm_head.weight.dtype == small.dtype
    assert torch.equal(small.lm_head.weight, plain.lm_head.weight)
    assert torch.equal(small.get_input_embeddings().weight, plain.get_input_embeddings().weight)


def test_a_copy_is_quantised_and_the_original_is_not(checkpoint, small):
    before = weights_sha256(checkpoint.model)
    copy = shared_copy(checkpoint.model)
    quantize_language_model(copy.language_model, "int8")
    assert weights_sha256(checkpoint.model) == before
    assert not any(isinstance(m, Int8Linear) for m in checkpoint.model.modules())
    assert linear_layers(copy.language_model) == []
    # As it is when quantised while it is read.
    assert weights_sha256(copy) == weights_sha256(small.model)


def test_reading_holds_one_float_weight_at_a_time(monkeypatch):
    """What the layer before was made of is gone when the next is made: else a card would have to hold all of it."""
    seen, alive = [], []

    def watched(weight, weights):
        alive.append(sum(each() is not None for each in seen))
        seen.append(weakref.ref(weight))
        return quantized_linear(weight, weights)

    monkeypatch.setattr(module, "quantized_linear", watched)
    loaded = load_checkpoint(RANDOM_TINY, llm_weights="int8")
    assert alive == [0] * 14
    assert all(each() is None for each in seen)
    assert not [name for name, _ in loaded.model.named_parameters() if name.endswith("_proj.weight") and "lang" in name]


def test_a_worker_holds_one_copy_in_8_bits():
    setup = WorkerSetup(
        files=locate_checkpoint(RANDOM_TINY),
        config=RunConfig(checkpoint=RANDOM_TINY, llm_weights="int8"),
        device="cpu",
        dtype="fp32",
        threads=torch.get_num_threads(),
        log_format="text",
    )
    with DecoderSandbox() as sandbox:
        segmenter = _build(setup, sandbox)
    ours, held = segmenter.model.language_model, segmenter.checkpoint.model.language_model
    assert linear_layers(ours) == linear_layers(held) == []
    assert {n: t.data_ptr() for n, t in ours.state_dict().items()} == {
        n: t.data_ptr() for n, t in held.state_dict().items()
    }


def test_a_run_in_8_bits_is_another_run(small_folder, clips, tmp_path):
    manifest = write_manifest(tmp_path, clips, "a.mp4")
    assert infer(manifest, small_folder, tmp_path / "out", "--llm-weights", "int8").exit_code == 0
    again = infer(manifest, small_folder, tmp_path / "out")
    assert again.exit_code == 3
    assert "llm_weights was 'int8', is None" in again.stderr


@pytest.mark.slow
def test_inductor_compiles_8_bits(small):
    (plan,) = plan_engines(small, "inductor", questions=4, only=["llm"])
    run = choose_backend("inductor").load(plan.component, None)
    torch.manual_seed(5)
    inputs = [torch.randn_like(x) if x.is_floating_point() else x for x in plan.component.example]
    with torch.inference_mode():
        for want, got in zip(plan.component.module(*inputs), run(*inputs), strict=True):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_of_8_bits_errs_by_its_rounding_alone(dtype):
    torch.manual_seed(3)
    weight, x = torch.randn(96, 256) * torch.linspace(0.01, 2, 96)[:, None], torch.randn(2, 5, 256)
    layer = quantized_linear(weight.to(dtype), "int8")
    want, got = plain_linear(x, weight), layer(x.to(dtype))
    assert got.dtype == dtype
    # Each output by itself: its scale is its own.
    far = torch.linalg.vector_norm(got.float() - want, dim=(0, 1)) / torch.linalg.vector_norm(want, dim=(0, 1))
    assert far.max() <= 0.02
    assert far.mean() <= 0.01


def test_a_large_layer_is_multiplied_in_blocks(monkeypatch):
    torch.manual_seed(4)
    layer, x = quantized_linear(torch.randn(100, 64), "int8"), torch.randn(3, 64)
    whole = layer(x)
    for size in (1, 7 * 64, 100 * 64):
        monkeypatch.setattr("gmcli.model.quantize._BLOCK", size)
        torch.testing.assert_close(layer(x), whole)


def test_8_bits_do_not_overflow_in_fp16():
    """LLaMA's activations reach thousands; a thousand times 127 has no place in float16."""
    layer = quantized_linear(torch.full((8, 64), 0.01, dtype=torch.float16), "int8")
    out = layer(torch.full((1, 64), 3000.0, dtype=torch.float16))
    torch.testing.assert_close(out, torch.full_like(out, 1920.0), rtol=0.01, atol=0)


def test_4_bits_are_refused_on_a_cpu_and_in_another_dtype(checkpoint):
    with pytest.raises(EnvironmentProblem, match="need an NVIDIA GPU"):
        quantize_language_model(shared_copy(checkpoint.model).language_model, "int4")
    with pytest.raises(EnvironmentProblem, match="need an NVIDIA GPU"):
        load_checkpoint(RANDOM_TINY, llm_weights="int4")
    with pytest.raises(UsageError, match="not in fp16"):
        load_checkpoint(RANDOM_TINY, device="cuda", dtype="fp16", llm_weights="int4")


def test_4_bits_need_a_newer_gpu_and_inputs_in_groups(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    with pytest.raises(EnvironmentProblem, match=r"8\.0 or newer, not Tesla T4"):
        quantized_linear(torch.zeros(64, 64, dtype=torch.bfloat16), "int4")
    with pytest.raises(CheckpointError, match="has 80 inputs"):
        quantized_linear(torch.zeros(64, 80, dtype=torch.bfloat16), "int4")


@pytest.mark.parametrize(("rows", "columns", "group"), [(5120, 13824, 64), (192, 512, 64), (70, 96, 32)])
def test_shapes_of_4_bits_fit_torchs_kernel(monkeypatch, rows, columns, group):
    """Checked by the kernel's own rules, without a GPU: fake tensors have shapes and no values."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    with FakeTensorMode():
        layer = quantized_linear(torch.empty(rows, columns, dtype=torch.bfloat16), "int4")
        assert layer(torch.empty(2, 3, columns, dtype=torch.bfloat16)).shape == (2, 3, rows)
        assert layer.group == group
        if columns > 1024:
            kept = sum(t.numel() * t.element_size() for t in layer.buffers())
            assert kept <= 0.31 * 2 * rows * columns


def test_a_missing_torchao_is_told_before_anything_is_loaded(small_folder, clips, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("gmcli.config.find_spec", lambda name: None if name == "torchao" else real(name))
    manifest = write_manifest(tmp_path, clips, "a.mp4")
    result = infer(manifest, small_folder, tmp_path / "out", "--llm-weights", "int8")
    assert result.exit_code == 4
    assert "int8 weights need torchao" in result.stderr
    assert "pip install 'gmcli[quant]'" in result.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(EnvironmentProblem):
        load_checkpoint(RANDOM_TINY, llm_weights="int8")


def test_4_bits_on_a_cpu_are_refused_before_anything_is_loaded(small_folder, clips, tmp_path):
    result = infer(write_manifest(tmp_path, clips, "a.mp4"), small_folder, tmp_path / "out", "--llm-weights", "int4")
    assert result.exit_code == 4
    assert "int4 weights need an NVIDIA GPU" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("weights", "far", "most"), [("int8", 0.015, 0.51), ("int4", 0.14, 0.31)])
def test_layers_on_a_gpu_err_by_their_rounding_alone(weights, far, most):
    torch.manual_seed(3)
    for columns in (1024, 1152):
        weight, x = torch.randn(512, columns), torch.randn(3, 7, columns)
        layer = quantized_linear(weight.to("cuda", torch.bfloat16), weights)
        want, got = plain_linear(x, weight), layer(x.to("cuda", torch.bfloat16)).float().cpu()
        assert torch.linalg.vector_norm(got - want) <= far * torch.linalg.vector_norm(want)
        if columns == 1024:
            assert sum(t.numel() * t.element_size() for t in layer.buffers()) <= most * 2 * weight.numel()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_infer_runs_in_4_bits_on_a_gpu(small_folder, clips, tmp_path):
    manifest = write_manifest(tmp_path, clips, "a.mp4")
    result = infer(manifest, small_folder, tmp_path / "out", "--gpus", "0", "--llm-weights", "int4")
    assert result.exit_code == 0, result.output
