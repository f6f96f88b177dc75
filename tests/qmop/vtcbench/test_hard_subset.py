from __future__ import annotations

from collections.abc import Callable

import pytest

from qmop.vtcbench.hard_subset import hard_rows, hard_table, split
from qmop.vtcbench.records import Record

Answered = Callable[..., list[Record]]


@pytest.fixture
def reference(answered: Answered) -> tuple[list[Record], list[Record]]:
    """Of 40 items: right on the first 30, and on the first 10 when down-sampled, and once more by luck."""
    full = answered("uncompressed", lambda place: place < 30)
    small = answered("uncompressed", lambda place: place < 10 or place == 35)
    return full, small


def test_items_are_split_by_what_down_sampling_loses(reference: tuple[list[Record], list[Record]]) -> None:
    groups = split(*reference)
    keys = [record.key for record in reference[0]]

    assert groups.easy == set(keys[:10])
    assert groups.hard == set(keys[10:30])
    assert (groups.dropped, groups.items) == (10, 40)


def test_the_bounds_hold_and_a_missing_answer_is_wrong(
    reference: tuple[list[Record], list[Record]], answered: Answered
) -> None:
    full, small = reference
    groups = split(full, small)
    method = answered("m", lambda place: place % 2 == 0)[:26]
    again = answered("shrunk", lambda place: place < 10 or place == 35)
    rows = {row.label: row for row in hard_rows([*full, *method, *again], groups, resamples=200)}

    assert (rows["uncompressed"].hard.value, rows["uncompressed"].easy.value) == (1.0, 1.0)  # type: ignore[union-attr]
    assert (rows["shrunk"].hard.value, rows["shrunk"].easy.value) == (0.0, 1.0)  # type: ignore[union-attr]
    assert rows["m"].hard.value == pytest.approx(8 / 20)  # type: ignore[union-attr]
    assert rows["m"].hard.n == 20  # type: ignore[union-attr]
    assert rows["m"].missing == 4
    assert rows["m"].gap == pytest.approx(0.5 - 0.4)
    hard = [record.chance for record in full if record.key in groups.hard]
    assert rows["m"].chance == pytest.approx(sum(hard) / 20)


def test_the_table_names_counts_and_shares(reference: tuple[list[Record], list[Record]], answered: Answered) -> None:
    groups = split(*reference)
    table = hard_table(hard_rows(answered("m", lambda place: place < 20), groups, resamples=200), groups)

    assert table.startswith(
        "40 items: 20 hard (right, but wrong when down-sampled), 10 easy (right both ways), 10 left"
    )
    assert "| m | 50.0 | " in table
    assert "| 100.0 | 50.0 | 0 | " in table


def test_an_empty_group_has_no_accuracy(answered: Answered) -> None:
    always = answered("uncompressed", lambda _: True)
    groups = split(always, always)
    row = hard_rows(always, groups, resamples=50)[0]

    assert (len(groups.hard), row.hard, row.gap, row.chance) == (0, None, None, 0.0)
    assert "| uncompressed | - | - | 100.0 | - |" in hard_table([row], groups)


def test_half_a_reference_is_refused(reference: tuple[list[Record], list[Record]]) -> None:
    full, small = reference

    with pytest.raises(ValueError, match="two runs differ in 3 items"):
        split(full, small[3:])
    with pytest.raises(ValueError, match=r"full resolution run has item .* twice"):
        split([*full, *full], small)
