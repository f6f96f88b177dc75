from __future__ import annotations

from typing import Any

import pytest

from qmop.vtcbench.natural.mme import COGNITION, PERCEPTION
from qmop.vtcbench.natural.mme_score import mme_score
from qmop.vtcbench.natural.samples import Sample
from qmop.vtcbench.records import Record, judge
from tests.qmop.vtcbench.natural.copies import picture

FACTS: dict[str, Any] = {
    "checkpoint": "c", "label": "l", "method": "m", "budget": 1, "visual_tokens": 1, "suite_digest": "d", "shard": "s",
}  # fmt: skip


def answered(category: str, name: str, said: tuple[str, ...]) -> list[Record]:
    """Records of a picture's questions, whose right answers are yes and no."""
    return [
        judge(
            Sample(
                source="mme", id=f"{category}/{name}/{number + 1}", question="q", answers=(right,),
                task=f"mme/{category}", scorer="yes_no", choices=("yes", "no"), load=picture,
            ).item("GU"),
            answer,
            **FACTS,
        )
        for number, (right, answer) in enumerate(zip(("yes", "no"), said, strict=False))
    ]  # fmt: skip


def test_accuracy_and_whole_pairs_are_added_per_category() -> None:
    records = [
        *answered("existence", "a_1", ("Yes", "No")),
        *answered("existence", "a_2", ("Yes", "Yes")),
        *answered("existence", "b", ("hm", "No")),
        *answered("existence", "c", ("No", "Yes")),
        *answered("code_reasoning", "a_1", ("yes", "no.")),
    ]
    found = mme_score(records)

    assert found.categories == {"code_reasoning": 200.0, "existence": pytest.approx(100 * (4 / 8 + 1 / 4))}
    assert (found.perception, found.cognition, found.incomplete) == (pytest.approx(75.0), 200.0, 0)


def test_half_pairs_count_nowhere_and_are_told() -> None:
    found = mme_score(
        [*answered("OCR", "a", ("yes", "no")), *answered("OCR", "b", ("no",)), *answered("count", "c", ("no",))]
    )

    assert found.categories == {"OCR": 200.0}
    assert (found.pairs, found.incomplete) == ({"OCR": 1, "count": 0}, 2)


def test_the_best_that_can_be_had_is_of_the_categories_that_are_there() -> None:
    found = mme_score([*answered("OCR", "a", ("yes", "no")), *answered("count", "c", ("no",))])

    assert (found.best_perception, found.best_cognition) == (200, 0)


def test_long_ids_whose_key_is_a_digest_make_no_pairs() -> None:
    found = mme_score([one for name in "abc" for one in answered("OCR", name * 300, ("yes", "no"))])

    assert (found.categories, found.incomplete) == ({}, 6)


def test_other_sources_are_passed_over_and_two_labels_refused() -> None:
    pair = answered("OCR", "a", ("yes", "no"))

    assert mme_score([]).categories == {}
    with pytest.raises(ValueError, match="has more than two records: give the records of one label"):
        mme_score([*pair, *pair])


def test_the_best_score_is_two_thousand_and_eight_hundred() -> None:
    found = mme_score([one for name in (*PERCEPTION, *COGNITION) for one in answered(name, "p", ("yes", "no"))])

    assert (found.perception, found.cognition) == (2000.0, 800.0)
