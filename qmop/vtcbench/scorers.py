"""Scoring rules by name, one per way in which the benchmark's sources judge an answer.

An answer that a rule cannot read is wrong and says so (`parsable` is false); it never leaves the denominator.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qmop.vtcbench.items import Item

_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)}
_VQA_DIGITS = {**_DIGITS, "none": "0"}
_VQA_MARKS = ';/[]"{}()=+\\_-><@`!'
_MARK = re.compile(r"(?!(?<=\d)\.(?=\d))(?!(?<![^\s(])-(?=\d))[^\w\s]")
"""A mark that is neither a decimal point nor the sign of a number."""
_TOLERANCE = 0.05
_AGREEING = 3
_LETTER = re.compile(
    r"^(?:(?:the )?(?:correct )?(?:answer|option)\s*(?:is)?\s*:?\s*)?\(?([a-z])(?:[).:,]|\s*$)", re.IGNORECASE
)
_LONE_LETTER = re.compile(r"^\(?([a-z])\)?[.:]?$", re.IGNORECASE)
_LEAD_IN = re.compile(r"^(?:the )?answer(?: is)?\s*:?\s+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score from 0 to 1, and whether the prediction could be read at all."""

    value: float
    parsable: bool = True


Scorer = Callable[[str, Item], Score]
_UNREADABLE = Score(value=0.0, parsable=False)


def normalise(text: str) -> str:
    """Lower case, no articles, no marks but decimal points and signs, number words up to ten as digits, single spaces.

    Both sides of a comparison go through here, so `Three.` and `3` are one answer. An article that is all there is
    stays: it is the option A.
    """
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().replace("'", "").replace("\u2019", ""))
    text = _MARK.sub(" ", text)
    words = [_DIGITS.get(word, word) for word in text.split()]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def vqa_normalise(text: str) -> str:
    """The VQA challenge's normalisation, as TextVQA's evaluator applies it to answers and predictions alike.

    Commas and question marks go; other marks go where they touch a space and become one elsewhere; full stops go unless
    a digit follows; number words become digits, articles go. Apostrophes are dropped where the evaluator looks words up
    in a table of contractions, but `'s` stays a word of its own, as there.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = re.sub(r"[\n\t]", " ", text)
    loose = {mark for mark in _VQA_MARKS if f"{mark} " in text or f" {mark}" in text}
    text = "".join(("" if mark in loose else " ") if mark in _VQA_MARKS else mark for mark in text)
    words = (_VQA_DIGITS.get(word, word) for word in re.sub(r"\.(?!\d)", "", text).split())
    return " ".join(word if word == "'s" else word.replace("'", "") for word in words if word not in _ARTICLES)


def exact_match(prediction: str, item: Item) -> Score:
    """GQA's rule: the normalised texts are equal.

    Where the item is a choice, a prediction that is none of the choices counts as unreadable.
    """
    said = normalise(prediction)
    if not said or (item.choices and said not in map(normalise, (*item.choices, *item.answers))):
        return _UNREADABLE
    return Score(value=float(said in map(normalise, item.answers)))


def vqa_soft(prediction: str, item: Item) -> Score:
    """The VQA and TextVQA rule over ten annotators, by leaving each of them out in turn.

    A prediction that k of the others gave earns min(1, k / 3). A lone annotator is matched exactly.
    """
    if not prediction.strip():
        return _UNREADABLE
    said = vqa_normalise(prediction)  # of an article nothing is left, as of an annotator's: they agree
    agrees = [vqa_normalise(answer) == said for answer in item.answers]
    if len(agrees) == 1:
        return Score(value=float(agrees[0]))
    shares = [min(1.0, (sum(agrees) - own) / _AGREEING) for own in agrees]
    return Score(value=sum(shares) / len(shares))


def option_letter(prediction: str, item: Item) -> Score:
    """SEED-Image's, MMStar's and ScienceQA's rule: the letter of the right choice.

    `B`, `(B)`, `B. a dog`, `Answer: B` and the choice's own text are all read as the second choice. A lone letter is
    always the letter, even where a choice's text is a letter too. The sources' own scripts take fewer forms: all of
    them the lone letter, ScienceQA's `B. a dog` and `The answer is B.` as well.

    Raises:
        ValueError: if the item has no choices, or its answer names none of them.
    """
    if not item.choices:
        raise ValueError(f"item {item.key}: scorer option_letter needs choices, it has none")
    right = {_option(answer, item.choices) for answer in item.answers}
    if None in right:
        raise ValueError(f"item {item.key}: answers {list(item.answers)} name none of the choices {list(item.choices)}")
    said = _option(prediction, item.choices)
    return _UNREADABLE if said is None else Score(value=float(said in right))


def yes_no(prediction: str, item: Item) -> Score:
    """MME's and POPE's rule: the first word is yes or no.

    MME's script looks for yes or no in the first four characters, so it takes `nothing` for no; POPE's takes whatever
    does not deny for yes. Here both are unreadable.
    """
    words = normalise(_LEAD_IN.sub("", prediction.strip())).split()
    if not words or words[0] not in {"yes", "no"}:
        return _UNREADABLE
    return Score(value=float(words[0] in map(normalise, item.answers)))


def relaxed_number(prediction: str, item: Item) -> Score:
    """ChartQA's rule: a number within 5 % of the answer; answers that are no numbers are matched exactly."""
    said = normalise(prediction)
    number = _number(prediction)
    read = [(_number(answer), normalise(answer)) for answer in item.answers]
    words = [text for target, text in read if target is None]
    if not said or (number is None and not words):
        return _UNREADABLE
    targets = [target for target, _ in read if target is not None]
    close = number is not None and any(abs(number - target) <= _TOLERANCE * abs(target) for target in targets)
    return Score(value=float(close or said in words))


