from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from transformers import LlavaConfig

from qmop.compressors import build_projector, projector_spec
from qmop.cost import cost_of, llava_config, projector_macs
from qmop.encoders import QueryEncoder
from qmop.features import Query, VisualFeatures
from qmop.language_shape import VICUNA_7B, LanguageShape
from qmop.surgery import compress
from qmop.tiny.assemble import tiny_config
from qmop.tiny.configs import query_config
from qmop.tiny.tokenizer import query_tokenizer
from tests.fixtures.stock_llava import stock_llava


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


def test_plain_fusion_counts_neither_router_nor_a_question_that_nobody_reads() -> None:
    routed, plain = (cost_of(tiny_config("qmop", tokens=16, **options)) for options in ({}, {"select": "equal"}))
    assert routed.projector - plain.projector == (128 + 128) * 512 + 512 * 3
    assert plain.question == routed.question > 0  # pruning reads it
    deaf = cost_of(tiny_config("qmop", tokens=16, select="equal", branches={"prune": {"lam": 1.0}}))
    assert deaf.question == 0
    assert deaf.reading < plain.reading  # no patch is mapped into text space


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


def test_an_attached_method_that_reads_questions_is_counted_with_its_text_tower() -> None:
    words, stock = query_tokenizer(), stock_llava()
    encoder = QueryEncoder(query_config(words), stock.config.vision_config)
    handle = compress(stock, "prune", 16, text_encoder=encoder, query_tokenizer=words)
    with pytest.raises(ValueError, match="query_config is missing, but prune reads the question"):
        cost_of(stock.config, projector=handle.projector)
    counted = cost_of(stock.config, projector=handle.projector, query_config=handle.query_config)
    own = cost_of(tiny_config("prune", 16))
    assert (counted.question, counted.reading, counted.visual_tokens) == (own.question, own.reading, 16)
    assert counted.question > 0


def test_a_projector_in_half_precision_costs_the_same() -> None:
    config, single = tiny_config("qmop", 16), projector_spec(tiny_config("qmop", 16)).build().eval()
    half = cost_of(config, projector=projector_spec(config).build().eval().bfloat16())
    assert half.parameters == cost_of(config, projector=single).parameters
    assert half.projector > 0


def test_a_question_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="question_tokens is 0"):
        cost_of(tiny_config("qmop", 16), question_tokens=0)


@pytest.mark.parametrize("quantised", [bnb.nn.Linear4bit, bnb.nn.Linear8bitLt])
def test_a_quantised_connector_is_counted(quantised: Any) -> None:
    config = tiny_config("average_pool", 16)
    projector = projector_spec(config).build().eval()
    weight = projector.connector.linear_1.weight
    projector.connector.linear_1 = quantised(weight.shape[1], weight.shape[0]).to("cpu")
    assert cost_of(config, projector=projector).projector > 0
