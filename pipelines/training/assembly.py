"""Towers, a fresh connector and a language model put together into one model.

LLaVA-1.5 begins with a Vicuna and OpenAI's CLIP; so can a run here. The connector starts as LLaVA's does (torch's own
start values of a linear layer), pictures are padded to squares before they are resized, as its authors train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import processors
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlavaImageProcessorPil,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qmop.compressors import projector_spec
from qmop.compressors.projector import Projector
from qmop.configuration_qmop import QMoPConfig
from qmop.encoders.selections import SELECTIONS
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.quiet import without_tables
from qmop.stock_llava import from_llava
from qmop.text_encoder import VOCABULARIES, load_query_encoder

IMAGE = "<image>"
_ROWS = 64
"""Vocabularies grow to a multiple of this, as LLaVA's did; odd sizes make slow products."""

VICUNA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user\\'s questions. ' }}{% endif %}"
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' if message['role'] == 'assistant' else '' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{{ '" + IMAGE + "\\n' if part['type'] == 'image' else part['text'] if part['type'] == 'text' else '' }}"
    "{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{{ 'ASSISTANT:' if add_generation_prompt else '' }}"
)
"""The prompt of Vicuna 1.1 and later, which LLaVA-1.5 keeps; a picture is a line of its own."""


def put_together(folders: dict[str, Path]) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
    """A model without compression out of local parts, in evaluation mode, with its processor.

    Every number of the parts stays as it is, in the part's own precision.

    Args:
        folders: by field of `Parts`.
    """
    if "llava" in folders:
        model, processor = from_llava(folders["llava"], folders.get("vision"))
        template = speak_plainly(processor.tokenizer, processor.chat_template, processor.image_token)
        processor.chat_template = template
        return model, processor
    speaker, words = _speaker(folders["language"])
    image_id = _room_for_pictures(speaker, words)
    tower = _tower(folders["vision"])
    encoder, questions = load_query_encoder(folders["vision"], tower.config)
    config = QMoPConfig(
        vision_config=tower.config,
        text_config=speaker.config,
        query_config=encoder.text_tower.config,
        image_token_index=image_id,
        vision_feature_select_strategy=SELECTIONS[tower.config.model_type],
        tie_word_embeddings=speaker.config.tie_word_embeddings,
        compressor="mlp",
    )
    config.image_seq_length = projector_spec(config).token_count()
    with torch.device("meta"):
        model = QMoPForConditionalGeneration(config)
    model.model.vision_tower, model.model.query_encoder = tower, encoder
    model.model.language_model, model.lm_head = speaker.get_decoder(), speaker.get_output_embeddings()
    model.model.multi_modal_projector = _fresh_connector(config)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
    )  # not the language model's own: Vicuna's asks for sampling and for greed at once
    assert not any(parameter.is_meta for parameter in model.parameters()), "every part is there"
    template = speak_plainly(words, words.chat_template, IMAGE)
    processor = QMoPProcessor(_pictures(folders["vision"]), words, questions, image_token=IMAGE, chat_template=template)
    return model.eval(), QMoPProcessor.for_config(config, processor)


def speak_plainly(tokenizer: Any, template: str | None, image_token: str) -> str:
    """Let the template alone say where a text begins, so that prompts are cut alike in training and afterwards.

    Args:
        tokenizer: changed: it adds no token by itself any more.
        template: of conversations; Vicuna's where it is absent or shows no picture.
        image_token: the placeholder.

    Returns:
        The template, which now begins with what the tokenizer used to put first.
    """
    if not template or image_token not in template:
        template = VICUNA.replace(IMAGE, image_token)
    added = [token for token in tokenizer("a")["input_ids"] if token not in _bare(tokenizer, "a")]
    if not added:
        return template
    for name in ("add_bos_token", "add_eos_token"):
        if getattr(tokenizer, name, None):
            setattr(tokenizer, name, False)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    assert tokenizer("a")["input_ids"] == _bare(tokenizer, "a"), "the tokenizer adds nothing by itself"
    begins = "bos_token" in template or (tokenizer.bos_token and tokenizer.bos_token in template)
    return template if begins or tokenizer.bos_token_id not in added else "{{ bos_token }}" + template


def _bare(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _speaker(folder: Path) -> tuple[Any, Any]:
    """The language model in its own precision, and its tokenizer."""
    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"language {folder} holds a {kind} model, which writes no text by itself: give a causal language model"
        )
    speaker = _weights(AutoModelForCausalLM, folder, "language")
    head = speaker.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(f"language {folder} has a head that is no plain linear layer: give a Llama, Qwen or Mistral")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ValueError(f"language {folder} holds no tokenizer: save the model's tokenizer into the same folder")
    try:
        return speaker, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer in language {folder} cannot be read ({str(error).splitlines()[0]}): save it as "
            "tokenizer.json, as save_pretrained of a fast tokenizer does"
        ) from error


def _tower(folder: Path) -> Any:
    """The vision tower of a checkpoint with two towers."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    vision = getattr(config, "vision_config", None)
    if vision is None or vision.model_type not in SELECTIONS:
        raise ValueError(f"vision {folder} holds a {config.model_type} model: give a CLIP or SigLIP with both towers")
    with torch.device("meta"):
        kind = type(AutoModel.from_config(vision))
    return _weights(kind, folder, "vision", config=vision)


def _weights(kind: Any, folder: Path, field: str, **options: Any) -> Any:
    """A module with the weights of a folder, whole, in evaluation mode."""
    settings = {"dtype": "auto", "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        with without_tables():  # the other tower's weights are left out on purpose
            module, report = kind.from_pretrained(folder, **settings, **options)
    except SafetensorError as error:
        raise ValueError(f"a .safetensors file of {field} in {folder} is damaged ({error}): fetch it again") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{field} {folder} lacks weights ({', '.join(missing[:3])}): fetch or save it again")
    return module.eval()


@torch.no_grad()
def _room_for_pictures(speaker: Any, words: Any) -> int:
    """Give placeholder and padding a place in tokenizer and vocabulary; the placeholder's id.

    New rows are the mean of the old ones: no placeholder is ever read as a word, and a mean is never chosen to be said.
    """
    if words.pad_token is None:
        words.pad_token = words.unk_token or "<pad>"
    words.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    before = speaker.get_input_embeddings().num_embeddings
    if len(words) > before:
        speaker.resize_token_embeddings(len(words), pad_to_multiple_of=_ROWS, mean_resizing=False)
        for module in (speaker.get_input_embeddings(), speaker.get_output_embeddings()):
            module.weight[before:] = module.weight[:before].float().mean(dim=0).to(module.weight.dtype)
    speaker.config.pad_token_id = words.pad_token_id
    return int(words.convert_tokens_to_ids(IMAGE))


def _fresh_connector(config: QMoPConfig) -> Projector:
    """The same start values for the same sizes, whoever makes the base."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return projector_spec(config).build()


def _pictures(folder: Path) -> Any:
    """The image processor; CLIP's pads to a square instead of cutting the sides off."""
    try:
        own = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"vision {folder} holds no image processor: save the model's processor into the same folder"
        ) from error
    if not type(own).__name__.startswith("CLIPImageProcessor"):
        return own
    same = {name: getattr(own, name) for name in ("size", "crop_size", "resample", "image_mean", "image_std")}
    return LlavaImageProcessorPil(**same, do_pad=True)