def token_f1(prediction: str, item: Item) -> Score:
    """Words shared with the answer, the rule of open answers that are sentences: harmonic mean of precision and recall.

    The best of several answers counts.
    """
    said = Counter(normalise(prediction).split())
    if not said:
        return _UNREADABLE
    wanted = [Counter(normalise(answer).split()) for answer in item.answers]
    return Score(value=max(2 * (said & words).total() / (said.total() + words.total()) for words in wanted))


SCORERS: dict[str, Scorer] = {
    "exact_match": exact_match,
    "vqa_soft": vqa_soft,
    "option_letter": option_letter,
    "yes_no": yes_no,
    "relaxed_number": relaxed_number,
    "token_f1": token_f1,
}
"""Every scoring rule by the name that items carry."""


def score(prediction: str, item: Item) -> Score:
    """Judge a prediction by the rule that the item names.

    Raises:
        ValueError: if there is no rule of that name.
    """
    if item.scorer not in SCORERS:
        raise ValueError(f"item {item.key}: scorer is {item.scorer!r}, expected one of {', '.join(SCORERS)}")
    return SCORERS[item.scorer](prediction, item)


def _option(text: str, choices: tuple[str, ...]) -> int | None:
    """The choice that a text names: by a lone letter, by its words, by a letter in front, by its words normalised.

    The last comes last because it drops articles, and with them the option A.
    """
    said = text.strip()
    if (found := _LONE_LETTER.match(said)) is None:
        if (index := _only(_plain(said), map(_plain, choices))) is not None:
            return index
        if (found := _LETTER.match(said)) is None:
            return _only(normalise(said), map(normalise, choices))
    index = ord(found[1].lower()) - ord("a")
    return index if index < len(choices) else None


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()


def _only(said: str, names: Iterable[str]) -> int | None:
    """The place of the one name that equals a text."""
    places = [place for place, name in enumerate(names) if name == said]
    return places[0] if said and len(places) == 1 else None


def _number(text: str) -> float | None:
    """The number that a text is, percentages as fractions."""
    text = text.strip().lower().rstrip(".").replace(",", "")
    text = _DIGITS.get(text, text)
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
