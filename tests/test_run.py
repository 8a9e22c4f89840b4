"""The whole life of a run directory, with workers that answer without a model."""

import dataclasses
import errno
import json
import os
import subprocess

import numpy as np
import pytest
from PIL import Image

from gmcli.data import Question
from gmcli.errors import ConfigError, EnvironmentProblem
from gmcli.ledger import Ledger
from gmcli.masks.rle import decode_rle, rle_from_json
from gmcli.run import plan
from gmcli.status import read_status
from gmcli.verify import forget_damaged, verify
from tests.fakes import IDENTITY, InlineExecutor, run_inline, run_tasks, tree, video_task


@pytest.fixture
def tasks(tmp_path):
    return [
        video_task(tmp_path, "a", "q0", "q1"),
        video_task(tmp_path, "b", "q0", "none"),
        video_task(tmp_path, "c", "q0", "q1", "q2"),
    ]


def counts(outcome):
    return outcome.done, outcome.no_target, outcome.failed, outcome.pending, outcome.worked


def test_a_run_leaves_masks_records_and_summaries(tmp_path, tasks):
    out = tmp_path / "out"
    assert counts(run_inline(out, tasks)) == (6, 1, 0, 0, 7)
    results = json.loads((out / "results.json").read_text())["results"]
    assert [(r["video"], r["question"]) for r in results] == [(t.id, q.id) for t in tasks for q in t.questions]
    for item in results:
        assert item["status"] == ("no_target" if item["question"] == "none" else "done")
        assert item["text"] == f"Who {item['question']}?"
        assert item["span"] == [0, 4]
        folder = out / "masks" / item["video"] / item["question"]
        assert sorted(p.name for p in folder.iterdir()) == [f"{i:05}.png" for i in range(4)]
        for name, rle in zip(item["names"], item["masks"], strict=True):
            mask = np.array(Image.open(folder / f"{name}.png"))
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 255}
            assert ((mask > 0) == decode_rle(rle_from_json(rle))).all()
    run = json.loads((out / "run.json").read_text())
    assert run["state"] == "finished"
    assert run["totals"] == {"videos": 3, "questions": 7, "done": 6, "no_target": 1, "failed": 0}
    assert run["counts"] == {"sam_frames": 12}
    assert run["stage_seconds"] == {"llm": 1.5}
    assert run["fingerprints"]["checkpoint"] == IDENTITY.checkpoint_sha256
    assert (out / "failures.jsonl").read_text() == ""


def test_a_second_run_does_nothing_and_changes_no_byte(tmp_path, tasks):
    out = tmp_path / "out"
    run_inline(out, tasks)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    content = tree(out, without=())
    assert counts(run_inline(out, tasks)) == (6, 1, 0, 0, 0)
    assert tree(out, without=()) == content
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("formats", [("png",), ("rle",)])
def test_only_the_formats_asked_for_are_written(tmp_path, tasks, formats):
    run_inline(tmp_path / "out", tasks, formats=formats)
    item = json.loads((tmp_path / "out" / "items" / "a" / "q0.json").read_text())
    assert ("masks" in item) == ("rle" in formats)
    assert ("png_sha256" in item) == (tmp_path / "out" / "masks").exists() == ("png" in formats)
    assert verify(tmp_path / "out").problems == ()


def test_failures_are_not_done_and_are_retried_when_asked(tmp_path, tasks):
    bad = video_task(tmp_path, "bad", "q0", "q1")
    out = tmp_path / "out"
    assert counts(run_inline(out, [*tasks, bad])) == (6, 1, 2, 0, 9)
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert lines[0] == {"video": "bad", "question": "q0", "error": "no video", "text": "Who q0?"}
    assert counts(run_inline(out, [*tasks, bad])) == (6, 1, 2, 0, 0)
    assert counts(run_inline(out, [*tasks, bad], retry_failed=True)) == (6, 1, 2, 0, 2)
    assert not (out / "items" / "bad").exists()
    assert verify(out).problems == ()


