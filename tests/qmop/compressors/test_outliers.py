from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor

from qmop.compressors.outliers import count_outliers, local_outlier_factor


def sklearn_factor(values: np.ndarray, neighbours: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of duplicates, and of more neighbours than there are values
        return -LocalOutlierFactor(n_neighbors=neighbours).fit(values[:, None]).negative_outlier_factor_


def draw(kind: str, count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind == "normal":
        return random.normal(size=count)
    if kind == "attention":
        return random.lognormal(sigma=2.0, size=count) / 576
    if kind == "one value often":
        return np.where(random.random(count) < 0.3, -1.3, random.normal(size=count))
    return random.choice(random.normal(size=max(2, count // 3)), count)  # many values twice or more


@pytest.mark.parametrize("neighbours", [1, 2, 10, 20])
@pytest.mark.parametrize("kind", ["normal", "attention", "one value often", "repeated"])
def test_equals_scikit_learn(kind: str, neighbours: int) -> None:
    for seed, count in enumerate((576, 144, 25, 7)):
        values = draw(kind, count, seed)
        factor = local_outlier_factor(torch.tensor(values)[None], neighbours)[0]
        np.testing.assert_allclose(factor, sklearn_factor(values, neighbours), rtol=1e-9)


@pytest.mark.parametrize("kind", ["normal", "attention", "repeated"])
def test_single_precision_is_enough(kind: str) -> None:
    values = draw(kind, 576, 3).astype(np.float32)
    factor = local_outlier_factor(torch.tensor(values)[None], 20)[0]
    assert factor.dtype == torch.float32
    np.testing.assert_allclose(factor, sklearn_factor(values, 20), rtol=1e-4)


def test_half_precision_is_computed_in_single() -> None:
    values = torch.tensor(draw("normal", 144, 0)).bfloat16()[None]
    assert torch.equal(local_outlier_factor(values, 20), local_outlier_factor(values.float(), 20))


def test_masked_values_count_for_nothing() -> None:
    values = torch.tensor(np.stack([draw("attention", 144, seed) for seed in range(4)]))
    mask = torch.rand(4, 144, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.9, 0.5, 0.2, 0.05])[:, None]
    factor = local_outlier_factor(values, 20, mask)
    for row in range(4):
        np.testing.assert_allclose(
            factor[row][mask[row]], sklearn_factor(values[row][mask[row]].numpy(), 20), rtol=1e-9
        )
    assert (factor[~mask] == 1).all()
    assert torch.equal(local_outlier_factor(values.masked_fill(~mask, 1e6), 20, mask), factor)


def test_rows_do_not_touch_each_other() -> None:
    values = torch.tensor(np.stack([draw(kind, 144, 1) for kind in ("normal", "attention", "repeated")]))
    together = local_outlier_factor(values, 20)
    for row in range(3):
        assert torch.equal(local_outlier_factor(values[row : row + 1], 20)[0], together[row])


@pytest.mark.parametrize("kind", ["normal", "attention", "repeated"])
def test_both_tails_are_what_scikit_learn_labels(kind: str) -> None:
    values = np.stack([draw(kind, 576, seed) for seed in range(3)])
    counts = count_outliers(torch.tensor(values), 20, tail="both")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = [LocalOutlierFactor(n_neighbors=20).fit_predict(row[:, None]) for row in values]
    assert counts.tolist() == [(label == -1).sum() for label in labels]
    assert counts.min() > 0


def test_the_upper_tail_begins_above_the_median() -> None:
    middle = torch.linspace(0, 1, 101)
    values = torch.cat([middle, torch.tensor([-9.0, -5.0, 4.0, 7.0, 12.0])])[None]
    assert count_outliers(values, 10, tail="both").tolist() == [5]
    assert count_outliers(values, 10).tolist() == [3]
    assert count_outliers(-values, 10).tolist() == [2]


def test_a_lonely_median_is_not_in_the_upper_tail() -> None:
    values = torch.cat([torch.linspace(0, 1, 50), torch.tensor([5.0]), torch.linspace(9, 10, 50)])[None]
    assert count_outliers(values, 10, tail="both").tolist() == [1]
    assert count_outliers(values, 10).tolist() == [0]


def test_the_median_is_that_of_the_real_values() -> None:
    values = torch.cat([torch.linspace(0, 1, 50), torch.tensor([5.0]), torch.full((50,), 9.0)])[None]
    mask = values < 9
    assert count_outliers(values, 10, mask_BN=mask).tolist() == [1]
    assert count_outliers(-values, 10, mask_BN=mask).tolist() == [0]


def test_equal_values_have_no_outliers() -> None:
    assert count_outliers(torch.full((2, 36), 0.25), 20, tail="both").tolist() == [0, 0]


@pytest.mark.parametrize("real", [0, 1, 2, 3])
def test_few_values_are_judged_by_as_many_as_there_are(real: int) -> None:
    values = torch.tensor([[0.0, 1.0, 50.0, 3.0]], dtype=torch.float64)
    mask = torch.arange(4)[None] < real
    factor = local_outlier_factor(values, 20, mask)
    expected = sklearn_factor(values[0, :real].numpy(), 20) if real > 1 else np.ones(real)
    np.testing.assert_allclose(factor[0, :real], expected, rtol=1e-9)
    assert factor[0, real:].tolist() == [1.0] * (4 - real)


def test_a_single_place_is_no_outlier() -> None:
    assert local_outlier_factor(torch.tensor([[3.0]]), 20).tolist() == [[1.0]]
