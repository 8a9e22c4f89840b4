"""Multiply by weights with the faster of the libraries that torch brings.

torch computes float32 products on a CPU with MKL. oneDNN, which torch brings as well and uses for convolutions, is as fast on
Intel's processors and about twice as fast on AMD's, where MKL leaves half of AVX-512 unused (105 and 190 to 250 GFLOP/s on one
core of an EPYC of 2024).
"""

from typing import Protocol

import torch
from torch import nn
from torch.nn import functional


class Linear(Protocol):
    """Apply a linear layer: x [...,C] times weight [D,C] transposed, plus bias [D], then GELU where asked for."""

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, gelu: bool = False
    ) -> torch.Tensor: ...


def plain_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, gelu: bool = False
) -> torch.Tensor:
    """Apply a linear layer as torch does."""
    out = functional.linear(x, weight, bias)
    return functional.gelu(out) if gelu else out


def onednn_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, gelu: bool = False
) -> torch.Tensor:
    """Apply a linear layer through oneDNN. float32 on the CPU; no gradients."""
    # The operator that torch.compile puts in the place of a linear layer; the trailing "none" means GELU through erf.
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else ""
    )
    return out


def choose_linear(device: torch.device, dtype: torch.dtype) -> Linear:
    """Return how to apply linear layers on a device: oneDNN for float32 on a CPU that has it, else torch's own way.

    The choice depends on the build alone, never on a measurement: equal runs give equal bytes.
    """
    here = device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return onednn_linear if here and hasattr(torch.ops.mkldnn, "_linear_pointwise") else plain_linear


class FastLinear(nn.Linear):
    """Hold a linear layer that runs through oneDNN; parameters and their names are nn.Linear's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        return onednn_linear(input, self.weight, self.bias)


def use_linear(module: nn.Module, linear: Linear) -> None:
    """Make all linear layers inside a module run through `linear`; parameters stay what and where they are."""
    kind = FastLinear if linear is onednn_linear else nn.Linear
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and type(child) in (nn.Linear, FastLinear) and type(child) is not kind:
                with torch.device("meta"):
                    other = kind(child.in_features, child.out_features, bias=child.bias is not None)
                other.weight, other.bias = child.weight, child.bias
                setattr(parent, name, other.train(child.training))
