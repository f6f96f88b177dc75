"""Published projectors in, checkpoints of ours out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmop.compressors.projector import Projector
from qmop.compressors.registry import method_class
from qmop.foreign_files import Tensors, read_tensors
from qmop.loading import derive
from qmop.whole_files import whole_folder

_PROJECTOR = re.compile(r"(?:^|\.)(?:mm_projector|multi_modal_projector)\.(?P<name>.+)$")
_LANGUAGE = re.compile(
    r"^(?:(?:model\.language_model|language_model\.model|model)\.(?P<name>(?:embed_tokens|layers|norm)\..+)"
    r"|(?:language_model\.)?(?P<head>lm_head\..+))$"
)
_ROTARY = "rotary_emb.inv_freq"
"""Stood in old checkpoints and is computed today."""
_LANGUAGE_MODEL, _HEAD, _WORDS = "model.language_model.", "lm_head.weight", "model.language_model.embed_tokens.weight"
_LISTED = 4

CONNECTOR = {
    "0": "connector.linear_1",
    "2": "connector.linear_2",
    "linear_1": "connector.linear_1",
    "linear_2": "connector.linear_2",
}
"""LLaVA-1.5's projector, as its authors number it and as transformers names it; serves every training-free method."""

PUBLISHED: dict[str, dict[str, str]] = {
    "mlp": CONNECTOR,
    "tokenpacker": {
        "q_proj_1": "compressor.query",
        "ln_q_1": "compressor.query_norm",
        "k_proj_1.0": "compressor.key.mlp.linear_1",
        "k_proj_1.2": "compressor.key.mlp.linear_2",
        "ln_k_1": "compressor.key.norm",
        "v_proj_1.0": "compressor.value.mlp.linear_1",
        "v_proj_1.2": "compressor.value.mlp.linear_2",
        "ln_v_1": "compressor.value.norm",
        "clip_attn": "compressor.attention",
        "mlp.0": "connector.linear_1",
        "mlp.2": "connector.linear_2",
    },
    "quecc": {
        "0.text_projection.0": "compressor.text",
        "0.text_projection.1": "compressor.text_norm",
        **{
            f"0.{letter}_proj.{place}": f"compressor.{path}.{part}"
            for letter, path in (("q", "query"), ("k", "key"), ("v", "value"))
            for place, part in (("0", "mlp.linear_1"), ("2", "mlp.linear_2"), ("3", "norm"))
        },
        "0.q_downsample.weight": "compressor.pool_KC",
        "0.q_downsample.bias": "compressor.pool_bias_C",
        "0.clip_attn": "compressor.attention",
        "1": "connector.linear_1",
        "3": "connector.linear_2",
    },
}
"""By method: modules (or single parameters) as published, and as ours."""

RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {"compressor.pool_KC": lambda kernel_C1SS: kernel_C1SS.flatten(1).T}


