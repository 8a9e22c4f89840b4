"""Map the key names of foreign checkpoints to ours, and read a model's sizes off its weights' shapes."""

import re
from collections.abc import Mapping
from typing import Any

from gmcli.model.config import ClipSizes, LlamaSizes, MoraConfig, SamSizes

Shapes = Mapping[str, tuple[int, ...]]

# Original prefix → ours. The longest that fits wins. The localizer is ours: no released code names one.
ORIGINAL_PREFIXES = {
    "lm_head.": "language_model.lm_head.",
    "model.embed_tokens.": "language_model.model.embed_tokens.",
    "model.layers.": "language_model.model.layers.",
    "model.norm.": "language_model.model.norm.",
    "model.mm_projector.": "mm_projector.",
    "model.text_hidden_fcs.": "text_hidden_fcs.",
    "model.localizer.": "localizer.",
    "model.visual_model.": "visual_model.",
}
# A buffer that old transformers stored and new ones compute.
ORIGINAL_SKIPPED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

TOWER_PREFIX = "vision_model."
# A full CLIP carries its text half; position_ids is a buffer that old transformers stored.
TOWER_SKIPPED = re.compile(
    r"text_model\..*|logit_scale|text_projection\.weight|visual_projection\.weight|vision_model\.embeddings\.position_ids"
)


def original_to_own(key: str) -> str | None:
    """Return our name of an original key; None for a key to skip. An unknown key keeps its name, to be reported."""
    if ORIGINAL_SKIPPED.fullmatch(key):
        return None
    for prefix, ours in ORIGINAL_PREFIXES.items():
        if key.startswith(prefix):
            return ours + key.removeprefix(prefix)
    return key


def tower_to_own(key: str) -> str | None:
    """Return our name of a CLIP checkpoint's key; None for a key to skip."""
    if TOWER_SKIPPED.fullmatch(key):
        return None
    return "vision_tower." + key.removeprefix(TOWER_PREFIX)


def original_config(config: Mapping[str, Any], clip: ClipSizes, shapes: Shapes) -> MoraConfig:
    """Derive our configuration from an original config.json, the vision tower's sizes and the weights' shapes (our names).

    Types and ranges are not checked. Raises KeyError where config.json lacks a size; the caller has checked that it does not.
    """
    rope = config.get("rope_theta")
    llm = LlamaSizes(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=rope if rope else 10000.0,
    )
    bins = (shapes.get("localizer.2.weight") or (0,))[0]
    named = {k: config[k] for k in ("visual_tokens", "conversation", "instruction") if isinstance(config.get(k), str)}
    return MoraConfig(
        llm=llm,
        clip=clip,
        sam=sam_sizes(shapes),
        use_im_start_end=bool(config.get("mm_use_im_start_end", True)),
        localizer_bins=bins,
        **named,
    )


def sam_sizes(shapes: Shapes) -> SamSizes:
    """Read SAM's sizes off its weights' shapes (our names): no original config.json holds them.

    A size whose weight is missing keeps ViT-H's value, so that the check of all keys can name what is missing.
    """
    default = SamSizes()
    encoder, decoder = "visual_model.image_encoder.", "visual_model.mask_decoder."

    def shape(key: str, fallback: tuple[int, ...]) -> tuple[int, ...]:
        found = shapes.get(key, fallback)
        return found if len(found) == len(fallback) else fallback

    def count(pattern: str) -> int:
        return len({m[1] for k in shapes if (m := re.match(pattern, k))})

    embed_dim, _, patch, _ = shape(f"{encoder}patch_embed.proj.weight", (default.embed_dim, 3, default.patch_size, 16))
    grid = shape(f"{encoder}pos_embed", (1, default.image_size // default.patch_size, 64, 1))[1]
    depth = count(re.escape(encoder) + r"blocks\.(\d+)\.") or default.depth
    # rel_pos has 2·side-1 rows of one head's width; windows are smaller than the grid that global layers see.
    rel_pos = [shape(f"{encoder}blocks.{i}.attn.rel_pos_h", (0, 0)) for i in range(depth)]
    sides = [(rows + 1) // 2 for rows, _ in rel_pos]
    head_dim = max((width for _, width in rel_pos), default=0)
    windows = [side for side in sides if 0 < side < grid]
    prompt_dim = shape(f"{encoder}neck.0.weight", (default.prompt_dim, 1, 1, 1))[0]
    tokens = shape(f"{decoder}mask_tokens.weight", (default.num_multimask_outputs + 1, 1))[0]
    iou_depth = count(re.escape(decoder) + r"iou_prediction_head\.layers\.(\d+)\.") or default.iou_head_depth
    return SamSizes(
        image_size=grid * patch,
        patch_size=patch,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // head_dim if head_dim else default.num_heads,
        mlp_dim=shape(f"{encoder}blocks.0.mlp.lin1.weight", (4 * embed_dim, embed_dim))[0],
        global_attn_indexes=tuple(i for i, side in enumerate(sides) if side == grid),
        window_size=max(windows, default=default.window_size),
        prompt_dim=prompt_dim,
        mask_in_chans=shape("visual_model.prompt_encoder.mask_downscaling.3.weight", (16, 1, 1, 1))[0],
        decoder_depth=count(re.escape(decoder) + r"transformer\.layers\.(\d+)\.") or default.decoder_depth,
        decoder_mlp_dim=shape(f"{decoder}transformer.layers.0.mlp.lin1.weight", (default.decoder_mlp_dim, 1))[0],
        num_multimask_outputs=tokens - 1,
        iou_head_depth=iou_depth,
        iou_head_hidden_dim=shape(f"{decoder}iou_prediction_head.layers.0.weight", (256, prompt_dim))[0],
    )
