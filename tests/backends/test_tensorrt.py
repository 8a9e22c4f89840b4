"""TensorRT as far as it goes without a GPU: graphs are taken apart, plans are built, nothing runs. The rest is marked gpu.

What builds the plans here is TensorRT-RTX, behind torch-tensorrt's own converters; stock TensorRT needs a card even for that.
"""

import copy
import dataclasses
import json
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from gmcli.backends import rtx_plan, tensorrt, trt_plan
from gmcli.backends.component import Axis, Component
from gmcli.checkpoints.load import load_checkpoint
from gmcli.checkpoints.locate import locate_checkpoint
from gmcli.components import components
from gmcli.errors import EngineError, EnvironmentProblem
from tests.backends.test_compiled import language_inputs

NAMES = ("clip", "sam_image_encoder", "sam_mask_decoder", "llm")
BATCH = {"clip": 2, "sam_image_encoder": 2, "sam_mask_decoder": 3}
CPU = torch.device("cpu")

needs_torch_tensorrt = pytest.mark.skipif(find_spec("torch_tensorrt") is None, reason="torch-tensorrt is not installed")
needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None or find_spec("onnxscript") is None, reason="TensorRT-RTX is not installed"
)
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def pieces(small_folder) -> dict[str, Component]:
    return components(load_checkpoint(locate_checkpoint(str(small_folder))).model, BATCH, questions=4)


def tiny(module: nn.Module, example: torch.Tensor | None = None, most: int = 3) -> Component:
    example = torch.zeros(most, 4) if example is None else example
    return Component("tiny", module, (example,), ({0: Axis("batch", 1, most, most)},))


