"""Check a model's sizes before anything is built by them: a configuration from elsewhere may name any."""

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from gmcli.model.config import ClipSizes, LlamaSizes, MoraConfig, SamSizes

# Far above any model, and low enough that no product of a weight's sizes overflows.
MOST = 1 << 20
MOST_LAYERS = 1024
# Activations by name; transformers has others that look for packages when they are built.
ACTIVATIONS = ("quick_gelu", "gelu")

_LAYERS = frozenset({"num_hidden_layers", "depth", "decoder_depth", "iou_head_depth", "num_multimask_outputs"})
_LONG = frozenset({"max_position_embeddings"})  # of no weight; only ever compared with


def size_problems(config: MoraConfig, weights: int) -> list[str]:
    """List what no model can have. weights: how many tensors there are; each layer has some, so it caps the layers."""
    problems = []
    for name, sizes in (("llm", config.llm), ("clip", config.clip), ("sam", config.sam)):
        problems += [f"{name}.{problem}" for problem in _out_of_range(sizes, min(MOST_LAYERS, weights))]
    if not 0 <= config.localizer_bins <= MOST:
        problems.append(f"localizer_bins: {config.localizer_bins} is not from 0 to {MOST}")
    if not problems:
        problems += _misfits(config)
    return problems


def _out_of_range(sizes: LlamaSizes | ClipSizes | SamSizes, layers: int) -> Iterator[str]:
    for field in fields(sizes):
        value: Any = getattr(sizes, field.name)
        if field.name == "select_layer" or isinstance(value, str | tuple):
            continue
        if isinstance(value, float):
            if not (math.isfinite(value) and value > 0):
                yield f"{field.name}: {value} is not a number above 0"
            continue
        most = layers if field.name in _LAYERS else 1 << 40 if field.name in _LONG else MOST
        if not 1 <= value <= most:
            why = "; the weights have no more layers" if field.name in _LAYERS and value > 0 else ""
            yield f"{field.name}: {value} is not from 1 to {most}{why}"


def _misfits(config: MoraConfig) -> Iterator[str]:
    llm, clip, sam = config.llm, config.clip, config.sam
    for name, whole, part in (
        ("llm: hidden_size is not a multiple of num_attention_heads", llm.hidden_size, llm.num_attention_heads),
        (
            "llm: num_attention_heads is not a multiple of num_key_value_heads",
            llm.num_attention_heads,
            llm.num_key_value_heads,
        ),
        ("clip: hidden_size is not a multiple of num_attention_heads", clip.hidden_size, clip.num_attention_heads),
        ("sam: embed_dim is not a multiple of num_heads", sam.embed_dim, sam.num_heads),
        ("sam: prompt_dim is not a multiple of decoder_heads", sam.prompt_dim, sam.decoder_heads),
        ("sam: mask_in_chans is not a multiple of 4", sam.mask_in_chans, 4),
    ):
        if whole % part:
            yield name
    for room, image, patch in (("clip", clip.image_size, clip.patch_size), ("sam", sam.image_size, sam.patch_size)):
        if patch > image or image > 1 << 14:
            yield f"{room}: image_size {image} and patch_size {patch} do not fit each other"
    if not -clip.num_hidden_layers - 1 <= clip.select_layer < 0:
        yield f"clip: select_layer {clip.select_layer} names no layer of the vision tower"
    if clip.hidden_act not in ACTIVATIONS:
        yield f"clip: hidden_act {clip.hidden_act!r} is none of {', '.join(ACTIVATIONS)}"
    if any(not 0 <= index < sam.depth for index in sam.global_attn_indexes):
        yield "sam: global_attn_indexes names layers that are not there"
