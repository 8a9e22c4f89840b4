"""Define the error tree and the exit codes.

GmcliError                exit 1   anything a user can act on; the rest of the tree says how
├── UsageError            exit 2   options that contradict each other
├── ConfigError           exit 3   a configuration, or a run directory that does not fit it
│   └── ManifestError     exit 3   a manifest; carries every problem found, with file and line
├── EnvironmentProblem    exit 4   no GPU, missing extra, full disk, directory that cannot be written
├── CheckpointError       exit 5   weights, tokenizer or checkpoint configuration
│   └── EngineError       exit 5   an engine recipe or a compiled component
├── RunLocked             exit 7   another run holds the directory
└── ItemError             exit 6   one video or question failed; the rest of the run goes on
    └── VideoError        exit 6   a video that cannot be opened or decoded

Exit codes: 0 all done, 1 bug, 2 usage, 3 bad manifest or configuration, 4 environment, 5 checkpoint or engine,
6 finished but some items failed, 7 another run holds the directory, 130 interrupted (resumable),
141 whoever read the output is gone.
"""

from collections.abc import Sequence

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_CONFIG = 3
EXIT_ENVIRONMENT = 4
EXIT_CHECKPOINT = 5
EXIT_ITEMS_FAILED = 6
EXIT_LOCKED = 7
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as a shell says of a program that a broken pipe has ended


class GmcliError(Exception):
    """Carry a message for the user and a hint that says what to do about it."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type["GmcliError"], tuple[str, str | None]]:
        # Errors cross process boundaries; the default pickling of exceptions would drop the hint.
        return type(self), (self.message, self.hint)


class UsageError(GmcliError):
    """Report options that contradict each other."""

    exit_code = EXIT_USAGE


class ConfigError(GmcliError):
    """Report a configuration that is wrong, or that does not fit the run directory."""

    exit_code = EXIT_CONFIG


class ManifestError(ConfigError):
    """Report every problem of a manifest at once, one `file:line: message` a line."""

    def __init__(self, problems: Sequence[str] | str, hint: str | None = None) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems), hint)


class EnvironmentProblem(GmcliError):
    """Report what the machine lacks: a GPU, an optional package, disk space, a writable directory."""

    exit_code = EXIT_ENVIRONMENT


class CheckpointError(GmcliError):
    """Report a checkpoint that is missing, incomplete or of another model."""

    exit_code = EXIT_CHECKPOINT


class EngineError(CheckpointError):
    """Report an engine recipe or a compiled component that cannot be used."""


class RunLocked(GmcliError):
    """Report that another run holds the run directory."""

    exit_code = EXIT_LOCKED


class ItemError(GmcliError):
    """Report that one video or one question failed while the run goes on."""

    exit_code = EXIT_ITEMS_FAILED


class VideoError(ItemError):
    """Report a video that cannot be opened, indexed or decoded."""


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that an exception has ended."""
    match error:
        case GmcliError():
            return error.exit_code
        case KeyboardInterrupt():
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            return EXIT_PIPE
        case OSError():
            return EXIT_ENVIRONMENT
        case _:
            return EXIT_BUG
