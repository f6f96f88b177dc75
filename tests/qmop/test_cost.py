from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, LlamaConfig, LlavaConfig

from qmop.compressors import build_projector
from qmop.cost import VICUNA_7B, LanguageShape, cost_of, llava_config, macs_of, projector_macs
from qmop.features import Query, VisualFeatures
from qmop.tiny.assemble import tiny_config

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


def test_every_kind_of_product_is_counted() -> None:
    left, right = torch.ones(2, 3, 8, 4), torch.ones(2, 3, 5, 4)
    assert macs_of(lambda: F.scaled_dot_product_attention(left, right, right)) == 2 * (2 * 3 * 8 * 5 * 4)
    assert macs_of(lambda: F.linear(left, torch.ones(7, 4), torch.ones(7))) == 48 * 4 * 7
    assert macs_of(lambda: torch.einsum("abc,abd->cd", left[0], left[0])) == 3 * 8 * 4 * 4
    assert macs_of(lambda: F.conv2d(torch.ones(1, 6, 5, 5), torch.ones(6, 1, 3, 3), groups=6)) == 6 * 9 * 9
    assert macs_of(lambda: torch.cdist(left[0, 0], right[0, 0])) == 8 * 5 * 4
    assert macs_of(lambda: left * left[:1]) == left.numel()
    assert macs_of(lambda: left.clone().mul_(left)) == left.numel()
    assert macs_of(lambda: (left * 3 / torch.tensor(2.0) + 1).softmax(-1)) == 0
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    row = torch.ones(1, 5, 8)
    with torch.inference_mode():  # torch has a fast path here that hides everything
        assert macs_of(lambda: attention(row, row, row, need_weights=False)) == 4 * 5 * 64 + 2 * 25 * 8


def test_counting_leaves_fast_attention_as_it_was() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    macs_of(lambda: None)
    assert torch.backends.mha.get_fastpath_enabled()


def test_llava_without_compression_in_closed_form() -> None:
    cost = cost_of(llava_config("mlp"))
    assert cost.projector == 576 * (1024 * 4096 + 4096**2) == 12_079_595_520
    assert cost.parameters == 20_979_712
    linear = 24 * 577 * 12 * 1024**2 + 576 * 3 * 14**2 * 1024
    assert cost.vision == linear + 24 * 2 * 577**2 * 1024 + _elementwise_of_vision()
    assert (cost.reading, cost.question, cost.language) == (0, 0, VICUNA_7B.macs(576))


def _elementwise_of_vision() -> int:
    """CLIP's quick activation multiplies a state with its own sigmoid."""
    return 24 * 577 * 4096


def test_qmop_at_full_size_keeps_its_limit() -> None:
    cost = cost_of(llava_config("qmop", tokens=144))
    assert cost.visual_tokens == 144
    key_row = 2 * 1024**2 + 16 * 577 * 1024  # class attention, the key weights folded into its query
    assert cost.reading == key_row + 576 * 1024 * 768
    branches = 2 * (2 * 576 + 144) * 1024**2 + 2 * 144 * 576 * 1024
    connector = 144 * (1024 * 4096 + 4096**2)
    small = cost.projector - branches - connector
    assert 0 < small < 0.01e9  # windows, router, scores and the weighted sum
    assert cost.own == pytest.approx(6.375e9, abs=0.005e9)
    assert cost.own <= 7.3e9


def test_the_text_tower_at_the_papers_average_question() -> None:
    config = llava_config("prune", tokens=144)
    config.vision_config.num_hidden_layers = 1
    cost = cost_of(config, question_tokens=51)
    linear, attention = 12 * 51 * 12 * 768**2, 12 * 2 * 51**2 * 768
    assert linear == pytest.approx(4.33e9, abs=0.005e9)
    assert cost.question == linear + attention + 768**2 + 12 * 51 * 3072
    assert cost_of(config, question_tokens=500).question == cost_of(config, question_tokens=77).question


@pytest.mark.parametrize(("tokens", "published"), [(144, 10.72e9), (64, 8.8e9), (36, 8.1e9)])
def test_tokenpacker_costs_what_is_published(tokens: int, published: float) -> None:
    width, patches = 1024, 576
    paths = patches * 2 * (4 * width**2 + width**2 + width**2)
    queries = tokens * 3 * width**2
    connector = tokens * (width * 4096 + 4096**2)
    cost = cost_of(llava_config("tokenpacker", tokens=tokens)).projector
    assert 0 <= cost - paths - queries - connector < 0.003e9
    assert cost == pytest.approx(published, rel=0.003)


def test_a_mixture_that_is_passed_is_counted_as_it_chooses() -> None:
    config = tiny_config("qmop", tokens=16)
    projector = build_projector("qmop", grid=12, width=128, tokens=16, language_width=160, text_width=128).eval()
    features = VisualFeatures(
        patches_BNC=torch.rand(1, 144, 128),
        grid=(12, 12),
        summary_BC=torch.rand(1, 128),
        cls_attention_BN=torch.rand(1, 144),
        text_space_BNE=torch.rand(1, 144, 128),
    )
    query = Query(text_BE=torch.rand(1, 128))
    nn.init.zeros_(projector.compressor.router.leave.weight)
    counts = {}
    for weakest, name in enumerate(("resampler", "window_pool", "prune")):
        bias = torch.zeros(3)
        bias[weakest] = -9
        projector.compressor.router.leave.bias.data = bias
        counts[name] = projector_macs(projector, features, query)
    most = cost_of(config).projector
    assert counts["resampler"] < counts["window_pool"] < counts["prune"] < most
    attention = 2 * 16 * 144 * 128
    fused = 16 * 128  # the weighted sum
    assert most - counts["resampler"] == pytest.approx(2 * 144 * 128**2 + 16 * 128**2 + attention, abs=3 * fused)


def test_a_stock_configuration_counts_as_uncompressed() -> None:
    ours = tiny_config()
    stock = LlavaConfig(
        vision_config=ours.vision_config, text_config=ours.text_config, image_token_index=ours.image_token_id
    )
    assert cost_of(stock) == cost_of(ours)


def test_what_is_shown_smaller_costs_the_tower_less() -> None:
    whole, small = cost_of(tiny_config("mlp")), cost_of(tiny_config("downsample", tokens=36))
    assert 3.5 < whole.vision / small.vision < 4.6


def test_the_table_names_every_part() -> None:
    config = llava_config("mlp")
    config.vision_config.num_hidden_layers = 1
    table = cost_of(config).markdown()
    assert "| language | 3,817.15 GMAC |" in table
    assert "| KV cache | 302.0 MB |" in table
    assert "| parameters | 20,979,712 |" in table


def test_counting_repeats_itself_and_leaves_random_numbers_alone() -> None:
    torch.manual_seed(3)
    first = torch.rand(2)
    torch.manual_seed(3)
    costs = [cost_of(tiny_config("visionzip", tokens=16)) for _ in range(2)]
    assert costs[0] == costs[1]
    assert torch.equal(torch.rand(2), first)


def test_a_method_inside_the_language_model_saves_after_its_first_layers() -> None:
    cost, shape = cost_of(tiny_config("fastv", tokens=16, layer=1)), LanguageShape.of(tiny_config().text_config)
    assert cost.visual_tokens == 144
    assert cost.language == shape.layer_macs(144) + 3 * shape.layer_macs(16)
    assert cost.kv_bytes == 2 * 2 * 160 * (144 + 3 * 16)
