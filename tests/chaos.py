"""Run `gmcli infer` while its processes are killed at random, with poison among the videos, and check that nothing is lost.

    python -m tests.chaos --items 2000 --poison 0.02 --workers 2 --kill-every-s 10

Real workers, a real checkpoint, short clips with four questions each. Prints a tally, and ends with 1 where something is
not as it should be.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from PIL import Image

from tests.clips import write_clip
from tests.processes import alive, command_of, descendants_of

QUESTIONS = ("Which shape is the first to move?", "What moves first?", "Which shape moves last?", "What moves?")
_CLIPS = 5
_TOO_LONG = "why " * 5_000


@dataclass
class Tally:
    """Count what happened, and list what should not have."""

    killed: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def expect(self, good: bool, problem: str) -> None:
        if not good:
            self.problems.append(problem)


# --- poison: each writes a video that cannot be answered ----------------------------------------------------------------


def _truncated(path: Path, clip: bytes) -> None:
    path.write_bytes(clip[: len(clip) // 2])


def _text(path: Path, clip: bytes) -> None:
    path.write_text("Dear reader, this is no video.\n" * 500)


def _empty(path: Path, clip: bytes) -> None:
    path.touch()


def _corrupt_header(path: Path, clip: bytes) -> None:
    path.write_bytes(random.Random(3).randbytes(600) + clip[600:])


def _noise(path: Path, clip: bytes) -> None:
    path.write_bytes(random.Random(4).randbytes(50_000))


def _huge_frames(path: Path, clip: bytes) -> None:
    """Write a folder with one frame that is small on disk and has more pixels than anybody's."""
    path.mkdir()
    Image.new("1", (30_000, 30_000)).save(path / "0.png")


POISON: Mapping[str, Callable[[Path, bytes], None]] = {
    "truncated": _truncated,
    "text": _text,
    "empty": _empty,
    "header": _corrupt_header,
    "noise": _noise,
    "huge": _huge_frames,
}


