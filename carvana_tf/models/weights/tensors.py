"""Files of named tensors, as PyTorch's users publish them: `.safetensors` and `.pth`."""

import json
import math
import zipfile
from pathlib import Path

import numpy as np

from carvana_tf.errors import UserError

Tensors = dict[str, np.ndarray]
"""Tensor name -> its values; floating-point numbers as float32."""

# What the names of types in a safetensors file mean; bfloat16 is the upper half of a float32.
_TYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file: the length of its header, then JSON."""
    with path.open("rb") as handle:
        start = handle.read(9)
    size = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 8 + size <= path.stat().st_size


def is_torch(path: Path) -> bool:
    """Whether a file is what `torch.save` writes: a pickle, alone or in a zip archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    with path.open("rb") as handle:
        return handle.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04")


def read(path: Path) -> Tensors:
    """Every tensor of a `.safetensors` or `.pth` file.

    A name that all tensors begin with, as `module.` of a network that was trained on several
    devices, is left out.

    Raises:
        UserError: The file is damaged, holds anything but finite tensors, or needs PyTorch,
            which is not installed.
    """
    tensors = _read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    if not tensors:
        raise UserError(f"'{path}' holds no tensors; save the network's state_dict.")
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"'{path}': '{name}' has values that are not finite; take another file."
            )
    first = {name.partition(".")[0] for name in tensors}
    if first <= {"module", "model", "backbone", "encoder"} and len(first) == 1:
        return {name.partition(".")[2]: value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> Tensors:
    content = path.read_bytes()
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        return {name: _tensor(content, start, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{path}' is a damaged or truncated .safetensors file "
            f"({type(error).__name__}: {error}); download it again."
        ) from error


def _tensor(content: bytes, start: int, entry: dict) -> np.ndarray:
    kind, shape = entry["dtype"], tuple(entry["shape"])
    first, end = entry["data_offsets"]
    if kind not in _TYPES:
        raise ValueError(f"{kind} numbers are not read, only {', '.join(_TYPES)}")
    dtype = _TYPES[kind]
    if end - first != math.prod(shape) * dtype.itemsize or start + end > len(content):
        raise ValueError("a tensor's bytes and its shape differ")
    values = np.frombuffer(content, dtype, math.prod(shape), start + first).reshape(shape)
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) if dtype.kind == "f" else values


def _read_torch(path: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"'{path}' is a file of PyTorch, which is not installed; give the .safetensors file of "
            "these weights, or pip install torch."
        ) from error
    try:
        # Nothing but tensors is loaded: a pickle may hold any program.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("state_dict", "model"):
            loaded = loaded[name] if isinstance(loaded.get(name), dict) else loaded
        return {
            name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
            for name, tensor in loaded.items()
        }
    except Exception as error:  # PyTorch raises nearly every kind for a file it does not want
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(
            f"cannot read the tensors of '{path}' ({reason}); save the network's state_dict."
        ) from error