def test_new_questions_are_added_to_an_old_run(tmp_path, tasks):
    out = tmp_path / "out"
    assert counts(run_inline(out, tasks[:1])) == (2, 0, 0, 0, 2)
    assert counts(run_inline(out, tasks)) == (6, 1, 0, 0, 5)
    fresh = tmp_path / "fresh"
    run_inline(fresh, tasks)
    assert tree(out) == tree(fresh)
    run_inline(out, tasks[:1])
    assert len(json.loads((out / "results.json").read_text())["results"]) == 2


def test_summaries_are_those_of_the_last_manifest(tmp_path, tasks):
    """Also where an equal number of questions was asked before, and where the ledger knows more than the manifest."""
    out = tmp_path / "out"
    run_inline(out, tasks)
    for asked in (tasks[1:2], tasks[:1], tasks[2:], tasks):
        run_inline(out, asked)
        results = json.loads((out / "results.json").read_text())["results"]
        assert [(r["video"], r["question"]) for r in results] == [(t.id, q.id) for t in asked for q in t.questions]
        assert verify(out).problems == ()
        assert read_status(out)["questions"] == len(results)


def test_changed_questions_are_refused_and_redone_when_asked(tmp_path, tasks):
    out = tmp_path / "out"
    run_inline(out, tasks)
    changed = [dataclasses.replace(tasks[0], questions=(Question("q0", "New?"), tasks[0].questions[1])), *tasks[1:]]
    content = tree(out, without=())
    with pytest.raises(ConfigError, match=r"a/q0: text was 'Who q0\?', is 'New\?'"):
        run_inline(out, changed)
    assert tree(out, without=()) == content
    assert counts(run_inline(out, changed, redo=True)) == (6, 1, 0, 0, 1)
    assert json.loads((out / "items" / "a" / "q0.json").read_text())["text"] == "New?"


def test_longest_videos_go_first_and_equal_ones_in_order(tmp_path):
    sizes = {"a": 10, "b": 900_000, "c": 10, "d": 20_000}
    tasks = [video_task(tmp_path, name, size=size) for name, size in sizes.items()]
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.jpg").touch()
    tasks.append(dataclasses.replace(video_task(tmp_path, "e", size=0), video=str(folder)))
    jobs = plan(tasks, {t.id: ["q0"] for t in tasks})
    assert [job.task.id for job in jobs] == ["b", "e", "d", "a", "c"]


def test_workers_leave_what_an_inline_run_leaves(tmp_path, tasks):
    run_inline(tmp_path / "inline", tasks)
    run_tasks(tmp_path / "workers", tasks, workers=2)
    assert tree(tmp_path / "workers") == tree(tmp_path / "inline")


def test_an_interrupted_run_sums_up_and_goes_on(tmp_path, tasks):
    out = tmp_path / "out"
    stopped = [tasks[0], video_task(tmp_path, "interrupt"), *tasks[1:]]
    with pytest.raises(KeyboardInterrupt):
        run_inline(out, stopped)
    status = read_status(out)
    names = ("state", "videos", "questions", "done", "no_target", "failed", "pending", "damaged", "reason")
    assert {name: status[name] for name in names} == {
        "state": "interrupted",
        "videos": 4,
        "questions": 8,
        "done": 2,
        "no_target": 0,
        "failed": 0,
        "pending": 6,
        "damaged": 0,
        "reason": "ended by SIGINT",
    }
    assert len(json.loads((out / "results.json").read_text())["results"]) == 2
    run_inline(out, tasks)
    run_inline(tmp_path / "fresh", tasks)
    assert tree(out) == tree(tmp_path / "fresh")


class NthCall:
    """Let a function work until its n-th call, which fails."""

    def __init__(self, function, n, code):
        self.function, self.left, self.code = function, n, code

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code), "a file")
        return self.function(*args, **kwargs)


def test_a_full_disk_at_any_moment_loses_nothing(tmp_path, tasks, monkeypatch):
    """Every fsync of a run in turn reports a full disk; the run says so, and a second one completes the tree."""
    run_inline(tmp_path / "fresh", tasks)
    want = tree(tmp_path / "fresh")
    fsync, n, stops = os.fsync, 0, 0
    while True:
        n += 1
        out = tmp_path / f"out{n}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", NthCall(fsync, n, errno.ENOSPC))
            try:
                run_inline(out, tasks)
                break
            except EnvironmentProblem as problem:
                stops += 1
                assert "No space left" in problem.message or "no space left" in problem.message
        run_inline(out, tasks)
        assert tree(out) == want, n
        assert verify(out).problems == ()
    assert stops > 70


