"""One call to a model that can answer, and one to the same model with another compressor."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from qmop.compressors import projector_spec
from qmop.compressors.base import ASKS, Declaration
from qmop.configuration_qmop import QMoPConfig
from qmop.json_files import read_object
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor, question_length
from qmop.quiet import without_tables


def load(
    path: str | Path, dtype: torch.dtype | None = torch.float32
) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
    """Load a checkpoint, safetensors only, in evaluation mode; its text tower is frozen, as methods find it.

    Args:
        path: a folder written by `save_pretrained`.
        dtype: of the weights; the file's own when None.

    Raises:
        FileNotFoundError: if the folder is missing or holds no model.
        ValueError: if a file is damaged, lacks weights or holds some that the model does not know, if the folder holds
            a model of another kind, such as a stock LLaVA, or no tokenizer for its questions.
    """
    folder = Path(path)
    require_own_family(model_family(folder), str(folder))
    model, report = read_weights(folder, dtype=dtype or "auto")
    if wrong := {kind: keys for kind, keys in report.items() if keys}:
        raise ValueError(f"{folder} does not fit its own config.json: {wrong}; export it again")
    processor = QMoPProcessor.from_pretrained(folder, local_files_only=True)
    processor.query_length = processor.query_length or question_length(model.config)
    return _frozen(model), processor


def _frozen(model: QMoPForConditionalGeneration) -> QMoPForConditionalGeneration:
    """With a text tower that does not learn; the rest is as it was."""
    if (encoder := model.model.query_encoder) is not None:
        encoder.requires_grad_(requires_grad=False)
    return model


def model_family(folder: Path) -> str:
    """The kind of model that a folder holds, as transformers names it.

    Raises:
        FileNotFoundError: if the folder is missing or holds no model in safetensors.
        ValueError: if its `config.json` is no JSON object.
    """
    config = folder / "config.json"
    if not config.is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no model: expected a folder with config.json and model.safetensors")
    return str(read_object(config).get("model_type"))


def require_own_family(family: str, place: str) -> None:
    """Refuse a model of another kind than ours.

    Args:
        family: the `model_type` of its configuration.
        place: where it lies, for the message.

    Raises:
        ValueError: if it is another; the message says the way out.
    """
    if family != QMoPConfig.model_type:
        cure = "build a model from it with qmop.from_llava" if family == "llava" else "give one that qmop has saved"
        raise ValueError(f"{place} holds a {family} model, not a {QMoPConfig.model_type}: {cure}")


def declared(config: QMoPConfig) -> Declaration:
    """What a configuration's method reads and how it acts, with its options; nothing is allocated.

    Raises:
        ValueError: if the method, its options or the budget do not suit the configuration.
    """
    with torch.device("meta"):
        return projector_spec(config).build().declaration


def read_weights(folder: Path, **options: Any) -> tuple[QMoPForConditionalGeneration, dict[str, list[str]]]:
    """A folder's weights in a model, in evaluation mode, and the names of those that did not fit.

    Args:
        folder: with safetensors; nothing else is read.
        options: as for `from_pretrained`.

    Returns:
        The model, and under `missing_keys`, `unexpected_keys` and `mismatched_keys` the sorted names of weights that
        the files lack, that the model does not know, and that have another shape there than in the model.

    Raises:
        ValueError: if a file is damaged.
    """
    try:
        with without_tables():
            model, report = QMoPForConditionalGeneration.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported, so that the caller can say it in a sentence
                **options,
            )
    except SafetensorError as error:
        raise ValueError(f"a .safetensors file in {folder} is damaged ({error}); export it again") from error
    mismatched = sorted(f"{name} {tuple(stored)}" for name, stored, _ in report["mismatched_keys"])
    misfits = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys")}
    return model.eval(), {**misfits, "mismatched_keys": mismatched}


def derive(
    base: str | Path, compressor: str, tokens: int | None = None, options: dict[str, Any] | None = None
) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
    """A checkpoint's towers, connector and language model with another compressor between them; in evaluation mode.

    The compressor's own parameters are carried over where base and result are the same method and a parameter has
    one shape in both (one method's two stages), and fresh otherwise; seed torch first where that matters. The text
    tower is frozen.

    Raises:
        FileNotFoundError: if the base is missing.
        ValueError: if the method, its options or the budget do not suit the base.
    """
    source, processor = load(base)
    fields = source.config.to_dict()
    fields.update(compressor=compressor, compressor_tokens=tokens, compressor_options=dict(options or {}))
    config = QMoPConfig.from_dict(fields)
    config.image_seq_length = projector_spec(config).token_count()
    _require_parts(source, declared(config), base)
    model = QMoPForConditionalGeneration(config)
    report = model.load_state_dict(_carried(source, model), strict=False)
    foreign = [key for key in report.missing_keys if ".compressor." not in key]
    assert not foreign, f"only compressors may differ, but {foreign} are missing"
    model.tie_weights()
    model.generation_config = copy.deepcopy(source.generation_config)
    return _frozen(model.eval()), QMoPProcessor.for_config(config, processor)


def _require_parts(source: QMoPForConditionalGeneration, wanted: Declaration, place: object) -> None:
    """Refuse a method that needs a part which a checkpoint does not have."""
    if source.config.query_config is None and (asked := sorted(ASKS & wanted.reads)):
        raise ValueError(
            f"{wanted.name} reads the question ({', '.join(asked)}), but {place} has no text tower: make the base with "
            "qmop.from_llava and the clip_checkpoint that its vision tower was taken from"
        )
    had = source.model.multi_modal_projector.declaration
    if had.readout == "own" and wanted.readout != "own":
        raise ValueError(
            f"{wanted.name} needs a connector, but {place} has none beside its {had.name}, which ends at the language "
            "model's width by itself: derive from the base that it was made from"
        )


def _carried(source: QMoPForConditionalGeneration, model: QMoPForConditionalGeneration) -> dict[str, Tensor]:
    """What of the base's state fits the model; a parameter of another method is not carried even where it would fit."""
    same, own = source.config.compressor == model.config.compressor, model.state_dict()
    return {
        name: value
        for name, value in source.state_dict().items()
        if name in own and (".compressor." not in name or (same and own[name].shape == value.shape))
    }
