"""What the page says of a question comes from the ledger, its item and the manifest, and is fit to be shown."""

import json

import pytest

from gmcli.data import Question
from gmcli.errors import ConfigError
from gmcli.records import Record, read_records
from gmcli.report.sources import entries_of, question_scores, read_answer, read_scores, reason, row_of, shown, tables_of
from tests.report.sample import make_tasks, write_run


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    tasks, scenes = make_tasks(folder, videos=2, questions=4, scenes=1, frames=6)
    return tasks, write_run(folder / "run", tasks, scenes, spoil=False)


def test_without_a_manifest_the_ledger_says_what_there_is(sample):
    tasks, run = sample
    entries, strangers = entries_of([], read_records(run)[0])
    assert [(e.id, e.questions) for e in entries] == [(t.id, ("q0", "q1", "q2", "q3")) for t in tasks]
    assert strangers == 0


def test_answers_that_the_manifest_does_not_know_are_counted(sample):
    tasks, run = sample
    entries, strangers = entries_of(tasks[:1], read_records(run)[0])
    assert [e.id for e in entries] == ["match000"]
    assert strangers == 4


def test_an_item_that_was_changed_is_not_shown_as_an_answer(sample):
    _, run = sample
    record = read_records(run)[0]["match000", "q0"]
    assert read_answer(run, record)["answer"]
    other = Record(*record.key, "done", record.inputs, sha256="0" * 64)
    assert read_answer(run, other) is None
    assert row_of(record.key, other, None, None)["s"] == "unreadable"


def test_a_row_of_each_status():
    question = Question("q", "Who?", "Causal")
    assert row_of(("v", "q"), None, None, question) == {"q": "q", "t": "Who?", "y": "Causal", "s": "pending"}
    failed = Record("v", "q", "failed", {"text": "Who?"}, error="no")
    assert row_of(("v", "q"), failed, None, None) == {"q": "q", "t": "Who?", "s": "failed", "e": "no"}
    nobody = Record("v", "q", "no_target", {}, sha256="x")
    item = {"text": "Who?", "answer": "Nobody", "span": [0, 4], "finished": False, "score": float("nan")}
    row = row_of(("v", "q"), nobody, item, None)
    assert row == {"q": "q", "t": "Who?", "s": "no_target", "a": "Nobody", "cut": True}


def test_what_nobody_would_see_is_written_out():
    assert shown("a\x00b\u202ec\u2028d\ud800e\x1b") == "a\\x00b\\u202ec\\u2028d\\ud800e\\x1b"
    assert shown("ok\n\tзачем 🙂 <b>") == "ok\n\tзачем 🙂 <b>"
    assert shown(None) is None


def test_where_a_video_lay_is_left_out_of_its_error():
    assert reason("/data/a b/c.mp4: corrupt: frame 3") == "corrupt: frame 3"
    assert reason("RuntimeError: /x") == "RuntimeError: /x"
    assert reason("/only/a/path: ") == "/only/a/path: "
    assert reason(None) is None


def test_scores_that_are_none_are_refused(tmp_path):
    path = tmp_path / "s.json"
    for content in (b"", b"[]", b'{"overall": 3}', b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="scores"):
            read_scores(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_scores(tmp_path / "missing.json")


def test_tables_leave_out_what_is_not_there():
    overall = {"questions": 2, "j": 0.5, "f": None, "ci95": {"j": [0.4, 0.6], "f": None}, "other": 3}
    scores = {"overall": overall, "by_type": {"Causal": {"questions": 2, "j": float("nan")}}, "baselines": {"x": 1}}
    assert tables_of(json.loads(json.dumps(scores))) == [
        {
            "name": "run",
            "rows": [
                {"name": "overall", "n": 2, "j": 0.5, "ci": {"j": [0.4, 0.6]}},
                {"name": "Causal", "n": 2},
            ],
        }
    ]


def test_scores_of_questions_are_taken_where_they_fit():
    table = [{"video": "v", "question": "q", "j": 0.5, "t_iou": None, "answer": "x"}, {"video": 3}, "no"]
    assert question_scores({"questions_table": table}) == {("v", "q"): {"j": 0.5}}
    assert question_scores({"questions_table": {}}) == question_scores({}) == {}
