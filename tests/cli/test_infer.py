"""`gmcli infer` on real videos with a real, small model."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from gmcli.cli.main import cli
from gmcli.verify import verify
from tests.fakes import tree

QUESTIONS = "[{id: q0, text: Who moves to the left?}, {id: q1, text: What stays where it is?}]"


def write_manifest(folder: Path, root: Path, *videos: str, questions: str = QUESTIONS) -> Path:
    lines = ["version: 1", f"root: {root}", "videos:"]
    lines += [f"  - {{id: {Path(v).stem}, path: {v}, questions: {questions}}}" for v in videos]
    path = folder / "manifest.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def manifest(tmp_path, clips) -> Path:
    return write_manifest(tmp_path, clips, "a.mp4", "b.mp4", "frames")


def gmcli(*arguments) -> "object":
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


def infer(manifest, small_folder, out, *more):
    where = () if "--gpus" in more else ("--gpus", "cpu")
    return gmcli("infer", manifest, "--checkpoint", small_folder, "-o", out, *where, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, clips, small_folder):
    """One undisturbed run, and its manifest."""
    folder = tmp_path_factory.mktemp("finished")
    manifest = write_manifest(folder, clips, "a.mp4", "b.mp4", "frames")
    result = infer(manifest, small_folder, folder / "out")
    assert result.exit_code == 0, result.output
    return manifest, folder / "out", result


def test_the_main_job(finished):
    _, out, result = finished
    assert "answers" in result.stdout
    items = json.loads((out / "results.json").read_text())["results"]
    assert [(i["video"], i["question"], len(i["frames"])) for i in items] == [
        ("a", "q0", 12),
        ("a", "q1", 12),
        ("b", "q0", 20),
        ("b", "q1", 20),
        ("frames", "q0", 5),
        ("frames", "q1", 5),
    ]
    for item in items:
        names = sorted(p.stem for p in (out / "masks" / item["video"] / item["question"]).iterdir())
        assert names == item["names"]
        assert all(mask["size"] == [48, 80] for mask in item["masks"])
    assert verify(out).problems == ()
    run = json.loads((out / "run.json").read_text())
    assert run["counts"]["llm_prefixes"] == 3
    assert "cpu" in run["workers"][0]["device"]
    assert (out / "logs" / "worker-0.log").read_text().count("answered in") == 3


def test_again_does_nothing(finished, small_folder):
    manifest, out, _ = finished
    before = tree(out, without=())
    result = infer(manifest, small_folder, out)
    assert result.exit_code == 0
    assert "0 answered now" in result.stdout
    assert tree(out, without=()) == before


def test_two_workers_give_the_same_tree(finished, small_folder, tmp_path):
    manifest, out, _ = finished
    result = infer(manifest, small_folder, tmp_path / "two", "--workers", "2")
    assert result.exit_code == 0
    without = ("run.json", "heartbeat.json", "config.yaml")
    assert tree(tmp_path / "two", without=without) == tree(out, without=without)


def test_other_settings_are_refused_by_name(finished, small_folder):
    manifest, out, _ = finished
    result = infer(manifest, small_folder, out, "--frames", "8", "--visual-tokens", "frame")
    assert result.exit_code == 3
    assert "frames was 20, is 8" in result.stderr
    assert "visual_tokens was None, is 'frame'" in result.stderr
    result = gmcli("infer", manifest, "-o", out, "--gpus", "cpu")
    assert result.exit_code == 3
    assert "checkpoint content was" in result.stderr


def test_a_changed_question_is_refused_by_text(finished, small_folder, tmp_path, clips):
    _, out, _ = finished
    changed = write_manifest(tmp_path, clips, "a.mp4", questions="[{id: q0, text: Who moves to the right?}]")
    result = infer(changed, small_folder, out)
    assert result.exit_code == 3
    assert "a/q0: text was 'Who moves to the left?', is 'Who moves to the right?'" in result.stderr
    assert "--redo-changed" in result.stderr


def test_dry_run_checks_everything_and_writes_nothing(manifest, small_folder, tmp_path):
    result = infer(manifest, small_folder, tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert "6 of 6 questions, in 3 videos" in result.stdout
    assert not (tmp_path / "out").exists()


def test_dry_run_finds_a_checkpoint_that_does_not_fit(manifest, small_folder, tmp_path):
    import shutil

    shutil.copytree(small_folder, tmp_path / "bad")
    config = json.loads((tmp_path / "bad/config.json").read_text())
    config["localizer_bins"] = 7
    (tmp_path / "bad/config.json").write_text(json.dumps(config))
    for more in ((), ("--dry-run",)):
        result = infer(manifest, tmp_path / "bad", tmp_path / f"out{len(more)}", *more)
        assert result.exit_code == 5
        assert "wrong shape: localizer.2.weight is [20, 64], the model needs [7, 64]" in result.stderr
        assert "Traceback" not in result.output


def test_broken_videos_fail_alone_and_the_run_exits_6(clips, small_folder, tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    whole = (clips / "b.mp4").read_bytes()
    (root / "good.mp4").write_bytes(whole)
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "text.mp4").write_text("no video at all")
    (root / "empty.mp4").write_bytes(b"")
    (root / "folder").mkdir()
    manifest = write_manifest(tmp_path, root, "good.mp4", "cut.mp4", "text.mp4", "empty.mp4", "folder")
    result = infer(manifest, small_folder, tmp_path / "out", "--mask-frames", "sampled", "--format", "rle")
    assert result.exit_code == 6
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [(f["video"], f["question"]) for f in failures] == [
        (v, q) for v in ("cut", "text", "empty", "folder") for q in ("q0", "q1")
    ]
    assert all("\n" not in f["error"] and f["error"] for f in failures)
    assert "Traceback" not in result.output
    assert not (tmp_path / "out/masks").exists()
    (root / "text.mp4").write_bytes(whole)
    again = infer(manifest, small_folder, tmp_path / "out", "--mask-frames", "sampled", "--format", "rle")
    assert again.exit_code == 6
    assert "6 failed" in again.stdout
    assert "2 answered now" in again.stdout
    failures = (tmp_path / "out/failures.jsonl").read_text()
    assert '"video": "text"' not in failures
    assert '"video": "cut"' in failures


def test_manifest_errors_come_all_at_once_before_anything_loads(tmp_path, small_folder):
    manifest = tmp_path / "m.yaml"
    manifest.write_text(
        "version: 1\nvideos:\n  - id: ../a\n    path: nowhere.mp4\n    questions:\n      - {id: q0, text: ''}\n"
        "  - id: b\n    paht: x\n    questions: []\n"
    )
    result = infer(manifest, small_folder, tmp_path / "out")
    assert result.exit_code == 3
    assert len([line for line in result.stderr.splitlines() if line.startswith(f"{manifest}:")]) >= 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--gpus", "0"), 4, "no GPU 0"),
        (("--gpus", "zero"), 3, "--gpus must be"),
        (("--mask-frames", "some"), 3, "--mask-frames must be"),
        (("--format", "gif"), 3, "--format must name"),
        (("--frames", "0"), 3, "--frames must be"),
        (("--checkpoint", "nowhere"), 5, "no such checkpoint"),
        (("--config", "nowhere"), 3, "no such configuration"),
        (("--attention", "flash_attention_2", "--gpus", "cpu"), 4, "flash-attn needs a CUDA device"),
        (("--nonsense",), 2, "No such option"),
    ],
)
def test_wrong_options_have_their_exit_codes(manifest, tmp_path, arguments, code, text):
    result = gmcli("infer", manifest, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == code, result.output
    assert text in result.stderr
    assert "Traceback" not in result.output


def test_limit_takes_the_first_videos(manifest, small_folder, tmp_path):
    result = infer(
        manifest, small_folder, tmp_path / "out", "--limit", "1", "--mask-frames", "sampled", "--frames", "4"
    )
    assert result.exit_code == 0
    assert sorted(p.name for p in (tmp_path / "out/items").iterdir()) == ["a"]


def test_json_logs_are_json(manifest, small_folder, tmp_path):
    result = infer(manifest, small_folder, tmp_path / "out", "--log-format", "json", "--limit", "1", "--frames", "2")
    assert result.exit_code == 0
    for line in result.stderr.splitlines():
        assert {"time", "level", "message"} <= json.loads(line).keys()


def command(manifest, small_folder, out) -> list[str]:
    return [
        sys.executable, "-m", "gmcli", "infer", str(manifest), "-o", str(out), "--checkpoint", str(small_folder),
        "--gpus", "cpu",
    ]  # fmt: skip


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers(pid: int) -> list[int]:
    """Those of its children that are workers already: held between fork and exec, one would hold its parent too."""
    return [
        child for child in children(pid) if b"gmcli.executors.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_cleanly_and_the_run_goes_on(finished, small_folder, tmp_path, sent):
    manifest, undisturbed, _ = finished
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(manifest, small_folder, out),
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a script have SIGINT ignored, and hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: workers(process.pid))
    # Hold the workers, so that the run cannot end while others knock at its door.
    for worker in workers(process.pid):
        os.kill(worker, signal.SIGSTOP)
    second = subprocess.run(command(manifest, small_folder, out), capture_output=True, text=True)
    assert second.returncode == 7
    assert "another run holds this directory" in second.stderr
    status = gmcli("status", out, "--json")
    assert json.loads(status.stdout)["state"] == "running"
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "run the same command again" in stderr
    assert gmcli("status", out).stdout.splitlines()[0] == f"{out}: interrupted (ended by {sent.name})"
    assert infer(manifest, small_folder, out).exit_code == 0
    assert tree(out) == tree(undisturbed)


def test_a_worker_killed_at_work_is_replaced(finished, small_folder, tmp_path):
    manifest, undisturbed, _ = finished
    out = tmp_path / "out"
    process = subprocess.Popen(command(manifest, small_folder, out), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out / "logs/worker-0.log").exists() and "video" in (out / "logs/worker-0.log").read_text())
    for worker in children(process.pid):
        os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "killed by SIGKILL" in stderr
    assert "trying again" in stderr
    assert tree(out) == tree(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_of_the_real_command(finished, small_folder, tmp_path):
    """SIGKILL `gmcli infer` at random moments, each time going on where it was; the tree is an undisturbed run's.

    Every moment there is, without a model: tests/crash.
    """
    manifest, undisturbed, _ = finished
    want = tree(undisturbed)
    random.seed(int(os.environ.get("GMCLI_TEST_SEED", "11")))
    kills, rounds = 0, 0
    while kills < 8:
        rounds += 1
        out = tmp_path / f"out{rounds}"
        for _ in range(4):
            process = subprocess.Popen(command(manifest, small_folder, out), stderr=subprocess.DEVNULL)
            # Most of a run's time goes to loading; aim at the part that writes.
            moment = random.choice(["early", "items", "items", "ledger"])
            if moment != "early":
                name = {"items": "items", "ledger": "ledger.jsonl"}[moment]
                wait_for(lambda p=process, path=out / name: path.exists() or p.poll() is not None)
            time.sleep(random.uniform(0, 0.4 if moment != "early" else 1.5))
            if process.poll() is None:
                kills += 1
            process.kill()
            process.wait()
        assert infer(manifest, small_folder, out).exit_code == 0
        assert tree(out) == want
        assert verify(out).problems == ()


def test_verify_and_status_speak(finished, tmp_path):
    _, out, _ = finished
    result = gmcli("verify", out)
    assert result.exit_code == 0
    assert "0 problems, 0 unrecorded files" in result.stdout
    import shutil

    shutil.copytree(out, tmp_path / "copy")
    (tmp_path / "copy/items/a/q0.json").unlink()
    result = gmcli("verify", tmp_path / "copy")
    assert result.exit_code == 6
    assert "items/a/q0.json: missing" in result.stderr
    result = gmcli("verify", tmp_path / "copy", "--json", "--redo")
    assert json.loads(result.stdout)["problems"]
    assert "1 questions will be answered again" in result.stderr
    assert "6" in gmcli("status", out).stdout
    assert gmcli("status", tmp_path).exit_code == 3
    assert gmcli("verify", tmp_path).exit_code == 3


def test_an_original_checkpoint_runs_and_converts(finished, original_folder, tmp_path, clips):
    manifest = write_manifest(tmp_path, clips, "c.mp4", questions="[{id: q0, text: Who moves?}]")
    result = infer(manifest, original_folder, tmp_path / "original", "--mask-frames", "1")
    assert result.exit_code == 0, result.output
    assert gmcli("convert", original_folder, tmp_path / "own").exit_code == 0
    result = infer(manifest, tmp_path / "own", tmp_path / "converted", "--mask-frames", "1")
    assert result.exit_code == 0, result.output
    assert tree(tmp_path / "original/items") == tree(tmp_path / "converted/items")


def test_an_error_of_the_operating_system_is_one_line(monkeypatch, manifest, small_folder, tmp_path):
    def fail(*_, **__):
        raise OSError(28, "No space left on device", "/somewhere/\x1b[31mlog")

    monkeypatch.setattr("gmcli.manifest.read_manifest", fail)
    result = infer(manifest, small_folder, tmp_path / "out")
    assert result.exit_code == 4
    assert "error: /somewhere/\\x1b[31mlog: No space left on device" in result.stderr


def test_workers_and_gpus_contradict_each_other(manifest, small_folder, tmp_path):
    result = infer(manifest, small_folder, tmp_path / "out", "--gpus", "0,1", "--workers", "2")
    assert result.exit_code == 2
    assert "a GPU has one worker" in result.stderr


def test_a_folder_that_holds_other_things_is_refused(manifest, small_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    result = infer(manifest, small_folder, tmp_path / "out")
    assert result.exit_code == 3
    assert "notes.txt" in result.stderr
