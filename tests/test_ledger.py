import dataclasses
import errno
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmcli.data import Question
from gmcli.errors import ConfigError, EnvironmentProblem, RunLocked
from gmcli.ledger import Identity, Ledger
from gmcli.lock import is_running
from gmcli.records import Record, inputs_of, read_records
from tests.fakes import IDENTITY, tree, video_task


def record(task, question="q0", status="done", **changes):
    asked = next(q for q in task.questions if q.id == question)
    values = {"sha256": "0" * 64} if status != "failed" else {"error": "broken"}
    return Record(task.id, question, status, inputs_of(task, asked), **values | changes)


@pytest.fixture
def task(tmp_path):
    return video_task(tmp_path, "a", "q0", "q1")


def with_items(out, *names):
    for name in names:
        (out / "items" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / "items" / name).write_text("{}")


def test_records_survive_and_decide_what_is_pending(tmp_path, task):
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY) as ledger:
        assert ledger.pending([task]) == {"a": ["q0", "q1"]}
        with_items(out, "a/q0.json")
        ledger.append(record(task))
    with Ledger.open(out, IDENTITY) as ledger:
        assert ledger.pending([task]) == {"a": ["q1"]}
        ledger.append(record(task, "q1", "failed"))
        assert ledger.pending([task]) == {}
        assert ledger.pending([task], retry_failed=True) == {"a": ["q1"]}


def test_a_question_whose_file_is_gone_is_pending_again(tmp_path, task):
    with Ledger.open(tmp_path / "out", IDENTITY) as ledger:
        ledger.append(record(task))
        assert ledger.pending([task]) == {"a": ["q0", "q1"]}


def test_a_second_run_is_refused_and_touches_nothing(tmp_path):
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY):
        before = {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in out.rglob("*")}
        with pytest.raises(RunLocked):
            Ledger.open(out, dataclasses.replace(IDENTITY, decisive={"frames": 3}))
        with pytest.raises(RunLocked):
            Ledger.open(out, IDENTITY, restart=True)
        assert {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in out.rglob("*")} == before
        assert is_running(out)
    assert not is_running(out)
    Ledger.open(out, IDENTITY).__exit__()


def test_other_settings_and_other_weights_are_named(tmp_path):
    out = tmp_path / "out"
    Ledger.open(out, IDENTITY).__exit__()
    other = Identity(settings={"checkpoint": "y", "frames": 32}, decisive={"frames": 32}, checkpoint_sha256="d" * 64)
    with pytest.raises(ConfigError) as caught:
        Ledger.open(out, other)
    assert "frames was 20, is 32" in caught.value.message
    assert "checkpoint content was cccccccccccc…, is dddddddddddd… ('x' → 'y')" in caught.value.message
    Ledger.open(out, other, restart=True).__exit__()
    Ledger.open(out, other).__exit__()


def test_settings_that_change_no_mask_may_change(tmp_path):
    out = tmp_path / "out"
    Ledger.open(out, IDENTITY).__exit__()
    Ledger.open(out, dataclasses.replace(IDENTITY, settings={"checkpoint": "x", "frames": 20, "workers": 4})).__exit__()
    assert "workers: 4" in (out / "config.yaml").read_text()


def test_changed_text_and_changed_video_are_named(tmp_path, task):
    with Ledger.open(tmp_path / "out", IDENTITY) as ledger:
        with_items(tmp_path / "out", "a/q0.json")
        ledger.append(record(task))
        assert ledger.changed([task]) == []
        now = dataclasses.replace(task, questions=(Question("q0", "Whom?"),), size_bytes=7)
        assert ledger.changed([now]) == ["a/q0: bytes was 1000, is 7; text was 'Who q0?', is 'Whom?'"]
        assert ledger.pending([now]) == {"a": ["q0"]}
        timed = dataclasses.replace(task, start=1.0)
        assert ledger.changed([timed]) == ["a/q0: start was None, is 1.0"]


def test_a_failed_question_is_tried_again_once_its_video_has_changed(tmp_path, task):
    with Ledger.open(tmp_path / "out", IDENTITY) as ledger:
        ledger.append(record(task, status="failed"))
        ledger.append(record(task, "q1", status="failed"))
        repaired = dataclasses.replace(task, size_bytes=7)
        assert ledger.changed([repaired]) == []
        assert ledger.pending([task]) == {}
        assert ledger.pending([repaired]) == {"a": ["q0", "q1"]}


def test_a_moved_video_is_the_same_video(tmp_path, task):
    with Ledger.open(tmp_path / "out", IDENTITY) as ledger:
        ledger.append(record(task))
        assert ledger.changed([dataclasses.replace(task, video="/elsewhere/a.mp4")]) == []


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(ConfigError, match=r"thesis\.tex"):
            Ledger.open(tmp_path, IDENTITY, restart=restart)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_restart_throws_results_away(tmp_path, task):
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY) as ledger:
        with_items(out, "a/q0.json")
        ledger.append(record(task))
    with Ledger.open(out, IDENTITY, restart=True) as ledger:
        assert ledger.pending([task]) == {"a": ["q0", "q1"]}
    assert set(tree(out)) == {"config.yaml"}


