"""Look up what a manifest names in the file system, and keep it inside a folder where that is wanted."""

import os
from pathlib import Path

from gmcli.yaml_lines import Node, Problems, quote

_SHOWN = 1024


def absolute(path: str) -> str:
    """Return the absolute path; links keep their names, unless `..` follows one."""
    if ".." in path.split("/"):
        return os.path.realpath(path)  # `link/..` is the parent of where the link points to
    return os.path.abspath(path)  # noqa: PTH100 (links stay: a cache's `clip.mp4` may point to a nameless blob)


def real_path(path: str) -> str:
    """Return the absolute path without links."""
    return os.path.realpath(path)


def is_inside(path: str, folder: str) -> bool:
    """Ask whether a path lies in `folder`, or is it, once its links are followed; the folder's own path has none."""
    return f"{os.path.realpath(path)}/".startswith(f"{folder.rstrip('/')}/")


def look_up(problems: Problems, node: Node, base: str | None, missing: str) -> tuple[str, os.stat_result] | None:
    """Return the absolute path that a field names and what the file system says about it; else note why there is none.

    base: what relative paths are relative to; None where that is wrong itself, which has been said.
    """
    path: str = node.value
    if base is None and not path.startswith("/"):
        return None
    full = os.path.join(base or "/", path)  # noqa: PTH118 (pathlib costs ten times as much, 50,000 times)
    try:
        full = absolute(full)
        return full, Path(full).stat()
    except (FileNotFoundError, NotADirectoryError):
        problems.add(node.at, f"{missing}: {quote(full, _SHOWN)}")
    except OSError as error:
        problems.add(node.at, f"{error.strerror}: {quote(full, _SHOWN)}")
    except ValueError:  # the file system's encoding cannot express it
        problems.add(node.at, f"not a possible file name here: {quote(full, _SHOWN)}")
    return None


def check_inside(problems: Problems, node: Node, path: str, folder: str) -> None:
    """Note a file or folder that lies outside `folder` once links are followed, or a folder with a link that leads there.

    A look, not a lock: what is exchanged afterwards is not seen, and a hard link looks like any file.
    """
    if not is_inside(path, folder):
        problems.add(node.at, f"leads out of 'root' ({quote(folder, _SHOWN)}): {quote(path, _SHOWN)}")
        return
    try:
        with os.scandir(path) as entries:
            out = next((e.path for e in entries if e.is_symlink() and not is_inside(e.path, folder)), None)
    except NotADirectoryError:
        return
    except OSError as error:
        problems.add(node.at, f"{error.strerror}: {quote(path, _SHOWN)}")
        return
    if out is not None:
        problems.add(node.at, f"holds a link that leads out of 'root' ({quote(folder, _SHOWN)}): {quote(out, _SHOWN)}")
