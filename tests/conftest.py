"""Share fixtures: goldens of the original classes, and the shipped checkpoint in both layouts."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.random_tiny import RANDOM_TINY

# A test may never wait for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(autouse=True)
def same_threads():
    """Give torch its number of threads back: the last digits of what later tests compute depend on it."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before is not None:
        sys.modules["torch"].set_num_threads(before)


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    return json.loads((GOLDENS / "model_facts.json").read_text())


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    from safetensors.torch import load_file

    return lambda name: load_file(GOLDENS / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden_frames() -> list[np.ndarray]:
    from PIL import Image

    return [np.array(Image.open(GOLDENS / f"frames/frame_{i}.png")) for i in range(4)]


@pytest.fixture(scope="session")
def checkpoint():
    """The weights that the goldens were made with."""
    from gmcli.checkpoints.load import load_checkpoint

    return load_checkpoint(RANDOM_TINY)


@pytest.fixture(scope="session")
def original_folder(tmp_path_factory, checkpoint) -> Path:
    """The same checkpoint written back in the original Hugging Face layout: two .bin shards, mixed dtypes."""
    from tests.original_layout import write_original_layout

    folder = tmp_path_factory.mktemp("original")
    write_original_layout(folder, checkpoint)
    return folder / "tiny-mora"


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory) -> Path:
    """A fast checkpoint in our own layout, with a localizer."""
    from tests.small_model import write_small_checkpoint

    return write_small_checkpoint(tmp_path_factory.mktemp("small") / "small")


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of short h264 clips: a.mp4 (12 frames), b.mp4 (20), c.mp4 (8), and frames/ (5 JPEGs)."""
    from tests.clips import write_clip, write_frame_folder

    folder = tmp_path_factory.mktemp("clips")
    for name, frames, seed in (("a.mp4", 12, 1), ("b.mp4", 20, 2), ("c.mp4", 8, 3)):
        write_clip(folder / name, frames, seed)
    write_frame_folder(folder / "frames", 5)
    return folder
