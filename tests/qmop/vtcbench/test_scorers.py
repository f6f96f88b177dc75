from __future__ import annotations

import pytest

from qmop.vtcbench.items import Item
from qmop.vtcbench.rendered import RenderedItem
from qmop.vtcbench.scorers import SCORERS, Score, normalise, score, vqa_normalise

WRONG, UNREADABLE, RIGHT = Score(value=0.0), Score(value=0.0, parsable=False), Score(value=1.0)


def _item(scorer: str, *answers: str, choices: tuple[str, ...] = ()) -> Item:
    return Item(key="k", question="q", answers=answers, dimension="GU", task="t", scorer=scorer, choices=choices)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The Red   Ball. ", "red ball"),
        ("Don't!", "dont"),
        ("Three", "3"),
        ("1,200.5 km", "1200.5 km"),
        ("left/right", "left right"),
        ("an a the", "an a the"),
        ("A.", "a"),
        ("-5", "-5"),
        ("(-3.5)", "-3.5"),
        ("5-6", "5 6"),
        ("theatre", "theatre"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("the Dog.", RIGHT), ("dog", RIGHT), ("hot dog", WRONG), ("cat", WRONG), ("", UNREADABLE), ("...", UNREADABLE)],
)
def test_exact_match(prediction: str, expected: Score) -> None:
    assert score(prediction, _item("exact_match", "dog")) == expected


@pytest.mark.parametrize(("prediction", "expected"), [("A", RIGHT), ("a.", RIGHT), ("B", WRONG)])
def test_the_option_a_is_no_article(prediction: str, expected: Score) -> None:
    assert score(prediction, _item("exact_match", "A")) == expected


def test_an_article_among_annotators_is_matched_as_the_evaluator_does() -> None:
    assert score("a", _item("vqa_soft", *["a"] * 10)) == RIGHT
    assert score("a", _item("vqa_soft", "stop")) == WRONG


@pytest.mark.parametrize(("prediction", "expected"), [("3", RIGHT), ("Two", WRONG), ("purple", UNREADABLE)])
def test_exact_match_among_choices_reads_only_choices(prediction: str, expected: Score) -> None:
    assert score(prediction, _item("exact_match", "three", choices=("one", "two", "three"))) == expected


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_soft_accuracy_over_ten_annotators(agreeing: int, expected: float) -> None:
    answers = ["stop"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]

    assert score("Stop!", _item("vqa_soft", *answers)).value == pytest.approx(expected)


def test_vqa_soft_with_one_annotator_and_with_nothing_said() -> None:
    assert score("stop", _item("vqa_soft", "stop")) == RIGHT
    assert score(" ", _item("vqa_soft", "stop")) == UNREADABLE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S.A.", "usa"),
        ("www.google.com", "wwwgooglecom"),
        ("$5.99", "$5.99"),
        ("1,000", "1000"),
        ("coca-cola", "coca cola"),
        ("7 - up", "7 up"),
        ("10:30 a.m.", "10:30 am"),
        ("None", "0"),
        ("Joe's", "joe 's"),
        ("Don't stop!", "dont stop"),
        ("5%", "5%"),
        ("(red)\nand [blue]", "red and blue"),
        ("what?", "what"),
    ],
)
def test_the_vqa_normalisation_is_the_evaluators_own(text: str, expected: str) -> None:
    assert vqa_normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("B", RIGHT),
        ("b.", RIGHT),
        ("(B)", RIGHT),
        ("B) a dog", RIGHT),
        ("Answer: B", RIGHT),
        ("The answer is B.", RIGHT),
        ("a dog", RIGHT),
        ("Dog", RIGHT),
        ("A", WRONG),
        ("a cat", WRONG),
        ("E", UNREADABLE),
        ("A big surprise", UNREADABLE),
        ("", UNREADABLE),
    ],
)
@pytest.mark.parametrize("answer", ["B", "a dog"])
def test_option_letter(prediction: str, expected: Score, answer: str) -> None:
    assert score(prediction, _item("option_letter", answer, choices=("a cat", "a dog", "a cow"))) == expected


@pytest.mark.parametrize(
    ("choices", "answer", "prediction", "expected"),
    [
        (("B", "A", "C"), "B", "B", RIGHT),  # the second choice, whose text is A
        (("B", "A", "C"), "B", "A", WRONG),
        (("B", "A", "C"), "B", "B. A", RIGHT),
        (("-3", "3"), "B", "3", RIGHT),
        (("-3", "3"), "B", "-3", WRONG),
        (("1/2", "1 2"), "A", "1/2", RIGHT),
        (("the end", "an end"), "A", "End", UNREADABLE),
        (("x", "y"), "A", "A: x", RIGHT),
    ],
)
def test_a_lone_letter_is_a_letter_and_words_must_name_one_choice(
    choices: tuple[str, ...], answer: str, prediction: str, expected: Score
) -> None:
    assert score(prediction, _item("option_letter", answer, choices=choices)) == expected


def test_option_letter_refuses_items_that_it_cannot_judge() -> None:
    with pytest.raises(ValueError, match="needs choices"):
        score("A", _item("option_letter", "A"))
    with pytest.raises(ValueError, match="name none of the choices"):
        score("A", _item("option_letter", "horse", choices=("cat", "dog")))


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Yes", RIGHT),
        ("yes, it is", RIGHT),
        ("Answer: yes", RIGHT),
        ("No.", WRONG),
        ("not sure", UNREADABLE),
        ("nothing", UNREADABLE),
        ("", UNREADABLE),
    ],
)
def test_yes_no(prediction: str, expected: Score) -> None:
    assert score(prediction, _item("yes_no", "Yes")) == expected


@pytest.mark.parametrize(
    ("answer", "prediction", "expected"),
    [
        ("100", "105", RIGHT),
        ("100", "105.01", WRONG),
        ("-100", "-95", RIGHT),
        ("-100", "95", WRONG),
        ("10", "-10", WRONG),
        ("10%", "10", WRONG),
        ("5", "5%", WRONG),
        ("1,000", "1000", RIGHT),
        ("20%", "0.2", RIGHT),
        ("three", "3", RIGHT),
        ("0", "0.0", RIGHT),
        ("0", "0.01", WRONG),
        ("100", "many", UNREADABLE),
        ("Norway", "norway", RIGHT),
        ("Norway", "7", WRONG),
        ("100", "", UNREADABLE),
        ("100", "nan", WRONG),
        ("100", "inf", WRONG),
    ],
)
def test_relaxed_number(answer: str, prediction: str, expected: Score) -> None:
    assert score(prediction, _item("relaxed_number", answer)) == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("A cat on the mat.", RIGHT),
        ("cat mat", Score(value=0.8)),
        ("a dog", WRONG),
        ("cat cat cat", Score(value=2 / 6)),
        ("two dogs", RIGHT),
        ("", UNREADABLE),
    ],
)
def test_token_f1_takes_the_best_answer(prediction: str, expected: Score) -> None:
    found = score(prediction, _item("token_f1", "the cat on a mat", "two dogs"))

    assert found.value == pytest.approx(expected.value)
    assert found.parsable == expected.parsable


def test_unknown_rules_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scorer is 'vibes', expected one of exact_match"):
        score("x", _item("vibes", "x"))


def test_right_and_wrong_answers_of_every_rendered_item_score_one_and_zero(small_suite: list[RenderedItem]) -> None:
    for rendered in small_suite:
        item = rendered.item
        assert score(item.answers[0], item) == RIGHT
        for choice in set(item.choices) - set(item.answers):
            assert score(choice, item) == WRONG
    assert {rendered.item.scorer for rendered in small_suite} <= set(SCORERS)
