"""Put MoRA together: CLIP and LLaMA from transformers, SAM from segment-anything, our heads between them."""

from dataclasses import asdict

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gmcli.errors import ItemError
from gmcli.model.config import ClipSizes, MoraConfig, VisualTokens
from gmcli.model.sam import Sam
from gmcli.model.visual_tokens import pool, with_changes


class Mora(nn.Module):
    """Hold the published model's parts.

    `attention` is transformers' name of the attention used by CLIP and LLaMA: sdpa, flash_attention_2 or eager.
    Source: paper section 4.1; LISA model/LISA.py.
    """

    def __init__(self, config: MoraConfig, attention: str = "sdpa") -> None:
        super().__init__()
        llm = config.llm
        self.config = config
        self.vision_tower = CLIPVisionModel(clip_config(config, attention))
        self.mm_projector = nn.Linear(visual_width(config.clip, config.visual_tokens), llm.hidden_size)
        self.language_model = LlamaForCausalLM(llama_config(config, attention))
        self.text_hidden_fcs = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Linear(llm.hidden_size, llm.hidden_size),
                    nn.ReLU(inplace=True),
                    nn.Linear(llm.hidden_size, config.sam.prompt_dim),
                    nn.Dropout(0.0),
                )
            ]
        )
        self.localizer = build_localizer(llm.hidden_size, config.localizer_bins) if config.localizer_bins else None
        self.visual_model = Sam(config.sam)

    def clip_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the patch features of the selected layer; see patch_features."""
        return patch_features(self.vision_tower, self.config.clip.select_layer, pixels)

    def visual_embeddings(self, features: torch.Tensor, layout: VisualTokens) -> torch.Tensor:
        """Turn a clip's features [T,N,C] into visual tokens for the language model.

        Returns [1,V,H] for a pooled layout (one sequence a clip), [T,N,H] for `frame` (one sequence a frame).
        """
        match layout:
            case "frame":
                tokens = features
            case "pooled" | "pooled_padded":
                tokens = pool(features, padded=layout == "pooled_padded").unsqueeze(0)
            case "temporal":
                # Pooled without its spatial part: enough where the tower keeps places in a frame's mean.
                tokens = features.mean(dim=1).unsqueeze(0)
            case "changes":
                tokens = with_changes(features.mean(dim=1)).unsqueeze(0)
        projected: torch.Tensor = self.mm_projector(tokens)
        return projected

    def segmentation_prompts(self, seg_hidden: torch.Tensor) -> torch.Tensor:
        """Project the states that predicted [SEG] to SAM prompts. seg_hidden: [S,H]. Returns [S,C]."""
        prompts: torch.Tensor = self.text_hidden_fcs[0](seg_hidden)
        return prompts

    def localize(self, loc_hidden: torch.Tensor) -> torch.Tensor:
        """Return which time bins a state that predicted [LOC] selects. loc_hidden: [H]. Returns bool [K].

        sigmoid(x) > 0.5 is x > 0. Raises ValueError where the checkpoint has no localizer, ItemError where it computes NaN
        or infinity: NaN > 0 would be an empty window.
        """
        if self.localizer is None:
            raise ValueError("this checkpoint has no localizer")
        logits: torch.Tensor = self.localizer(loc_hidden)
        if not logits.isfinite().all():
            raise ItemError("the model computed values that are not finite (NaN) for [LOC]")
        return logits > 0


def patch_features(tower: CLIPVisionModel, select_layer: int, pixels: torch.Tensor) -> torch.Tensor:
    """Return the patch features of a layer, counted from the end as -1, -2, ... pixels: [T,3,S,S]. Returns [T,N,C].

    Layers after the selected one are not computed.
    """
    layers = tower.encoder.layers
    hidden: torch.Tensor = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in layers[: len(layers) + 1 + select_layer]:
        hidden = layer(hidden, attention_mask=None)
    return hidden[:, 1:]


def visual_width(clip: ClipSizes, layout: VisualTokens) -> int:
    """Count the features of one visual token before the projector."""
    return 2 * clip.hidden_size if layout == "changes" else clip.hidden_size


def build_localizer(hidden_size: int, bins: int) -> nn.Sequential:
    """Build the [LOC] head: Linear(H,H), ReLU, Linear(H,K). No released code has one; this is ours."""
    return nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, bins))


def llama_config(config: MoraConfig, attention: str) -> LlamaConfig:
    """Return transformers' configuration of the language model."""
    sizes = asdict(config.llm)
    rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
    sizes |= {"rope_parameters": rope, "tie_word_embeddings": False, "attn_implementation": attention}
    return LlamaConfig(**sizes)


def clip_config(config: MoraConfig, attention: str) -> CLIPVisionConfig:
    """Return transformers' configuration of the vision tower."""
    sizes = asdict(config.clip)
    del sizes["select_layer"]
    return CLIPVisionConfig(**sizes | {"attn_implementation": attention})


def build_on_meta(config: MoraConfig, attention: str = "sdpa") -> Mora:
    """Build the model without memory for its weights: every parameter is on the meta device."""
    with torch.device("meta"):
        return Mora(config, attention).eval().requires_grad_(False)


def restore_buffers(model: Mora, device: torch.device) -> None:
    """Compute anew the buffers that no checkpoint holds, after a model built on the meta device got its weights.

    The rotary frequencies stay float32 whatever the model's dtype: rounded to bf16 they would turn far positions wrong.
    """
    llama = model.language_model.model
    llama.rotary_emb = LlamaRotaryEmbedding(config=llama.config).to(device)
    embeddings = model.vision_tower.embeddings
    positions = torch.arange(embeddings.num_positions, device=device).expand((1, -1))
    embeddings.register_buffer("position_ids", positions, persistent=False)
    left = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise AssertionError(f"still without data: {left}")
