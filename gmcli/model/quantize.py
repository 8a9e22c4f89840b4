"""Hold the weights of the language model's blocks in 8 or 4 bits, so that a large model fits a small card.

torchao chooses the numbers. They are kept as plain buffers of plain modules, not as torchao's own tensors: what shares,
hashes or compiles modules (engines.py) then needs to know nothing about them. A float weight exists only inside a product
(int8) or nowhere (int4). Embeddings and lm_head stay as they are: they are few, and choosing tokens depends on their digits.

    int8   one scale for each output, symmetric. Any device, any dtype.
    int4   a scale and a zero for each output and group of 64 inputs; torch's kernels for it need CUDA 8.0 and bf16.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from gmcli.config import check_llm_weights
from gmcli.errors import CheckpointError, EnvironmentProblem
from gmcli.model.linear import choose_linear

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Inputs that share a scale, the best first. 64 is 4.5 bits a weight; 128, at 4.25, errs a tenth more (mora-tiny's weights).
_GROUPS = (64, 32)
# So many weights become floats at a time on a CPU, and stay in its cache: a whole layer of LLaMA-7B would be written to new
# memory and read again (57 ms instead of 2 to 3 for 4096 by 4096 and one row, on one core of an EPYC of 2024).
_BLOCK = 1 << 21


class Int8Linear(nn.Module):
    """Multiply by weights of 8 bits. `weight` is int8 [D,C], `scale` float32 [D]."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer. x: [...,C]. Returns [...,D] in the same dtype."""
        if x.dtype == torch.float16:
            # Products with whole numbers up to 127 would pass 65504 where LLaMA's activations are in the thousands.
            return functional.linear(x, (self.weight * self.scale[:, None]).to(x.dtype))
        if x.is_cpu and not torch.compiler.is_compiling():
            linear = choose_linear(x.device, x.dtype)
            rows = max(1, _BLOCK // self.weight.shape[1])
            parts = [linear(x, part.to(x.dtype)) for part in torch.split(self.weight, rows)]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        else:
            out = functional.linear(x, self.weight.to(x.dtype))
        # Scaled in float32: in bf16 the scale's own error would shift a whole output, always to the same side.
        return (out * self.scale).to(x.dtype)


class Int4Linear(nn.Module):
    """Multiply by weights of 4 bits, in bf16 on CUDA.

    `weight` is int32 in the order of torch's tinygemm kernel, padded to a multiple of 1024 inputs and 8 outputs; `scale`
    bf16 [groups,outputs,2] holds scales and zeros. size: D, C before padding. group: inputs that share a scale.
    Source: torchao's Int4TilePackedTo4dTensor.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, size: tuple[int, int], group: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.size, self.group = size, group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer. x: [...,C] bf16. Returns [...,D] bf16."""
        outputs, inputs = self.size
        rows = functional.pad(x.reshape(-1, inputs), (0, -inputs % 1024))
        out: torch.Tensor = torch.ops.aten._weight_int4pack_mm(rows, self.weight, self.group, self.scale)
        return out[:, :outputs].reshape(*x.shape[:-1], outputs)


def quantize_language_model(llm: LlamaForCausalLM, weights: str) -> None:
    """Replace the linear layers of LLaMA's blocks, in place, by layers of 8 or 4 bits.

    weights: "int8" or "int4". Where the float weights are shared with another model (engines.shared_copy), that one keeps
    them and stays as it is; else each layer's are freed before the next is quantised. To read a checkpoint without ever
    holding its float weights, see load_checkpoint. Raises EnvironmentProblem where torchao or the device for it is missing,
    UsageError for a dtype and CheckpointError for a size that there are no kernels for.
    """
    like = llm.get_input_embeddings().weight
    assert isinstance(like, torch.Tensor)
    check_llm_weights(weights, like.device.type, _DTYPES[like.dtype])
    for name in linear_layers(llm):
        layer = llm.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        llm.set_submodule(name, quantized_linear(layer.weight, weights).train(layer.training))


def linear_layers(llm: LlamaForCausalLM) -> list[str]:
    """Name the linear layers of LLaMA's blocks: what is quantised. lm_head is not among them."""
    return [f"model.{name}" for name, module in llm.model.named_modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def quantized_linear(weight: torch.Tensor, weights: str) -> nn.Module:
    """Return a layer without bias that multiplies by a weight [D,C] in 8 or 4 bits, on the weight's device."""
    from torchao.quantization import Int8WeightOnlyConfig, PerRow

    if weights == "int8":
        # torchao would else change settings of inductor for the whole process.
        kept = _quantized(weight, Int8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False))
        return Int8Linear(kept.qdata, kept.scale.flatten().contiguous())
    return _int4_linear(weight)


def _int4_linear(weight: torch.Tensor) -> Int4Linear:
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    outputs, inputs = weight.shape
    group = next((size for size in _GROUPS if inputs % size == 0), None)
    if group is None:
        raise CheckpointError(
            f"int4 weights come in groups of {_GROUPS[-1]}; a layer of this model has {inputs} inputs", "Use int8."
        )
    if torch.cuda.get_device_capability(weight.device) < (8, 0):
        name = torch.cuda.get_device_name(weight.device)
        raise EnvironmentProblem(f"int4 weights need a GPU of CUDA capability 8.0 or newer, not {name}", "Use int8.")
    config = Int4WeightOnlyConfig(
        group_size=group,
        int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D,  # what torch itself has kernels for
        set_inductor_config=False,
    )
    kept = _quantized(weight, config)
    return Int4Linear(kept.qdata, kept.scale_and_zero, (outputs, inputs), group)


def _quantized(weight: torch.Tensor, config: "AOBaseConfig") -> Any:
    """Let torchao quantise one weight; return its tensor."""
    from torchao.quantization import quantize_

    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(layer, config)
    return layer.weight