def test_a_rename_that_fails_at_any_moment_loses_nothing(tmp_path, tasks, monkeypatch):
    from pathlib import Path

    run_inline(tmp_path / "fresh", tasks)
    want = tree(tmp_path / "fresh")
    for name in ("rename", "replace"):
        n = 0
        while True:
            n += 1
            out = tmp_path / f"{name}{n}"
            with monkeypatch.context() as patch:
                call = NthCall(getattr(Path, name), n, errno.EACCES)
                patch.setattr(Path, name, lambda self, target, call=call: call(self, target))
                try:
                    run_inline(out, tasks)
                    break
                except EnvironmentProblem as problem:
                    assert "ermission denied" in problem.message
            run_inline(out, tasks)
            assert tree(out) == want, (name, n)
        assert n > 5


def test_verify_names_every_kind_of_damage_and_infer_repairs_it(tmp_path, tasks):
    out = tmp_path / "out"
    run_inline(out, tasks)
    want = tree(out)
    clean = verify(out)
    assert (clean.problems, clean.unrecorded) == ((), ())
    assert (clean.files, clean.questions) == (7 + 7 * 4, 7)
    flipped = out / "masks/a/q0/00002.png"
    content = bytearray(flipped.read_bytes())
    content[-20] ^= 4
    flipped.write_bytes(content)
    (out / "masks/a/q1/00001.png").unlink()
    (out / "items/b/q0.json").write_bytes((out / "items/b/q0.json").read_bytes()[:-9])
    (out / "items/c/q0.json").write_text((out / "items/c/q0.json").read_text().replace("0.5", "0.6"))
    (out / "items/c/q1.json").unlink()
    (out / "items/c/stray.json").write_text("{}")
    verdict = verify(out)
    assert {problem for key, problem in verdict.problems if key} == {
        "masks/a/q0/00002.png: content differs from what was recorded",
        "masks/a/q1/00001.png: missing",
        "items/b/q0.json: content differs from what was recorded",
        "items/c/q0.json: content differs from what was recorded",
        "items/c/q1.json: missing",
    } or any("items/b/q0.json: cannot be read" in problem for _, problem in verdict.problems)
    assert {key for key, _ in verdict.problems if key} == {
        ("a", "q0"),
        ("a", "q1"),
        ("b", "q0"),
        ("c", "q0"),
        ("c", "q1"),
    }
    assert "items/c/stray.json" in verdict.unrecorded
    assert forget_damaged(out, verdict) == 5
    assert counts(run_inline(out, tasks))[4] == 5
    (out / "items/c/stray.json").unlink()
    assert tree(out) == want
    assert verify(out).problems == ()


def test_verify_takes_links_and_pipes_for_what_they_are(tmp_path, tasks):
    """A pipe would let it wait for ever; a pipe or a link is none of the files that were written."""
    out = tmp_path / "out"
    run_inline(out, tasks)
    want = tree(out)
    (out / "items/a/q0.json").rename(tmp_path / "elsewhere")
    (out / "items/a/q0.json").symlink_to(tmp_path / "elsewhere")
    (out / "masks/b/q0/00000.png").unlink()
    os.mkfifo(out / "masks/b/q0/00000.png")
    verdict = verify(out)
    assert {problem for key, problem in verdict.problems if key} == {
        "items/a/q0.json: not the file that was written, but a symbolic link",
        "masks/b/q0/00000.png: not the file that was written, but a pipe",
    }
    assert forget_damaged(out, verdict) == 2
    assert counts(run_inline(out, tasks))[4] == 2
    assert tree(out) == want
    assert verify(out).problems == ()


