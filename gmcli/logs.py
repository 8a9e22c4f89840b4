"""Set logging up: text for people, JSON lines for machines."""

import json
import logging
import logging.handlers
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from gmcli.text import one_line, printable


class JsonFormatter(logging.Formatter):
    """Write a record as one line of ASCII JSON, without control characters.

    time (UTC, milliseconds), level, logger, message, what is constant in this process (run_id, worker), video and question
    where the record is about one, and the trace, if any.
    """

    def __init__(self, constant: Mapping[str, str | int]) -> None:
        super().__init__()
        self._constant = dict(constant)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        value = {
            "time": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
            + f"{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._constant,
            "message": record.getMessage(),
        }
        value |= {name: getattr(record, name) for name in ("video", "question") if hasattr(record, name)}
        if record.exc_info:
            value["trace"] = self.formatException(record.exc_info)
        return json.dumps(value)


class TextFormatter(logging.Formatter):
    """Write a record as one line of text; control characters and line ends in names and questions are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the trace below it."""
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{stamp} {record.levelname.lower():7} {one_line(record.getMessage())}"
        if not record.exc_info:
            return line
        # Away from the margin, where a line in an error's message could pass for a record of its own.
        trace = printable(self.formatException(record.exc_info)).replace("\n", "\n  ")
        return f"{line}\n  {trace}"


class _AboveTheBar(logging.Handler):
    """Write to stderr without tearing a progress bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        # Nobody may be there to read it any more: a terminal that was closed, a pipe. The run goes on.
        with suppress(OSError, ValueError):
            tqdm.write(self.format(record), file=sys.stderr)


class _RotatedFile(logging.handlers.WatchedFileHandler):
    """Append to a file, and to a new one of its name when that was moved away. A log that cannot be written ends no run."""

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            raise
        if not self._failed:
            self._failed = True
            with suppress(OSError, ValueError):
                tqdm.write(f"{one_line(self.baseFilename)}: {error.strerror}; the run goes on", file=sys.stderr)


def set_up_logging(log_format: str, file: Path | None = None, **constant: str | int) -> None:
    """Send gmcli's log to stderr and, where given, to a file.

    log_format: "text" or "json". constant: what every JSON line says besides, such as run_id and worker.
    """
    formatter = JsonFormatter(constant) if log_format == "json" else TextFormatter()
    logger = logging.getLogger("gmcli")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        with suppress(OSError):  # a full disk
            old.close()
    handlers: list[logging.Handler] = [_AboveTheBar()]
    if file is not None:
        handlers.append(_RotatedFile(file, encoding="utf-8", errors="backslashreplace"))
    for each in handlers:
        each.setFormatter(formatter)
        logger.addHandler(each)
    logger.setLevel(logging.INFO)
    logger.propagate = False
