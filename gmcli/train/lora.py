"""Put LoRA on a model's language model, say what is trained, and merge it back into plain weights.

Source: LISA train_ds.py and merge_lora_weights_and_save_hf_model.py; paper, section 4.2.
"""

from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear

from gmcli.model.mora import Mora

# Trained in full. Frozen like the rest: CLIP, mm_projector, SAM's image and prompt encoders.
TRAINED = (
    "text_hidden_fcs.",
    "localizer.",
    "visual_model.mask_decoder.",
    "language_model.lm_head.",
    "language_model.model.embed_tokens.",
)

_ADAPTER = "default"
_BASE = ".base_layer."


def add_lora(model: Mora, *, r: int, alpha: int, dropout: float, targets: Sequence[str]) -> None:
    """Put LoRA on the language model's projections named `targets`, and choose what is trained; in place.

    A starts random, B at zero: the model's answers do not change. What is trained becomes float32, for bf16 loses the
    small steps of an optimizer. CLIP and SAM have projections of these names too, which stay as they are.
    Raises ValueError where no projection has such a name.
    """
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), bias="none")
    model.requires_grad_(False)
    inject_adapter_in_model(config, model.language_model, adapter_name=_ADAPTER)
    for name, parameter in model.named_parameters():
        if name.startswith(TRAINED) or ".lora_" in name:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()


def trainable_names(model: Mora) -> list[str]:
    """List the parameters that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def merged_state(model: Mora) -> dict[str, torch.Tensor]:
    """Return the weights of a plain Mora that computes the same; the model itself stays as it is.

    A merged weight is added up in float32 and has the type of its base.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    state: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        if ".lora_" in key:
            continue
        if _BASE in key:
            layer, _, leaf = key.rpartition(_BASE)
            if leaf == "weight":
                delta = layers[layer].get_delta_weight(_ADAPTER)
                value = (value.float() + delta.float()).to(value.dtype)
            key = f"{layer}.{leaf}"
        state[key] = value
    return state


@torch.no_grad()
def merge_lora(model: Mora) -> None:
    """Turn a model with LoRA into the plain Mora that computes the same, in place."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    state = merged_state(model)
    for name, layer in layers:
        parent, _, leaf = name.rpartition(".")
        plain = layer.get_base_layer()
        plain.load_state_dict({"weight": state[f"{name}.weight"]}, strict=False)
        setattr(model.get_submodule(parent), leaf, plain)
