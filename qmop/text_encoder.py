"""The text tower of a CLIP or SigLIP checkpoint, as the encoder of questions that text-guided methods read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from qmop.encoders import QueryEncoder
from qmop.json_files import read_object
from qmop.quiet import without_tables

PAIRS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Families of checkpoints with two towers, and the vision tower that each is paired with."""

VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
"""Files of which a tokenizer has at least one."""


def load_query_encoder(
    folder: str | Path, vision_config: Any, dtype: torch.dtype = torch.float32
) -> tuple[QueryEncoder, Any]:
    """The question's side of a checkpoint with a vision and a text tower; its vision tower is not read.

    Args:
        folder: written by `save_pretrained` of a CLIP or SigLIP model and its tokenizer; safetensors only.
        vision_config: of the vision tower that the questions will meet.
        dtype: of the weights.

    Returns:
        The encoder, in evaluation mode and frozen, and the tokenizer of its questions.

    Raises:
        FileNotFoundError: if the folder is missing or holds no model.
        ValueError: if it is of another family, not paired with this vision tower, damaged or incomplete.
    """
    place = Path(folder)
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{place} holds no model: expected a folder with config.json and model.safetensors")
    config = AutoConfig.from_pretrained(place, local_files_only=True)
    _check_pair(place, config, vision_config)
    text_config = config.text_config
    if getattr(config, "projection_dim", None):
        text_config.projection_dim = config.projection_dim
    with torch.device("meta"):
        encoder = QueryEncoder(text_config, vision_config)
    encoder.text_tower = _text_tower(place, type(encoder.text_tower), text_config, dtype)
    if isinstance(encoder.visual_projection, nn.Linear):
        weight = _stored(place, "visual_projection.weight").to(dtype)
        encoder.visual_projection.load_state_dict({"weight": weight}, assign=True)
    assert not any(parameter.is_meta for parameter in encoder.parameters()), "every part of the encoder is loaded"
    return encoder.eval().requires_grad_(requires_grad=False), _tokenizer(place)


def _check_pair(folder: Path, config: Any, vision_config: Any) -> None:
    """Refuse a checkpoint whose text tower never saw such a vision tower."""
    if config.model_type not in PAIRS:
        raise ValueError(
            f"{folder} holds a {config.model_type} model, which has no text tower for questions: "
            f"give the folder of a {' or '.join(PAIRS)} checkpoint"
        )
    paired = PAIRS[config.model_type]
    if vision_config.model_type != paired:
        raise ValueError(
            f"the text tower of {folder} is paired with a {paired}, but the model's vision tower is a "
            f"{vision_config.model_type}: give the checkpoint that this tower came from"
        )
    for field in ("hidden_size", "num_hidden_layers"):
        own, other = getattr(vision_config, field), getattr(config.vision_config, field)
        if own != other:
            raise ValueError(
                f"the vision tower of {folder} has {field} {other}, but the model's has {own}: "
                "give the checkpoint that the model's tower came from"
            )


def _text_tower(folder: Path, kind: Any, text_config: Any, dtype: torch.dtype) -> Any:
    """The text tower with the checkpoint's weights."""
    settings = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        with without_tables():  # the vision tower's weights are left out on purpose
            tower, report = kind.from_pretrained(folder, config=text_config, **settings)
    except SafetensorError as error:
        raise ValueError(f"a .safetensors file in {folder} is damaged ({error}); save it again") from error
    except OSError as error:
        raise FileNotFoundError(f"{folder} holds no model.safetensors: save it again as safetensors") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks weights of its text tower ({', '.join(missing[:3])}): save it again")
    return tower


def _stored(folder: Path, name: str) -> Tensor:
    """One tensor of a checkpoint, in one file or several."""
    index = folder / "model.safetensors.index.json"
    sharded = read_object(index)["weight_map"] if index.is_file() else {}
    with safe_open(folder / sharded.get(name, "model.safetensors"), framework="pt") as file:
        if name not in file.keys():  # noqa: SIM118 - the file is no mapping
            raise ValueError(f"{folder} lacks {name}: save the whole model, not its text tower alone")
        return file.get_tensor(name)


def _tokenizer(folder: Path) -> Any:
    # Where there are no files, transformers makes a tokenizer without words instead of refusing.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ValueError(f"{folder} holds no tokenizer: save the model's tokenizer into the same folder")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
