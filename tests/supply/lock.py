"""Print constraints.txt for the versions that are installed here: `make lock`."""

import sys
from importlib.metadata import version

from tests.supply.closure import closure

HEAD = """\
# The versions that the tests run with: `make test` installs no others. Written by `make lock`; do not edit.
# Constraints, not requirements: a line counts only where something asks for the package.
# No hashes: pip would then ask for one of everything, gmcli itself included, and for those of every platform.
"""
# Wheels for CUDA on x86-64. torch asks for them by exact version, and on other machines for others.
CUDA = ("nvidia-", "cuda-", "triton", "tensorrt", "torch-tensorrt")
HERE = ' ; sys_platform == "linux" and platform_machine == "x86_64"'


def lines() -> list[str]:
    """Return a line for everything that gmcli[dev] needs, by name; a local part of a version (+cu130) is left out."""
    found = []
    for name in sorted(closure({"dev"})):
        pinned = f"{name}=={version(name).partition('+')[0]}"
        found.append(pinned + (HERE if name.startswith(CUDA) else ""))
    return found


if __name__ == "__main__":
    sys.stdout.write(HEAD + "\n".join(lines()) + "\n")
