"""What a manifest says passes through a run into logs, lists of failures and tables; none of them takes it for its own."""

import csv
import io
import json
import logging
import re
from pathlib import Path

import pytest

from gmcli.data import ItemResult, Question, VideoTask
from gmcli.evaluate.tables import csv_table, markdown_table
from gmcli.executors.messages import Answered, Ready
from gmcli.ledger import Ledger
from gmcli.logs import set_up_logging
from gmcli.progress import Progress
from gmcli.run import plan, run
from tests.fakes import IDENTITY, InlineExecutor

OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "javascript:alert(1) ${x} {{7*7}} %s %(x)s {0}",
    "\x1b[31mred\x9b2J\u202egnp.exe\u2028",
    "text\n12:00:00 error   forged\r\n2026-01-01 INFO forged",
    "x" * 100_000,
    "\x00\ufeff\u200b\u2066",
)


class Failing(InlineExecutor):
    """Fail every question with the words of its video."""

    def run(self, jobs):
        yield Ready(0, {"device": "none"})
        for job in jobs:
            results = [
                ItemResult(job.task.id, q, "failed", error=f"{job.task.video}: cannot be read") for q in job.pending
            ]
            yield Answered(job, tuple(results))


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logs_and_failures(log_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [
        VideoTask(f"v{n}", f"/data/{text}", (Question("q", text, text),), size_bytes=1)
        for n, text in enumerate(HOSTILE)
    ]
    out = tmp_path / "run"
    try:
        with Ledger.open(out, IDENTITY) as ledger:
            set_up_logging(log_format, out / "logs/driver.log")
            jobs = plan(tasks, ledger.pending(tasks))
            run(tasks, jobs, ledger, Failing(), ("rle",), Progress(videos=6, questions=6, bar=False))
            logging.getLogger("gmcli").warning("%s", HOSTILE[3], exc_info=ValueError(HOSTILE[3]))
    finally:
        logger = logging.getLogger("gmcli")
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
    texts = {
        name: (out / name).read_text()
        for name in ("logs/driver.log", "failures.jsonl", "ledger.jsonl", "manifest.jsonl")
    }
    texts["stderr"] = capsys.readouterr().err
    for name, text in texts.items():
        assert OBEYED.search(text) is None, name
        assert not re.search("^(12:00:00 error|2026-01-01)", text, re.MULTILINE), name
    failures = [json.loads(line) for line in texts["failures.jsonl"].splitlines()]
    assert [failure["text"] for failure in failures] == list(HOSTILE)
    if log_format == "json":
        logged = [json.loads(line)["message"] for line in texts["logs/driver.log"].splitlines()]
        assert f"v3/q failed: /data/{HOSTILE[3]}: cannot be read" in logged


def summary() -> dict:
    names = ("j", "f", "j_and_f", "window_j_and_f", "t_iou", "answer_accuracy")
    return {"questions": 1, **dict.fromkeys(names, 0.5), "ci95": dict.fromkeys(names)}


FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(1)", '=HYPERLINK("http://x","y")')


def test_a_spreadsheet_sees_no_formula() -> None:
    row = {"video": "-v", "question": "q", "type": "Causal", "j": 0.25, "status": "done"}
    rows = [row | {"answer": text, "true_answer": HOSTILE[2]} for text in FORMULAS]
    text = csv_table({"questions_table": rows})
    assert OBEYED.search(text) is None
    read = list(csv.DictReader(io.StringIO(text)))
    assert [r["answer"] for r in read] == [f"'{formula}" for formula in FORMULAS]
    assert all(r["video"] == "'-v" and r["j"] == "0.25" and r["type"] == "Causal" for r in read)


def test_markdown_holds_neither_html_nor_links_nor_further_cells() -> None:
    kinds = ("<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "a|b\\|c", "`x`\nnew")
    scores = {"by_type": {kind: summary() for kind in kinds}, "overall": summary(), "baselines": {}, "missing": []}
    text = markdown_table("run<b>", scores, "gmcli")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(kinds) + 1
    assert "<" not in text
    assert not re.search(r"(?<!\\)[\[\]](?=\()", text)
    assert all(len(re.findall(r"(?<!\\)\|", row.replace("\\\\", ""))) == 10 for row in rows), rows
