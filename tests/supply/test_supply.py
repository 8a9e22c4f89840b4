"""What gmcli is built on is locked and listed, and an audit that asked nobody does not pass for a clean one."""

import re
import subprocess
import sys

import pytest
from packaging.utils import canonicalize_name

from tests.supply import audit, licences
from tests.supply.closure import ROOT, closure, pins, requirements

LOCK = "Run `make lock` in an environment made by `make test`, and look at what it changed."
PINS = {canonicalize_name(pin.name): pin for pin in pins()}


def version_of(name: str) -> str:
    [specifier] = PINS[name].specifier
    assert specifier.operator == "=="
    return specifier.version


def test_every_line_pins_one_version_of_one_package():
    assert len(PINS) == len(list(pins())) > 50
    for name, pin in PINS.items():
        assert re.fullmatch(r"\d[\w.]*", version_of(name)), f"{pin} is no plain version. {LOCK}"
        assert not pin.url, f"{pin} is somebody's file, which others do not have. {LOCK}"


def test_what_is_locked_satisfies_pyproject():
    for requirement in requirements({"dev"}):
        name = canonicalize_name(requirement.name)
        assert name in PINS, f"constraints.txt lacks {name}. {LOCK}"
        assert version_of(name) in requirement.specifier, f"{PINS[name]} is not {requirement}. {LOCK}"


def test_everything_that_is_installed_for_the_tests_is_locked():
    missing = closure({"dev"}) - PINS.keys()
    assert not missing, f"constraints.txt lacks {', '.join(sorted(missing))}. {LOCK}"


def test_what_only_some_machines_have_binds_no_other():
    for name, pin in PINS.items():
        if name.startswith(("nvidia-", "cuda-", "tensorrt", "triton")):
            assert pin.marker is not None
            assert not pin.marker.evaluate({"sys_platform": "linux", "platform_machine": "aarch64"})
            assert pin.marker.evaluate({"sys_platform": "linux", "platform_machine": "x86_64"})
    assert PINS["torch"].marker is None


def test_the_tests_environment_is_installed_from_the_lock():
    makefile = (ROOT / "Makefile").read_text()
    [line] = [x for x in makefile.splitlines() if "'.[dev]'" in x and "pip install" in x and x.startswith("\t")]
    assert " -c constraints.txt " in line


def test_the_closure_follows_what_packages_need():
    assert {"torch", "numpy", "jinja2", "markupsafe", "av", "pyyaml"} <= closure()
    assert "pytest" not in closure()
    assert {"pytest", "pluggy", "openvino", "matplotlib"} <= closure({"dev"})


# Licences


def listed() -> dict[str, str]:
    rows = re.findall(
        r"^\| ([\w.-]+) \| [\w.]+ \| (.+?) \| <\S+> \|$", (ROOT / "docs/licences.md").read_text(), re.MULTILINE
    )
    return dict(rows)


def test_every_package_that_users_get_is_in_the_list_of_licences():
    missing = (closure() | closure(licences.EXTRAS)) - listed().keys()
    assert not missing, f"docs/licences.md lacks {', '.join(sorted(missing))}. Run `make licences`."


def test_every_licence_is_known():
    assert [name for name, licence in listed().items() if "not named" in licence] == []
    # What is copyleft or proprietary is told about in words above the tables.
    text = (ROOT / "docs/licences.md").read_text().split("## What `pip")[0]
    for name, licence in listed().items():
        if re.search(r"GPL|MPL|propriet|CDDL|EUPL", licence, re.IGNORECASE):
            assert name in text or name.startswith("nvidia-"), (
                f"{name} ({licence}) wants a word in tests/supply/licences.py"
            )


# Audit


def package(name, **more):
    return {"name": name, "version": "1.0", **more}


FLAW = {"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fix_versions": ["1.1"]}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([package("a", vulns=[])], 0, "1 packages checked, no known vulnerability"),
        ([package("a", vulns=[FLAW]), package("b", vulns=[])], 1, r"a 1\.0: PYSEC-1, CVE-2026-1; fixed in 1\.1"),
        ([package("a", vulns=[{**FLAW, "fix_versions": []}])], 1, "no fix yet"),
        ([package("a", skip_reason="not found")], 4, "nothing was checked"),
        ([], 4, "nothing was checked"),
        ([package("a", vulns=[]), package("b", skip_reason="not found")], 0, "not checked: b"),
    ],
)
def test_what_was_not_looked_up_is_not_called_clean(packages, code, words):
    found, said = audit.verdict({"dependencies": packages})
    assert found == code
    assert re.search(words, "\n".join(said))
    assert ("no known vulnerability" in "\n".join(said)) == (code == 0)


@pytest.mark.parametrize("program", ["#!/bin/sh\necho 'no such host' >&2; exit 1\n", None])
def test_without_anybody_to_ask_it_says_so(tmp_path, program, capsys):
    path = tmp_path / "pip-audit"
    if program:
        path.write_text(program)
        path.chmod(0o755)
    assert audit.main(str(path), "constraints.txt") == 4
    assert "nothing was checked" in capsys.readouterr().out


def test_the_audit_needs_nothing_but_python():
    code = "import sys, tests.supply.audit; print([m for m in ('packaging', 'torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
