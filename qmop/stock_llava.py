"""A stock LLaVA and the CLIP that its eyes came from, made into a model with a compressor between its towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor

from qmop.compressors import projector_spec
from qmop.compressors.base import ASKS, Declaration
from qmop.configuration_qmop import QMoPConfig
from qmop.encoders import QueryEncoder
from qmop.encoders.selections import require_every_patch
from qmop.loading import declared, model_family, read_weights
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.text_encoder import load_query_encoder

NAMES = {
    r"^language_model\.lm_head": "lm_head",
    r"^language_model\.model": "model.language_model",
    r"^language_model": "model.language_model",
    r"^vision_tower": "model.vision_tower",
    r"^multi_modal_projector": "model.multi_modal_projector",
    r"multi_modal_projector\.linear_": "multi_modal_projector.connector.linear_",
}
"""Names of weights in LLaVA checkpoints, of the hub's and of transformers' present layout, to ours; applied in turn.

What older checkpoints put between a tower's name and its weights (`vision_model.`) transformers removes by itself.
"""

COMPRESSOR, CONNECTOR, TEXT = (
    f"model.{part}."
    for part in ("multi_modal_projector.compressor", "multi_modal_projector.connector", "query_encoder")
)


def from_llava(
    llava_checkpoint: str | Path,
    clip_checkpoint: str | Path | None = None,
    compressor: str = "mlp",
    tokens: int | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
    """A QMoP model out of a stock LLaVA; its weights are read once, straight into their places.

    Towers, language model and (unless the method has a readout of its own) connector are the checkpoint's; the
    compressor's own parameters are fresh, so seed torch first where that matters.

    Args:
        llava_checkpoint: folder of a `LlavaForConditionalGeneration` and its processor; safetensors only.
        clip_checkpoint: folder of the CLIP or SigLIP model that the vision tower was taken from, with its tokenizer;
            needed by methods that read the question.
        compressor: a name of `list_compressors()`.
        tokens: M, the budget; the method's default when absent.
        dtype: of the weights; the checkpoint's own when None.
        options: the method's own fields.

    Returns:
        The model in evaluation mode and its processor, both ready for `generate` and `save_pretrained`.

    Raises:
        FileNotFoundError: if a folder is missing or holds no model.
        ValueError: if a checkpoint is not what it should be, the two do not belong together, or the method, its
            options or the budget do not suit them.
    """
    folder = Path(llava_checkpoint)
    config = _config(folder, compressor, tokens, options)
    declaration = declared(config)  # wrong options are refused here, before any weight is read
    if clip_checkpoint is None and (asked := sorted(ASKS & declaration.reads)):
        raise ValueError(
            f"clip_checkpoint is missing, but {compressor} reads the question ({', '.join(asked)}): give the folder of "
            "the model that the vision tower was taken from, such as openai/clip-vit-large-patch14-336 for LLaVA-1.5"
        )
    stock = _stock_processor(folder, config)
    encoder, words = None, None
    if clip_checkpoint is not None:
        encoder, words = _questions(Path(clip_checkpoint), config)
    model = _model(folder, config, declaration, encoder, dtype)
    whole = QMoPProcessor(
        stock.image_processor,
        stock.tokenizer,
        words or stock.tokenizer,  # a processor must have one; nothing reads what it makes of a question
        image_token=stock.image_token,
        chat_template=stock.chat_template,
    )
    return model, QMoPProcessor.for_config(model.config, whole)


def _config(folder: Path, compressor: str, tokens: int | None, options: dict[str, Any]) -> QMoPConfig:
    """Ours, with everything that the stock one says."""
    if (family := model_family(folder)) != "llava":
        cure = "load it with qmop.load, or change its compressor with qmop.derive" if family == "qmop" else "give one"
        raise ValueError(f"{folder} holds a {family} model, not a stock LLaVA: {cure}")
    stock = AutoConfig.from_pretrained(folder, local_files_only=True)
    require_every_patch(stock, folder)
    if not isinstance(stock.vision_feature_layer, int):
        raise ValueError(
            f"vision_feature_layer of {folder} is {stock.vision_feature_layer}, but compressors read one layer: "
            "give a LLaVA that was trained on one"
        )
    fields = {name: value for name, value in stock.to_dict().items() if name not in ("model_type", "architectures")}
    fields |= {"compressor": compressor, "compressor_tokens": tokens, "compressor_options": options}
    return QMoPConfig.from_dict(fields)


def _stock_processor(folder: Path, config: QMoPConfig) -> Any:
    """The checkpoint's own processor.

    Raises:
        ValueError: if there is none, or its placeholder is not the model's.
    """
    try:
        stock = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no processor: save the model's processor into the same folder") from error
    token = getattr(stock, "image_token", None)
    known = stock.tokenizer.get_vocab().get(token) if token else None
    if known != config.image_token_id:
        raise ValueError(
            f"the processor in {folder} writes {token!r} (id {known}) for an image, but config.json names id "
            f"{config.image_token_id}: add the token to the tokenizer, or set image_token_index"
        )
    return stock


def _questions(folder: Path, config: QMoPConfig) -> tuple[QueryEncoder, Any]:
    """The paired text tower and its tokenizer; its configuration is entered into the model's."""
    encoder, words = load_query_encoder(folder, config.vision_config)
    own, paired = config.vision_config, AutoConfig.from_pretrained(folder, local_files_only=True).vision_config
    for field in ("image_size", "patch_size"):
        if getattr(own, field) != getattr(paired, field):
            raise ValueError(
                f"the vision tower of {folder} has {field} {getattr(paired, field)}, but the LLaVA's has "
                f"{getattr(own, field)}: give the checkpoint that the LLaVA's tower was taken from"
            )
    config.query_config = encoder.text_tower.config
    return encoder, words


def _model(
    folder: Path,
    config: QMoPConfig,
    declaration: Declaration,
    encoder: QueryEncoder | None,
    dtype: torch.dtype | None,
) -> QMoPForConditionalGeneration:
    """The checkpoint's weights under our names, with the text tower beside them.

    Raises:
        ValueError: if a weight is missing, left over or of another shape.
    """
    config.image_seq_length = projector_spec(config).token_count()
    model, report = read_weights(folder, config=config, dtype=dtype or "auto", key_mapping=NAMES)
    model._weight_conversions = None  # noqa: SLF001 - or `save_pretrained` would write LLaVA's names again
    fresh = (COMPRESSOR, TEXT)
    unread = (CONNECTOR,) if declaration.readout == "own" else ()
    wrong = {
        "missing": [name for name in report["missing_keys"] if not name.startswith(fresh)],
        "unexpected": [name for name in report["unexpected_keys"] if not name.startswith(unread)],
        "mismatched": report["mismatched_keys"],
    }
    if any(wrong.values()):
        found = "; ".join(f"{kind} {', '.join(names[:3])}" for kind, names in wrong.items() if names)
        raise ValueError(f"{folder} does not fit its own config.json ({found}): save the LLaVA again")
    if encoder is not None:
        model.model.query_encoder = encoder.to(model.dtype)
    return model
