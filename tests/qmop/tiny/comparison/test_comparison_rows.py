"""What is planned, and under which name its results are kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest

from qmop.annealing import RouterSchedule
from qmop.configuration_qmop import QMoPConfig
from qmop.loading import declared, derive
from qmop.tiny.base import base_path
from qmop.tiny.comparison.rows import (
    ABLATIONS,
    BUDGETS,
    FULL,
    ORACLE,
    ORACLE_OF,
    OTHER_METHODS,
    PRIMARY,
    PRIMARY_ROWS,
    REGISTERED,
    ROWS,
    UNTUNED,
    Row,
    Settings,
    Unit,
    plan,
)

UNIT = Unit(row=ROWS["qmop"], tokens=16, seed=1)


def names(rows: tuple[Any, ...]) -> list[str]:
    return [row.name for row in rows]


def test_the_primary_budget_comes_first_and_there_seed_by_seed() -> None:
    planned = plan(["qmop", "blind", "uncompressed", "prune"], BUDGETS, 2)
    assert [unit.label for unit in planned] == [
        *("qmop @16 #0", "blind @16 #0", "uncompressed @144 #0", "prune @16 #0"),
        *("qmop @16 #1", "blind @16 #1", "uncompressed @144 #1", "prune @16 #1"),
        *("qmop @36 #0", "prune @36 #0", "qmop @36 #1", "prune @36 #1"),
        *("qmop @9 #0", "prune @9 #0", "qmop @9 #1", "prune @9 #1"),
    ]


def test_every_row_has_its_number_of_runs() -> None:
    planned = Counter((unit.row.name, unit.tokens) for unit in plan(names(PRIMARY_ROWS), BUDGETS))
    six = {"resampler", "window_pool", "prune", "fusion", "tokenpacker", "qmop"}
    three = {"random", "downsample", "average_pool"}
    expected = {(name, 16): 6 for name in six} | {(name, 16): 3 for name in three}
    expected |= {(name, tokens): 2 for name in six | three for tokens in (36, 9)}
    expected |= {("uncompressed", 144): 3, ("blind", 16): 3, ("blind pruning", 16): 2, ("oracle pruning", 16): 2}
    assert planned == expected
    assert Counter(unit.tokens for unit in plan(names(ABLATIONS), BUDGETS)) == {16: 42}
    assert Counter(unit.tokens for unit in plan(names(OTHER_METHODS), [36])) == {36: 22}


def test_what_is_not_tuned_has_one_run_unless_it_draws_by_a_seed() -> None:
    planned = Counter((unit.row.name, unit.tokens) for unit in plan(names(UNTUNED), BUDGETS))
    assert {count for (name, _), count in planned.items() if name != "untuned random"} == {1}
    assert [planned["untuned random", tokens] for tokens in BUDGETS] == [3, 2, 2]
    assert len(UNTUNED) == 9
    assert len(planned) == 27


@pytest.mark.parametrize("row", UNTUNED, ids=lambda row: row.method)
def test_what_is_not_tuned_has_no_parameters_of_its_own(row: Row) -> None:
    model, _ = derive(base_path("tiny"), row.method, 16, row.options)
    assert not list(model.model.multi_modal_projector.compressor.parameters())


def test_what_is_compared_exists_and_has_runs_enough() -> None:
    assert len(ROWS) == len(PRIMARY_ROWS) + len(OTHER_METHODS) + len(ABLATIONS) + len(UNTUNED)
    assert ORACLE not in ROWS
    compared = {name for pair in REGISTERED for name in pair}
    assert {ROWS[name].seeds for name in compared} == {6}
    assert {name: ROWS[name].group for name in ORACLE_OF} == dict.fromkeys(ORACLE_OF, "branch")


def test_every_planned_run_suits_the_base() -> None:
    base = QMoPConfig.from_pretrained(base_path("tiny")).to_dict()
    runs = {(unit.row.name, unit.tokens): unit for unit in plan(list(ROWS), BUDGETS)}
    for unit in runs.values():
        row = unit.row
        changed = {"compressor": row.method, "compressor_tokens": unit.tokens, "compressor_options": row.options}
        assert declared(QMoPConfig.from_dict({**base, **changed})).name == row.method
    assert len(runs) == 4 + 3 * 9 + 3 * 11 + 14 + 3 * 9


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            (["qmop", "qmopp", "x"], BUDGETS),
            "rows names qmopp, x, which are neither rows nor groups: choose among primary, methods",
        ),
        ((["qmop"], [16, 25]), r"budgets names 25, at which no row runs: choose among 16, 36, 9, 144"),
        ((["qmop"], BUDGETS, 0), "seeds is 0, but a row needs a run"),
    ],
)
def test_what_is_not_there_is_refused(asked: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(*asked)


def test_a_row_asked_for_twice_runs_once() -> None:
    """Else its runs would count double, and every interval would be too narrow."""
    assert plan(["qmop", "blind", "qmop"], BUDGETS) == plan(["qmop", "blind"], BUDGETS)


def digest(unit: Unit = UNIT, settings: Settings | None = None, base: str = "a") -> str:
    return unit.digest(Settings() if settings is None else settings, base)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"method": "qmop-elastic"},
        {"options": {**UNIT.row.options, "top_k": 1}},
        {"aligned": False},
        {"router": RouterSchedule(noise_start=0.5)},
        {"shuffled": True},
        {"oracle": True},
        {"seeded": True},
        {"tuned": False},
    ],
)
def test_the_digest_changes_with_the_row(changed: dict[str, Any]) -> None:
    assert digest(replace(UNIT, row=replace(UNIT.row, **changed))) != digest()


def test_the_digest_changes_with_whatever_else_shapes_the_result() -> None:
    other = [digest(replace(UNIT, tokens=36)), digest(replace(UNIT, seed=2)), digest(base="b")]
    shared = [field.name for field in fields(Settings) if field.name != "base"]
    other += [digest(settings=replace(Settings(), **{name: 2 * getattr(Settings(), name)})) for name in shared]
    assert len({digest(), *other}) == 1 + 3 + len(shared)
    assert len(shared) > 8


def test_the_digest_names_the_records_that_are_kept() -> None:
    """Else a finished comparison would be run anew."""
    kept = {"qmop": "4ef93e3b", "prune": "ec2f5194"}
    assert {name: digest(Unit(row=ROWS[name], tokens=16, seed=0))[:8] for name in kept} == kept


def test_the_digest_is_the_same_wherever_the_base_lies_and_however_many_runs_there_are() -> None:
    assert digest(settings=Settings(base="another folder")) == digest()
    fewer = replace(UNIT.row, seeds=1, budgets=(PRIMARY, FULL), group="ablation")
    assert digest(replace(UNIT, row=fewer)) == digest()
