"""Towers, connector and language model put together as a checkpoint that `from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil

from qmop.compressors.blind import Blind
from qmop.configuration_qmop import QMoPConfig
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.configs import LEVELS, language_config, query_config, vision_config
from qmop.tiny.pretraining.language import Speaker
from qmop.tiny.pretraining.tower import Towers
from qmop.tiny.pretraining.world import PIXEL_MEAN, PIXEL_STD
from qmop.tiny.tokenizer import IMAGE, language_tokenizer, query_tokenizer
from qmop.vtcbench.scene import IMAGE_SIZE


def tiny_config(compressor: str = "mlp", tokens: int | None = None, **options: object) -> QMoPConfig:
    """The tiny model's configuration with any compressor."""
    words, questions = language_tokenizer(), query_tokenizer()
    return QMoPConfig(
        vision_config=vision_config(),
        text_config=language_config(words),
        query_config=query_config(questions),
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=tokens or 144,
        tie_word_embeddings=True,
        compressor=compressor,
        compressor_tokens=tokens,
        compressor_options=options,
        feature_levels=list(LEVELS),
    )


def tiny_processor(visual_tokens: int = 144) -> QMoPProcessor:
    """The tiny model's processor: shorter side to 96 pixels, centre crop, as stock LLaVA-1.5 does at 336."""
    words = language_tokenizer()
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return QMoPProcessor(
        pictures, words, query_tokenizer(), visual_tokens=visual_tokens, chat_template=words.chat_template
    )


def tiny_model(compressor: str = "mlp", tokens: int | None = None, **options: object) -> QMoPForConditionalGeneration:
    """A tiny model with random weights, in evaluation mode, with its generation settings."""
    model = QMoPForConditionalGeneration(tiny_config(compressor, tokens, **options))
    words = model.config.text_config
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.bos_token_id = words.bos_token_id
    return model.eval()


def assemble(towers: Towers, speaker: Speaker, *, blind: bool = False) -> QMoPForConditionalGeneration:
    """The base: trained towers, connector and language model with no compression.

    A blind speaker learned behind one blank token, so that is what it gets.
    """
    model = tiny_model("blind", tokens=1) if blind else tiny_model()
    inner = model.model
    assert inner.query_encoder is not None
    assert inner.query_encoder.visual_projection is not None, "CLIP's text space is behind a projection"
    inner.vision_tower.load_state_dict(towers.vision.state_dict())
    inner.query_encoder.text_tower.load_state_dict(towers.text.state_dict())
    inner.query_encoder.visual_projection.load_state_dict(towers.visual_projection.state_dict())
    inner.multi_modal_projector.connector.load_state_dict(speaker.connector.state_dict())
    inner.language_model.load_state_dict(speaker.language.model.state_dict())
    if isinstance(compressor := inner.multi_modal_projector.compressor, Blind):
        torch.nn.init.zeros_(compressor.token_MC)
    model.tie_weights()
    return model


def save_half(model: QMoPForConditionalGeneration, processor: QMoPProcessor, folder: Path) -> None:
    """Write a checkpoint in half precision, which halves the file and costs no accuracy that we could measure."""
    model.to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    model.float()
