"""Describe a MoRA model's sizes and conventions; read and write them as JSON values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from gmcli.errors import CheckpointError
from gmcli.text import one_line, shorten

VisualTokens = Literal["frame", "pooled", "pooled_padded", "temporal", "changes"]
Conversation = Literal["llava_v1", "llava_llama_2", "plain"]

# The published Video-ChatGPT pooling pads the temporal tokens with zero rows up to this many frames.
PADDED_TEMPORAL_TOKENS = 100

_MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class LlamaSizes:
    """Size the language model; names as in transformers' LlamaConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float = 10000.0


@dataclass(frozen=True, slots=True)
class ClipSizes:
    """Size the vision tower; names as in transformers' CLIPVisionConfig. `select_layer` picks the hidden state used."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    select_layer: int = -2

    @property
    def patches(self) -> int:
        """Count the patch features of one frame."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True)
class SamSizes:
    """Size SAM; defaults are ViT-H at 1024 as published (segment_anything/build_sam.py)."""

    image_size: int = 1024
    patch_size: int = 16
    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_dim: int = 5120
    global_attn_indexes: tuple[int, ...] = (7, 15, 23, 31)
    window_size: int = 14
    prompt_dim: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256


@dataclass(frozen=True, slots=True)
class MoraConfig:
    """Describe one MoRA checkpoint: sizes, prompt, visual token layout, token names.

    `localizer_bins` is the number K of time bins of the [LOC] head; 0 means that the checkpoint has no localizer and every
    frame is inside the window. `use_im_start_end` wraps the image in <im_start>, <im_end>.
    """

    llm: LlamaSizes
    clip: ClipSizes
    sam: SamSizes
    visual_tokens: VisualTokens = "pooled"
    conversation: Conversation = "llava_v1"
    instruction: str = "Please respond with masks."
    use_im_start_end: bool = True
    localizer_bins: int = 0
    seg_token: str = "[SEG]"  # noqa: S105
    loc_token: str = "[LOC]"  # noqa: S105

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "MoraConfig":
        """Build a configuration from JSON values; raise CheckpointError naming `where` and every wrong field."""
        sections = {"llm": LlamaSizes, "clip": ClipSizes, "sam": SamSizes}
        problems: list[str] = []
        arguments: dict[str, Any] = {}
        for name, kind in sections.items():
            section = value.get(name)
            arguments[name] = _section(kind, section, name, problems) if isinstance(section, Mapping) else None
            if not isinstance(section, Mapping):
                problems.append(f"{name}: expected an object")
        rest = {k: v for k, v in value.items() if k not in sections}
        arguments |= _checked(cls, rest, "", problems, skip=set(sections))
        for name, choices in (("visual_tokens", get_args(VisualTokens)), ("conversation", get_args(Conversation))):
            if name in arguments and arguments[name] not in choices:
                problems.append(f"{name}: {shorten(repr(arguments[name]))} is none of {', '.join(choices)}")
        if problems:
            raise CheckpointError(
                "\n".join(f"{where}: {p}" for p in problems[:_MOST_PROBLEMS]),
                "It is damaged, or of another model; get it again from where the checkpoint comes from.",
            )
        return cls(**arguments)


def _section(kind: type, value: Mapping[str, Any], name: str, problems: list[str]) -> Any:
    before = len(problems)
    arguments = _checked(kind, value, f"{name}.", problems)
    return kind(**arguments) if len(problems) == before else None


def _checked(
    kind: type, value: Mapping[str, Any], prefix: str, problems: list[str], skip: set[str] | None = None
) -> dict[str, Any]:
    """Check names and types of a dataclass's fields against JSON values; append what is wrong to `problems`."""
    known = {f.name: f for f in fields(kind) if f.name not in (skip or set())}
    problems += [f"{prefix}{shorten(one_line(name))}: unknown field" for name in value if name not in known]
    arguments: dict[str, Any] = {}
    for name, field in known.items():
        if name not in value:
            if field.default is field.default_factory:  # both MISSING: no default
                problems.append(f"{prefix}{name}: missing")
            continue
        got = value[name]
        if field.type is float and isinstance(got, int) and not isinstance(got, bool):
            got = float(got) if abs(got) < 1 << 64 else got  # the type is wrong then, and not a crash
        if field.type == tuple[int, ...]:
            right = isinstance(got, list | tuple) and all(type(x) is int for x in got)
            got = tuple(got) if right else got
        else:
            wanted = field.type if field.type in (int, float, bool) else str
            right = type(got) is wanted
        if right:
            arguments[name] = got
        else:
            problems.append(f"{prefix}{name}: {shorten(repr(got))} has the wrong type")
    return arguments