def test_a_line_cut_off_anywhere_costs_only_itself(tmp_path, task):
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY) as ledger:
        ledger.append(record(task))
        ledger.append(record(task, "q1"))
    whole = (out / "ledger.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        (out / "ledger.jsonl").write_bytes(whole[:cut])
        with Ledger.open(out, IDENTITY) as ledger:
            assert len(ledger.records) == (cut >= first)
            ledger.append(record(task, "q1"))
        records, damaged = read_records(out)
        assert damaged == []
        assert len(records) == 1 + (cut >= first)


def test_a_damaged_line_is_named_and_its_neighbours_live(tmp_path, task):
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY) as ledger:
        ledger.append(record(task))
        ledger.append(record(task, "q1"))
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b'{"video": 3}\n' + lines[1])
    with Ledger.open(out, IDENTITY) as ledger:
        assert list(ledger.records) == [("a", "q1")]
        assert ledger.damaged == (f"{out / 'ledger.jsonl'}:1: not a record; its question will be answered again",)


def test_no_flipped_bit_makes_another_record(tmp_path, task):
    """Each is noticed, or takes away the last line's end, which a write that was cut off does as well."""
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY) as ledger:
        ledger.append(record(task))
        ledger.append(record(task, "q1", status="failed"))
    whole = (out / "ledger.jsonl").read_bytes()
    want, _ = read_records(out)
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (out / "ledger.jsonl").write_bytes(flipped)
        records, damaged = read_records(out)
        assert all(want[key] == found for key, found in records.items())
        assert damaged or (bit // 8 == len(whole) - 1 and list(records) == [("a", "q0")])


def test_lines_of_former_versions_have_no_check_sum(tmp_path, task):
    (tmp_path / "ledger.jsonl").write_bytes(record(task).line().split(b',"crc"')[0] + b"}\n")
    assert read_records(tmp_path) == ({("a", "q0"): record(task)}, [])


def test_a_record_is_withdrawn_for_good(tmp_path, task):
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY) as ledger:
        with_items(out, "a/q0.json", "a/q1.json")
        ledger.append(record(task))
        ledger.append(record(task, "q1", "failed"))
        ledger.withdraw(("a", "q0"))
        before = (out / "ledger.jsonl").read_bytes()
        for key in (("a", "q0"), ("a", "q1"), ("a", "q2")):
            ledger.withdraw(key)
        assert (out / "ledger.jsonl").read_bytes() == before
    with Ledger.open(out, IDENTITY) as ledger:
        assert (list(ledger.records), ledger.damaged) == ([("a", "q1")], ())
        ledger.append(record(task))
    assert set(read_records(out)[0]) == {("a", "q0"), ("a", "q1")}


class Halves:
    """Write half of what is given, as a disk does that fills up; from the n-th write on there is no more room."""

    def __init__(self, file, n):
        self.file, self.left = file, n

    def write(self, content):
        self.left -= 1
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content[: len(content) // 2 + 1])

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_line_that_is_written_in_part_is_completed_or_taken_back(tmp_path, task):
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY) as ledger:
        ledger.append(record(task))
        whole = (out / "ledger.jsonl").read_bytes()
        ledger._file = Halves(ledger._file, 3)
        with pytest.raises(OSError, match="No space left"):
            ledger.append(record(task, "q1"))
        assert (out / "ledger.jsonl").read_bytes() == whole
        assert ("a", "q1") not in ledger.records
        ledger._file.left = 100
        ledger.append(record(task, "q1"))
    assert (out / "ledger.jsonl").read_bytes() == whole + record(task, "q1").line()


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_recorded_once_the_directory_was_moved(tmp_path, task, replaced):
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY) as ledger:
        out.rename(tmp_path / "moved")
        if replaced:
            Ledger.open(out, IDENTITY).__exit__()
            (out / ".tmp").mkdir()
        for write in (
            lambda: ledger.withdraw(("a", "q0")),
            lambda: ledger.append(record(task)),
            lambda: ledger.compact([task]),
        ):
            with pytest.raises(EnvironmentProblem, match="moved, removed or replaced"):
                write()
    assert out.exists() == replaced
    assert not (tmp_path / "moved" / "ledger.jsonl").exists()
    if replaced:
        assert set(tree(out)) == {"config.yaml"}
        assert (out / ".tmp").exists()


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode()),
        ),
        max_size=6,
    )
)
def test_any_bytes_are_read_or_named(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("l")
    (folder / "ledger.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    records, damaged = read_records(folder)
    assert records == {}
    assert all("not a record" in line for line in damaged)


def test_the_ledger_is_rewritten_in_the_manifests_order(tmp_path, task):
    other = video_task(tmp_path, "b")
    gone = video_task(tmp_path, "z")
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY) as ledger:
        for each in (record(gone), record(other), record(task, "q1"), record(task, status="failed"), record(task)):
            ledger.append(each)
        ledger.compact([task, other])
        stamp = (out / "ledger.jsonl").stat().st_mtime_ns
        ledger.compact([task, other])
        assert (out / "ledger.jsonl").stat().st_mtime_ns == stamp
    lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert [(x["video"], x["question"], x["status"]) for x in lines] == [
        ("a", "q0", "done"),
        ("a", "q1", "done"),
        ("b", "q0", "done"),
        ("z", "q0", "done"),
    ]


def test_looking_takes_and_changes_nothing(tmp_path, task):
    out = tmp_path / "out"
    assert Ledger.look(out, IDENTITY).pending([task]) == {"a": ["q0", "q1"]}
    assert not out.exists()
    with Ledger.open(out, IDENTITY) as ledger:
        looked = Ledger.look(out, IDENTITY)
        with pytest.raises(RuntimeError):
            looked.append(record(task))
        ledger.append(record(task))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not a directory"):
        Ledger.look(tmp_path / "file", IDENTITY)


def test_what_cannot_be_a_run_directory_is_an_environment_problem(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be used as a run directory"):
        Ledger.open(tmp_path / "file" / "out", IDENTITY)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_an_environment_problem(tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    with pytest.raises(EnvironmentProblem, match="Permission denied"):
        Ledger.open(out, IDENTITY)
