"""Read weight files of strangers: safetensors, and .bin files by the unpickler that can only make tensors.

A file may claim anything. What it claims is held against its own size before memory is taken for it.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gmcli.errors import CheckpointError
from gmcli.text import one_line, shorten

# Names of types in safetensors files.
STORED_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

# The lists of names: 0.1 MB for a 13B model. Beyond these, a list is there to fill memory.
HEADER_BYTES = 16 << 20
PICKLE_BYTES = 64 << 20

_DAMAGED = "The file is damaged; download it again."
_HOLDS_CODE = "It is damaged, or it holds code, which gmcli never runs."


def read_headers(file: Path) -> Iterator[tuple[str, tuple[int, ...], torch.dtype | str]]:
    """Yield name, shape and type of every tensor without reading its values. Raises CheckpointError."""
    if file.suffix == ".safetensors":
        with open_safetensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118 (not a mapping)
                header = opened.get_slice(key)
                yield key, tuple(header.get_shape()), STORED_TYPES.get(header.get_dtype(), header.get_dtype())
    else:
        for key, tensor in _load_bin(file).items():
            yield key, tuple(tensor.shape), tensor.dtype


def read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a weight file's names (its own) and tensors, on the CPU. Raises CheckpointError."""
    if file.suffix == ".safetensors":
        with open_safetensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118
                yield key, opened.get_tensor(key)
    else:
        yield from _load_bin(file).items()


def open_safetensors(file: Path) -> Any:
    """Open a safetensors file: a context manager with keys() and get_tensor(). Raises CheckpointError."""
    try:
        _check_header(file)
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        reason = shorten(one_line(str(error)), 200)
        raise CheckpointError(f"{file}: cannot be read ({reason})", _DAMAGED) from None


def _check_header(file: Path) -> None:
    """Raise ValueError for a header that is too long, or that names a tensor twice: the library takes the last one."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > HEADER_BYTES:
            raise ValueError(f"header too large: {length} bytes")
        header = opened.read(length)
    json.loads(header, object_pairs_hook=_without_twins) if len(header) == length else None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def load_pickled(file: Path, *, mmap: bool) -> Any:
    """Read what torch.save has written, with the unpickler that can only make tensors and plain containers.

    mmap: values are read when they are used. Raises CheckpointError; also for a torch whose unpickler is not safe.
    """
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 10):
        raise CheckpointError(
            f"{file}: torch {torch.__version__} does not read .bin files safely (CVE-2026-24747)",
            "pip install -U 'torch>=2.10', or convert the checkpoint to safetensors elsewhere.",
        )
    try:
        _check_archive(file)
        with warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a pickle that was made to break the unpickler raises anything
        raise CheckpointError(f"{file}: not a file of plain tensors ({_why(error)})", _HOLDS_CODE) from None


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    state = load_pickled(file, mmap=True)
    if not isinstance(state, dict) or not all(isinstance(k, str) and _is_plain(v) for k, v in state.items()):
        raise CheckpointError(f"{file}: expected a dictionary of plain tensors", _HOLDS_CODE)
    # Tied weights are one storage under two names. A view that repeats one value a trillion times is neither.
    held, claimed = file.stat().st_size, sum(t.numel() * t.itemsize for t in state.values())
    if claimed > 2 * held:
        raise CheckpointError(f"{file}: claims to hold {claimed} bytes of weights in a file of {held}", _DAMAGED)
    return state


def _check_archive(file: Path) -> None:
    """Raise ValueError unless the file is a zip archive as torch.save writes them: stored, not packed."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{error}; torch 1.6 and newer write zip archives") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is packed, which torch.save never does")
    names = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if len(names) != 1 or names[0].file_size > PICKLE_BYTES:
        raise ValueError("its list of names is missing or too long")


def _is_plain(value: object) -> bool:
    """Say whether this is a tensor with values of its own, as weights are: not sparse, quantised, meta, or a subclass."""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.itemsize <= value.untyped_storage().nbytes()
    )


def _why(error: Exception) -> str:
    """Return one line. torch's own first line advises to read the file in the way that runs its code."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        wanted = re.search(r"GLOBAL ([\w.]+)", text)
        return f"it asks for {wanted[1]}" if wanted else "its pickle holds more than tensors"
    lines = text.strip().splitlines()
    return shorten(one_line(lines[0]), 200) if lines else type(error).__name__
