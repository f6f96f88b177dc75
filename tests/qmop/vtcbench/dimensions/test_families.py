from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from qmop.vtcbench.dimensions import FAMILIES, Asked, Family
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.rendered import training_scene
from qmop.vtcbench.scene import LARGE_RADIUS, NUMBERS, SIGN, Scene

_QUESTIONS = 4000


def _truth(question: str, scene: Scene) -> str:
    """The answer, found from the scene in another way than the families do."""
    words = question.split()
    colours = [thing.colour for thing in scene.things]
    if "largest" in words:
        (large,) = [thing for thing in scene.things if thing.radius == LARGE_RADIUS]
        return large.shape
    if words[:2] == ["how", "many"]:
        return NUMBERS[colours.count(words[2])]
    if "more" in words:
        return "yes" if colours.count(words[3]) > colours.count(words[6]) else "no"
    if "digit" in words:
        (sign,) = [t for t in scene.things if (t.shape, t.colour) == (SIGN, words[5])]
        assert sign.digit is not None
        return NUMBERS[sign.digit]
    assert "mood" in words
    return scene.mood


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.task)
def drawn(request: pytest.FixtureRequest) -> tuple[Family, list[tuple[Scene, Asked]]]:
    family: Family = request.param
    return family, [family.build(Draws(9, "family-test", family.task, i)) for i in range(_QUESTIONS)]


def test_every_dimension_has_a_family_and_tasks_are_named_once() -> None:
    assert {family.dimension for family in FAMILIES} == set(DIMENSIONS)
    assert len({family.task for family in FAMILIES}) == len(FAMILIES)


def test_answers_are_balanced(drawn: tuple[Family, list[tuple[Scene, Asked]]]) -> None:
    family, built = drawn
    counts = Counter(asked.answer for _, asked in built)

    assert set(counts) == set(family.answers)
    assert chisquare(list(counts.values())).pvalue > 1e-4


def test_answers_do_not_depend_on_the_question(drawn: tuple[Family, list[tuple[Scene, Asked]]]) -> None:
    family, built = drawn
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for _, asked in built:
        table[asked.question][asked.answer] += 1
    rows = [[counts[answer] for answer in family.answers] for counts in table.values()]

    if len(rows) > 1:
        assert chi2_contingency(rows).pvalue > 1e-4
    # the best that a reader of questions alone can learn on one half and show on the other
    half = _QUESTIONS // 2
    learnt: dict[str, Counter[str]] = defaultdict(Counter)
    for _, asked in built[:half]:
        learnt[asked.question][asked.answer] += 1
    hits = [asked.answer == learnt[asked.question].most_common(1)[0][0] for _, asked in built[half:]]
    assert np.mean(hits) == pytest.approx(1 / len(family.answers), abs=0.035)


def test_the_answer_is_true_of_the_scene(drawn: tuple[Family, list[tuple[Scene, Asked]]]) -> None:
    _, built = drawn

    for scene, asked in built[:1000]:
        assert asked.answer == _truth(asked.question, scene)


def test_the_focus_names_cells_that_hold_objects(drawn: tuple[Family, list[tuple[Scene, Asked]]]) -> None:
    _, built = drawn

    for scene, asked in built[:1000]:
        assert set(asked.focus) <= {thing.cell for thing in scene.things}


def test_difficulty_is_a_positive_or_zero_number_that_is_independent_of_the_answer(
    drawn: tuple[Family, list[tuple[Scene, Asked]]],
) -> None:
    family, built = drawn
    levels = sorted({asked.difficulty for _, asked in built})
    rows = [
        [sum(asked.difficulty == level and asked.answer == answer for _, asked in built) for answer in family.answers]
        for level in levels
    ]

    assert levels[0] >= 0
    if len(levels) > 1:
        assert chi2_contingency(rows).pvalue > 1e-4


def test_questions_put_to_training_scenes_have_true_answers() -> None:
    for position in range(300):
        made = training_scene(2, position)
        for asked in made.turns:
            assert asked.answer == _truth(asked.question, made.scene)


def test_scenes_without_an_answer_are_not_asked() -> None:
    empty = Scene(things=training_scene(0, 0).scene.things[:0], mood="warm", texture="plain")
    by_task = {family.task: family for family in FAMILIES}

    assert by_task["sign_digit"].ask(empty, Draws(0)) is None
    assert by_task["main_shape"].ask(empty, Draws(0)) is None
