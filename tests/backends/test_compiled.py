"""Every backend, on every component of a small checkpoint, against the module that it was compiled from."""

import copy
import dataclasses
import shutil
import sys

import pytest
import torch
from torch import nn

from gmcli.backends import aot_inductor, inductor, openvino
from gmcli.backends.component import Axis, Component
from gmcli.backends.export import guarded, reason
from gmcli.checkpoints.load import load_checkpoint
from gmcli.checkpoints.locate import locate_checkpoint
from gmcli.components import components
from gmcli.errors import EngineError, EnvironmentProblem

BACKENDS = {"inductor": inductor, "aot_inductor": aot_inductor, "openvino": openvino}
NAMES = ("clip", "sam_image_encoder", "sam_mask_decoder", "llm")
COMPILES = ("inductor", "aot_inductor")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pieces(small_folder) -> dict[str, Component]:
    model = load_checkpoint(locate_checkpoint(str(small_folder))).model
    return components(model, {"clip": 2, "sam_image_encoder": 1, "sam_mask_decoder": 3}, questions=4)


@pytest.fixture(scope="module")
def built(pieces, tmp_path_factory):
    """Build a component once; then move its folder, since what is stored may not depend on where it was made."""
    done = {}

    def folder(backend: str, name: str):
        if (backend, name) not in done:
            made = tmp_path_factory.mktemp(f"{backend}-{name}") / "made"
            made.mkdir()
            BACKENDS[backend].build(pieces[name], made)
            assert any(made.iterdir()) == BACKENDS[backend].STORES
            done[backend, name] = made.rename(made.parent / "moved")
        return done[backend, name]

    return folder


def compare(got, want) -> None:
    got, want = ((each,) if isinstance(each, torch.Tensor) else each for each in (got, want))
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def language_inputs(component: Component, questions: int, new: int, past: int) -> tuple[torch.Tensor, ...]:
    embeddings, _, _, _, keys = component.example
    layers, two, _, heads, _, size = keys.shape
    keep_past = torch.rand(questions, past) > 0.3
    keep_new = torch.ones(questions, new, dtype=torch.bool)
    keep_new[0, -(new // 3) :] = new < 3
    return (
        torch.randn(questions, new, embeddings.shape[-1]),
        torch.arange(past, past + new).expand(questions, -1),
        keep_past,
        keep_new,
        torch.randn(layers, two, questions, heads, past, size),
    )


# A component costs ten seconds of a C++ compiler; what is generated is the same for both that need one.
CASES = [pytest.param("openvino", name) for name in NAMES]
CASES += [pytest.param("aot_inductor", name, marks=pytest.mark.slow) for name in NAMES]
CASES += [pytest.param("inductor", name, marks=pytest.mark.slow) for name in ("sam_mask_decoder", "llm")]


@pytest.mark.parametrize(("backend", "name"), CASES)
@torch.inference_mode()
def test_every_component_equals_its_module_at_every_size(backend, name, pieces, built):
    torch.manual_seed(3)
    component = pieces[name]
    run = BACKENDS[backend].load(component, built(backend, name))
    if name == "llm":
        sizes = [(4, 48, 320), (1, 1, 1), (2, 7, 30), (1, 40, 2), (3, 1, 700), (1, 9, 1)]
        sizes += [(2, 1, 30 + i) for i in range(9)]  # more than torch.compile would make graphs for
        calls = [language_inputs(component, *size) for size in sizes]
    else:
        calls = [tuple(torch.randn(rows, *each.shape[1:]) for each in component.example) for rows in (1, 2, 3, 5)]
    with torch.compiler.set_stance("fail_on_recompile"):
        got = [run(*inputs) for inputs in calls]
    # Compared at the end: a result may not be written over by the calls after it.
    for ours, inputs in zip(got, calls, strict=True):
        compare(ours, component.module(*inputs))


@pytest.mark.parametrize("backend", ["aot_inductor", "openvino"])
def test_files_that_are_missing_or_damaged_are_told_from_other_failures(backend, pieces, built, tmp_path):
    component, module = pieces["sam_mask_decoder"], BACKENDS[backend]
    with pytest.raises(EngineError, match=str(tmp_path)):
        module.load(component, tmp_path)
    (tmp_path / module.MODEL).write_bytes(b"PK no such thing")
    with pytest.raises(EngineError, match=f"{module.MODEL}: cannot be loaded") as caught:
        module.load(component, tmp_path)
    assert "\n" not in caught.value.message
    assert "engines prune" in caught.value.hint


def test_openvino_needs_its_weights_beside_the_graph(pieces, built, tmp_path):
    folder = built("openvino", "sam_mask_decoder")
    shutil.copy(folder / "model.xml", tmp_path)
    with pytest.raises(EngineError, match="cannot be loaded"):
        openvino.load(pieces["sam_mask_decoder"], tmp_path)


def test_openvino_keeps_weights_in_float32(pieces, built):
    folder = built("openvino", "sam_mask_decoder")
    assert sorted(path.name for path in folder.iterdir()) == ["model.bin", "model.xml"]
    assert 'element_type="f16"' not in (folder / "model.xml").read_text()


def tiny(module: nn.Module, example: torch.Tensor, axes=None) -> Component:
    batch = Axis("batch", 1, len(example), len(example))
    return Component("tiny", module, (example,), ({0: batch} if axes is None else axes,))


def prepare(backend: str, component: Component, folder) -> None:
    BACKENDS[backend].build(component, folder)
    BACKENDS[backend].load(component, folder)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "example",
    [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, device="meta")],
    ids=["float64", "other device"],
)
def test_what_a_backend_does_not_run_is_refused(backend, example, tmp_path):
    component = tiny(nn.Identity(), example)
    with pytest.raises(EngineError, match=r"tiny in torch.float\d\d on") as caught:
        prepare(backend, component, tmp_path)
    assert "eager" in caught.value.hint
    assert not any(tmp_path.iterdir())


