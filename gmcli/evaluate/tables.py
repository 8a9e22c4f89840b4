"""Lay scores out for people and for spreadsheets: plain text, Markdown, CSV; and write such files."""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gmcli.errors import EnvironmentProblem
from gmcli.evaluate.protocol import SAMPLES
from gmcli.evaluate.summary import METRICS, RESAMPLES
from gmcli.files import TEMPORARY, make_directories, write_file
from gmcli.text import one_line, printable

COLUMNS = {
    "j": "J",
    "f": "F",
    "j_and_f": "J&F",
    "window_j_and_f": "J&F in window",
    "t_iou": "tIoU",
    "answer_accuracy": "answer",
}
NOTE = (
    "J, F and J&F reward silence: an empty answer scores 100 in every frame outside the window.\n"
    "Read them beside all_empty, and with J&F in window and tIoU; random_object is what pointing at any object gets."
)

_WIDTH = 12
# In Markdown; the rest of its punctuation means nothing amid a line.
_MARKDOWN = re.compile(r"[\\`*_\[\]|~]")
# By what spreadsheets tell a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_INTERVAL = "95 % interval"
_CSV = ("video", "question", "type", *METRICS, "answer", "true_answer", "status")


def text_table(run: str, scores: dict[str, Any]) -> list[str]:
    """Lay the figures out in percent, in lines of equal length: the run's by type and overall, then each baseline's."""
    first = max(len(name) for name in ("overall", _INTERVAL, *scores["by_type"])) + 2
    lines = [" " * first + "questions" + "".join(f"  {title:>{_width(title)}}" for title in COLUMNS.values())]
    source = ""
    for title, name, summary in _summaries(run, scores):
        if title != source:
            lines += ["", title]
            source = title
        figures = [_percent(summary[key]) for key in COLUMNS]
        lines.append(_line(name, f"{summary['questions']:9}", figures, first))
        if title == run and name == "overall":
            lines.append(_line(_INTERVAL, " " * 9, [_interval(summary["ci95"][key]) for key in COLUMNS], first))
    return lines


def markdown_table(run: str, scores: dict[str, Any], made_by: str) -> str:
    """Lay the figures out in percent as one Markdown table, and below it say in one line how they were made."""
    rows = [["answers", "questions of type", "questions", *COLUMNS.values()]]
    rows.append(["---", "---", *["---:"] * (len(COLUMNS) + 1)])
    for title, name, summary in _summaries(run, scores):
        intervals = summary.get("ci95", {})
        figures = [
            _percent(summary[key]) + (f" [{_interval(intervals[key])}]" if intervals.get(key) else "")
            for key in COLUMNS
        ]
        rows.append([_escaped(title), _escaped(name), str(summary["questions"]), *figures])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    missing = len(scores["missing"])
    counted = f" {missing} questions without an answer count as empty." if missing else ""
    return (
        f"{table}\n\nIn percent; made with {made_by} by the GroundMoRe protocol ({SAMPLES} frames a clip, evenly spread); "
        f"in brackets 95 % percentile bootstrap intervals over videos ({RESAMPLES} resamples).{counted}\n"
    )


def csv_table(scores: dict[str, Any]) -> str:
    """Write one row a question; scores in [0, 1] with all their digits, nothing where a score does not exist.

    Text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _CSV, lineterminator="\n")
    writer.writeheader()
    for row in scores["questions_table"]:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return buffer.getvalue()


def write_report(path: Path, content: str) -> None:
    """Put a text file at `path`, whole or not at all; what is no file, such as /dev/stdout, is written to.

    Raises EnvironmentProblem where that fails.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(content, encoding="utf-8")
            return
        target = path.resolve()
        temporary = target.parent / TEMPORARY
        was_there = temporary.exists()
        make_directories(target.parent)
        write_file(target.parent, target.name, content.encode())
        if not was_there:
            with suppress(OSError):
                temporary.rmdir()
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot be written ({error.strerror or error})") from None


def _summaries(run: str, scores: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield whose figures they are, the type or "overall", and the figures."""
    tables = {run: scores, **{f"baseline {name}": table for name, table in scores["baselines"].items()}}
    for title, table in tables.items():
        for name, summary in table["by_type"].items():
            yield title, name, summary
        yield title, "overall", table["overall"]


def _line(name: str, questions: str, figures: list[str], first: int) -> str:
    cells = (f"  {figure:>{_width(title)}}" for figure, title in zip(figures, COLUMNS.values(), strict=True))
    return f"  {name:{first - 2}}{questions}" + "".join(cells)


def _width(title: str) -> int:
    return max(len(title), _WIDTH)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _interval(bounds: list[float] | None) -> str:
    return "–" if bounds is None else f"{_percent(bounds[0])}–{_percent(bounds[1])}"


def _escaped(text: str) -> str:
    """Make text fit for a cell of a Markdown table: neither HTML nor links nor further cells."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text)).replace("&", "&amp;").replace("<", "&lt;")


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
