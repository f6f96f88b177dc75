from __future__ import annotations

import pytest

from qmop.compressors.base import stride_of
from qmop.encoders import default_levels
from qmop.tiny.configs import LEVELS, PATCH_SIZE, PROJECTION, QUERY_LENGTH, language_config, query_config, vision_config
from qmop.tiny.tokenizer import language_tokenizer, query_tokenizer
from qmop.vtcbench.scene import IMAGE_SIZE


@pytest.mark.parametrize(("tokens", "stride"), [(144, 1), (36, 2), (16, 3), (9, 4), (4, 6), (1, 12)])
def test_the_grid_takes_half_the_papers_strides(tokens: int, stride: int) -> None:
    assert stride_of(IMAGE_SIZE // PATCH_SIZE, tokens) == stride


def test_widths_differ_so_that_a_mistaken_one_fails() -> None:
    words = language_tokenizer()
    assert vision_config().hidden_size == 128
    assert language_config(words).hidden_size == 160
    assert vision_config().projection_dim == query_config(query_tokenizer()).projection_dim == PROJECTION


def test_vocabulary_and_lengths_fit_the_tokenizers() -> None:
    words, questions = language_tokenizer(), query_tokenizer()
    assert language_config(words).vocab_size == len(words)
    assert query_config(questions).vocab_size == len(questions)
    assert query_config(questions).max_position_embeddings == QUERY_LENGTH == questions.model_max_length
    assert language_config(words).max_position_embeddings >= words.model_max_length


def test_levels_are_four_different_ones_up_to_the_patches() -> None:
    layers = vision_config().num_hidden_layers
    assert layers >= 6
    assert len(set(LEVELS)) == 4
    assert LEVELS[-1] == layers - 1
    assert set(default_levels(layers)) < {*LEVELS}
