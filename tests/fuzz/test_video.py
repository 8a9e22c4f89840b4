"""A short and fixed part of what `python -m tests.fuzz.video` does for as long as one likes."""

from itertools import islice
from pathlib import Path

import pytest

from gmcli.errors import VideoError
from gmcli.video.sandbox import DecoderSandbox
from tests.fuzz.video import CORPUS, LIMITS, Failure, fuzz, look, mutants, put


@pytest.fixture(scope="module")
def sandbox():
    with DecoderSandbox(LIMITS) as opened:
        yield opened


def test_the_corpus_is_small_and_can_be_read(sandbox, tmp_path):
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 300_000
    for path in CORPUS.iterdir():
        assert look(sandbox.open, put(tmp_path, path.name, path.read_bytes())) == "read", path


def test_mutants_are_the_same_again_and_most_are_broken():
    first = list(islice(mutants(5), 200))
    assert first == list(islice(mutants(5), 200))
    assert len(set(first)) > 190
    assert sum(content == (CORPUS / name).read_bytes() for name, content in first) < 20


def test_broken_files_give_frames_or_a_reason(sandbox, tmp_path):
    outcomes = fuzz(sandbox.open, tmp_path, 20, count=150, seconds=120, keep=tmp_path / "kept")
    assert outcomes["read"] > 20
    assert outcomes["refused"] > 20


def test_what_should_not_be_is_a_failure_and_kept(tmp_path):
    def broken(path, **options):
        raise RuntimeError("no bounds")

    def unnamed(path, **options):
        raise VideoError("it is broken")

    for open_video, words in ((broken, "RuntimeError: no bounds"), (unnamed, "a bad message")):
        with pytest.raises(Failure, match=words) as caught:
            fuzz(open_video, tmp_path, 1, count=1, seconds=60, keep=tmp_path / "kept")
        name, content = next(mutants(1))
        assert Path(str(caught.value).split(": ")[0]).read_bytes() == content
        assert name in str(caught.value)
