"""What only a card can show. These wait for one: without CUDA they are skipped, and the README says they have not run."""

import numpy as np
import pytest
import torch

from gmcli.checkpoints.load import load_checkpoint
from gmcli.config import RunConfig
from gmcli.data import Question, VideoTask
from gmcli.masks.rle import decode_rle
from gmcli.segmenter import Segmenter
from tests.cli.test_infer import infer, write_manifest
from tests.random_tiny import RANDOM_TINY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

QUESTION = "Who passes the ball to the man in the white jersey before the whistle blows?"


def masks(device, dtype, attention, clips):
    checkpoint = load_checkpoint(RANDOM_TINY, device=device, dtype=dtype, attention=attention)
    segmenter = Segmenter(checkpoint, RunConfig(visual_tokens="frame", frames=2, mask_frames="sampled"), device)
    task = VideoTask("v", str(clips / "c.mp4"), (Question("q0", QUESTION),))
    (result,) = segmenter.segment(task).results
    return result, np.stack([decode_rle(mask) for mask in result.masks])


@pytest.mark.parametrize(
    ("dtype", "attention", "least"), [("fp32", "sdpa", 0.999), ("bf16", "sdpa", 0.98), ("bf16", "auto", 0.98)]
)
def test_a_gpu_gives_the_masks_of_the_cpu(clips, dtype, attention, least):
    on_cpu, want = masks("cpu", "fp32", "sdpa", clips)
    on_gpu, got = masks("cuda", dtype, attention, clips)
    assert on_gpu.answer == on_cpu.answer
    assert (got & want).sum() >= least * (got | want).sum()


def test_infer_runs_on_a_gpu(clips, small_folder, tmp_path):
    manifest = write_manifest(tmp_path, clips, "a.mp4", "b.mp4")
    result = infer(manifest, small_folder, tmp_path / "out", "--gpus", "0")
    assert result.exit_code == 0, result.output