def test_openvino_has_no_float16(tmp_path):
    with pytest.raises(EngineError, match="float16"):
        openvino.build(tiny(nn.Identity(), torch.zeros(2, 3, dtype=torch.float16)), tmp_path)


def test_openvino_computes_a_bfloat16_component_in_bfloat16_or_not_at_all(pieces, tmp_path):
    exact = pieces["llm"]
    reduced = dataclasses.replace(
        exact,
        module=copy.deepcopy(exact.module).bfloat16(),
        example=tuple(each.bfloat16() if each.is_floating_point() else each for each in exact.example),
    )
    openvino.build(reduced, tmp_path)
    assert next(reduced.module.parameters()).dtype == torch.bfloat16
    if "BF16" not in sys.modules["openvino"].Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EngineError, match="bfloat16"):
            openvino.load(reduced, tmp_path)
        return
    torch.manual_seed(3)
    inputs = language_inputs(exact, 3, 5, 40)
    small = [each.bfloat16() if each.is_floating_point() else each for each in inputs]
    with torch.inference_mode():
        got, want = openvino.load(reduced, tmp_path)(*small), exact.module(*inputs)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.float() - theirs).abs().max() / theirs.abs().max()
        assert 1e-4 < error < 0.05


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_module_that_branches_on_values_is_refused_in_one_line(backend, tmp_path):
    component = tiny(Branches(), torch.zeros(2, 3))
    with pytest.raises(EngineError, match=r"tiny cannot be (exported|compiled): \w+: ") as caught:
        prepare(backend, component, tmp_path)
    assert "\n" not in caught.value.message
    assert "eager" in caught.value.hint


@pytest.mark.parametrize("backend", COMPILES)
def test_a_missing_compiler_is_a_problem_of_the_machine(backend, tmp_path):
    component = tiny(nn.Softplus(), torch.zeros(2, 3))
    # torch remembers compiled graphs between processes.
    settings = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    with torch._inductor.config.patch(settings), pytest.raises(EnvironmentProblem, match="C\\+\\+") as caught:
        prepare(backend, component, tmp_path)
    assert "g++" in caught.value.hint


