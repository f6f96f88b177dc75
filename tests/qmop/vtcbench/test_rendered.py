from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from qmop.vtcbench.dimensions import FAMILIES
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.rendered import SUITE_SPLIT, TRAIN_SPLIT, RenderedItem, suite, suite_digest, training_scene

_GOLDEN_JSON = "b81347e554b924eedc515e3698ca4cb92f1cc41acf53d8a78495d64887eb9482"
_GOLDEN_PIXELS = "d4cb9da0e59ed264464b799ee9f6249dc584b949c9c03537db001eccfe4e59c5"


def _pixels(rendered: RenderedItem) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(rendered.image)))


def test_the_first_twenty_items_of_seed_zero_never_change_unnoticed(small_suite: list[RenderedItem]) -> None:
    twenty = small_suite[:20]

    assert hashlib.sha256(b"".join(r.item.to_json() for r in twenty)).hexdigest() == _GOLDEN_JSON
    assert hashlib.sha256(b"".join(_pixels(r).tobytes() for r in twenty)).hexdigest() == _GOLDEN_PIXELS


def test_another_process_draws_the_same_suite(small_suite: list[RenderedItem]) -> None:
    program = "from qmop.vtcbench.rendered import suite, suite_digest; print(suite_digest(suite(0, 40)))"

    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert found.stdout.strip() == suite_digest(small_suite)


def test_items_depend_on_seed_and_position_alone(small_suite: list[RenderedItem]) -> None:
    assert list(suite(0, 25)) == small_suite[:25]
    assert suite_digest(suite(1, 40)) != suite_digest(small_suite)


def test_the_digest_notices_a_change_of_picture_words_and_order(small_suite: list[RenderedItem]) -> None:
    first, second = small_suite[:2]
    swapped = RenderedItem(item=first.item, image=second.image)

    digests = {suite_digest(items) for items in ([first, second], [second, first], [swapped, second], [first])}

    assert len(digests) == 4


def test_every_family_gets_its_share_and_every_dimension_is_there() -> None:
    items = [rendered.item for rendered in suite(3, 4 * len(FAMILIES))]

    assert Counter(item.task for item in items) == dict.fromkeys((family.task for family in FAMILIES), 4)
    assert {item.dimension for item in items} == set(DIMENSIONS)
    assert len({item.key for item in items}) == len(items)
    assert all("." not in item.key for item in items)
    assert all(item.answers[0] in item.choices for item in items)


def test_training_pictures_are_never_suite_pictures(small_suite: list[RenderedItem]) -> None:
    assert SUITE_SPLIT != TRAIN_SPLIT
    shown = {_pixels(rendered).tobytes() for rendered in small_suite}

    assert not shown & {training_scene(0, position).pixels.tobytes() for position in range(40)}


def test_training_scenes_ask_each_question_once_and_every_family_in_the_long_run() -> None:
    scenes = [training_scene(5, position) for position in range(200)]

    for scene in scenes:
        questions = [asked.question for asked in scene.turns]
        assert len(set(questions)) == len(questions) >= 3
    asked = Counter(turn.question.split()[2] for scene in scenes for turn in scene.turns)
    assert len(asked) >= len(FAMILIES)
    assert scenes[7].caption == training_scene(5, 7).caption


def test_training_scenes_of_different_seeds_differ() -> None:
    first, second = training_scene(0, 3), training_scene(1, 3)

    assert not np.array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_suites_work(count: int) -> None:
    assert len(list(suite(0, count))) == count