class Broken(nn.Module):
    """A mask decoder with a step in it that TensorRT does not have."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, image_embeddings: torch.Tensor, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        masks, iou = self.decoder(image_embeddings, prompts)
        return masks * torch.linalg.svdvals(masks[:, 0]).sum(), iou


@needs_torch_tensorrt
@pytest.mark.usefixtures("device_queries")
class TestDryRun:
    @pytest.mark.parametrize("name", NAMES)
    def test_tensorrt_takes_all_of_every_component_as_one_engine(self, name, pieces):
        coverage = tensorrt.dry_run(pieces[name])
        assert coverage.left_out == {}
        assert coverage.engines == 1
        assert coverage.whole
        assert coverage.operators == coverage.supported > 50

    def test_what_breaks_the_graph_is_named_before_anything_is_built(self, pieces, tmp_path):
        broken = dataclasses.replace(pieces["sam_mask_decoder"], module=Broken(pieces["sam_mask_decoder"].module))
        with pytest.raises(
            EngineError, match=r"sam_mask_decoder .* \d+ of \d+ operators in \d engine.*linalg_svd"
        ) as caught:
            tensorrt.build(broken, tmp_path)
        assert "\n" not in caught.value.message
        assert not any(tmp_path.iterdir())

    def test_a_component_that_tensorrt_takes_nothing_of_has_no_engine(self):
        class Values(nn.Module):
            def forward(self, x):
                return torch.linalg.svdvals(x)

        coverage = tensorrt.dry_run(tiny(Values(), torch.zeros(3, 4, 5)))
        assert not coverage.whole
        assert any("linalg_svd" in name for name in coverage.left_out)

    def test_the_report_for_people_is_not_printed(self, capsys):
        assert tensorrt.dry_run(tiny(nn.Linear(4, 2))).whole
        assert capsys.readouterr().out == ""

    def test_what_torch_tensorrt_warns_of_is_not_passed_on(self, pieces, caplog):
        tensorrt.dry_run(pieces["clip"])
        assert not [each for each in caplog.records if each.name.startswith("torch_tensorrt")]


class TestExport:
    def test_a_batch_of_one_is_within_the_range(self, pieces):
        program = tensorrt.export(pieces["sam_mask_decoder"])
        (found,) = program.range_constraints.values()
        assert (found.lower, found.upper) == (1, 3)
        assert tensorrt.bindings_of(program) == trt_plan.Bindings(
            ("image_embeddings", "prompts"), ("output0", "output1")
        )

    def test_axes_of_one_name_are_one_dimension(self, pieces):
        ranges = tensorrt.export(pieces["llm"]).range_constraints.values()
        room = pieces["llm"].axes[0][1].most
        assert sorted((int(each.lower), int(each.upper)) for each in ranges) == [(1, 4), (1, room), (1, room)]

    def test_a_batch_that_cannot_vary_is_fixed(self):
        program = tensorrt.export(tiny(nn.Linear(4, 2), torch.zeros(1, 4), most=1))
        assert not program.range_constraints

    def test_an_axis_that_the_module_fixes_is_refused(self):
        class Fixed(nn.Module):
            def forward(self, x):
                return x + torch.zeros(3, 1)

        with pytest.raises(EngineError, match="tiny cannot be exported"):
            tensorrt.export(tiny(Fixed()))


class TestDeconvolutions:
    """TensorRT has none in bfloat16, which only a build tells: a dry run takes them."""

    def test_they_are_replaced_by_what_gives_the_same(self, pieces):
        component = pieces["sam_mask_decoder"]
        module = tensorrt.without_deconvolutions(component.module)
        assert not any(isinstance(each, nn.ConvTranspose2d) for each in module.modules())
        assert sum(isinstance(each, nn.ConvTranspose2d) for each in component.module.modules()) == 2
        torch.manual_seed(3)
        inputs = [torch.randn(2, *each.shape[1:]) for each in component.example]
        with torch.no_grad():
            for got, want in zip(module(*inputs), component.module(*inputs), strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("side", [1, 3])
    def test_any_side_with_or_without_bias(self, side, bias):
        torch.manual_seed(3)
        layer = nn.ConvTranspose2d(3, 5, side, side, bias=bias).double()
        x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
        module = nn.Sequential(nn.ModuleDict({"inner": layer})["inner"], nn.GELU())
        replaced = tensorrt.without_deconvolutions(module)
        assert not isinstance(replaced[0], nn.ConvTranspose2d)
        torch.testing.assert_close(replaced(x), module(x), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("settings", [{"stride": 1}, {"padding": 1}, {"groups": 3}, {"dilation": 2}])
    def test_others_stay(self, settings):
        module = nn.Sequential(nn.ConvTranspose2d(3, 3, 2, **{"stride": 2, **settings}))
        assert tensorrt.without_deconvolutions(module) is module

    def test_all_other_tensors_are_shared(self, pieces):
        module = pieces["sam_mask_decoder"].module
        before = dict(module.named_parameters())
        after = dict(tensorrt.without_deconvolutions(module).named_parameters())
        assert {name for name in after if after[name] is not before.get(name)} == {
            f"decoder.output_upscaling.{place}.0.{what}" for place in (0, 3) for what in ("weight", "bias")
        }


@needs_torch_tensorrt
@pytest.mark.usefixtures("device_queries")
def test_a_profile_has_the_least_the_usual_and_the_greatest_shape(pieces):
    example = pieces["llm"].example
    embeddings, positions, keep_past, _, past = tensorrt.input_specs(pieces["llm"])
    assert embeddings.shape == {"min_shape": (1, 1, 64), "opt_shape": (4, 48, 64), "max_shape": (4, 2048, 64)}
    assert past.shape["max_shape"] == (2, 2, 4, 4, 2048, 16)
    found = [each.dtype.to(torch.dtype) for each in (embeddings, positions, keep_past)]
    assert found == [each.dtype for each in example[:3]]
    (fixed,) = tensorrt.input_specs(tiny(nn.Linear(4, 2), torch.zeros(1, 4), most=1))
    assert fixed.shape == (1, 4)


@needs_torch_tensorrt
class TestBuild:
    # bfloat16 is what a GPU runs; of all plans, only the mask decoder's tells something new within seconds.
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.slow
    def test_a_plan_comes_out_of_torch_tensorrts_converters(
        self, name, dtype, pieces, tmp_path, no_deserialising, monkeypatch
    ):
        monkeypatch.setattr(tensorrt, "_check_card", lambda component: None)
        component = in_dtype(pieces[name], dtype)
        tensorrt.build(component, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bindings.json", "model.engine"]
        plan, bindings = trt_plan.read_plan(tmp_path, tensorrt.PLAN)
        weights = sum(each.numel() * each.element_size() for each in component.module.parameters())
        assert len(plan) > weights / 2
        for binding in bindings.inputs + bindings.outputs:
            assert binding.encode() in plan

    def test_without_a_card_nothing_is_built(self, tmp_path, device_queries):
        with pytest.raises(EngineError, match=r"tiny in torch.float32 on cpu") as caught:
            tensorrt.build(tiny(nn.Linear(4, 2)), tmp_path)
        assert "eager" in caught.value.hint
        assert not any(tmp_path.iterdir())

    def test_a_plan_is_built_in_bfloat16_where_the_module_has_deconvolutions(
        self, tmp_path, no_deserialising, monkeypatch
    ):
        monkeypatch.setattr(tensorrt, "_check_card", lambda component: None)
        module = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.GELU())
        component = tiny(module.bfloat16(), torch.zeros(3, 3, 4, 4, dtype=torch.bfloat16))
        tensorrt.build(component, tmp_path)
        plan, bindings = trt_plan.read_plan(tmp_path, tensorrt.PLAN)
        for binding in bindings.inputs + bindings.outputs:
            assert binding.encode() in plan


def in_dtype(component: Component, dtype: torch.dtype) -> Component:
    example = tuple(each.to(dtype) if each.is_floating_point() else each for each in component.example)
    return dataclasses.replace(component, module=copy.deepcopy(component.module).to(dtype), example=example)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_other_types_are_refused(dtype, tmp_path):
    with pytest.raises(EngineError, match="tensorrt does not run tiny in"):
        tensorrt.build(tiny(nn.Identity(), torch.zeros(3, 4, dtype=dtype)), tmp_path)


class TestFiles:
    bindings = trt_plan.Bindings(("x",), ("output0",))

    def test_a_plan_comes_back_as_it_was_written(self, tmp_path):
        trt_plan.write_plan(tmp_path, tensorrt.PLAN, b"plan", self.bindings)
        assert trt_plan.read_plan(tmp_path, tensorrt.PLAN) == (b"plan", self.bindings)

    @pytest.mark.parametrize(
        "text", [None, "", "[]", "{}", '{"inputs": 1, "outputs": []}', '{"inputs": [1], "outputs": []}', "\udcff"]
    )
    def test_what_is_missing_or_damaged_is_said_in_one_line(self, text, tmp_path):
        (tmp_path / tensorrt.PLAN).write_bytes(b"plan")
        if text is not None:
            (tmp_path / trt_plan.BINDINGS).write_text(text, errors="surrogateescape")
        with pytest.raises(EngineError, match=r"model.engine: cannot be loaded") as caught:
            tensorrt.load(tiny(nn.Identity()), tmp_path)
        assert "\n" not in caught.value.message
        assert "engines prune" in caught.value.hint

    def test_no_file_is_a_pickle(self, tmp_path):
        trt_plan.write_plan(tmp_path, tensorrt.PLAN, b"plan", self.bindings)
        assert json.loads((tmp_path / trt_plan.BINDINGS).read_text()) == {"inputs": ["x"], "outputs": ["output0"]}
        assert (tmp_path / tensorrt.PLAN).read_bytes() == b"plan"


class TestParts:
    def run(self, component):
        rows = []

        def run(*inputs):
            rows.append(inputs[0].shape[0])
            return component.module(*inputs)

        return trt_plan.in_parts(run, component), rows

    @pytest.mark.parametrize(("rows", "parts"), [(1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])])
    def test_a_batch_greater_than_the_profile_goes_in_parts(self, rows, parts, pieces):
        component = pieces["sam_mask_decoder"]
        call, seen = self.run(component)
        torch.manual_seed(3)
        inputs = [torch.randn(rows, *each.shape[1:]) for each in component.example]
        with torch.no_grad():
            for got, want in zip(call(*inputs), component.module(*inputs), strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert seen == parts

    def test_a_single_result_stays_a_tensor(self):
        call, seen = self.run(tiny(nn.Identity()))
        x = torch.randn(5, 4)
        assert torch.equal(call(x), x)
        assert seen == [3, 2]

    def test_where_more_than_the_batch_varies_nothing_is_split(self, pieces):
        assert trt_plan.in_parts(len, pieces["llm"]) is len


class TestEnvironment:
    def test_a_missing_library_is_named_with_the_command(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
        component = tiny(nn.Linear(4, 2))
        trt_plan.write_plan(tmp_path, tensorrt.PLAN, b"plan", TestFiles.bindings)
        for ask in (
            lambda: tensorrt.versions(CPU),
            lambda: tensorrt.input_specs(component),
            lambda: tensorrt.dry_run(component),
            lambda: tensorrt.build(component, tmp_path),
            lambda: tensorrt.load(component, tmp_path),
        ):
            with pytest.raises(EnvironmentProblem, match="torch-tensorrt") as caught:
                ask()
            assert caught.value.hint == "pip install 'gmcli[trt]'"

    @needs_torch_tensorrt
    def test_a_machine_without_a_gpu_has_no_versions(self):
        with pytest.raises(EnvironmentProblem, match="NVIDIA GPU"):
            tensorrt.versions(CPU)

    @needs_torch_tensorrt
    def test_a_library_that_cannot_be_imported_is_a_problem_of_the_machine(self, monkeypatch):
        def refuse(name, *arguments):
            if name == "torch_tensorrt":
                raise Exception("import error when try to import _TensorRTProxyModule")
            return load(name, *arguments)

        load = __import__
        monkeypatch.setattr("builtins.__import__", refuse)
        with pytest.raises(EnvironmentProblem, match="cannot be used here: Exception: import error") as caught:
            tensorrt.dry_run(tiny(nn.Linear(4, 2)))
        assert "doctor" in caught.value.hint

    @needs_rtx
    @pytest.mark.parametrize("module", ["tensorrt_rtx", "onnxscript"])
    def test_a_missing_library_of_the_plan_is_named_with_the_command(self, module, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(EnvironmentProblem, match=module.replace("_", "-")) as caught:
            rtx_plan.versions()
        assert "pip install" in caught.value.hint


@pytest.fixture(scope="module")
def model(pieces):
    return rtx_plan.export_onnx(pieces["sam_mask_decoder"])


@needs_rtx
class TestRtxPlan:
    def test_the_onnx_model_equals_the_module_at_every_batch(self, model, pieces):
        runtime = pytest.importorskip("onnxruntime")
        component, (data, bindings) = pieces["sam_mask_decoder"], model
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
        torch.manual_seed(3)
        for rows in (1, 2, 3):
            inputs = [torch.randn(rows, *each.shape[1:]) for each in component.example]
            with torch.no_grad():
                wanted = component.module(*inputs)
            named = {name: each.numpy() for name, each in zip(bindings.inputs, inputs, strict=True)}
            for got, want in zip(session.run(list(bindings.outputs), named), wanted, strict=True):
                torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-5)

    def test_a_plan_of_the_mask_decoder_is_built_without_a_gpu(self, model, pieces, tmp_path, monkeypatch):
        monkeypatch.setattr(rtx_plan, "export_onnx", lambda component: model)
        component = pieces["sam_mask_decoder"]
        facts = rtx_plan.build_plan(component, tmp_path, "8.9")
        plan, bindings = trt_plan.read_plan(tmp_path, rtx_plan.PLAN)
        assert facts == {
            "compute_capability": "8.9",
            "dtype": "float32",
            "profile": {
                "image_embeddings": [[1, 256, 8, 8], [3, 256, 8, 8], [3, 256, 8, 8]],
                "prompts": [[1, 256], [3, 256], [3, 256]],
            },
            "onnx_bytes": len(model[0]),
            "layers": facts["layers"],
            "plan_bytes": len(plan),
        }
        assert facts["layers"] > 100
        for binding in bindings.inputs + bindings.outputs:
            assert binding.encode() in plan

    def test_facts_are_the_same_each_time_and_go_into_json(self, tmp_path):
        found = [rtx_plan.build_plan(tiny(nn.Linear(4, 2)), tmp_path, "12.0") for _ in range(2)]
        assert found[0] == found[1] == json.loads(json.dumps(found[0]))

    @pytest.mark.parametrize("capability", ["9.0", "10.0", "7.0", "8.90", "89", "", "none\n"])
    def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused(self, capability, tmp_path):
        with pytest.raises(EngineError, match=r"8\.9, 12\.0") as caught:
            rtx_plan.build_plan(tiny(nn.Linear(4, 2)), tmp_path, capability)
        assert "H100" in caught.value.hint
        assert "stock TensorRT" in caught.value.hint
        assert "\n" not in caught.value.message
        assert not any(tmp_path.iterdir())

    def test_it_knows_what_it_says_it_knows(self):
        known = list(rtx_plan.compute_capabilities())
        assert {"8.6", "8.9", "12.0"} <= set(known)
        assert "9.0" not in known
        assert known == sorted(known, key=lambda each: tuple(map(int, each.split("."))))

    def test_what_it_cannot_build_is_said_in_one_line(self, tmp_path, monkeypatch):
        bindings = trt_plan.Bindings(("x",), ("output0",))
        monkeypatch.setattr(rtx_plan, "export_onnx", lambda component: (b"no such model", bindings))
        with pytest.raises(EngineError, match=r"TensorRT-RTX cannot read tiny: .*ONNX") as caught:
            rtx_plan.build_plan(tiny(nn.Linear(4, 2)), tmp_path, "8.9")
        assert "\n" not in caught.value.message
        assert not any(tmp_path.iterdir())

    def test_versions_are_what_a_plan_depends_on(self):
        found = rtx_plan.versions()
        assert set(found) == {"torch", "onnxscript", "tensorrt_rtx"}
        assert all(isinstance(value, str) and value for value in found.values())

    def test_without_a_card_a_plan_is_not_loaded(self, tmp_path):
        with pytest.raises(EngineError, match=r"plan.engine: cannot be loaded"):
            rtx_plan.load_plan(tiny(nn.Identity()), tmp_path)
        trt_plan.write_plan(tmp_path, rtx_plan.PLAN, b"plan", TestFiles.bindings)
        with pytest.raises(EngineError, match="on cpu"):
            rtx_plan.load_plan(tiny(nn.Identity()), tmp_path)


class TestOnCard:
    """What only a card can show. None of this has run where there was none: see the README."""

    pytestmark = gpu

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls, small_folder):
        def components_in(dtype: str) -> dict[str, Component]:
            checkpoint = load_checkpoint(locate_checkpoint(str(small_folder)), device="cuda", dtype=dtype)
            return components(checkpoint.model, BATCH, questions=4)

        return {"fp32": components_in("fp32"), "bf16": components_in("bf16")}

    def calls(self, component: Component) -> list[tuple[torch.Tensor, ...]]:
        dtype = component.example[0].dtype
        if component.name == "llm":
            sizes = [(4, 48, 320), (1, 1, 1), (2, 7, 30), (3, 1, 700)]
            calls = [language_inputs(component, *size) for size in sizes]
        else:
            calls = [tuple(torch.randn(rows, *each.shape[1:]) for each in component.example) for rows in (1, 2, 3, 5)]
        return [tuple(x.to("cuda", dtype if x.is_floating_point() else x.dtype) for x in inputs) for inputs in calls]

    def compare(self, run, component: Component, reference: Component, error: float) -> None:
        torch.manual_seed(3)
        kept = [(run(*inputs), inputs) for inputs in self.calls(component)]
        # Compared at the end: a result may not be written over by the calls after it.
        for got, inputs in kept:
            full = [x.float() if x.is_floating_point() else x for x in inputs]
            want = reference.module(*full)
            pairs = [(got, want)] if isinstance(got, torch.Tensor) else list(zip(got, want, strict=True))
            for ours, theirs in pairs:
                assert ours.dtype == component.example[0].dtype
                assert ours.shape == theirs.shape
                assert (ours.float() - theirs).abs().max() <= error * theirs.abs().max()

    @pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-3), ("bf16", 0.05)])
    @pytest.mark.parametrize("name", NAMES)
    @torch.inference_mode()
    def test_every_component_equals_its_module_at_every_size(self, name, dtype, error, loaded, tmp_path):
        component = loaded[dtype][name]
        made = tmp_path / "made"
        made.mkdir()
        tensorrt.build(component, made)
        run = tensorrt.load(component, made.rename(tmp_path / "moved"))
        self.compare(run, component, loaded["fp32"][name], error)

    @torch.inference_mode()
    def test_inputs_that_a_plan_was_not_built_for_are_refused(self, loaded, tmp_path):
        component = loaded["fp32"]["sam_mask_decoder"]
        tensorrt.build(component, tmp_path)
        run = tensorrt.load(component, tmp_path)
        images, prompts = component.example
        for inputs in [
            (images,),
            (images, prompts[:2]),
            (images[:0], prompts[:0]),
            (images.bfloat16(), prompts),
            (images.cpu(), prompts.cpu()),
            (images[..., 1:], prompts),
        ]:
            with pytest.raises(EngineError, match="sam_mask_decoder"):
                run(*inputs)

    def test_a_damaged_plan_is_refused(self, loaded, tmp_path):
        component = loaded["fp32"]["sam_mask_decoder"]
        trt_plan.write_plan(tmp_path, tensorrt.PLAN, b"no plan", TestFiles.bindings)
        with pytest.raises(EngineError, match="cannot load the plan"):
            tensorrt.load(component, tmp_path)

    def test_versions_name_libraries_and_the_gpu(self):
        found = tensorrt.versions(torch.device("cuda"))
        assert found["gpu"] == torch.cuda.get_device_name()
        assert {"torch", "torch_tensorrt", "driver", "capability"} < set(found)
        assert all(isinstance(value, str) and value for value in found.values())

    @pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-3), ("bf16", 0.05)])
    @torch.inference_mode()
    def test_a_plan_built_ahead_of_time_equals_the_module(self, dtype, error, loaded, tmp_path):
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        if find_spec("tensorrt_rtx") is None or capability not in rtx_plan.compute_capabilities():
            pytest.skip(f"TensorRT-RTX does not build for {capability}")
        component = loaded[dtype]["sam_mask_decoder"]
        rtx_plan.build_plan(component, tmp_path, capability)
        self.compare(rtx_plan.load_plan(component, tmp_path), component, loaded["fp32"]["sam_mask_decoder"], error)
