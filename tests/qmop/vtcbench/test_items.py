from __future__ import annotations

import json
from typing import Any

import pytest

from qmop.vtcbench.items import DIMENSIONS, Item

_FACTS: dict[str, Any] = {"key": "k", "question": "q ?", "answers": ("yes",), "dimension": "RC", "task": "t"}


def test_an_item_survives_the_way_to_json_and_back() -> None:
    item = Item(**_FACTS, choices=("yes", "no"), difficulty=2.5, level="hard", focus=(3, 4))

    assert Item.from_json(item.to_json()) == item
    assert Item.from_json(item.to_json()).to_json() == item.to_json()


def test_json_is_canonical() -> None:
    text = Item(**_FACTS).to_json().decode()

    assert " " not in text.replace("q ?", "")
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_chance_is_one_over_the_choices() -> None:
    assert Item(**_FACTS, choices=("yes", "no")).chance == 0.5
    assert Item(**_FACTS).chance == 0.0


def test_there_are_the_five_dimensions_of_the_paper() -> None:
    assert list(DIMENSIONS) == ["GU", "SC", "RC", "SE", "LD"]


@pytest.mark.parametrize(
    ("facts", "words"),
    [({"dimension": "XX"}, "dimension is 'XX'"), ({"answers": ()}, "answers is empty")],
)
def test_wrong_items_are_refused_by_name(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Item(**{**_FACTS, **facts})


@pytest.mark.parametrize("text", ["[]", "{", '{"key": "k"}', '{"key": "k", "surprise": 1}'])
def test_wrong_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"item|Expecting"):
        Item.from_json(text)
