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

from qmop.vtcbench.composing import LEVELS
from qmop.vtcbench.dimensions import FAMILIES
from qmop.vtcbench.items import COMPARISON_ITEMS, DIMENSIONS, STANDARD_ITEMS
from qmop.vtcbench.rendered import (
    ROTA,
    SUITE_SPLIT,
    TRAIN_SPLIT,
    RenderedItem,
    questions,
    suite,
    suite_digest,
    training_scene,
)
from qmop.vtcbench.scene import held_out

_GOLDEN_JSON = "0af96dd290df5d97157063841e627630a36da436eb3c04918f56076b556e2f83"
_GOLDEN_PIXELS = "19a6fb042502d66e20c01d4dd515677a3723acf38069e2dfc8aa2bd3d625f71b"


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


def test_every_family_gets_its_share_of_every_level() -> None:
    items = [rendered.item for rendered in suite(3, 5 * len(FAMILIES))]
    assert Counter(item.task for item in items) == dict.fromkeys((family.task for family in FAMILIES), 5)
    assert Counter(item.dimension for item in items) == dict.fromkeys(DIMENSIONS, 20)
    assert {(item.task, item.level) for item in items} == {(f.task, level) for f in FAMILIES for level in LEVELS}
    assert Counter(item.level for item in items) == {"core": 60, "hard": 20, "held_out": 20}
    assert len({item.key for item in items}) == len(items)
    assert all("." not in item.key and item.level in item.key for item in items)
    assert all(item.answers[0] in item.choices and item.difficulty is not None for item in items)


def test_both_sizes_of_the_suite_share_out_evenly() -> None:
    assert STANDARD_ITEMS % (len(FAMILIES) * len(ROTA)) == COMPARISON_ITEMS % (len(FAMILIES) * len(ROTA)) == 0


def test_questions_alone_are_those_of_the_suite(small_suite: list[RenderedItem]) -> None:
    alone = [(family.task, question, answer) for family, question, answer in questions(0, 40)]
    assert alone == [(r.item.task, r.item.question, r.item.answers[0]) for r in small_suite]
    marks = [question for _, question, _ in questions(0, 40, "mark")]
    assert marks == [r.item.question for r in small_suite if r.item.task == "mark"]


def test_training_pictures_are_never_suite_pictures(small_suite: list[RenderedItem]) -> None:
    assert SUITE_SPLIT != TRAIN_SPLIT
    shown = {_pixels(rendered).tobytes() for rendered in small_suite}
    assert not shown & {training_scene(0, position).pixels.tobytes() for position in range(40)}


def test_training_never_shows_a_held_out_combination() -> None:
    for position in range(400):
        things = training_scene(6, position).scene.things
        assert not any(held_out(thing.kind, thing.colour, thing.place) for thing in things)


def test_training_scenes_ask_each_question_once_and_every_family_in_the_long_run() -> None:
    scenes = [training_scene(5, position, rounds=2) for position in range(200)]
    for scene in scenes:
        asked = [turn.question for turn in scene.turns]
        assert len(set(asked)) == len(asked) >= 6
    counts = Counter(turn.task for scene in scenes for turn in scene.turns)
    assert set(counts) == {family.task for family in FAMILIES}
    assert min(counts.values()) >= 10
    assert scenes[7].caption == training_scene(5, 7).caption


def test_one_training_picture_in_eight_is_hard() -> None:
    hard = sum(training_scene(4, position).scene.glyph_scale == 1 for position in range(400))
    assert 30 <= hard <= 75


def test_training_scenes_of_different_seeds_differ() -> None:
    first, second = training_scene(0, 3), training_scene(1, 3)
    assert not np.array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_suites_work(count: int) -> None:
    assert len(list(suite(0, count))) == count
