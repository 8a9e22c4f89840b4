"""Write a checkpoint in gmcli's own layout from a model in memory."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from gmcli.checkpoints.convert import write_config
from gmcli.model.config import MoraConfig


def write_checkpoint(
    folder: Path, config: MoraConfig, state: Mapping[str, torch.Tensor], added: Mapping[str, int], tokenizer: Path
) -> None:
    """Write config.json, model.safetensors and the tokenizer's two files into `folder`, which exists.

    state: the weights by the names of Mora's own state_dict. added: the ids of added tokens. tokenizer: tokenizer.model.
    """
    write_config(folder, config)
    save_file({k: v.detach().contiguous() for k, v in state.items()}, folder / "model.safetensors")
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    listed = dict(sorted(added.items(), key=lambda pair: pair[1]))
    (folder / "added_tokens.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
