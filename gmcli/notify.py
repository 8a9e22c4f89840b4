"""Tell somebody that a run has ended, by a command of theirs. No shell is ever asked."""

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from gmcli.errors import UsageError

log = logging.getLogger("gmcli.notify")

TIMEOUT_S = 60.0
_STDERR = 2


def split_command(text: str) -> list[str]:
    """Split a command into its arguments as a shell would, and find its program; raise UsageError where there is none."""
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--notify-cmd: {error}: {text}") from None
    if not command:
        raise UsageError("--notify-cmd: is empty", "Give a program and its arguments, or leave it out.")
    if shutil.which(command[0]) is None:
        raise UsageError(
            f"--notify-cmd: no program {command[0]!r}",
            "Give a path, or a name on PATH (cron's is short). For pipes and redirections, write a script.",
        )
    return command


def notify(command: Sequence[str], summary: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> None:
    """Run a command with a run's summary as JSON on its standard input and the main points in its environment.

    What it prints goes to stderr. It has `timeout_s`; then it and all it started are killed. Its failure is a warning.
    """
    names = ("run_id", "state", "exit_code", "output", "done", "no_target", "failed", "pending")
    environment = {f"GMCLI_{name.upper()}": str(summary.get(name, "")) for name in names}
    try:
        # A session of its own: Ctrl-C on the terminal is meant for the run, and what it starts can be killed with it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=_STDERR,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        log.warning("--notify-cmd: %s: %s", command[0], error.strerror)
        return
    try:
        process.communicate(json.dumps(dict(summary)).encode() + b"\n", timeout=timeout_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        late = isinstance(error, subprocess.TimeoutExpired)
        log.warning("--notify-cmd: %s: killed %s", command[0], f"after {timeout_s:g} s" if late else "by an interrupt")
        return
    if process.returncode:
        log.warning("--notify-cmd: %s: exit code %d", command[0], process.returncode)
