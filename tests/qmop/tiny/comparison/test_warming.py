from __future__ import annotations

import pytest
import torch
from torch import nn

from qmop.compressors import build_projector
from qmop.compressors.registry import build_compressor
from qmop.features import Query, VisualFeatures
from qmop.tiny.comparison.warming import learners, pooled, warm
from qmop.tiny.pretraining.loop import Schedule

WIDTH, LANGUAGE, GRID, TOKENS = 16, 24, 12, 16
SHORT = Schedule(steps=60, learning_rate=5e-3, warmup=5)


def batch(step: int) -> tuple[VisualFeatures, Query]:
    generator = torch.Generator().manual_seed(step)
    patches = torch.randn(8, GRID * GRID, WIDTH, generator=generator)
    features = VisualFeatures(patches_BNC=patches, grid=(GRID, GRID), levels_BNF=torch.cat([patches] * 4, dim=-1))
    return features, Query(text_BE=torch.randn(8, WIDTH, generator=generator))


def off(method: str, connector: nn.Module, **options: object) -> tuple[float, float]:
    """How far a method's tokens are from pooled patches before and after, in mean squares."""
    torch.manual_seed(0)
    projector = build_projector(
        method,
        grid=GRID,
        width=WIDTH,
        tokens=TOKENS,
        language_width=LANGUAGE,
        **options,  # type: ignore[arg-type]
    )
    frozen = {name: value.clone() for name, value in projector.connector.state_dict().items()}

    @torch.no_grad()
    def distance() -> float:
        features, query = batch(1000)
        own = projector.declaration.readout != "connector"
        target = pooled(connector(features.patches_BNC) if own else features.patches_BNC, TOKENS)
        if projector.declaration.readout == "connector_first":
            features = features.with_patches(connector(features.patches_BNC))
        return float((projector.compressor(features, query).tokens_BMC - target).square().mean())

    before = distance()
    warm(projector, connector, batch, SHORT, lambda _: None)
    for name, value in projector.connector.state_dict().items():
        assert torch.equal(value, frozen[name]), f"{name} changed, but the compressor alone learns"
    return before, distance()


@pytest.fixture
def connector() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(WIDTH, LANGUAGE)


@pytest.mark.parametrize(
    ("method", "options"),
    [("window_pool", {"heads": 4}), ("tokenpacker", {"heads": 4}), ("pixel_shuffle", {}), ("ldp_v2", {})],
)
def test_a_method_with_parameters_comes_closer_to_pooled_patches(
    connector: nn.Module, method: str, options: dict[str, int]
) -> None:
    before, after = off(method, connector, **options)
    assert after < 0.8 * before


def test_a_method_without_any_stays_as_it_is(connector: nn.Module) -> None:
    before, after = off("average_pool", connector)
    assert before == after == pytest.approx(0.0, abs=1e-12)


def test_of_a_mixture_the_trained_branches_learn() -> None:
    mixture = build_compressor("qmop", grid=GRID, width=32, tokens=TOKENS, text_width=32)
    assert [part.declaration.name for part in learners(mixture)] == ["resampler", "window_pool"]


def test_pooling_is_the_mean_of_each_window() -> None:
    patches = torch.arange(144.0).view(1, 144, 1)
    assert pooled(patches, 16)[0, 0, 0] == torch.tensor([0, 1, 2, 12, 13, 14, 24, 25, 26]).float().mean()
    with pytest.raises(ValueError, match="tokens is 15, which is no square"):
        pooled(patches, 15)
