"""Every rendered family: balanced, blind at chance, true of its scene, as hard as it says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from qmop.vtcbench.composing import LEVELS
from qmop.vtcbench.dimensions import FAMILIES, Asked, Family
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.items import DIMENSIONS
from qmop.vtcbench.rendered import ROTA, training_scene
from qmop.vtcbench.scene import Scene, cells_at, held_out
from qmop.vtcbench.words import FACE, NUMBERS, PLACES, SHAPES, TILE

BY_TASK = {family.task: family for family in FAMILIES}
QUESTIONS = 4000
SCENES = 80


def _share(scene: Scene, attribute: str, allowed: tuple[str, ...] = ()) -> str:
    counts = Counter(getattr(t, attribute) for t in scene.things if not allowed or getattr(t, attribute) in allowed)
    (first, most), *rest = counts.most_common(2)
    assert not rest or rest[0][1] < most
    return first


def _busy(scene: Scene) -> str:
    x = [thing.centre[0] for thing in scene.things]
    y = [thing.centre[1] for thing in scene.things]
    ends = {"left": sum(a < 48 for a in x), "right": sum(a > 48 for a in x)}
    ends |= {"top": sum(a < 48 for a in y), "bottom": sum(a > 48 for a in y)}
    return max(ends, key=lambda side: ends[side])


def _one(scene: Scene, **facts: str) -> object:
    (found,) = [t for t in scene.things if all(getattr(t, name) == value for name, value in facts.items())]
    return found


def _before(scene: Scene, words: list[str]) -> str:
    axis = 0 if words[3] == "left" else 1
    first, second = (_one(scene, kind=kind).centre for kind in (words[2], words[-2]))  # type: ignore[attr-defined]
    return "yes" if first[axis] // 16 < second[axis] // 16 else "no"


def _place(scene: Scene, kind: str) -> str:
    x, y = _one(scene, kind=kind).centre  # type: ignore[attr-defined]
    return PLACES[y // 32 * 3 + x // 32]


def _at(scene: Scene, place: str) -> str:
    (found,) = [t for t in scene.things if t.cell in cells_at(PLACES.index(place))]
    return found.kind


def _count(scene: Scene, colour: str) -> int:
    return sum(thing.colour == colour for thing in scene.things)


TRUTHS: dict[str, Callable[[Scene, list[str]], str]] = {
    "main_shape": lambda s, _: _one(s, large=True).kind,  # type: ignore[attr-defined, arg-type]
    "common_colour": lambda s, _: _share(s, "colour"),
    "common_shape": lambda s, _: _share(s, "kind", SHAPES),
    "busy_side": lambda s, _: _busy(s),
    "count_colour": lambda s, w: NUMBERS[_count(s, w[2])],
    "place": lambda s, w: _place(s, w[3]),
    "relation": _before,
    "shape_at": lambda s, w: _at(s, " ".join(w[5:-1])),
    "more_or_fewer": lambda s, w: "yes" if _count(s, w[3]) > _count(s, w[5]) else "no",
    "more_than_tile": lambda s, w: NUMBERS[NUMBERS.index(_one(s, kind=TILE, colour=w[9]).detail) + NUMBERS.index(w[2])],  # type: ignore[attr-defined]
    "weather": lambda s, w: {"coat": {"cold": "yes", "warm": "no"}, "lamp": {"dark": "yes", "bright": "no"}}[w[4]][
        s.ground.mood
    ],
    "may_go": lambda s, w: {"green": "yes", "red": "no"}[_one(s, kind=w[1]).colour],  # type: ignore[attr-defined]
    "mood": lambda s, _: s.ground.mood,
    "texture": lambda s, _: s.ground.texture,
    "light": lambda s, _: s.ground.light,
    "feeling": lambda s, _: _one(s, kind=FACE).detail,  # type: ignore[attr-defined]
    "tile_number": lambda s, w: _one(s, kind=TILE, colour=w[5]).detail,  # type: ignore[attr-defined]
    "tile_letter": lambda s, w: _one(s, kind=TILE, colour=w[5]).detail,  # type: ignore[attr-defined]
    "mark": lambda s, w: _one(s, colour=w[5], kind=w[6]).detail,  # type: ignore[attr-defined]
    "mark_ink": lambda s, w: _one(s, colour=w[7], kind=w[8]).ink,  # type: ignore[attr-defined]
}
"""The answers, read off the scene in another way than the families do."""


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.task)
def posed(request: pytest.FixtureRequest) -> tuple[Family, list[str], list[str]]:
    """Questions and answers of 4,000 plans, drawn as the suite draws them."""
    family: Family = request.param
    plans = [family.pose(Draws(9, "family-test", family.task, i), ROTA[i % len(ROTA)]) for i in range(QUESTIONS)]
    return family, [family.template.format(*plan.words) for plan in plans], [plan.answer for plan in plans]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.task)
def staged(request: pytest.FixtureRequest) -> tuple[Family, dict[str, list[tuple[Scene, Asked]]]]:
    """Scenes of every level."""
    family: Family = request.param
    scenes = {
        level: [family.build(Draws(10, "family-test", family.task, level, i), level) for i in range(SCENES)]
        for level in LEVELS
    }
    return family, scenes


def test_every_dimension_has_four_families_and_tasks_are_named_once() -> None:
    assert Counter(family.dimension for family in FAMILIES) == dict.fromkeys(DIMENSIONS, 4)
    assert len(BY_TASK) == len(FAMILIES)
    assert set(TRUTHS) == set(BY_TASK)


def test_answers_are_balanced(posed: tuple[Family, list[str], list[str]]) -> None:
    family, _, answers = posed
    counts = Counter(answers)
    assert set(counts) == set(family.answers)
    assert chisquare(list(counts.values())).pvalue > 1e-4


def test_answers_do_not_depend_on_the_question(posed: tuple[Family, list[str], list[str]]) -> None:
    family, questions, answers = posed
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in zip(questions, answers, strict=True):
        table[question][answer] += 1
    if len(table) > 1:
        rows = [[counts[answer] for answer in family.answers] for counts in table.values()]
        assert chi2_contingency(rows).pvalue > 1e-4


def test_a_reader_of_questions_alone_is_at_chance(posed: tuple[Family, list[str], list[str]]) -> None:
    family, questions, answers = posed
    chance, half = 1 / len(family.answers), QUESTIONS // 2
    learnt: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in zip(questions[:half], answers[:half], strict=True):
        learnt[question][answer] += 1
    frequent = [learnt[question].most_common(1)[0][0] if question in learnt else "" for question in questions[half:]]
    words = CountVectorizer(token_pattern=r"\S+", ngram_range=(1, 2)).fit(questions)
    reader = MultinomialNB().fit(words.transform(questions[:half]), answers[:half])
    read = reader.predict(words.transform(questions[half:]))
    for guesses in (frequent, read):
        hits = np.mean([guess == answer for guess, answer in zip(guesses, answers[half:], strict=True)])
        assert hits == pytest.approx(chance, abs=0.035)


def test_the_answer_is_true_of_the_scene(staged: tuple[Family, dict[str, list[tuple[Scene, Asked]]]]) -> None:
    family, scenes = staged
    for scene, asked in (pair for drawn in scenes.values() for pair in drawn):
        assert asked.task == family.task
        assert asked.answer == TRUTHS[family.task](scene, asked.question.split())


def test_the_focus_names_cells_that_hold_objects(
    staged: tuple[Family, dict[str, list[tuple[Scene, Asked]]]],
) -> None:
    family, scenes = staged
    ground = family.task in ("mood", "texture", "light", "weather")
    assert family.local != ground
    for scene, asked in (pair for drawn in scenes.values() for pair in drawn):
        assert bool(asked.focus) != ground
        assert set(asked.focus) <= {cell for thing in scene.things for cell in thing.cells}


def test_held_out_combinations_are_asked_for_on_their_level_alone(
    staged: tuple[Family, dict[str, list[tuple[Scene, Asked]]]],
) -> None:
    family, scenes = staged
    for level, drawn in scenes.items():
        held = [[held_out(t.kind, t.colour, t.place) for t in scene.things] for scene, _ in drawn]
        if level != "held_out":
            assert not any(map(any, held))
        asked = [
            held_out(thing.kind, thing.colour, thing.place)
            for scene, asked in (drawn if level == "held_out" else [])
            for thing in scene.things
            if set(thing.cells) & set(asked.focus) or not asked.focus
        ]
        assert level != "held_out" or np.mean(asked) > 0.9, family.task


def test_difficulty_does_not_tell_the_answer(staged: tuple[Family, dict[str, list[tuple[Scene, Asked]]]]) -> None:
    family, scenes = staged
    counting = family.task == "count_colour"  # what is counted is not in the way
    pairs = [(asked.difficulty, asked.answer) for _, asked in scenes["core"]]
    middle = np.median([difficulty for difficulty, _ in pairs])
    rows = [
        [sum((d > middle) == high and a == answer for d, a in pairs) + 1 for answer in family.answers]
        for high in (False, True)
    ]
    assert counting or chi2_contingency(rows).pvalue > 1e-4


@pytest.mark.parametrize("task", [task for task, family in BY_TASK.items() if family.dimension in ("GU", "SC")])
def test_difficulty_of_the_whole_and_of_space_is_the_number_of_objects_in_the_way(task: str) -> None:
    for number in range(100):
        scene, asked = BY_TASK[task].build(Draws(11, task, number), LEVELS[number % 2])
        if task == "busy_side":
            side = asked.answer
            middle = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
            beyond = sum((thing.centre[middle[0]] - 48) * middle[1] > 0 for thing in scene.things)
            assert asked.difficulty == beyond
        else:
            wanted = sum(bool(set(thing.cells) & set(asked.focus)) for thing in scene.things)
            assert asked.difficulty == len(scene.things) - wanted


def test_difficulty_of_details_is_their_size_and_of_style_their_contrast() -> None:
    for number in range(60):
        for level, glyph, mark in (("core", 10 / 8, 7 / 8), ("hard", 5 / 8, 5 / 8)):
            for family in FAMILIES[16:]:
                _, asked = family.build(Draws(12, number), level)  # type: ignore[arg-type]
                assert asked.difficulty == (glyph if family.task.startswith("tile") else mark)
            for family in FAMILIES[12:16]:
                scene, asked = family.build(Draws(12, number), level)  # type: ignore[arg-type]
                contrasts = {
                    **{name: getattr(scene.ground, f"{name}_contrast", None) for name in ("mood", "texture", "light")},
                    "feeling": scene.face_contrast,
                }
                assert asked.difficulty == contrasts[family.task]


def test_reasoning_takes_more_steps_where_more_is_compared() -> None:
    steps = {
        (task, level): {BY_TASK[task].build(Draws(13, number), level)[1].difficulty for number in range(20)}
        for task in ("weather", "may_go", "more_or_fewer", "more_than_tile")
        for level in LEVELS[:2]
    }
    assert steps["weather", "core"] == steps["may_go", "core"] == steps["more_than_tile", "core"] == {2}
    assert steps["more_or_fewer", "core"] == steps["more_than_tile", "hard"] == {3}


def test_questions_put_to_training_scenes_have_true_answers() -> None:
    seen = Counter()
    for position in range(240):
        made = training_scene(2, position, rounds=2)
        for asked in made.turns:
            assert asked.answer == TRUTHS[asked.task](made.scene, asked.question.split())
            seen[asked.task] += 1
    assert set(seen) == set(BY_TASK)


def test_scenes_without_an_answer_are_not_asked() -> None:
    made = training_scene(0, 0).scene
    empty = Scene(things=(), ground=made.ground)
    for task in ("main_shape", "place", "relation", "shape_at", "more_than_tile", "feeling", "tile_number", "mark"):
        assert BY_TASK[task].ask(empty, Draws(0)) is None
    large = BY_TASK["main_shape"].build(Draws(1), "core")[0]
    for task in ("common_colour", "busy_side", "count_colour", "more_or_fewer"):
        assert BY_TASK[task].ask(large, Draws(0)) is None
