"""A run directory keeps what its questions and true masks are, from before the first result, and reads it back."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmcli.data import GroundTruth, Question, VideoTask
from gmcli.errors import ConfigError, EnvironmentProblem, ManifestError
from gmcli.kept_manifest import KEPT_MANIFEST, manifest_content, read_kept_manifest
from gmcli.ledger import Ledger
from gmcli.progress import Progress
from gmcli.run import plan, run
from tests.fakes import IDENTITY, InlineExecutor, run_inline, video_task

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(str.strip)
SECONDS = st.none() | st.floats(0, 1e6)
IDS = st.from_regex(r"[a-z][a-z0-9_-]{0,7}", fullmatch=True)


def without_lines(tasks):
    return tuple(
        dataclasses.replace(t, line=0, questions=tuple(dataclasses.replace(q, line=0) for q in t.questions))
        for t in tasks
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("ä \\ 'place")
    (place / "masks").mkdir()
    (place / "frames").mkdir()
    (place / "a.mp4").write_bytes(b"video")
    return place


@given(st.data())
@settings(deadline=None, derandomize=True, max_examples=60)
def test_tasks_come_back_as_they_were(place, data):
    def window():
        start = data.draw(SECONDS)
        return start, data.draw(st.none() | st.floats(1e6 + 1, 1e7))

    def truth():
        numbers = tuple(data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3)))
        return GroundTruth(str(place / "masks"), numbers, *window(), data.draw(st.none() | TEXT))

    tasks = []
    for video in data.draw(st.lists(IDS, min_size=1, max_size=3, unique=True)):
        folder = data.draw(st.booleans())
        questions = tuple(
            Question(q, data.draw(TEXT.filter(lambda t: "<image>" not in t)), data.draw(st.none() | TEXT), truth())
            if data.draw(st.booleans())
            else Question(q, "Who?")
            for q in data.draw(st.lists(IDS, min_size=1, max_size=3, unique=True))
        )
        path, fps, size = ("frames", data.draw(st.none() | st.floats(0.1, 99)), 0) if folder else ("a.mp4", None, 5)
        tasks.append(VideoTask(video, str(place / path), questions, *window(), fps, size))
    content = manifest_content(tasks)
    (place / KEPT_MANIFEST).write_bytes(content)
    assert without_lines(read_kept_manifest(place)) == tuple(tasks)
    assert manifest_content(read_kept_manifest(place)) == content


class Watching(InlineExecutor):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def run(self, jobs):
        assert self.path.is_file(), "kept before any result"
        yield from super().run(jobs)


def test_the_manifest_is_there_before_any_result(tmp_path):
    tasks = [video_task(tmp_path, "a", "q0", "q1"), video_task(tmp_path, "b")]
    with Ledger.open(tmp_path / "out", IDENTITY) as ledger:
        jobs = plan(tasks, ledger.pending(tasks))
        progress = Progress(videos=2, questions=3, bar=False)
        run(tasks, jobs, ledger, Watching(tmp_path / "out" / KEPT_MANIFEST), ("rle",), progress)
    lines = (tmp_path / "out" / KEPT_MANIFEST).read_text().splitlines()
    assert json.loads(lines[0]) == {"version": 1}
    assert json.loads(lines[1]) == {
        "id": "a",
        "path": str(tmp_path / "a.mp4"),
        "questions": [{"id": "q0", "text": "Who q0?"}, {"id": "q1", "text": "Who q1?"}],
    }
    assert len(lines) == 3


def test_the_last_manifest_counts_and_an_equal_one_changes_nothing(tmp_path):
    first, second = video_task(tmp_path, "a"), video_task(tmp_path, "b")
    out = tmp_path / "out"
    kept = out / KEPT_MANIFEST
    run_inline(out, [first, second])
    assert kept.read_bytes() == manifest_content([first, second])
    stamp = kept.stat().st_mtime_ns
    run_inline(out, [first, second])
    assert kept.stat().st_mtime_ns == stamp
    # Nothing is left to answer, but the truth is another.
    truth = GroundTruth(str(tmp_path), (1,), answer="Ä man")
    corrected = dataclasses.replace(second, questions=(Question("q0", "Who q0?", ground_truth=truth),))
    assert run_inline(out, [corrected]).worked == 0
    assert kept.read_bytes() == manifest_content([corrected])


def test_a_directory_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gmcli.run.write_if_changed", fail)
    with pytest.raises(EnvironmentProblem, match="no space left"):
        run_inline(tmp_path / "out", [video_task(tmp_path, "a")])


def test_a_directory_without_one_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no manifest\.jsonl") as caught:
        read_kept_manifest(tmp_path)
    assert "--manifest" in caught.value.hint


def test_moved_videos_are_named(tmp_path):
    (tmp_path / KEPT_MANIFEST).write_bytes(manifest_content([video_task(tmp_path, "gone")]))
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:2: missing file: .*gone\.mp4") as caught:
        read_kept_manifest(tmp_path)
    assert "--manifest" in caught.value.hint
