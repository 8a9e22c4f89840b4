"""doctor reports whatever a broken installation does, and is never brought down by it."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner, Result

import gmcli
from gmcli import doctor
from gmcli.cli.doctor import doctor as command
from gmcli.doctor import Check, Finding, Probe
from gmcli.errors import EXIT_ENVIRONMENT

ROOT = Path(gmcli.__file__).resolve().parents[1]
GOOD = 'import json; print(json.dumps({"status": "ok", "detail": "fine", "remedy": None}))'


def run(code: str, timeout_s: float = 30.0) -> Check:
    check = doctor.run_probe(Probe("fake", True, "mend it", code, timeout_s))
    assert check.detail
    assert "\n" not in check.detail
    assert (check.remedy is None) == (check.status == "ok")
    return check


# One probe


def test_an_answer_is_passed_on_whatever_was_printed_before() -> None:
    assert run(f"print('hello')\n{GOOD}") == Check("fake", "ok", True, "fine")


def test_the_remedy_of_the_answer_goes_first() -> None:
    finding = 'import json; print(json.dumps({"status": "missing", "detail": "not there", "remedy": "get it"}))'
    assert run(finding) == Check("fake", "missing", True, "not there", "get it")


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_crash_is_named_by_its_signal(name: str) -> None:
    check = run(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert check == Check("fake", "broken", True, f"killed by {name}", "mend it")


def test_a_crash_after_the_answer_is_broken_all_the_same() -> None:
    check = run(f"{GOOD}\nimport os, sys; sys.stdout.flush(); print('oh', file=sys.stderr); os.abort()")
    assert check.detail == "killed by SIGABRT: oh"


def test_a_probe_that_hangs_is_ended() -> None:
    check = run("import time; time.sleep(600)", timeout_s=0.5)
    assert (check.status, check.detail) == ("broken", "no answer within 0.5 s")


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("raise ImportError('libcudart.so.12: cannot open')", "ImportError: libcudart.so.12: cannot open"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "the probe ended with exit code 3"),
        ("pass", "the probe gave no answer but ''"),
        ("print('garbage')", "the probe gave no answer but 'garbage'"),
        ("print('[' * 100000)", "the probe gave no answer but '" + "[" * 60 + "'"),
        ("print(5)", "the probe gave no answer but '5'"),
        ('print(\'{"status": "well", "detail": "", "remedy": null}\')', "the probe gave no answer but"),
        ('print(\'{"status": "ok", "detail": 5, "remedy": null}\')', "the probe gave no answer but"),
        ("import os; os.write(1, bytes(range(256)))", "the probe gave no answer but"),
        ("raise RuntimeError('\\x1b[31mred\\x07')", "RuntimeError: [31mred"),
        ("raise RuntimeError('x' * 5000)", "RuntimeError: xxx"),
    ],
)
def test_whatever_else_happens_is_one_line(code: str, detail: str) -> None:
    check = run(code)
    assert check.status == "broken"
    assert check.remedy == "mend it"
    assert check.detail.startswith(detail)
    assert check.detail.isprintable()
    assert len(check.detail) <= 300


def test_a_file_in_the_working_directory_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pycocotools.py").write_text("raise RuntimeError('not me')")
    monkeypatch.chdir(tmp_path)
    assert run(doctor._code(doctor.probe_package, "pycocotools")).status == "ok"


# What the probes find, in this process


class FakeModule:
    def __init__(self, name: str, **attributes: Any) -> None:
        self.__name__ = name
        self.__dict__.update(attributes)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that these distributions, and a module for each package, are installed."""

    def pretend(**versions: str) -> None:
        found = {name.replace("_", "-"): version for name, version in versions.items()}

        class Spec:
            origin = "/somewhere/__init__.py"

        monkeypatch.setattr(doctor, "_installed", lambda names: {n: found[n] for n in names if n in found})
        monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec())
        monkeypatch.setattr("importlib.import_module", lambda name: FakeModule(name))

    return pretend


