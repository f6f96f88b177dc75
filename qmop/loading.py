"""One call to a model that can answer, and one to the same model with another compressor."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from qmop.configuration_qmop import QMoPConfig
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor


def load(
    path: str | Path, dtype: torch.dtype | None = torch.float32
) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
    """Load a checkpoint, safetensors only, in evaluation mode.

    Args:
        path: a folder written by `save_pretrained`.
        dtype: of the weights; the file's own when None.

    Raises:
        FileNotFoundError: if the folder is missing or holds no model.
        ValueError: if the file is damaged, lacks weights or holds some that the model does not know.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no model: expected a folder with config.json and model.safetensors")
    try:
        model, report = QMoPForConditionalGeneration.from_pretrained(
            folder, dtype=dtype or "auto", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(f"a .safetensors file in {folder} is damaged ({error}); export it again") from error
    if wrong := {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]}:
        raise ValueError(f"{folder} does not fit its own config.json: {wrong}; export it again")
    return model.eval(), QMoPProcessor.from_pretrained(folder, local_files_only=True)


def derive(
    base: str | Path, compressor: str, tokens: int | None = None, options: dict[str, Any] | None = None
) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
    """A checkpoint's towers, connector and language model with another compressor between them.

    The compressor's own parameters are carried over where base and result are the same method and a parameter has
    one shape in both (one method's two stages), and fresh otherwise; seed torch first where that matters.

    Raises:
        FileNotFoundError: if the base is missing.
        ValueError: if the method, its options or the budget do not suit the base.
    """
    source, processor = load(base)
    fields = source.config.to_dict()
    fields.update(compressor=compressor, compressor_tokens=tokens, compressor_options=dict(options or {}))
    config = QMoPConfig.from_dict(fields)
    model = QMoPForConditionalGeneration(config)
    report = model.load_state_dict(_carried(source, model), strict=False)
    foreign = [key for key in report.missing_keys if ".compressor." not in key]
    assert not foreign, f"only compressors may differ, but {foreign} are missing"
    model.tie_weights()
    model.generation_config = copy.deepcopy(source.generation_config)
    return model.eval(), QMoPProcessor.for_config(config, processor)


def _carried(source: QMoPForConditionalGeneration, model: QMoPForConditionalGeneration) -> dict[str, Tensor]:
    """What of the base's state fits the model; a parameter of another method is not carried even where it would fit."""
    same, own = source.config.compressor == model.config.compressor, model.state_dict()
    return {
        name: value
        for name, value in source.state_dict().items()
        if name in own and (".compressor." not in name or (same and own[name].shape == value.shape))
    }
