"""Keep to ourselves what is ours.

Nobody else may put files into a folder whose files are run as code: engines, what torch has compiled. And no library tells
its makers that it is used.
"""

import grp
import os
import pwd
import stat
import sys
from contextlib import suppress
from pathlib import Path

from gmcli.errors import EnvironmentProblem
from gmcli.resources import cache_dir

ELSEWHERE = "Set GMCLI_CACHE to a folder of your own on a local disk."

_MOST_LINKS = 40  # as the kernel's


def private_dir(name: str) -> Path:
    """Return a folder below cache_dir() that nobody else may read or write; make it where it is missing.

    Raises EnvironmentProblem where others could have written into it, or could put another in its place.
    """
    folder = cache_dir().absolute() / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise EnvironmentProblem(f"{folder}: cannot be made ({error.strerror})", ELSEWHERE) from None
    check_private(folder)
    return folder


def keep_torch_private() -> None:
    """Have torch keep what it compiles in a folder of ours: its own place is a name in /tmp that anybody can guess."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_dir("inductor")))


def keep_openvino_silent() -> None:
    """Have openvino do without its telemetry: it reports every import of it to its makers, and asks nobody."""
    # An import of it fails then, and openvino has a stub for that case.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def check_private(folder: Path) -> None:
    """Raise EnvironmentProblem unless a folder is this user's alone, and no folder above it lets others replace it.

    A link counts as what it points to. Raises OSError where the folder is not there.
    """
    found, link = folder.stat(), folder.lstat()
    user = os.geteuid()
    if not stat.S_ISDIR(found.st_mode):
        raise EnvironmentProblem(f"{folder}: not a folder", ELSEWHERE)
    if found.st_uid != user or link.st_uid not in (user, 0):
        raise EnvironmentProblem(
            f"{folder}: belongs to user {found.st_uid if found.st_uid != user else link.st_uid}, not to you "
            f"({user}); what lies there is run as code, and only your own is run",
            ELSEWHERE,
        )
    if found.st_mode & 0o077:
        raise EnvironmentProblem(
            f"{folder}: others can reach it (mode {stat.S_IMODE(found.st_mode):04o}); what lies there is run as code, and "
            "only your own is run",
            f"If nobody else wrote into it: chmod 700 '{folder}'. Otherwise remove it first.",
        )
    _check_way(folder)


def _check_way(folder: Path) -> None:
    """Walk from / to a folder through all links; raise EnvironmentProblem where another user could lead it elsewhere."""
    here, left, links = Path("/"), list(folder.absolute().parts[1:]), 0
    while left:
        _check_step(here)
        step = left.pop(0)
        if step == "..":
            here = here.parent
            continue
        status = (here / step).lstat()
        if not stat.S_ISLNK(status.st_mode):
            here = here / step
            continue
        links += 1
        if links > _MOST_LINKS or not _is_trusted(status.st_uid):
            raise EnvironmentProblem(f"{here / step}: a link of user {status.st_uid} on the way to {folder}", ELSEWHERE)
        target = (here / step).readlink()
        left = [*target.parts[1:], *left] if target.is_absolute() else [*target.parts, *left]
        here = Path("/") if target.is_absolute() else here


def _check_step(parent: Path) -> None:
    status = parent.stat()
    # Who owns a folder renames what is in it; so does who may write there, unless it is sticky as /tmp is.
    if not _is_trusted(status.st_uid):
        raise EnvironmentProblem(
            f"{parent}: belongs to user {status.st_uid}, who can replace what lies there and is run as code", ELSEWHERE
        )
    alone = not status.st_mode & stat.S_IWOTH and (not status.st_mode & stat.S_IWGRP or _is_own_group(status.st_gid))
    if not alone and not status.st_mode & stat.S_ISVTX:
        raise EnvironmentProblem(
            f"{parent}: others can write there (mode {stat.S_IMODE(status.st_mode):04o}) and replace what is run as code",
            f"chmod go-w '{parent}'. Or: {ELSEWHERE}",
        )


def _is_trusted(user: int) -> bool:
    """Say whether a user is this one, or root, or root outside of this container, whose number shows as the overflow's."""
    if user in (os.geteuid(), 0):
        return True
    with suppress(OSError, ValueError):
        inside = Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
        return inside and user == int(Path("/proc/sys/kernel/overflowuid").read_text())
    return False


def _is_own_group(group: int) -> bool:
    """Say whether a group is a user's private one, as many systems give everybody: of his name, with nobody else in it."""
    with suppress(KeyError):
        name, entry = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
        return entry.gr_name == name and set(entry.gr_mem) <= {name}
    return False