def test_a_package_that_is_there(installed: Callable[..., None]) -> None:
    installed(ray="2.60.0")
    assert doctor.probe_package("ray") == Finding("ok", "2.60.0")


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert doctor.probe_package("torch-tensorrt") == Finding("missing", "not installed", "pip install 'gmcli[trt]'")
    flash = doctor.probe_package("flash-attn")
    assert flash.remedy == "pip install 'gmcli[flash]' --no-build-isolation"


def test_the_empty_folder_of_an_uninstalled_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.probe_package("flash-attn").status == "missing"


def test_a_package_that_is_too_old(installed: Callable[..., None]) -> None:
    installed(ray="2.9.3")
    assert doctor.probe_package("ray") == Finding("broken", "ray 2.9.3 is older than 2.52", "pip install 'gmcli[ray]'")


def test_the_old_decord_is_removed_first(installed: Callable[..., None]) -> None:
    installed(decord="0.6.0")
    finding = doctor.probe_package("decord")
    assert finding.status == "broken"
    assert finding.remedy == "pip uninstall -y decord decord2; pip install 'decord2>=3.0'"


def test_two_distributions_of_one_module(installed: Callable[..., None]) -> None:
    installed(torch_tensorrt="2.14.0", torch_tensorrt_rtx="2.14.0")
    finding = doctor.probe_package("torch-tensorrt")
    assert finding.status == "broken"
    assert finding.detail == "torch-tensorrt 2.14.0 and torch-tensorrt-rtx 2.14.0 overwrite each other"


def test_an_ffmpeg_without_av1() -> None:
    def codec(name: str, mode: str) -> None:
        if name in ("libdav1d", "libaom-av1", "libgav1"):
            raise ValueError(name)

    with pytest.raises(RuntimeError, match=r"cannot decode av1$"):
        doctor._use(FakeModule("av", Codec=codec, ffmpeg_version_info="8.1"))


@pytest.mark.parametrize(
    ("driver", "built", "status", "remedy"),
    [
        (None, "13.0", "missing", "docker run --gpus all"),
        ((13, 1), "13.0", "ok", None),
        ((13, 0), "13.2", "ok", None),
        ((12, 8), "13.0", "broken", "ubuntu-drivers install"),
        ((13, 0), None, "broken", "pip install --force-reinstall"),
    ],
)
def test_driver_against_torch(
    monkeypatch: pytest.MonkeyPatch, driver: tuple[int, int] | None, built: str | None, status: str, remedy: str | None
) -> None:
    torch = FakeModule("torch", version=FakeModule("torch.version", cuda=built))
    monkeypatch.setattr(doctor, "_driver_cuda", lambda: driver)
    monkeypatch.setattr("importlib.import_module", lambda name: torch)
    finding = doctor.probe_cuda()
    assert finding.status == status
    assert (finding.remedy is None) == (remedy is None)
    assert remedy is None or remedy in str(finding.remedy)


class FakeCuda:
    def __init__(self, count: int, fails: bool = False) -> None:
        self.cuda, self.count, self.fails = self, count, fails

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def get_device_name(self, index: int) -> str:
        return "NVIDIA H100"

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return 9, 0

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 70 << 30, 80 << 30

    def ones(self, size: int, device: str) -> "FakeCuda":
        if self.fails:
            raise RuntimeError("CUDA error: no kernel image is available\nCompile with `TORCH_USE_CUDA_DSA`")
        return self

    def sum(self) -> "FakeCuda":
        return self

    def item(self) -> float:
        return 8.0


