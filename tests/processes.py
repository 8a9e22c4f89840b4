"""Look at processes through /proc: who are the children of one, and which are alive."""

from pathlib import Path


def children_of(pid: int, part_of_command: bytes = b"") -> list[int]:
    """Return the living children of a process whose command line holds some bytes."""
    return [child for child, (parent, command) in _all().items() if parent == pid and part_of_command in command]


def descendants_of(pid: int) -> list[int]:
    """Return all living processes below one, nearest first."""
    everybody, found = _all(), [pid]
    for each in found:
        found += [child for child, (parent, _) in everybody.items() if parent == each]
    return found[1:]


def alive(pid: int) -> bool:
    """Say whether a process runs: one that waits for its parent to ask for its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command_of(pid: int) -> bytes:
    """Return a process's command line, its words divided by zero bytes; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _all() -> dict[int, tuple[int, bytes]]:
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found[int(folder.name)] = (int(parent), command)
    return found