def convert(
    projector: str | Path,
    base: str | Path,
    output: str | Path,
    *,
    method: str,
    tokens: int | None = None,
    options: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the base with a published projector in it.

    Weights of a language model beside the projector (a full checkpoint) are taken as well, for the two were tuned
    together; the towers are always the base's.

    Args:
        projector: file with the projector's weights (`.bin`, `.safetensors`), or the folder of a full checkpoint.
        base: checkpoint folder of ours that gives everything else.
        output: folder to write; it appears when it is whole.
        method: a method with published weights, see `names_of`.
        tokens: the budget that the weights were trained for (TokenPacker's do not tell); the method's default when
            absent.
        options: the method's own fields.
        dtype: of the written weights; single precision keeps every number of a half-precision file.

    Returns:
        The output folder.

    Raises:
        FileExistsError: if the output exists.
        FileNotFoundError: if the projector or the base is missing.
        ValueError: if a file holds anything but tensors, or they do not fit method, budget and base.
    """
    target = Path(output)
    if target.exists():
        raise FileExistsError(f"{target} exists: choose another output, or remove it first")
    names_of(method)
    tensors = read_tensors(projector)
    found = projector_tensors(tensors, str(projector))
    model, processor = derive(base, method, tokens, options)
    inner = model.model.multi_modal_projector
    inner.load_state_dict(projector_state(found, method, inner, str(projector)))
    own = model.state_dict()
    model.load_state_dict(_language_state(tensors, own, str(projector)), strict=False)
    with whole_folder(target) as folder:
        model.to(dtype).save_pretrained(folder)
        processor.save_pretrained(folder)
    return target


def names_of(method: str) -> dict[str, str]:
    """Published names of a method's modules to ours.

    Raises:
        ValueError: if the method is unknown, or has trained parameters of which no published names are known.
    """
    declaration = method_class(method).declaration
    if method not in PUBLISHED and (declaration.trained or declaration.readout == "own"):
        raise ValueError(
            f"method is {method!r}, of which no published weights are known: choose {', '.join(PUBLISHED)} or a "
            "training-free method, which takes LLaVA-1.5's"
        )
    return PUBLISHED.get(method, CONNECTOR)


def projector_state(found: Tensors, method: str, projector: Projector, source: str) -> Tensors:
    """Published weights under our names, whole.

    Args:
        found: the published weights, named inside their projector, see `projector_tensors`.
        method: the name of the method.
        projector: ours, whose names and shapes are the measure.
        source: what to call the file in a message.

    Raises:
        ValueError: naming what is missing, unexpected or of another shape.
    """
    names, own = names_of(method), projector.state_dict()
    state: Tensors = {}
    unexpected, misshapen = [], []
    for name, value in found.items():
        ours = _renamed(name, names)
        if ours not in own:
            unexpected.append(name)
            continue
        fitting = RESHAPED[ours](value) if ours in RESHAPED and value.dim() > 1 else value
        if fitting.shape != own[ours].shape:
            misshapen.append(_misshapen(name, fitting, own[ours]))
        state[ours] = fitting
    _complain(source, method, [name for name in own if name not in state], unexpected, misshapen)
    return state


def projector_tensors(tensors: Tensors, source: str) -> Tensors:
    """The projector's part of a state, by the names inside it: `mm_projector.` and all before it taken off.

    Raises:
        ValueError: if nothing of it is a projector's.
    """
    inside = {match["name"]: value for name, value in tensors.items() if (match := _PROJECTOR.search(name))}
    if not inside and not any(_LANGUAGE.match(name) for name in tensors):
        inside = tensors  # a projector's own state, saved by itself
    if not inside:
        raise ValueError(f"{source} holds no projector: none of its {len(tensors)} names has mm_projector in it")
    return inside


def _renamed(name: str, names: dict[str, str]) -> str | None:
    """Our name of a parameter: that of the longest known module (or parameter) that holds it, and what remains."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        if (head := ".".join(parts[:cut])) in names:
            return ".".join([names[head], *parts[cut:]])
    return None


def _language_state(tensors: Tensors, own: Tensors, source: str) -> Tensors:
    """The language model of a full checkpoint under our names; empty where there is none.

    Vocabularies may be shorter than ours, which has places for images and padding: their rows come first.
    """
    state: Tensors = {}
    unexpected, misshapen = [], []
    for name, value in tensors.items():
        ours = _language_name(name)
        if ours is None:
            continue
        if ours not in own:
            unexpected.append(name)
        elif value.shape == own[ours].shape:
            state[ours] = value
        elif ours in (_WORDS, _HEAD) and value.shape[1:] == own[ours].shape[1:] and len(value) < len(own[ours]):
            state[ours] = torch.cat([value.to(own[ours]), own[ours][len(value) :]])
        else:
            misshapen.append(_misshapen(name, value, own[ours]))
    if not state and not unexpected and not misshapen:
        return {}
    tied = own[_HEAD].data_ptr() == own[_WORDS].data_ptr()
    if tied and _HEAD in state and not torch.equal(state[_HEAD], state.get(_WORDS, own[_HEAD])):
        unexpected.append(f"{_HEAD} (the base's is one with its embeddings)")
    needed = [name for name in own if name.startswith(_LANGUAGE_MODEL) or (name == _HEAD and not tied)]
    missing = [name for name in needed if name not in state]
    _complain(source, "the base's language model", missing, unexpected, misshapen)
    return state


def _language_name(name: str) -> str | None:
    """Our name of a parameter of the language model; None for everything else."""
    match = _LANGUAGE.match(name)
    if match is None or name.endswith(_ROTARY):
        return None
    return match["head"] or f"{_LANGUAGE_MODEL}{match['name']}"


def _complain(source: str, what: str, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
    """Raise one sentence if anything is wrong."""
    kinds = {"lacks": missing, "has the unknown": unexpected, "has": misshapen}
    wrong = [f"it {kind} {_some(names)}" for kind, names in kinds.items() if names]
    if wrong:
        raise ValueError(f"{source} does not fit {what}: {'; '.join(wrong)}: check the method, its tokens and the base")


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _misshapen(name: str, value: Tensor, own: Tensor) -> str:
    theirs, ours = (" x ".join(map(str, tensor.shape)) for tensor in (value, own))
    return f"{name} of shape {theirs} where {ours} is needed"