@pytest.mark.parametrize(
    ("torch", "visible", "finding"),
    [
        (
            FakeCuda(2),
            None,
            Finding(
                "ok",
                "0: NVIDIA H100 (sm_90), 70.0 GiB of 80.0 GiB free; 1: NVIDIA H100 (sm_90), 70.0 GiB of 80.0 GiB free",
            ),
        ),
        (
            FakeCuda(1, fails=True),
            None,
            Finding("broken", "0: NVIDIA H100 (sm_90): CUDA error: no kernel image is available", "nvidia-smi"),
        ),
        (
            FakeCuda(0),
            "",
            Finding("missing", "torch sees none in CUDA_VISIBLE_DEVICES=''", "unset CUDA_VISIBLE_DEVICES"),
        ),
        (
            FakeCuda(0),
            None,
            Finding("missing", "torch sees none: everything runs on the CPU, slowly", "nvidia-smi"),
        ),
    ],
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, torch: FakeCuda, visible: str | None, finding: Finding) -> None:
    monkeypatch.setattr(doctor, "_driver_cuda", lambda: (13, 0))
    monkeypatch.setattr("importlib.import_module", lambda name: torch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert doctor.probe_gpus() == finding


# The checkpoint

FAKE_LOCATE = """
import sys, types
sys.path.append({root!r})
from gmcli import doctor, errors
fake = types.ModuleType("gmcli.checkpoints.locate")
def locate_checkpoint(ref):
    {body}
fake.locate_checkpoint = locate_checkpoint
sys.modules["gmcli.checkpoints.locate"] = fake
doctor.report(doctor.probe_checkpoint({ref!r}))
"""


def fake_checkpoint(body: str, ref: str = "mora-tiny") -> Probe:
    return Probe("checkpoint", True, "mend it", FAKE_LOCATE.format(root=str(ROOT), body=body, ref=ref))


def found(path: Path) -> str:
    return f"return types.SimpleNamespace(path={str(path)!r}, layout='original')"


def test_a_checkpoint_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(3 << 20))
    check = doctor.run_probe(fake_checkpoint(found(tmp_path)))
    assert check == Check("checkpoint", "ok", True, f"{tmp_path} (original layout, 3.0 MiB)")


def test_a_checkpoint_that_is_wrong(tmp_path: Path) -> None:
    error = "raise errors.CheckpointError('the vocabulary has no [SEG]', 'use another one')"
    check = doctor.run_probe(fake_checkpoint(error, str(tmp_path)))
    assert check == Check("checkpoint", "broken", True, "the vocabulary has no [SEG]", "use another one")


def test_a_checkpoint_that_is_not_there() -> None:
    check = doctor.run_probe(fake_checkpoint("raise errors.CheckpointError('no such checkpoint')", "/no/such/place"))
    assert (check.status, check.detail) == ("missing", "no such checkpoint")
    assert "gmcli doctor --checkpoint mora-tiny" in str(check.remedy)


def test_a_name_of_the_hub_is_looked_up_without_downloading() -> None:
    body = "import os; raise errors.CheckpointError('offline' + os.environ['HF_HUB_OFFLINE'], 'log in')"
    check = doctor.run_probe(fake_checkpoint(body, "xinlai/LISA-7B-v1"))
    assert (check.status, check.remedy) == ("missing", "hf download xinlai/LISA-7B-v1")


