"""Find what pyproject.toml asks for, and what that asks for, as far as it is installed here."""

import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def requirements(extras: Iterable[str] = ()) -> list[Requirement]:
    """Return the requirements of gmcli itself with some extras; extras that name gmcli's own are followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for line in project["optional-dependencies"][extra]:
            requirement = Requirement(line)
            if requirement.name == "gmcli":
                waiting += requirement.extras
            else:
                found.append(requirement)
    return found


def closure(extras: Iterable[str] = ()) -> set[str]:
    """Return the names of all installed distributions that gmcli needs with some extras, directly or not."""
    found: dict[str, set[str]] = {}
    waiting = [r for r in requirements(extras) if applies(r, {""})]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found and requirement.extras <= found[name]:
            continue
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.setdefault(name, set()).update(requirement.extras)
        waiting += [r for r in map(Requirement, needed) if applies(r, {"", *found[name]})]
    return set(found)


def applies(requirement: Requirement, extras: set[str]) -> bool:
    """Say whether a requirement counts on this machine, with one of some extras."""
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def pins(path: Path = ROOT / "constraints.txt") -> Iterator[Requirement]:
    """Yield the lines of constraints.txt."""
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            yield Requirement(line)
