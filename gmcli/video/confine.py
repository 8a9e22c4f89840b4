"""Take from this process what decoding a video does not need. What a kernel does not offer is left out and not missed.

Called in a process of one thread, before anything of a stranger's is read. Source: the manual pages of prctl(2),
setrlimit(2), unshare(2), capabilities(7), landlock(7).
"""

import ctypes
import os
import resource
import signal
import struct

from gmcli.video.limits import DecodeLimits

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_MAX_FILES = 64

_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_READ_SEARCH = 1 << 2

# The same numbers on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
# Rights by the version that brought them. Executing, writing to and truncating files, and making or removing entries of
# every kind, controlling devices; reading is left. Binding and connecting TCP. Signals and sockets out of the sandbox.
_FILE_RIGHTS = {1: 0b1_1111_1111_0011, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NET_RIGHTS = {4: 0b11}
_SCOPES = {6: 0b11}


def keep_from_network() -> bool:
    """Move into a network namespace of its own, where there is nothing; say whether the kernel let us.

    Anybody but root needs a user namespace for it.
    """
    libc = ctypes.CDLL(None)
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    return bool(libc.unshare(flags) == 0)


def drop_privileges() -> None:
    """Keep this process and its children from gaining privileges, and root from all of its own but to read any file."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.geteuid() == 0:
        header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
        libc.capset(header, struct.pack("6I", _CAP_DAC_READ_SEARCH, _CAP_DAC_READ_SEARCH, 0, 0, 0, 0))


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the parent (a pid) ends; end now where it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def landlock_version() -> int:
    """Return the version of Landlock that the kernel offers, 0 or less where it offers none."""
    return int(ctypes.CDLL(None).syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION))


def forbid_changes() -> None:
    """Forbid, as far as Landlock goes, to change or run any file, to use TCP, and to signal or trace other processes."""
    version = landlock_version()
    if version < 1:
        return
    rights = (
        sum(bits for since, bits in known.items() if since <= version) for known in (_FILE_RIGHTS, _NET_RIGHTS, _SCOPES)
    )
    libc = ctypes.CDLL(None)
    attributes = struct.pack("3Q", *rights)
    # Without a rule that allows anything.
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset >= 0:
        libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)


def limit_resources(limits: DecodeLimits) -> None:
    """Limit memory, CPU time, the number of files; no file may grow and no core be dumped."""
    memory = limits.decode_memory_mb << 20
    # SIGXCPU a second before SIGKILL: the one says what happened, the other cannot be ignored.
    for what, soft, hard in (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_CPU, limits.decode_cpu_s, limits.decode_cpu_s + 1),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILES, _MAX_FILES),
    ):
        _, allowed = resource.getrlimit(what)
        if allowed != resource.RLIM_INFINITY:
            soft, hard = min(soft, allowed), min(hard, allowed)
        resource.setrlimit(what, (soft, hard))