def test_a_reference_is_data_and_never_code(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    check = doctor.run_probe(doctor.checkpoint_probe(f"'); open({str(trap)!r}, 'w')  # \n\x00\udcff"))
    assert check.status != "ok"
    assert not trap.exists()


# Disks


def test_a_directory_that_does_not_exist_yet(tmp_path: Path) -> None:
    check = doctor.check_disk("output disk", lambda: tmp_path / "a" / "b", True, "choose another")
    assert check.status == "ok"
    assert check.detail.startswith(f"{tmp_path / 'a' / 'b'}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = doctor.check_disk("output disk", lambda: tmp_path / "file" / "run", True, "choose another")
    assert check == Check("output disk", "broken", True, f"{tmp_path / 'file'} is not a directory", "choose another")


def test_a_directory_that_cannot_be_written() -> None:
    check = doctor.check_disk("output disk", lambda: Path("/proc/run"), True, "choose another")
    assert (check.status, check.remedy) == ("broken", "choose another")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 60)
    check = doctor.check_disk("output disk", lambda: tmp_path, True, "choose another")
    assert (check.status, check.remedy) == ("broken", "choose another")


def test_no_home_directory() -> None:
    def find() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    check = doctor.check_disk("cache disk", find, False, "export GMCLI_CACHE=/there")
    assert check == Check(
        "cache disk", "broken", False, "Could not determine home directory.", "export GMCLI_CACHE=/there"
    )


# The table of packages


def test_minimum_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {line.partition(";")[0].strip() for lines in lists for line in lines}
    for package in doctor.PACKAGES:
        assert f"{package.distributions[0]}>={package.minimum}" in declared


# The command


def fake_checks(*checks: Check) -> Callable[[str, Path], list[Check]]:
    return lambda checkpoint, output: list(checks)


FINE = Check("torch", "ok", True, "2.14.1")
NO_RAY = Check("ray", "missing", False, "not installed", "pip install 'gmcli[ray]'")
NO_TORCH = Check("torch", "missing", True, "not installed", "pip install 'torch>=2.9'")


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_checks", fake_checks(FINE, NO_RAY))
    result = CliRunner().invoke(command)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "ok       torch           2.14.1",
        "missing  ray (optional)  not installed",
        "                         -> pip install 'gmcli[ray]'",
        "Everything required is here.",
    ]


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_checks", fake_checks(FINE))
    assert "\x1b" not in CliRunner().invoke(command).output
    assert click.style("ok     ", fg="green") in CliRunner().invoke(command, color=True).output


def test_a_missing_required_package_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_checks", fake_checks(NO_TORCH, NO_RAY))
    result = CliRunner().invoke(command)
    assert result.exit_code == EXIT_ENVIRONMENT
    assert result.output.splitlines()[-1] == "Required, but not ok: torch"
    answer = json.loads(CliRunner().invoke(command, ["--json"]).output)
    assert answer["ok"] is False
    assert answer["checks"][0] == {
        "name": "torch",
        "status": "missing",
        "required": True,
        "detail": "not installed",
        "remedy": "pip install 'torch>=2.9'",
    }


def test_every_option_has_help() -> None:
    assert command.help
    for parameter in command.params:
        assert isinstance(parameter, click.Option)
        assert parameter.help


@pytest.fixture(scope="module")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The real command, but for the checkpoint; once, as it imports torch four times."""
    folder = tmp_path_factory.mktemp("doctor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "checkpoint_probe", lambda ref: fake_checkpoint(found(folder)))
        patch.setenv("GMCLI_CACHE", str(folder / "cache"))
        return CliRunner().invoke(command, ["--json", "--output", str(folder / "run")])


@pytest.mark.slow
def test_this_machine_has_what_is_required(real_run: Result) -> None:
    answer = json.loads(real_run.output)
    assert [c for c in answer["checks"] if c["required"] and c["status"] != "ok"] == []
    assert answer["ok"] is True
    assert real_run.exit_code == 0


@pytest.mark.slow
def test_every_check_is_there_once_with_a_remedy_unless_ok(real_run: Result) -> None:
    checks = json.loads(real_run.output)["checks"]
    assert [c["name"] for c in checks] == [
        "python",
        *(p.name for p in doctor.PACKAGES),
        "CUDA",
        "GPU",
        "checkpoint",
        "output disk",
        "cache disk",
    ]
    assert all((c["remedy"] is None) == (c["status"] == "ok") for c in checks)
    assert {c["name"] for c in checks if not c["required"]} == {
        "decord",
        "torch-tensorrt",
        "OpenVINO",
        "torchao",
        "flash-attn",
        "ray",
        "CUDA",
        "GPU",
        "cache disk",
    }


@pytest.mark.slow
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_gpu_cuda_is_missing(real_run: Result) -> None:
    status = {c["name"]: c["status"] for c in json.loads(real_run.output)["checks"]}
    assert status["CUDA"] == status["GPU"] == "missing"
