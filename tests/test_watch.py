"""What a run shows to those who watch it, at any moment, and that it shows nothing else."""

import errno
import json
import os
import re
import threading
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gmcli.errors import EnvironmentProblem
from gmcli.executors.messages import Tick
from gmcli.ledger import Ledger
from gmcli.status import read_status
from gmcli.watch import INTERVAL_S, Watch
from tests.fakes import IDENTITY, InlineExecutor, run_inline, run_tasks, tree, video_task


@pytest.fixture
def tasks(tmp_path):
    return [video_task(tmp_path, name, "q0", "none") for name in "abc"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class WaitingExecutor(InlineExecutor):
    """Let an hour pass, a second a Tick, before anything is answered; look at a run's files meanwhile."""

    restarts = 0

    def __init__(self, clock, look) -> None:
        super().__init__()
        self.clock, self.look, self.restarts = clock, look, 3

    def at_work(self):
        return {0: "a"}

    def run(self, jobs):
        for _ in range(3600):
            self.clock.now += 1
            yield Tick()
            self.look()
        yield from super().run(jobs)


def file_number(path):
    return path.stat().st_ino


def is_new(path, seen):
    """Say whether a file has been replaced since it was last seen: the new one is there before the old one goes."""
    return not seen or seen[-1][0] != file_number(path)


def test_a_heartbeat_every_fifteen_seconds_also_when_nothing_happens(tmp_path, tasks):
    out, clock, seen = tmp_path / "out", Clock(), []

    def look():
        if is_new(out / "heartbeat.json", seen):
            seen.append((file_number(out / "heartbeat.json"), (out / "heartbeat.json").read_bytes()))

    watch = Watch(out, clock=clock)
    before = datetime.now(UTC)
    run_inline(out, tasks, executor=WaitingExecutor(clock, look), watch=watch)
    assert len(seen) == 1 + 3600 / INTERVAL_S
    beat = json.loads(seen[-1][1])
    assert before <= datetime.fromisoformat(beat["time"]) <= datetime.now(UTC)
    assert beat["time"].endswith("+00:00")
    assert {k: beat[k] for k in ("run_id", "pid", "state", "done", "no_target", "failed", "pending")} == {
        "run_id": watch.run_id,
        "pid": os.getpid(),
        "state": "running",
        "done": 0,
        "no_target": 0,
        "failed": 0,
        "pending": 6,
    }
    assert (beat["worker_restarts"], beat["at_work"], beat["eta_s"]) == (3, {"0": "a"}, None)
    last = json.loads((out / "heartbeat.json").read_text())
    assert (last["state"], last["done"], last["no_target"], last["pending"]) == ("finished", 3, 3, 0)
    assert last["frames"] == 12
    assert not (out / ".tmp").exists()


def test_the_run_id_is_new_with_every_run_and_the_same_everywhere(tmp_path, tasks):
    out, ids = tmp_path / "out", []
    for number in (1, 2, 3):
        run_inline(out, tasks[:number])
        run, beat = (json.loads((out / name).read_text()) for name in ("run.json", "heartbeat.json"))
        assert re.fullmatch("[0-9a-f]{32}", run["run_id"])
        assert run["run_id"] == beat["run_id"] == read_status(out)["run_id"]
        ids.append(run["run_id"])
    assert len(set(ids)) == 3


def test_an_interrupt_and_an_error_are_the_last_words(tmp_path, tasks, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_inline(out, [*tasks, video_task(tmp_path, "interrupt")])
    beat = json.loads((out / "heartbeat.json").read_text())
    assert (beat["state"], beat["reason"], beat["pending"]) == ("interrupted", "ended by SIGINT", 1)

    def full(*_arguments, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr("gmcli.run.write_item", full)
    with pytest.raises(EnvironmentProblem):
        run_inline(out, [*tasks, video_task(tmp_path, "d")])
    beat = json.loads((out / "heartbeat.json").read_text())
    assert beat["state"] == "stopped"
    assert beat["reason"].startswith("somewhere: no space left")
    assert read_status(out)["state"] == "stopped"


def test_a_restart_removes_it_and_a_run_directory_may_hold_it(tmp_path, tasks):
    run_inline(tmp_path / "out", tasks)
    with Ledger.open(tmp_path / "out", IDENTITY, restart=True):
        assert not (tmp_path / "out/heartbeat.json").exists()
    with pytest.raises(KeyboardInterrupt):
        run_inline(tmp_path / "out", [video_task(tmp_path, "interrupt")])
    assert (tmp_path / "out/heartbeat.json").exists()


def test_what_cannot_be_written_is_said_once_and_ends_nothing(tmp_path, tasks, monkeypatch):
    """The heartbeat's name is taken by a folder, the metrics' folder does not exist."""
    out, clock = tmp_path / "out", Clock()
    (out / "heartbeat.json/in the way").mkdir(parents=True)
    said = []
    monkeypatch.setattr("gmcli.watch.log.warning", lambda form, *values: said.append(form % values))
    watch = Watch(out, clock=clock, metrics_file=tmp_path / "nowhere/gmcli.prom")
    outcome = run_inline(out, tasks, executor=WaitingExecutor(clock, lambda: None), watch=watch)
    watch.close(0)
    assert outcome.pending == 0
    assert len(said) == 2
    assert "heartbeat.json: the heartbeat cannot be written (Is a directory); the run goes on" in said[0]
    assert "nowhere/gmcli.prom: the metrics cannot be written (No such file or directory)" in said[1]
    run_inline(tmp_path / "fresh", tasks)
    assert tree(out) == tree(tmp_path / "fresh")


def test_status_is_right_at_every_moment_of_a_run(tmp_path):
    """Ask again and again, without a pause, while workers answer and files are replaced."""
    tasks = [video_task(tmp_path, f"v{i}", "q0", "none") for i in range(15)] + [video_task(tmp_path, "bad")]
    out, end, found, problems = tmp_path / "out", threading.Event(), [], []
    run_inline(out, [video_task(tmp_path, "former", "q0", "q1", "q2")])

    def ask():
        while not end.is_set():
            try:
                found.append(read_status(out))
            except Exception as problem:  # whatever it is, it should not be
                problems.append(problem)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        run_tasks(out, tasks, workers=2)
    finally:
        end.set()
        thread.join()
    found.append(read_status(out))
    assert not problems
    # From the moment that run.json is this run's.
    mine = [s for s in found if s["questions"] == 31]
    assert len(mine) > 20
    assert all(s["done"] + s["no_target"] + s["failed"] + s["pending"] == 31 for s in mine)
    settled = [31 - s["pending"] for s in mine]
    assert settled == sorted(settled)
    assert len(set(settled)) > 5
    assert found[-1]["state"] == "finished"
    assert found[-1]["failures"] == [{"video": "bad", "question": "q0", "error": "no video"}]
    running = [s for s in mine if s["state"] == "running"]
    # None: it has written run.json for the last time, and not yet given the directory back.
    assert {s["pid"] for s in running} - {None} == {os.getpid()}
    assert len({s["run_id"] for s in running} - {None}) == 1
    assert any(s["heartbeat"] for s in running)


def test_a_run_that_has_just_begun_does_not_pass_for_the_last_one(tmp_path, tasks):
    run_inline(tmp_path / "out", tasks)
    with Ledger.open(tmp_path / "out", IDENTITY):
        status = read_status(tmp_path / "out")
    assert (status["state"], status["run_id"], status["heartbeat"]) == ("running", None, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"time": 7}', b"\xff", b'{"time": "2020-01-01T00:00:00"}'])
def test_a_damaged_heartbeat_is_no_heartbeat(tmp_path, tasks, content):
    run_inline(tmp_path / "out", tasks)
    (tmp_path / "out/heartbeat.json").write_bytes(content)
    assert read_status(tmp_path / "out")["heartbeat_age_s"] is None


def samples(path):
    return {
        (s.name, s.labels.get("state") or s.labels.get("stage")): s.value
        for family in text_string_to_metric_families(path.read_text())
        for s in family.samples
    }


def test_metrics_of_a_run_from_its_beginning_to_its_end(tmp_path, tasks):
    out, clock, file, seen = tmp_path / "out", Clock(), tmp_path / "gmcli.prom", []

    def look():
        if is_new(file, seen):
            seen.append((file_number(file), samples(file)))
        assert sorted(p.name for p in tmp_path.iterdir() if not p.is_dir()) == ["gmcli.prom"]

    watch = Watch(out, clock=clock, metrics_file=file)
    run_inline(out, [*tasks, video_task(tmp_path, "bad")], executor=WaitingExecutor(clock, look), watch=watch)
    watch.close(6)
    assert len(seen) == 1 + 3600 / INTERVAL_S
    _, running = seen[-1]
    assert running["gmcli_run_state", "running"] == 1
    assert running["gmcli_questions", "pending"] == 7
    assert ("gmcli_run_exit_code", None) not in running
    last = samples(file)
    states = ("running", "finished", "interrupted", "stopped")
    assert [last["gmcli_run_state", state] for state in states] == [0, 1, 0, 0]
    assert last["gmcli_run_exit_code", None] == 6
    assert [last["gmcli_questions", state] for state in ("done", "no_target", "failed", "pending")] == [3, 3, 1, 0]
    assert [last["gmcli_videos", state] for state in ("settled", "pending")] == [4, 0]
    assert last["gmcli_run_failed_questions", None] == 1
    assert last["gmcli_run_answered_questions", None] == 7
    assert last["gmcli_frames_masked_total", None] == 16
    assert last["gmcli_stage_seconds_total", "llm"] == 2.0
    assert last["gmcli_worker_restarts_total", None] == 3
    assert ("gmcli_last_success_timestamp_seconds", None) not in last
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_run_with_nothing_to_do_has_metrics_and_no_new_heartbeat(tmp_path, tasks):
    out, file = tmp_path / "out", tmp_path / "gmcli.prom"
    run_inline(out, tasks)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    watch = Watch(out, metrics_file=file)
    run_inline(out, tasks, watch=watch)
    watch.close(0)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()} == before
    last = samples(file)
    assert (last["gmcli_run_state", "finished"], last["gmcli_questions", "done"]) == (1, 3)
    assert last["gmcli_last_success_timestamp_seconds", None] == last["gmcli_heartbeat_timestamp_seconds", None]


def test_the_last_success_outlives_runs_that_fail(tmp_path, tasks):
    out, file = tmp_path / "out", tmp_path / "gmcli.prom"
    watch = Watch(out, metrics_file=file)
    run_inline(out, tasks, watch=watch)
    watch.close(0)
    success = samples(file)["gmcli_last_success_timestamp_seconds", None]
    watch = Watch(out, metrics_file=file)
    watch.fail(EnvironmentProblem("no GPU"))
    watch.close(4)
    last = samples(file)
    assert last["gmcli_last_success_timestamp_seconds", None] == success
    assert (last["gmcli_run_state", "stopped"], last["gmcli_run_exit_code", None]) == (1, 4)
    assert ("gmcli_questions", "done") not in last
    other = Watch(tmp_path / "other", metrics_file=file)
    other.close(4)
    assert ("gmcli_last_success_timestamp_seconds", None) not in samples(file)
