"""From records to the page, with figures that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qmop.tiny.comparison.results import Results, gather
from qmop.tiny.comparison.rows import Unit
from qmop.tiny.comparison.table import differences, page
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.methods import holm, method_accuracy, method_difference
from qmop.vtcbench.records import Record
from tests.qmop.tiny.comparison.conftest import unit

Found = tuple[Unit, list[Record]]
CODES = list(DIMENSIONS)


def answered(one: Unit, scores: Sequence[float], weights: tuple[float, ...] | None = None, suite: str = "s") -> Found:
    """A run over items that go through the dimensions; the first half is core, then hard, the last fifth held out."""
    count = len(scores)
    records = [
        Record(
            checkpoint="",
            label=one.label,
            method=one.row.name,
            budget=one.tokens,
            visual_tokens=one.tokens,
            suite_digest=suite,
            shard="",
            key=f"item {place}",
            dimension=CODES[place % 5],
            task="t",
            question="",
            answer="",
            prediction="",
            score=float(right),
            parsable=True,
            level="core" if 2 * place < count else "held_out" if 5 * place >= 4 * count else "hard",
            branch_weights=None if weights is None else tuple(float(x) for x in np.roll(weights, place % 5)),
            seconds=60 * 1.5 / count,
        )
        for place, right in enumerate(scores)
    ]
    return one, records


def row_of(told: str, name: str, budget: int = 16) -> dict[str, str]:
    """One line of a table of accuracies, by column."""
    table = told.split(f"### {budget} of 144 tokens\n\n")[1].split("\n\n", maxsplit=1)[0].splitlines()
    head, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    (found,) = [line for line in lines if line[0] == name]
    return dict(zip(head, found, strict=True))


def names(told: str, budget: int) -> list[str]:
    table = told.split(f"### {budget} of 144 tokens\n\n")[1].split("\n\n", maxsplit=1)[0].splitlines()
    return [line.strip("| ").split(" |")[0] for line in table[2:]]


def test_the_oracle_takes_the_best_branch_of_every_item_run_by_run() -> None:
    right = {
        "resampler": [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
        "window_pool": [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]],
        "prune": [[1, 1, 0, 0, 0], [0, 0, 0, 0, 1]],
    }
    found = [answered(unit(name, seed=s), scores) for name, runs in right.items() for s, scores in enumerate(runs)]
    results = gather(found)
    assert results.right["oracle branch", 16].tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]
    told = row_of(page(results), "oracle branch")
    assert (told["runs"], told["micro"].split()[0], told["GU"], told["LD"], told["CPU min"]) == (
        *("2", "40.0", "50.0", "50.0"),
        "",
    )
    without = gather([one for one in found if one[0].row.name != "prune"])
    assert ("oracle branch", 16) not in without.right


def test_the_loss_is_what_uncompressed_runs_have_right_and_the_others_miss() -> None:
    whole = [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    mine = [[1, 0, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]
    found = [answered(unit("uncompressed", tokens=144, seed=s), scores) for s, scores in enumerate(whole)]
    found += [answered(unit("prune", seed=s), scores) for s, scores in enumerate(mine)]
    told = page(gather(found))
    # one of four, two of two, and the third run against the first again: one of four
    assert row_of(told, "prune")["loss"] == f"{100 * (1 / 4 + 1 + 1 / 4) / 3:.1f}" == "50.0"
    # an uncompressed run against the other: two of four, and none of two
    assert row_of(told, "uncompressed")["loss"] == f"{100 * (2 / 4 + 0) / 2:.1f}" == "25.0"
    assert row_of(page(gather(found[2:])), "prune")["loss"] == ""


def test_cells_are_means_over_runs_and_items() -> None:
    # items 0-4 core, 5-7 hard, 8-9 held out; dimensions go round
    first, second = [1, 1, 1, 1, 0, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    found = [answered(unit("prune", seed=seed), scores) for seed, scores in enumerate((first, second))]
    told = row_of(page(gather(found)), "prune")
    expected = {"runs": "2", "GU": "50.0", "SC": "50.0", "RC": "50.0", "SE": "75.0", "LD": "0.0"}
    expected |= {"core": "60.0", "hard": "16.7", "held_out": "50.0", "loss": "", "CPU min": "1.5"}
    estimate = method_accuracy([first, second])
    expected["micro"] = f"45.0 ({100 * estimate.low:.1f}-{100 * estimate.high:.1f})"
    assert told == {"row": "prune", **expected}
    assert estimate.low < 0.45 < estimate.high


def noisy(level: float, seed: int, runs: int, items: int = 400) -> np.ndarray:
    return (np.random.default_rng(seed).random((runs, items)) < level).astype(float)


@pytest.fixture(scope="module")
def compared() -> Results:
    levels = {"qmop": 0.7, "tokenpacker": 0.58, "resampler": 0.7, "window_pool": 0.8, "prune": 0.64}
    scores = {
        name: noisy(level, place, 1 if name == "resampler" else 4) for place, (name, level) in enumerate(levels.items())
    }
    return gather([answered(unit(name, seed=s), one) for name, runs in scores.items() for s, one in enumerate(runs)])


def test_registered_comparisons_are_corrected_for_their_number(compared: Results) -> None:
    found = differences(compared)
    assert [pair[:2] for pair in found] == [
        ("qmop", other) for other in ("tokenpacker", "resampler", "window_pool", "prune")
    ]
    raw = [method_difference(compared.right[other, 16], compared.right["qmop", 16]).p_value for _, other, _, _ in found]
    assert [p for *_, p in found] == holm(raw)
    assert found[0][3] > raw[0]
    assert found[0][2].estimate.value == compared.right["qmop", 16].mean() - compared.right["tokenpacker", 16].mean()
    assert found[0][2].runs == (4, 4)


def test_a_comparison_is_called_what_it_is(compared: Results) -> None:
    lines = [line.strip("| ").split(" | ") for line in page(compared).split("\n\n")[0].splitlines()[2:]]
    verdicts = {line[0]: (line[1], line[-1].strip(" |")) for line in lines}
    assert verdicts == {
        "qmop against tokenpacker": ("4 and 4", "better"),
        "qmop against resampler": ("1 and 4", "no claim: a single run"),
        "qmop against window_pool": ("4 and 4", "worse"),
        "qmop against prune": ("4 and 4", verdicts["qmop against prune"][1]),
    }
    mean = 100 * (compared.right["qmop", 16].mean() - compared.right["tokenpacker", 16].mean())
    assert lines[0][2].startswith(f"{mean:+.1f} (+")
    assert lines[2][2].startswith("-")


def test_equals_are_within_noise() -> None:
    alike = noisy(0.7, 3, 3)
    found = [answered(unit(name, seed=s), one) for name in ("qmop", "prune") for s, one in enumerate(alike)]
    told = page(gather(found))
    assert "| qmop against prune | 3 and 3 | +0.0 (" in told
    assert "| 1.0000 | within noise |" in told


def test_a_p_value_that_resampling_cannot_resolve_is_a_bound() -> None:
    found = [answered(unit("prune", seed=s), one) for s, one in enumerate(noisy(0.3, 3, 6))]
    found += [answered(unit("qmop", seed=s), one) for s, one in enumerate(noisy(0.9, 4, 6))]
    # the only one that can be made of four, so Holm's factor is four: 4 * 2 / 10,001
    assert "| ≤ 0.0008 | better |" in page(gather(found))


def test_every_budget_has_a_table_with_the_references_that_know_none() -> None:
    scores = [1, 0, 1, 0, 1]
    branches = ("resampler", "window_pool", "prune")
    found = [answered(unit(name, tokens=tokens), scores) for name in branches for tokens in (16, 36, 9)]
    found += [answered(unit("uncompressed", tokens=144), scores), answered(unit("blind"), scores)]
    found += [answered(unit(name), scores) for name in ("top 1", "oracle pruning", "qmop")]
    told = page(gather(found))
    assert told.index("### 16 of") < told.index("### 36 of") < told.index("### 9 of")
    everywhere = ["uncompressed", "blind"]
    assert names(told, 16) == [*everywhere, "oracle pruning", *branches, "qmop", "top 1", "oracle branch"]
    assert names(told, 36) == names(told, 9) == [*everywhere, *branches, "oracle branch"]
    assert "### 144 of" not in told


def test_branch_weights_are_means_over_runs_by_dimension() -> None:
    runs = [(0.5, 0.3, 0.2), (0.7, 0.1, 0.2)]
    found = [answered(unit("qmop", seed=s), [1.0] * 10, weights) for s, weights in enumerate(runs)]
    results = gather([*found, answered(unit("prune"), [1.0] * 10)])
    assert list(results.weights) == [("qmop", 16)]
    assert list(results.weights["qmop", 16]) == CODES
    told = page(results).split("### Router\n\n")[1].splitlines()
    assert told[0] == "| row | GU | SC | RC | SE | LD |"
    assert told[2:] == ["| qmop @16 | 60/20/20 | 20/60/20 | 20/20/60 | 60/20/20 | 20/60/20 |"]
