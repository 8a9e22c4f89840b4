"""Share a tiny checkpoint of random weights that gives an answer which gmcli does not know, and clips of small frames."""

from pathlib import Path

import pytest

from gmcli.bench.options import ANSWERS

FRAME = (48, 80)


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory) -> Path:
    from gmcli.bench.models import write_random_checkpoint

    folder = tmp_path_factory.mktemp("random") / "tiny"
    write_random_checkpoint("tiny", folder, ANSWERS["unknown"])
    return folder


@pytest.fixture(scope="session")
def random_tiny(random_folder):
    from gmcli.checkpoints.load import load_checkpoint

    return load_checkpoint(str(random_folder))


@pytest.fixture(scope="session")
def bench_task(tmp_path_factory):
    """Two questions about a clip of 60 small frames."""
    from gmcli.bench.clips import make_task

    return make_task(tmp_path_factory.mktemp("bench"), frames=60, questions=2, size=FRAME)
