"""No module of gmcli runs code that comes as data: neither pickles, nor YAML, nor shells, nor a hub's."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gmcli"
FILES = sorted(PACKAGE.rglob("*.py"))

# Modules that turn bytes into objects by running what the bytes say, or run a shell.
BANNED_MODULES = {
    "joblib",
    "shelve",
    "marshal",
    "dill",
    "cloudpickle",
    "commands",
    "code",
    "codeop",
    "xmlrpc",
    "telnetlib",
}
# What single files may use nevertheless, and why.
EXCEPTIONS = {
    ("checkpoints/weights.py", "pickle"): "only its UnpicklingError, to say why a .bin file was refused",
    (
        "executors/channel.py",
        "pickle",
    ): "messages between the driver and its own workers, over sockets that nobody else has",
    ("executors/channel.py", "pickle.loads"): "the same",
}
BANNED_CALLS = {
    *(
        "eval",
        "exec",
        "__import__",
        "compile",
        "os.system",
        "os.popen",
        "tempfile.mktemp",
        "pickle.load",
        "pickle.loads",
    ),
    *("pickle.Unpickler", "torch.jit.load", "torch.export.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all", "runpy.run_path"),
    *("numpy.fromfile", "numpy.memmap", "pandas.read_pickle", "importlib.reload", "shutil.unpack_archive"),
    *("os.execl", "os.execlp", "os.spawnl", "os.spawnlp", "subprocess.getoutput", "subprocess.getstatusoutput"),
}
BANNED_KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}
# Which call may read a pickle, and where.
TORCH_LOAD = "checkpoints/weights.py"
# A library with code in it: loaded from a folder of the store, whose every byte has been hashed (see backends/store.py).
AOTI_LOAD = "backends/aot_inductor.py"


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def aliases(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: `np` is numpy, `load` may be torch.load."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def dotted(node: ast.expr, known: dict[str, str]) -> str:
    """The full name of what is called; of a method of something else, its name after a dot."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        return ".".join([known.get(node.id, node.id), *parts])
    return ".".join(["", *parts])


def problems(source: str, where: str) -> Iterator[str]:
    """Say what a module does that none may."""
    tree = ast.parse(source)
    known = aliases(tree)
    for module in {full.split(".")[0] for full in known.values()}:
        if module in BANNED_MODULES or (module == "pickle" and (where, module) not in EXCEPTIONS):
            yield f"imports {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from call_problems(node, dotted(node.func, known), where)


def call_problems(node: ast.Call, name: str, where: str) -> Iterator[str]:
    keywords = {k.arg: k.value for k in node.keywords}
    if name in BANNED_CALLS and (where, name) not in EXCEPTIONS:
        yield f"calls {name}"
    if name == "torch.load":
        value = keywords.get("weights_only")
        if where != TORCH_LOAD or not (isinstance(value, ast.Constant) and value.value is True):
            yield "calls torch.load elsewhere than in checkpoints/weights.py, or without weights_only=True"
    if name == "numpy.load" and "allow_pickle" in keywords:
        yield "calls numpy.load with allow_pickle"
    if name.endswith("aoti_load_package") and where != AOTI_LOAD:
        yield "loads a compiled library"
    if name.startswith("transformers.Auto") or name.endswith(".from_pretrained"):
        yield "lets transformers choose a class by what a checkpoint says"
    for keyword in BANNED_KEYWORDS & set(keywords):
        yield f"gives {keyword}"
    if name.startswith("multiprocessing") and name.endswith((".Pipe", ".Connection", ".Queue", ".Client", ".Listener")):
        yield "opens a pipe for pickles"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_data_is_run(path):
    assert list(problems(path.read_text(), name_of(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "from torch import load\nload(f, weights_only=x)",
        "import torch as t\nt.load(f)",
        "import torch\ntorch.load(f, weights_only=True)",  # right, and in the wrong place
        "import torch\ntorch.jit.load(f)",
        "import torch\ntorch._inductor.aoti_load_package(f)",
        "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)",
        "from yaml import full_load\nfull_load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "eval('1')",
        "exec('1')",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import getoutput\ngetoutput('ls')",
        "import tempfile\ntempfile.mktemp()",
        "from transformers import AutoModel\nAutoModel.from_pretrained('x')",
        "from transformers import CLIPModel\nCLIPModel.from_pretrained('x')",
        "f(trust_remote_code=True)",
        "from multiprocessing import Pipe\nPipe()",
    ],
)
def test_the_audit_sees(source):
    assert list(problems(source, "somewhere.py"))


def test_exceptions_are_needed():
    for file, name in EXCEPTIONS:
        module, _, call = name.partition(".")
        source = (PACKAGE / file).read_text()
        assert module in aliases(ast.parse(source)).values()
        assert not call or f"{name}(" in source
    for file, call in ((TORCH_LOAD, "torch.load("), (AOTI_LOAD, "aoti_load_package(")):
        assert call in (PACKAGE / file).read_text()