def test_a_question_that_now_fails_leaves_no_files_of_its_former_answer(tmp_path, tasks):
    out = tmp_path / "out"
    bad = video_task(tmp_path, "bad")
    run_inline(out, [*tasks, bad])
    for name in ("items/bad/q0.json", "masks/bad/q0/00000.png"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("a former answer")
    assert counts(run_inline(out, [*tasks, bad], retry_failed=True))[2:] == (1, 0, 1)
    assert verify(out).unrecorded == ()


def test_a_kept_manifest_that_was_damaged_is_named_and_written_again(tmp_path, tasks):
    out = tmp_path / "out"
    run_inline(out, tasks)
    want = tree(out)
    for name in ("manifest.jsonl", "config.yaml"):
        (out / name).write_bytes((out / name).read_bytes() + b"\n")
        assert [text for _, text in verify(out).problems] == [f"{name}: content differs from what the last run noted"]
        assert counts(run_inline(out, tasks))[4] == 0
        assert tree(out) == want
        assert verify(out).problems == ()


def test_moved_videos_are_noted_by_a_run_with_nothing_to_answer(tmp_path, tasks):
    out = tmp_path / "out"
    run_inline(out, tasks)
    moved = [dataclasses.replace(task, video=f"/moved/{task.id}.mp4") for task in tasks]
    assert counts(run_inline(out, moved))[4] == 0
    assert b"/moved/" in (out / "manifest.jsonl").read_bytes()
    assert verify(out).problems == ()


def test_summaries_that_were_damaged_are_written_again(tmp_path, tasks):
    out = tmp_path / "out"
    run_inline(out, tasks)
    want = tree(out)
    for name in ("results.json", "failures.jsonl"):
        (out / name).write_bytes(b"x")
        assert forget_damaged(out, verify(out)) == 0
        assert counts(run_inline(out, tasks))[4] == 0
        assert tree(out) == want


def test_a_directory_moved_under_a_run_is_not_made_again(tmp_path, tasks, monkeypatch):
    out = tmp_path / "out"
    answers = InlineExecutor.run

    def move_then_answer(self, jobs):
        for number, event in enumerate(answers(self, jobs)):
            if number == 4:
                out.rename(tmp_path / "moved")
            yield event

    with monkeypatch.context() as patch:
        patch.setattr(InlineExecutor, "run", move_then_answer)
        with pytest.raises(EnvironmentProblem, match="moved, removed or replaced") as caught:
            run_inline(out, tasks)
    assert "new name" in caught.value.hint
    assert not out.exists()
    assert counts(run_inline(tmp_path / "moved", tasks)) == (6, 1, 0, 0, 5)
    run_inline(tmp_path / "fresh", tasks)
    assert tree(tmp_path / "moved") == tree(tmp_path / "fresh")


def test_verify_compares_the_summaries(tmp_path, tasks):
    out = tmp_path / "out"
    run_inline(out, [*tasks, video_task(tmp_path, "bad")])
    (out / "results.json").write_bytes((out / "results.json").read_bytes() + b" ")
    (out / "failures.jsonl").write_text("")
    assert [problem for _, problem in verify(out).problems] == [
        "results.json: does not hold what the recorded items hold",
        "failures.jsonl: does not hold the recorded failures",
    ]


def test_status_tells_a_killed_run_from_a_running_one(tmp_path, tasks):
    out = tmp_path / "out"
    with Ledger.open(out, IDENTITY):
        assert read_status(out)["state"] == "running"
        assert read_status(out)["pending"] is None
    assert read_status(out)["state"] == "stopped"
    run_inline(out, tasks)
    assert read_status(out)["state"] == "finished"
    with pytest.raises(ConfigError, match="not a run directory"):
        read_status(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_really_full_stops_the_run_and_loses_nothing(tmp_path, tasks, small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 170_000)
    out = small_disk / "out"
    with pytest.raises(EnvironmentProblem, match=r"no space left|No space left"):
        run_inline(out, tasks)
    filler.unlink()
    run_inline(out, tasks)
    run_inline(tmp_path / "fresh", tasks)
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_read_only_disk_is_named(tasks, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(EnvironmentProblem, match="Read-only file system"):
        run_inline(small_disk / "out", tasks)
