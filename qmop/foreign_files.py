"""Weights that others saved: the only place that reads a `.bin`.

Pickled files are read as tensors and nothing else; one that asks for more is refused unread.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qmop.json_files import read_object

Tensors = dict[str, Tensor]

PICKLED = (".bin", ".pt", ".pth")
_INDEXED = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "mm_projector.bin",
)
_FORBIDDEN = re.compile(r"GLOBAL (?P<name>[\w.]+)")


def read_tensors(path: str | Path) -> Tensors:
    """Every tensor of a foreign file, or of a checkpoint folder in one file or several; paged in when used.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if a file is damaged, of an unknown kind, or holds anything but tensors.
    """
    tensors: Tensors = {}
    for file in _files(Path(path)):
        if file.suffix not in (*PICKLED, ".safetensors"):
            raise ValueError(f"{file} is of an unknown kind: expected {', '.join(PICKLED)} or .safetensors")
        tensors |= _unpickled(file) if file.suffix in PICKLED else _safetensors(file)
    return tensors


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: give a file with a projector's weights")
        return [path]
    first = next((name for name in _INDEXED if (path / name).is_file()), None)
    if first is None:
        raise FileNotFoundError(f"{path} holds no weights: expected one of {', '.join(_INDEXED)}")
    if not first.endswith(".json"):
        return [path / first]
    return [path / name for name in _indexed(path / first)]


def _indexed(index: Path) -> list[str]:
    """The files that an index names, without their folders."""
    try:
        places = [Path(place).name for place in read_object(index)["weight_map"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, no map, or one of other things
        raise ValueError(f"{index} is damaged: expected a weight_map of names to files; fetch it again") from error
    return sorted(set(places))


def _unpickled(file: Path) -> Tensors:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError:
        raise
    except Exception as error:  # torch raises whatever its parser stumbles over
        forbidden = _FORBIDDEN.search(str(error))
        why = f"asks for {forbidden['name']}, which is no tensor, to be run" if forbidden else "is damaged"
        raise ValueError(f"{file} {why}; it was not read: use a file that its authors saved as a state dict") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} is no state dict: expected names with a tensor each")
    return state


def _safetensors(file: Path) -> Tensors:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again") from error
