"""Find the data that ships with gmcli, in a wheel or in a checkout, and the places it may write to."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def share_dir(name: str) -> Path:
    """Return the folder of shipped data: "configs", "engines" or "checkpoints".

    A wheel carries all three under gmcli/share; in a checkout, configs/ and engines/ lie beside the package.
    """
    installed = _PACKAGE / "share" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def cache_dir() -> Path:
    """Return the folder for what gmcli may build again: ${GMCLI_CACHE:-~/.cache/gmcli}."""
    return Path(os.environ.get("GMCLI_CACHE") or Path.home() / ".cache" / "gmcli")
