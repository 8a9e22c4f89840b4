"""gmcli export, export-trt, and what infer says of backends: without a GPU all but the last step runs."""

import json

import pytest
from click.testing import CliRunner

from gmcli.backends import choose
from gmcli.cli.main import cli


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GMCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def gmcli(*arguments, code=0):
    done = CliRunner().invoke(cli, list(arguments))
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.output


def manifest(folder, clips):
    path = folder / "clips.yaml"
    path.write_text(
        f"version: 1\nvideos:\n  - id: a\n    path: {clips}/a.mp4\n    questions: [{{id: q0, text: Who moves?}}]\n"
    )
    return str(path)


@pytest.mark.slow
def test_an_engine_is_exported_once_listed_and_used_by_a_run(small_folder, clips, tmp_path):
    pytest.importorskip("openvino")
    ask = ("export", "--backend", "openvino", "--checkpoint", str(small_folder), "--component", "sam_mask_decoder")
    first, second = gmcli(*ask), gmcli(*ask)
    assert "built in" in first
    assert "mask IoU 1.0" in first or "mask IoU 0.999" in first
    assert "was there" in second
    (listed,) = json.loads(gmcli("engines", "list", "--json"))
    assert listed["key"]["component"] == "sam_mask_decoder"
    assert listed["facts"]["mask_iou"] >= 0.999
    assert "1x256x8x8 1x256" in gmcli("engines", "list")
    gmcli("engines", "verify")
    run = tmp_path / "run"
    options = ("-o", str(run), "--checkpoint", str(small_folder), "--workers", "1", "--mask-frames", "sampled")
    gmcli("infer", manifest(tmp_path, clips), *options, "--backend", "openvino", "--max-new-tokens", "4")
    facts = json.loads((run / "run.json").read_text())["workers"][0]
    assert facts["components"]["sam_mask_decoder"] == listed["name"]
    assert all("openvino" in label for label in facts["components"].values())
    # Another backend may compute other last digits: it does not go into the same directory unseen.
    output = gmcli("infer", manifest(tmp_path, clips), *options, "--max-new-tokens", "4", code=3)
    assert "backend" in output


@pytest.mark.slow
def test_a_tensorrt_rtx_plan_is_built_ahead_found_again_and_refused_when_damaged(small_folder, cache):
    pytest.importorskip("tensorrt_rtx")
    ask = ("export-trt", "--ahead", "8.9", "--checkpoint", str(small_folder), "--component", "sam_mask_decoder")
    gmcli(*ask)
    (plan,) = cache.glob("engines/*/plan.engine")
    written = plan.stat().st_mtime_ns
    gmcli(*ask)
    assert plan.stat().st_mtime_ns == written, "found again by its key"
    assert "sam_mask_decoder" in gmcli("engines", "list")
    gmcli("engines", "verify")
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.chmod(0o600)
    plan.write_bytes(content)
    assert "plan.engine" in gmcli("engines", "verify", code=5)
    gmcli(*ask)
    gmcli("engines", "verify")
    assert len(list(cache.glob("engines/*/plan.engine"))) == 1
    # For another GPU it is another engine.
    gmcli(*(part if part != "8.9" else "8.6" for part in ask))
    assert len(list(cache.glob("engines/*/plan.engine"))) == 2


def test_a_capability_that_tensorrt_rtx_does_not_know_is_named_with_the_way_out(small_folder):
    pytest.importorskip("tensorrt_rtx")
    output = gmcli("export-trt", "--ahead", "9.0", "--checkpoint", str(small_folder), code=5)
    assert "9.0" in output
    assert "hint: " in output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("infer", "{manifest}", "--backend", "tensorrt", "--gpus", "cpu"), 2, "runs on an NVIDIA GPU"),
        (("infer", "{manifest}", "--backend", "tensorrt_rtx", "--gpus", "cpu"), 2, "runs on an NVIDIA GPU"),
        (
            ("infer", "{manifest}", "--backend", "openvino", "--gpus", "cpu", "--dtype", "fp16"),
            2,
            "on a CPU in fp32 or bf16",
        ),
        (("export", "--backend", "openvino", "--device", "cpu", "--dtype", "fp16"), 2, "on a CPU in fp32 or bf16"),
        (("export", "--backend", "inductor"), 2, "inductor"),
        (("export-trt", "--device", "cpu"), 2, "runs on an NVIDIA GPU"),
        (("export-trt", "--dry-run", "--ahead", "8.9"), 2, "exclude each other"),
        (("export-trt", "--device", "cuda"), 2, "no GPU"),
    ],
)
def test_what_cannot_run_here_is_said_before_anything_is_loaded(arguments, code, said, tmp_path, clips, monkeypatch):
    monkeypatch.setattr("gmcli.checkpoints.load.load_checkpoint", lambda *_, **__: pytest.fail("loaded a model"))
    monkeypatch.setattr("gmcli.devices.gpu_count", lambda: 0)
    path = manifest(tmp_path, clips)
    assert said in gmcli(*(path if part == "{manifest}" else part for part in arguments), code=code)


@pytest.mark.parametrize(("backend", "extra"), [("openvino", "openvino"), ("tensorrt", "trt"), ("tensorrt_rtx", "rtx")])
def test_a_missing_library_comes_with_the_command_that_brings_it(backend, extra, monkeypatch):
    from gmcli.errors import EnvironmentProblem

    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem) as caught:
        choose.check_backend(backend, "cpu" if backend == "openvino" else "cuda", "fp32")
    assert f"gmcli[{extra}]" in caught.value.hint


def test_a_foreign_store_is_refused(small_folder, cache):
    pytest.importorskip("tensorrt_rtx")
    (cache / "engines").mkdir(parents=True)
    (cache / "engines").chmod(0o777)
    output = gmcli("export-trt", "--ahead", "8.9", "--checkpoint", str(small_folder), code=4)
    assert "engines" in output
