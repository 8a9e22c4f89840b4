"""SECURITY.md fits a page and names what is there."""

import dataclasses
import re
from pathlib import Path

import click
import pytest

from gmcli.cli.main import cli
from gmcli.config import RunConfig

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "SECURITY.md").read_text()
QUOTED = set(re.findall(r"`([^`\n]+)`", TEXT))
SETTINGS = {field.name for field in dataclasses.fields(RunConfig)}
# What is named and is neither a file, nor an option, nor a setting.
OTHERS = {
    *(
        "GMCLI_CACHE",
        "HF_HUB_OFFLINE=1",
        "weights_only",
        "trust_remote_code",
        "eval",
        ".bin",
        "config.yaml",
        "run.json",
    ),
    *("config.json", "make audit", "pip install", "pip install -c constraints.txt ."),
}


def test_it_is_one_page():
    lines = TEXT.splitlines()
    assert len(lines) <= 90
    assert [line for line in lines if len(line) > 132 and not line.startswith("|")] == []


@pytest.mark.parametrize("name", sorted(QUOTED - OTHERS))
def test_what_it_names_is_there(name):
    options = {option for c in cli.commands.values() for p in c.params for option in p.opts} | {"--version"}
    if "/" in name or name.endswith((".md", ".txt")):
        assert (ROOT / name).is_file()
    elif ": " in name:
        setting, value = name.split(": ")
        RunConfig(**{setting: value})
        assert setting in SETTINGS
    elif name.startswith(("-", "gmcli ")):
        words = name.removeprefix("gmcli ").split()
        assert all(word in options for word in words if word.startswith("--"))
        assert all(
            word in cli.commands for word in words[:1] if name.startswith("gmcli ") and not word.startswith("--")
        )
    else:
        assert name in SETTINGS | set(cli.commands)


def test_settings_that_it_speaks_of_are_explained():
    explained = (ROOT / "configs/default.yaml").read_text()
    for name in QUOTED & SETTINGS:
        assert f"\n{name}:" in explained


def test_every_option_to_require_a_content_has_the_same_name():
    commands = [
        name
        for name, command in cli.commands.items()
        if any("--require-sha256" in p.opts for p in command.params if isinstance(p, click.Option))
    ]
    assert sorted(commands) == ["convert", "export", "export-trt", "infer"]


def test_makefile_has_what_it_names():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {name.removeprefix("make ") for name in QUOTED if name.startswith("make ")} <= targets
    assert OTHERS <= QUOTED  # the list above does not rot
