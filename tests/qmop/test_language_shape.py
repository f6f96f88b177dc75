from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, LlamaConfig

from qmop.cost import llava_config
from qmop.language_shape import VICUNA_7B, LanguageShape
from qmop.mac_counter import macs_of

TABLE_6 = {
    576: ("3.82", "302.0"),
    144: ("0.94", "75.5"),
    64: ("0.42", "33.6"),
    36: ("0.23", "18.9"),
    16: ("0.10", "8.4"),
    4: ("0.03", "2.1"),
}


@pytest.mark.parametrize("tokens", TABLE_6)
def test_table_6_to_the_printed_digits_by_rounding(tokens: int) -> None:
    tera, megabytes = VICUNA_7B.macs(tokens) / 1e12, VICUNA_7B.kv_bytes(tokens) / 1e6
    assert (f"{tera:.2f}", f"{megabytes:.1f}") == TABLE_6[tokens]


def test_the_papers_formula_is_the_case_without_shared_heads() -> None:
    layers, width, inner, tokens = 32, 4096, 11008, 144
    linear = layers * (4 * width**2 + 3 * width * inner) * tokens
    assert VICUNA_7B.macs(tokens) == linear + 2 * tokens**2 * width * layers
    assert VICUNA_7B.kv_bytes(tokens) == tokens * layers * 2 * width * 2
    assert LanguageShape.of(llava_config().text_config) == VICUNA_7B


@pytest.mark.parametrize("key_heads", [8, 2])
def test_a_decoders_formula_agrees_with_counting_it(key_heads: int) -> None:
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=key_heads,
    )
    decoder = AutoModel.from_config(config).eval()
    products = sum(module.weight.numel() for module in decoder.modules() if isinstance(module, nn.Linear)) * 50
    attention = 3 * 2 * 50 * 50 * 64
    assert LanguageShape.of(config).macs(50) == products + attention
    with torch.no_grad():
        counted = macs_of(lambda: decoder(inputs_embeds=torch.ones(1, 50, 64), use_cache=False))
    # What the formula leaves out is element by element: norms' scales, rotary positions and the gate.
    assert 0 < counted - products - attention < 0.05 * counted


def test_sharing_heads_saves_cache_and_projections() -> None:
    shared = LanguageShape(layers=32, width=4096, inner=11008, heads=32, key_heads=8, head_width=128)
    assert shared.kv_bytes(144) * 4 == VICUNA_7B.kv_bytes(144)
    assert VICUNA_7B.macs(144) - shared.macs(144) == 32 * 2 * 4096 * 128 * 24 * 144
