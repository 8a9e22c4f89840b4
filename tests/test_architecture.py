"""Hold the house's rules: who may import whom, what the command line costs, what the package is."""

import ast
import subprocess
import sys
from pathlib import Path

import click
import pytest

from gmcli.cli.main import cli

PACKAGE = Path(__file__).parent.parent / "gmcli"

# Each room with the rooms it may use. Imports point down only.
FLOOR = {
    "errors",
    "text",
    "data",
    "resources",
    "private",
    "logs",
    "devices",
    "files",
    "lock",
    "distrust",
    "yaml_lines",
    "yaml_fields",
    "config",
    "records",
}
FLOOR |= {""}
MASKS = FLOOR | {"masks"}
MODEL = FLOOR | {"model"}
CHECKPOINTS = MODEL | {"checkpoints"}
ENGINES = CHECKPOINTS | {"backends", "components", "engines", "agreement", "synth"}
SEGMENTER = ENGINES | {"masks", "video", "overlap", "work", "halving"}
WATCH = FLOOR | {"ledger", "metrics_file"}
RUN = WATCH | {"items", "progress", "masks", "executors", "kept_manifest", "limits", "watch", "summaries"}
ALLOWED = {
    "": FLOOR,
    "__main__": {"cli"},
    "errors": set(),
    "text": set(),
    "data": set(),
    "resources": set(),
    "private": {"errors", "resources"},
    "files": set(),
    "lock": {"errors"},
    "logs": FLOOR,
    "devices": set(),
    "metrics": set(),
    "yaml_lines": FLOOR,
    "yaml_fields": FLOOR,
    "config": FLOOR,
    "manifest": FLOOR | {"manifest_fields", "manifest_paths"},
    "manifest_fields": FLOOR,
    "manifest_paths": FLOOR,
    "distrust": FLOOR,
    "video": FLOOR,
    "masks": MASKS,
    "model": MODEL,
    "components": MODEL | {"backends"},
    "bench": SEGMENTER | {"segmenter", "executors", "bench"},
    "overlap": set(),
    "halving": FLOOR | {"work"},
    "work": set(),
    "agreement": ENGINES,
    "engines": ENGINES,
    "checkpoints": CHECKPOINTS,
    "backends": FLOOR | {"backends"},
    "segmenter": SEGMENTER,
    "records": FLOOR,
    "ledger": FLOOR,
    "items": MASKS | {"ledger"},
    "progress": FLOOR,
    # The worker is where a process and a segmenter meet.
    "executors": SEGMENTER | {"segmenter", "executors"},
    "limits": FLOOR,
    "metrics_file": FLOOR,
    "watch": WATCH,
    "notify": FLOOR,
    "summaries": RUN,
    "run": RUN,
    "status": FLOOR | {"ledger"},
    "datasets": FLOOR | {"manifest", "manifest_fields", "datasets"},
    "kept_manifest": FLOOR | {"ledger", "manifest"},
    "evaluate": MASKS | {"ledger", "items", "metrics", "video", "progress"},
    "render": MASKS | {"ledger", "items", "video", "progress", "render"},
    "report": MASKS
    | {"ledger", "items", "kept_manifest", "manifest", "video", "evaluate", "progress", "status", "report"},
    "synth": FLOOR | {"datasets", "synth"},
    "train": CHECKPOINTS | {"train", "synth", "masks", "video", "manifest", "ledger", "progress"},
    "verify": RUN,
    "doctor": CHECKPOINTS,
    "cli": CHECKPOINTS
    | RUN
    | {"cli", "run", "status", "verify", "doctor", "manifest", "datasets", "evaluate", "backends", "engines"}
    | {"render", "report", "synth", "train", "bench", "notify"},
    "share": set(),
}
HEAVY = {"torch", "torchvision", "transformers", "segment_anything"}
NO_HEAVY = [
    "errors",
    "data",
    "metrics",
    "config",
    "manifest",
    "manifest_fields",
    "manifest_paths",
    "video",
    "masks",
    "records",
    "ledger",
    "items",
    "run",
    "limits",
    "metrics_file",
    "notify",
    "summaries",
    "watch",
    "verify",
    "status",
    "doctor",
    "datasets",
    "evaluate",
    "kept_manifest",
    "render",
    "report",
    "synth",
]


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [node.module]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    for name in imports(path):
        if name == "gmcli" or name.startswith("gmcli."):
            target = name.removeprefix("gmcli").removeprefix(".").split(".")[0]
            assert target in ALLOWED[room(path)] | {room(path)}, f"{room(path)} may not use {target}"


@pytest.mark.parametrize("name", NO_HEAVY)
def test_rooms_without_torch_import_none(name):
    for path in FILES:
        if room(path) == name:
            assert not HEAVY & {module.split(".")[0] for module in imports(path)}


def test_run_knows_neither_torch_nor_click():
    code = "import sys, gmcli.run, gmcli.executors.local; print([m for m in ('torch', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("command", [[], *[[name] for name in cli.commands]])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        f"sys.argv = ['gmcli', *{command!r}, '--help']\n"
        "from gmcli.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = [m for m in ('torch', 'numpy', 'yaml', 'ray', 'transformers', 'av', 'PIL') if m in sys.modules]\n"
        "print('HEAVY', heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_every_command_and_option_has_help():
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name}"


def test_exit_codes_are_those_of_the_documentation():
    from gmcli import errors

    codes = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.GmcliError)
    }
    assert codes == {
        "GmcliError": 1,
        "UsageError": 2,
        "ConfigError": 3,
        "ManifestError": 3,
        "EnvironmentProblem": 4,
        "CheckpointError": 5,
        "EngineError": 5,
        "RunLocked": 7,
        "ItemError": 6,
        "VideoError": 6,
    }


def test_errors_keep_their_hint_between_processes():
    import pickle

    from gmcli.errors import CheckpointError, ManifestError

    error = pickle.loads(pickle.dumps(CheckpointError("what", "how")))
    assert (error.message, error.hint) == ("what", "how")
    both = pickle.loads(pickle.dumps(ManifestError(["a:1: x", "a:2: y"], "fix")))
    assert both.message == "a:1: x\na:2: y"
    assert both.hint == "fix"
