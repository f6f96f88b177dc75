from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from qmop.compressors.mixture import Mixture
from qmop.compressors.projector import Connector, projector_spec
from qmop.features import Query, VisualFeatures
from qmop.tiny.assemble import tiny_config

MakeFeatures = Callable[..., VisualFeatures]
MakeQuery = Callable[..., Query]

EVERY = {"mlp": None, "average_pool": 16, "window_pool": 16, "resampler": 16, "prune": 16, "blind": 16, "qmop": 16}


def test_the_connector_has_llavas_names_and_widths() -> None:
    connector = projector_spec(tiny_config()).build().connector
    shapes = {name: tuple(value.shape) for name, value in connector.named_parameters()}
    assert shapes == {
        "linear_1.weight": (160, 128),
        "linear_1.bias": (160,),
        "linear_2.weight": (160, 160),
        "linear_2.bias": (160,),
    }


def test_the_connector_comes_after_the_compressor(make_features: MakeFeatures) -> None:
    projector, features = projector_spec(tiny_config("average_pool", 16)).build(), make_features(2, grid=12, width=128)
    pooled = projector.compressor(features).tokens_BMC
    assert isinstance(projector.connector, Connector)
    first, second = projector.connector.linear_1, projector.connector.linear_2
    by_hand = F.gelu(pooled @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(projector(features).tokens_BMC, by_hand)


def test_everything_but_the_tokens_is_passed_on(make_features: MakeFeatures) -> None:
    projector, features = (
        projector_spec(tiny_config("prune", 16, lam=1.0)).build(),
        make_features(2, grid=12, width=128),
    )
    assert torch.equal(projector(features).kept_BM, projector.compressor(features).kept_BM)


@pytest.mark.parametrize(("name", "tokens"), EVERY.items())
def test_the_specification_counts_as_the_built_projector_does(name: str, tokens: int | None) -> None:
    config = tiny_config(name, tokens)
    assert projector_spec(config).token_count() == projector_spec(config).build().token_count() == (tokens or 144)


@pytest.mark.parametrize(("stage", "count"), [(1, 48), (2, 16)])
def test_the_stages_of_the_mixture_count_differently(stage: int, count: int) -> None:
    config = tiny_config("qmop", 16, stage=stage)
    projector = projector_spec(config).build()
    assert projector.stage == stage
    assert projector.token_count() == projector_spec(config).token_count() == count
    assert (projector.token_count(stage=1), projector.token_count(stage=2)) == (48, 16)


def test_methods_without_stages_are_in_the_second() -> None:
    projector = projector_spec(tiny_config("window_pool", 16)).build()
    assert projector.stage == 2
    assert projector.token_count(stage=1) == 16


def test_the_mixture_learns_the_width_of_the_question_from_the_text_tower() -> None:
    compressor = projector_spec(tiny_config("qmop", 16)).build().compressor
    assert isinstance(compressor, Mixture)
    assert compressor.router.enter.in_features == 128 + 128


def test_pixels_that_no_patch_covers_are_left_out() -> None:
    config = tiny_config()
    config.vision_config.image_size = 100
    assert projector_spec(config).grid == 12


def test_a_text_width_that_is_not_the_text_towers_is_refused() -> None:
    config = tiny_config("qmop", 16)
    config.compressor_options = {"text_width": 5}
    with pytest.raises(ValueError, match="text_width is 5, but the text tower gives 128: leave the option out"):
        projector_spec(config)


def test_a_budget_of_nothing_is_not_a_budget_of_everything() -> None:
    with pytest.raises(ValueError, match=r"tokens is 0.*choose 1 to 144"):
        projector_spec(tiny_config("prune", 0)).build()
