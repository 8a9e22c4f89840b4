"""Write the shipped checkpoint in the original Hugging Face layout, with names that do not come from our key tables."""

import json
import shutil
from pathlib import Path

import torch

# Ours → original, written out by hand; tests/checkpoints/test_keys.py holds the original names against published lists.
_NAMES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("mm_projector.", "model.mm_projector."),
    ("text_hidden_fcs.", "model.text_hidden_fcs."),
    ("localizer.", "model.localizer."),
    ("visual_model.", "model.visual_model."),
)


def original_name(ours: str) -> str:
    for own, original in _NAMES:
        if ours.startswith(own):
            return original + ours.removeprefix(own)
    raise KeyError(ours)


def write_original_layout(folder: Path, checkpoint) -> None:
    """Write folder/tiny-mora and folder/tiny-clip, as LISA's merge script and Hugging Face leave them."""
    state = checkpoint.model.state_dict()
    config = checkpoint.model.config
    mora, clip = folder / "tiny-mora", folder / "tiny-clip"
    mora.mkdir()
    clip.mkdir()
    llm: dict[str, torch.Tensor] = {}
    rest: dict[str, torch.Tensor] = {}
    tower: dict[str, torch.Tensor] = {"vision_model.embeddings.position_ids": torch.arange(257)[None]}
    for name, tensor in state.items():
        if name.startswith("vision_tower."):
            tower["vision_model." + name.removeprefix("vision_tower.")] = tensor
        elif name.startswith(("visual_model.", "text_hidden_fcs.")):
            rest[original_name(name)] = tensor.float()
        else:
            llm[original_name(name)] = tensor.bfloat16()
    for layer in range(config.llm.num_hidden_layers):
        llm[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    shards = {"pytorch_model-00001-of-00002.bin": llm, "pytorch_model-00002-of-00002.bin": rest}
    for file, tensors in shards.items():
        torch.save(tensors, mora / file)
    weight_map = {key: file for file, tensors in shards.items() for key in tensors}
    _json(mora / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})
    _json(
        mora / "config.json",
        {
            "architectures": ["LISAForCausalLM"],
            "model_type": "llava",
            "hidden_size": config.llm.hidden_size,
            "intermediate_size": config.llm.intermediate_size,
            "num_attention_heads": config.llm.num_attention_heads,
            "num_hidden_layers": config.llm.num_hidden_layers,
            "num_key_value_heads": config.llm.num_key_value_heads,
            "vocab_size": config.llm.vocab_size,
            "max_position_embeddings": config.llm.max_position_embeddings,
            "rms_norm_eps": config.llm.rms_norm_eps,
            "mm_use_im_start_end": True,
            "mm_vision_select_layer": -2,
            "mm_vision_tower": "./tiny-clip",
            "out_dim": 256,
            "rope_scaling": None,
        },
    )
    shutil.copy(checkpoint.files.tokenizer, mora / "tokenizer.model")
    _json(mora / "added_tokens.json", checkpoint.tokenizer.added)
    torch.save(tower, clip / "pytorch_model.bin")
    _json(
        clip / "config.json",
        {
            "model_type": "clip_vision_model",
            "hidden_size": config.clip.hidden_size,
            "intermediate_size": config.clip.intermediate_size,
            "num_hidden_layers": config.clip.num_hidden_layers,
            "num_attention_heads": config.clip.num_attention_heads,
            "image_size": 224,
            "patch_size": 14,
            "hidden_act": "quick_gelu",
        },
    )


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