def prepare(folder: Path, *, items: int, poison: float, rng: random.Random) -> tuple[Path, set[tuple[str, str]]]:
    """Write clips and a manifest; return it and the questions that must fail. A poisonous video takes all its questions."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    clips = []
    for number in range(_CLIPS):
        write_clip(folder / f"clip{number}.mp4", 6, number, size=(96, 128))
        clips.append((folder / f"clip{number}.mp4").read_bytes())
    count = items // len(QUESTIONS)
    bad = dict(zip(rng.sample(range(count), round(count * poison)), _kinds(), strict=False))
    failing, lines = set(), []
    for number in range(count):
        kind = bad.get(number)
        name = f"{kind or 'good'}{number:05}"
        path = videos / (name if kind == "huge" else f"{name}.mp4")
        clip = clips[number % _CLIPS]
        if kind in POISON:
            POISON[kind](path, clip)
        else:
            path.write_bytes(clip)
        asked = [{"id": f"q{i}", "text": _TOO_LONG if kind == "long" else text} for i, text in enumerate(QUESTIONS)]
        failing |= {(name, question["id"]) for question in asked if kind}
        lines.append(json.dumps({"id": name, "path": str(path), "questions": asked}))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest, failing


def _kinds() -> Iterator[str]:
    while True:
        yield from (*POISON, "long")


# --- the run ------------------------------------------------------------------------------------------------------------


def run_and_kill(
    manifest: Path,
    out: Path,
    *,
    workers: int,
    kill_every_s: float,
    most_kills: int,
    checkpoint: str,
    rng: random.Random,
    tally: Tally,
) -> tuple[int, str]:
    """Run infer to its end, killing one of its processes at a time; return its exit code and what it printed."""
    command = [sys.executable, "-m", "gmcli", "infer", str(manifest), "-o", str(out), "--checkpoint", checkpoint]
    command += ["--workers", str(workers), "--frames", "4", "--mask-frames", "sampled", "--format", "rle"]
    printed = out.with_suffix(".out")
    seen: set[int] = set()
    with printed.open("wb") as file:
        driver = subprocess.Popen(command, stdout=file, stderr=file)
        due = time.monotonic() + kill_every_s
        while driver.poll() is None:
            time.sleep(0.05)
            below = descendants_of(driver.pid)
            seen |= set(below)
            if below and time.monotonic() >= due and tally.killed.total() < most_kills:
                due = time.monotonic() + kill_every_s * rng.uniform(0.5, 1.5)
                _kill(rng.choice(below), tally)
    deadline = time.monotonic() + 10
    while any(map(alive, seen)) and time.monotonic() < deadline:
        time.sleep(0.1)
    tally.expect(not any(map(alive, seen)), f"processes left: {[command_of(pid) for pid in seen if alive(pid)]}")
    return driver.returncode, printed.read_text(errors="replace")


def _kill(pid: int, tally: Tally) -> None:
    command = command_of(pid)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    tally.killed["workers" if b"gmcli.executors.worker" in command else "decoders"] += 1


def check(out: Path, failing: set[tuple[str, str]], items: int, code: int, printed: str, tally: Tally) -> None:
    """Compare what a run left with what it should have left."""
    expected = 6 if failing else 0
    tally.expect(code == expected, f"exit code {code}, not {expected}; it printed: {printed[-2000:]}")
    if not (out / "ledger.jsonl").exists():
        return
    records = [json.loads(line) for line in (out / "ledger.jsonl").read_bytes().splitlines()]
    statuses = Counter(record["status"] for record in records)
    tally.lines.append("items      " + ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())))
    tally.expect(len({(r["video"], r["question"]) for r in records}) == len(records) == items, "not one record an item")
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_bytes().splitlines()]
    named = {(f["video"], f["question"]) for f in failures}
    tally.expect(
        named == failing, f"failed, but good: {sorted(named - failing)}; not failed: {sorted(failing - named)}"
    )
    tally.expect(all(failure["error"] for failure in failures), "a failure has no reason")
    for kind, error in sorted({(re.sub(r"\d+", "", f["video"]), f["error"]) for f in failures})[:40]:
        tally.lines.append(f"  {kind:10} {error.replace(str(out.parent), '')[:150]}")
    # The driver counts every answer that it writes: one done twice would be one too many.
    answered = re.search(r"(\d+) answered now", printed)
    tally.expect(
        bool(answered) and int(answered[1]) == items, f"answers written: {answered and answered[0]}, not {items}"
    )
    verified = subprocess.run([sys.executable, "-m", "gmcli", "verify", str(out)], capture_output=True, text=True)
    tally.expect(verified.returncode == 0, f"verify: {verified.stdout}{verified.stderr}")
    log = (out / "logs" / "driver.log").read_text(errors="replace")
    again, given_up = log.count("trying again"), log.count("giving it up")
    tally.lines.append(f"tried      {again} videos again, {given_up} given up after several deaths")
    run = json.loads((out / "run.json").read_bytes())
    tally.lines.append(
        f"run.json   {run['wall_seconds']:.0f} s, {len(run['workers'])} workers were ready, {run['counts']}"
    )


def chaos(
    folder: Path,
    *,
    items: int,
    poison: float,
    workers: int,
    kill_every_s: float,
    most_kills: int,
    checkpoint: str,
    seed: int,
) -> Tally:
    """Prepare, run, kill, check."""
    rng, tally = random.Random(seed), Tally()
    manifest, failing = prepare(folder, items=items, poison=poison, rng=rng)
    start = time.monotonic()
    code, printed = run_and_kill(
        manifest,
        folder / "run",
        workers=workers,
        kill_every_s=kill_every_s,
        most_kills=most_kills,
        checkpoint=checkpoint,
        rng=rng,
        tally=tally,
    )
    tally.lines.append(f"took       {time.monotonic() - start:.0f} s, exit code {code}")
    tally.lines.append(f"killed     {tally.killed.total()} processes: {dict(tally.killed)}")
    tally.lines.append(f"poison     {len(failing)} of {items} questions")
    check(folder / "run", failing, items, code, printed, tally)
    return tally


@click.command()
@click.option("--items", default=2000, show_default=True, help="Questions, four a video.")
@click.option("--poison", default=0.02, show_default=True, help="Share of the videos that cannot be answered.")
@click.option("--workers", default=2, show_default=True)
@click.option("--kill-every-s", default=10.0, show_default=True, help="On average.")
@click.option("--most-kills", default=1_000_000, help="Let the rest of the run be after so many.")
@click.option("--checkpoint", default="mora-tiny", show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--keep", is_flag=True, help="Leave the run directory, and say where it is.")
def main(keep: bool, **settings: Any) -> None:
    """Run infer under random kills with poison among the videos, and check what it leaves."""
    folder = Path(tempfile.mkdtemp(prefix="gmcli-chaos-"))
    try:
        tally = chaos(folder, **settings)
        click.echo("\n".join(tally.lines))
        click.echo("\n".join(["", *tally.problems]) if tally.problems else "all as it should be")
        if keep:
            click.echo(f"kept       {folder}")
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if tally.problems else 0)


if __name__ == "__main__":
    main()
