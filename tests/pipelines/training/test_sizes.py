from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.training.parts import Parts
from pipelines.training.sizes import config_of, llava_13b
from qmop.language_shape import VICUNA_7B, LanguageShape
from tests.pipelines.training.base_parts import save_language

SEVEN = Parts(language="lmsys/vicuna-7b-v1.5@refs/pr/3", vision="openai/clip-vit-large-patch14-336")


def parameters(config: object) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


def test_published_sizes_are_known_without_network() -> None:
    seven = config_of(SEVEN)
    assert LanguageShape.of(seven.text_config) == VICUNA_7B
    assert seven.query_config.projection_dim == 768
    assert config_of(Parts(llava="llava-hf/llava-1.5-7b-hf")).query_config is None
    # Llama 2's published counts, and 64 rows of words and as many of the head for placeholder and padding
    assert parameters(seven.text_config) == 6_738_415_616 + 2 * 64 * 4096
    assert parameters(llava_13b().text_config) == 13_015_864_320 + 2 * 64 * 5120


def test_unknown_parts_are_asked_for_their_configuration(tmp_path: Path) -> None:
    model = save_language(tmp_path / "words")
    mixed = config_of(replace(SEVEN, language=str(tmp_path / "words")))
    assert mixed.text_config.hidden_size == model.config.hidden_size
    assert mixed.vision_config.hidden_size == 1024


def test_a_part_of_another_kind_is_named(tmp_path: Path) -> None:
    save_language(tmp_path / "words")
    with pytest.raises(ValueError, match=r"vision is .* holds a llama model: give a CLIP or SigLIP"):
        config_of(replace(SEVEN, vision=str(tmp_path / "words")))
    with pytest.raises(ValueError, match=r"llava is .* holds a llama model: give a stock LLaVA"):
        config_of(Parts(llava=str(tmp_path / "words")))
