"""A render is made once, whole, and again when its answer changes; what cannot be drawn is named."""

import json
from dataclasses import replace

import pytest

from gmcli.data import Question
from gmcli.errors import ConfigError, RunLocked, UsageError
from gmcli.ledger import Ledger
from gmcli.lock import take_lock
from gmcli.records import Record, inputs_of
from gmcli.render import batch
from gmcli.render.batch import choose, plan
from tests.fakes import IDENTITY
from tests.render.sample import draw, video_task, write_run

TWO = (Question("q0", "Who moves?"), Question("q1", "Who stays?"))


@pytest.fixture
def tasks(clips):
    return [video_task(clips / "a.mp4", *TWO), video_task(clips / "frames", *TWO)]


def stamps(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_second_time_nothing_is_drawn(tmp_path, tasks):
    run = write_run(tmp_path / "run", tasks)
    planned, failed, frames = draw(run, tasks)
    assert (planned.questions, planned.kept, failed) == (4, 0, [])
    # Each question: every frame once for the video, and up to twelve for the sheet.
    assert frames == 2 * (12 + 12) + 2 * (5 + 5)
    before = stamps(run)
    assert {name for name in before if name.startswith("renders/")} == {
        "renders/.lock",
        *(f"renders/{v}/{q}.{e}" for v in ("a", "frames") for q in ("q0", "q1") for e in ("mp4", "png")),
    }
    planned, failed, frames = draw(run, tasks)
    assert (planned.questions, planned.kept, failed, frames) == (0, 4, [], 0)
    assert stamps(run) == before
    assert draw(run, tasks, force=True)[2] == 2 * (12 + 12) + 2 * (5 + 5)


def test_a_changed_answer_and_a_lost_or_new_format_are_drawn(tmp_path, tasks):
    run = write_run(tmp_path / "run", tasks)
    draw(run, tasks)
    (run / "renders" / "a" / "q1.png").unlink()
    write_run(run, [replace(tasks[1], questions=TWO[:1])], window=(0, 2))
    planned, failed, frames = draw(run, tasks)
    assert failed == []
    assert [(t.id, [(w.question.id, w.formats) for w in wanted]) for t, wanted in planned.videos] == [
        ("a", [("q1", ("sheet",))]),
        ("frames", [("q0", ("mp4", "sheet"))]),
    ]
    assert frames == 12 + 5 + 5
    planned, _, _ = draw(run, tasks, formats=("mp4", "gif"))
    assert all(w.formats == ("gif",) for _, wanted in planned.videos for w in wanted)


def test_failed_and_unanswered_questions_are_named(tmp_path, tasks):
    run = write_run(tmp_path / "run", tasks, failed=("q0",), without=("q1",))
    with (run / "ledger.jsonl").open("ab") as file:
        file.write(b"{damaged\n")
    planned, failed, _ = draw(run, tasks)
    assert failed == []
    assert len(planned.skipped) == 5
    assert planned.skipped[0].endswith("not a record; its question will be answered again")
    assert planned.skipped[1:3] == ("a/q0: failed in the run: out of luck", "a/q1: not answered yet")
    assert not (run / "renders").exists()


def test_a_damaged_item_fails_alone(tmp_path, tasks):
    run = write_run(tmp_path / "run", tasks)
    item = run / "items" / "a" / "q0.json"
    item.write_text(item.read_text().replace("It is", "It was"))
    (run / "items" / "frames" / "q1.json").unlink()
    _, failed, _ = draw(run, tasks)
    assert [line.split(":")[0] for line in failed] == ["a/q0", "frames/q1"]
    assert "differs from what was recorded" in failed[0]
    assert sorted(p.name for p in (run / "renders").rglob("*.mp4")) == ["q0.mp4", "q1.mp4"]
    assert draw(run, tasks)[0].questions == 2  # tried again


@pytest.mark.parametrize(
    "change",
    [
        {"frames": "no list"},
        {"names": ["00000"]},
        {"span": [5, 1]},
        {"span": ["a", "b"]},
        {"masks": [{"size": [48, 80], "counts": "!!"}] * 12},
        {"masks": [7] * 12},
        {"answer": 5},
        {"frames": list(range(100, 112))},
    ],
)
def test_an_item_that_says_nonsense_fails_alone(tmp_path, tasks, change):
    task = replace(tasks[0], questions=TWO[:1])
    run = write_run(tmp_path / "run", [task])
    item = run / "items" / "a" / "q0.json"
    content = (json.dumps(json.loads(item.read_text()) | change) + "\n").encode()
    item.write_bytes(content)
    import hashlib

    with Ledger.open(run, IDENTITY) as ledger:
        ledger.append(Record("a", "q0", "done", inputs_of(task, TWO[0]), hashlib.sha256(content).hexdigest()))
    _, failed, _ = draw(run, [task])
    assert len(failed) == 1
    assert not list((run / "renders").rglob("*.mp4"))


def test_a_video_that_cannot_be_opened_fails_alone(tmp_path, tasks, clips):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes((clips / "c.mp4").read_bytes())
    gone = video_task(bad, *TWO)
    run = write_run(tmp_path / "run", [gone, *tasks])
    bad.write_bytes(b"x" * bad.stat().st_size)
    _, failed, _ = draw(run, [gone, *tasks])
    assert [line.split(":")[0] for line in failed] == ["bad/q0", "bad/q1"]
    assert len(list((run / "renders").rglob("*.mp4"))) == 4


def test_other_questions_are_refused(tmp_path, tasks):
    run = write_run(tmp_path / "run", tasks)
    other = [replace(tasks[0], questions=(Question("q0", "Who else?"), TWO[1])), tasks[1]]
    with pytest.raises(ConfigError, match=r"under the same ids:\n  a/q0$"):
        draw(run, other)
    # What is not asked for does not stand in the way.
    assert draw(run, choose(other, ["frames"], []))[1] == []


def test_no_run_directory(tmp_path, tasks):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="not a run directory"):
        draw(tmp_path / "empty", tasks)


