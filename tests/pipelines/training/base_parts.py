"""Parts of a base at tiny size, as transformers saves them: a Llama, a CLIP, a stock LLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, LlamaForCausalLM, PreTrainedTokenizerFast

from qmop.tiny import tokenizer as tokenizer_module
from qmop.tiny.configs import language_config, query_config, vision_config
from qmop.tiny.tokenizer import BOS, EOS, IMAGE, PAD, UNK, query_tokenizer
from tests.fixtures.stock_llava import stock_llava, stock_processor


def words() -> PreTrainedTokenizerFast:
    """A text model's tokenizer: it begins texts by itself, knows no pictures and has no template."""
    core = tokenizer_module._core()
    vocabulary = [piece for piece in core.get_vocab() if piece not in (IMAGE, PAD)]
    core.model = type(core.model)(vocab={piece: i for i, piece in enumerate(vocabulary)}, unk_token=UNK)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, unk_token=UNK, eos_token=EOS)
    begin = tokenizer.convert_tokens_to_ids(BOS)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, begin)]
    )
    return tokenizer


def save_language(folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.float16) -> Any:
    """A Llama in half precision with its tokenizer; the model."""
    torch.manual_seed(1)
    tokenizer = words()
    config = language_config(tokenizer)
    config.tie_word_embeddings, config.pad_token_id = tied, None
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save_vision(folder: Path) -> Any:
    """A CLIP with its tokenizer and image processor; the model."""
    torch.manual_seed(2)
    questions = query_tokenizer()
    vision, text = vision_config(), query_config(questions)
    model = CLIPModel(
        CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=text.projection_dim)
    )
    model.save_pretrained(folder)
    questions.save_pretrained(folder)
    side = vision.image_size
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )
    return model


def save_llava(folder: Path) -> Any:
    """A stock LLaVA with its processor; the model."""
    model = stock_llava()
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    model.save_pretrained(folder)
    stock_processor().save_pretrained(folder)
    return model
