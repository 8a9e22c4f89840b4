"""Set logging up: text for people, JSON lines for machines."""

import json
import logging
import sys
import time
from pathlib import Path

from tqdm import tqdm

from gmcli.text import printable


class JsonFormatter(logging.Formatter):
    """Write a record as one line of JSON with time, level, logger, message and, if any, the trace."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        value = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            value["trace"] = self.formatException(record.exc_info)
        return json.dumps(value)


class TextFormatter(logging.Formatter):
    """Write a record as one line of text; control characters of file names and questions are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the trace below it."""
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{stamp} {record.levelname.lower():7} {printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _AboveTheBar(logging.Handler):
    """Write to stderr without tearing a progress bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def set_up_logging(log_format: str, file: Path | None = None) -> None:
    """Send gmcli's log to stderr and, where given, to a file. log_format: "text" or "json"."""
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    logger = logging.getLogger("gmcli")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    handlers: list[logging.Handler] = [_AboveTheBar()]
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for each in handlers:
        each.setFormatter(formatter)
        logger.addHandler(each)
    logger.setLevel(logging.INFO)
    logger.propagate = False