def test_openvino_that_is_not_installed_is_named_with_the_command(monkeypatch, pieces, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    for ask in (
        lambda: openvino.versions(torch.device("cpu")),
        lambda: openvino.build(pieces["clip"], tmp_path),
        lambda: openvino.load(pieces["clip"], tmp_path),
    ):
        with pytest.raises(EnvironmentProblem, match="openvino") as caught:
            ask()
        assert caught.value.hint == "pip install 'gmcli[openvino]'"


@pytest.mark.parametrize("backend", BACKENDS)
def test_versions_are_what_decides_whether_stored_code_fits(backend):
    found = BACKENDS[backend].versions(torch.device("cpu"))
    assert found == BACKENDS[backend].versions(torch.device("cpu"))
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["torch"] == torch.__version__
    # What inductor generates fits this processor only; OpenVINO generates code when it loads.
    assert ("processor" in found) == (backend in COMPILES)


def test_another_processor_is_another_version(monkeypatch):
    texts = ["model name: A\nflags: avx2 fma\n\nmodel name: B\nflags: none\n", "model name: A\nflags: fma avx2\n"]
    texts += ["model name: A\nflags: avx2\n", "model name: C\nflags: avx2 fma\n"]
    seen = []
    for text in texts:
        monkeypatch.setattr("pathlib.Path.read_text", lambda self, text=text: text)
        seen.append(inductor.versions(torch.device("cpu"))["processor"])
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


class TestGuard:
    batch, length = Axis("batch", 1, 4, 2), Axis("length", 1, 9, 5)

    def component(self) -> Component:
        axes = ({0: self.batch, 1: self.length}, {0: self.batch, 1: self.length})
        return Component("piece", nn.Identity(), (torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)), axes)

    @pytest.mark.parametrize(
        "inputs",
        [
            (torch.zeros(2, 5, 3),),
            (torch.zeros(2, 5, 3), torch.ones(2, 5)),
            (torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool)),
            (torch.zeros(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)),
            (torch.zeros(2, 10, 3), torch.ones(2, 10, dtype=torch.bool)),
            (torch.zeros(2, 0, 3), torch.ones(2, 0, dtype=torch.bool)),
            (torch.zeros(2, 5, 3), torch.ones(2, 6, dtype=torch.bool)),
            (torch.zeros(5, 5, 3), torch.ones(5, 5, dtype=torch.bool)),
            (torch.zeros(2, 5, 3, device="meta"), torch.ones(2, 5, dtype=torch.bool)),
        ],
    )
    def test_inputs_that_compiled_code_would_misread_never_reach_it(self, inputs):
        def run(*given):
            raise AssertionError("reached")

        with pytest.raises(EngineError, match="piece"):
            guarded(run, self.component())(*inputs)

    def test_inputs_arrive_contiguous(self):
        run = guarded(lambda x, keep: (x.is_contiguous(), keep.is_contiguous()), self.component())
        assert run(torch.zeros(3, 7, 4).transpose(0, 2)[:, :, :], torch.ones(4, 7, dtype=torch.bool)) == (True, True)


def test_a_reason_is_one_line_that_tells_something():
    assert reason(RuntimeError("backend='inductor' raised:\nCppCompileError: C++ compile error\n\nCommand:")) == (
        "RuntimeError: CppCompileError: C++ compile error"
    )
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 1000))) == 300


def test_openvino_does_not_report_to_its_makers(monkeypatch, tmp_path):
    """openvino.convert_model does, over the network, and leaves a client's identifier at home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    component = tiny(nn.Linear(3, 5), torch.randn(2, 3))
    folder = tmp_path / "engine"
    folder.mkdir()
    prepare("openvino", component, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
