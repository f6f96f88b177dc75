from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest

from qmop.vtcbench import harness_utils
from qmop.vtcbench.rendered import RenderedItem


def _doc(rendered: RenderedItem, **other: Any) -> dict[str, Any]:
    return {**asdict(rendered.item), **other}


def test_rendered_questions_name_their_choices_unless_told_otherwise(small_suite: list[RenderedItem]) -> None:
    doc = _doc(small_suite[0], question="what shape ?", choices=["circle", "square"])
    asked = "what shape ?\nAnswer with one of these and nothing else: circle, square."

    assert harness_utils.doc_to_text(doc) == asked
    assert harness_utils.doc_to_text(doc, {"options": True}) == asked
    assert harness_utils.doc_to_text(doc, {"options": False}) == "what shape ?"
    assert harness_utils.doc_to_text({**doc, "source": "mme"}) == "what shape ?"
    assert harness_utils.doc_to_text({**doc, "choices": []}) == "what shape ?"


def test_scores_are_told_with_their_level(small_suite: list[RenderedItem]) -> None:
    doc = _doc(small_suite[0], answers=["circle"], choices=["circle", "square"], level="hard")

    right, wrong, unreadable = (harness_utils.process_results(doc, [said]) for said in (" Circle.", "square", "a dog"))

    assert (right["acc"], wrong["acc"], unreadable["acc"]) == (1.0, 0.0, 0.0)
    assert (right["unparsable"], wrong["unparsable"], unreadable["unparsable"]) == (0.0, 0.0, 1.0)
    assert right["acc_core"] == right["acc_hard"] == ("hard", 1.0)


def test_a_level_s_accuracy_is_over_its_items_alone() -> None:
    found = [("core", 1.0), ("hard", 0.0), ("core", 0.0), ("hard", 0.0), ("core", 1.0)]

    assert harness_utils.core(found) == pytest.approx(2 / 3)
    assert harness_utils.hard(found) == 0.0
    assert math.isnan(harness_utils.held_out(found))
