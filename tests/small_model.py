"""Make a small, fast checkpoint: the shipped language model and CLIP, a 128-pixel SAM and a localizer of random weights."""

import dataclasses
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from gmcli.checkpoints.convert import write_config
from gmcli.checkpoints.load import load_checkpoint
from gmcli.model.config import MoraConfig, SamSizes
from gmcli.model.mora import Mora
from tests.random_tiny import RANDOM_TINY

SAM = SamSizes(
    image_size=128,
    embed_dim=32,
    depth=2,
    num_heads=2,
    mlp_dim=64,
    global_attn_indexes=(1,),
    window_size=4,
    decoder_mlp_dim=64,
)


def write_small_checkpoint(folder: Path, **changes) -> Path:
    """Write the checkpoint to `folder`; `changes` replace fields of its configuration."""
    base = load_checkpoint(RANDOM_TINY)
    config: MoraConfig = dataclasses.replace(base.model.config, sam=SAM, localizer_bins=20, **changes)
    torch.manual_seed(7)
    state = Mora(config).state_dict()
    state |= {k: v for k, v in base.model.state_dict().items() if not k.startswith("visual_model.")}
    folder.mkdir()
    write_config(folder, config)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copy(base.files.path / name, folder / name)
    return folder