def test_filters(tasks):
    assert choose(tasks, [], []) == tasks
    assert [t.id for t in choose(tasks, ["frames", "a"], [])] == ["a", "frames"]
    assert [[q.id for q in t.questions] for t in choose(tasks, ["a"], ["q1"])] == [["q1"]]
    for videos, questions, what in ((["b"], [], "video"), ([], ["q9"], "question")):
        with pytest.raises(UsageError, match=f"no {what} has the id"):
            choose(tasks, videos, questions)
    with pytest.raises(UsageError, match="no question has the ids"):
        choose([tasks[0], replace(tasks[1], questions=TWO[:1])], ["frames"], ["q1"])


@pytest.mark.parametrize("name", ["../out", "/etc/x", ".hidden", "a/b", "", "a\x00b", "a\n"])
def test_ids_that_are_no_file_names_are_refused(tmp_path, tasks, name):
    run = write_run(tmp_path / "run", tasks)
    for hostile in (replace(tasks[0], id=name), replace(tasks[0], questions=(Question(name, "x"),))):
        with pytest.raises(ConfigError, match="an id may contain only"):
            draw(run, [hostile])


def test_renders_among_a_runs_own_files_are_refused(tmp_path, tasks):
    run = write_run(tmp_path / "run", tasks)
    with pytest.raises(UsageError, match="own files"):
        draw(run, tasks, out=tmp_path / "run" / "items" / "..")


def test_two_renders_at_once(tmp_path, tasks):
    run = write_run(tmp_path / "run", tasks)
    (run / "renders").mkdir()
    with take_lock(run / "renders"), pytest.raises(RunLocked):
        draw(run, tasks)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_render_is_whole_or_not_at_all(tmp_path, tasks, monkeypatch, error):
    from gmcli.render import formats

    run = write_run(tmp_path / "run", tasks)
    kept, calls = formats.draw, []

    def stops(*given):
        calls.append(1)
        if len(calls) == 20:  # within the second video
            raise error
        return kept(*given)

    monkeypatch.setattr(formats, "draw", stops)
    with pytest.raises(error):
        draw(run, tasks)
    monkeypatch.setattr(formats, "draw", kept)
    out = run / "renders"
    assert sorted(p.name for p in out.rglob("*.*") if p.is_file() and p.name != ".lock") == ["q0.mp4", "q0.png"]
    # A killed one leaves its temporary file; strangers' files of the same folder are left alone.
    (out / ".tmp").mkdir(exist_ok=True)
    (out / ".tmp" / ("0" * 32)).write_text("half")
    (out / ".tmp" / "mine").write_text("mine")
    planned, failed, _ = draw(run, tasks)
    assert (planned.kept, planned.questions, failed) == (1, 3, [])
    assert [p.name for p in (out / ".tmp").iterdir()] == ["mine"]


def test_every_change_of_what_is_shown_is_noticed(tmp_path, tasks, monkeypatch):
    run = write_run(tmp_path / "run", tasks)
    draw(run, tasks)
    out = run / "renders"
    assert plan(run, tasks, out, ("mp4",), truth=False, force=False).kept == 4
    assert plan(run, tasks, out, ("mp4",), truth=True, force=False).kept == 4  # there is no truth
    monkeypatch.setattr(batch, "_DRAWING", 0)
    assert plan(run, tasks, out, ("mp4",), truth=False, force=False).kept == 0
