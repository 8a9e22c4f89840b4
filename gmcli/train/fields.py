"""Read single fields of a training configuration: a reader returns the field's value or raises ValueError."""

import math
import re
from collections.abc import Callable
from typing import Any

from gmcli.errors import CheckpointError
from gmcli.model.config import MoraConfig
from gmcli.yaml_fields import Read, plain
from gmcli.yaml_lines import LIST, MAPPING, STRING, Node


def number(low: float, high: float = math.inf, *, below: bool = False) -> Callable[[Node], float]:
    """Return a reader of numbers in [low, high], or in [low, high) where `below`.

    3e-4 is text to YAML 1.1, which wants 3.0e-4, and a number to everybody else: it is taken.
    """

    def read(node: Node) -> float:
        try:
            value = math.nan if isinstance(node.value, bool) else float(plain(node))
        except (TypeError, ValueError):
            value = math.nan
        if not (low <= value < high if below else low <= value <= high) or math.isinf(value):
            until = "" if high == math.inf else f" to {'below ' if below else ''}{high:g}"
            raise ValueError(f"must be a number from {low:g}{until}, not {node}")
        return value

    return read


def count(low: int, high: int = 1 << 31) -> Callable[[Node], int]:
    """Return a reader of whole numbers in [low, high]."""

    def read(node: Node) -> int:
        if type(node.value) is not int or not low <= node.value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {node}")
        return node.value

    return read


def choice(*choices: str) -> Callable[[Node], str]:
    """Return a reader of one of these words."""

    def read(node: Node) -> str:
        if node.value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {node}")
        return str(node.value)

    return read


def optional(read: Read) -> Read:
    """Return a reader that takes null too."""
    return lambda node: None if node.value is None else read(node)


def text(node: Node) -> str:
    """Read a text that is not empty, on one line."""
    if node.kind != STRING or not node.value.strip() or not node.value.isprintable():
        raise ValueError(f"must be text, not {node}")
    return str(node.value)


def texts(node: Node) -> tuple[str, ...]:
    """Read a list of texts that is not empty."""
    if node.kind != LIST or not node.value:
        raise ValueError(f"must be a list of texts, not {node}")
    return tuple(text(item) for item in node.value)


def folder_name(node: Node) -> str:
    """Read a name that any file system takes."""
    if node.kind != STRING or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", node.value):
        raise ValueError(f"must be a folder's name of a-z, 0-9, _ and -, not {node}")
    return str(node.value)


def flag(node: Node) -> bool:
    """Read true or false."""
    if type(node.value) is not bool:
        raise ValueError(f"must be true or false, not {node}")
    return node.value


def betas(node: Node) -> tuple[float, float]:
    """Read Adam's two decays, each in [0, 1)."""
    read = number(0, 1, below=True)
    if node.kind != LIST or len(node.value) != 2:
        raise ValueError(f"must be two numbers, not {node}")
    return read(node.value[0]), read(node.value[1])


def scales(node: Node) -> dict[str, float]:
    """Read factors by prefix."""
    if node.kind != MAPPING:
        raise ValueError(f"must map prefixes of parameter names to factors, not {node}")
    return {prefix: number(0)(factor) for prefix, factor in node.value.items()}


def sizes(node: Node) -> dict[str, Any]:
    """Read the sizes of a model: a mapping as MoraConfig's JSON form."""
    value = plain(node)
    try:
        MoraConfig.from_json(value if isinstance(value, dict) else {}, "model")
    except CheckpointError as failure:
        raise ValueError("is not a model's configuration:\n  " + "\n  ".join(failure.message.splitlines())) from None
    return dict(value)
