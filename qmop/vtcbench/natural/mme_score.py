"""MME's own score: per category accuracy plus the share of pictures with both questions right, both in per cent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from qmop.vtcbench.natural.mme import COGNITION, PERCEPTION, SOURCE
from qmop.vtcbench.records import Record

_PAIR = 2
_BEST = 200
"""Of a category."""


@dataclass(frozen=True, kw_only=True)
class MMEScore:
    """MME of one label.

    Attributes:
        categories: 0 to 200 each, of the categories with at least one whole pair.
        pairs: pictures with both questions, by category.
        incomplete: pictures of which one question alone was asked; they count nowhere.
        perception: sum over the perception categories; 2000 at best where all ten are there.
        cognition: sum over the cognition categories; 800 at best where all four are there.
    """

    categories: dict[str, float]
    pairs: dict[str, int]
    incomplete: int
    perception: float
    cognition: float

    @property
    def best_perception(self) -> int:
        """What `perception` would be of a model without fault, on the categories that are there."""
        return _BEST * len(self.categories.keys() & set(PERCEPTION))

    @property
    def best_cognition(self) -> int:
        """What `cognition` would be of a model without fault, on the categories that are there."""
        return _BEST * len(self.categories.keys() & set(COGNITION))


def mme_score(records: Iterable[Record]) -> MMEScore:
    """MME's score of one label's records; those of other sources are passed over, unreadable answers are wrong.

    Raises:
        ValueError: if a picture has more than two records, as with several labels at once.
    """
    pictures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        source, _, category = record.task.partition("/")
        if source == SOURCE:
            picture = record.key.rpartition("_")[0] or record.key  # a long id's digest does not tell the picture
            pictures[category][picture].append(record.score)
            if len(pictures[category][picture]) > _PAIR:
                raise ValueError(f"{picture} has more than two records: give the records of one label alone")
    whole = {
        category: [scores for scores in groups.values() if len(scores) == _PAIR]
        for category, groups in sorted(pictures.items())
    }
    scores = {category: _score(pairs) for category, pairs in whole.items() if pairs}
    return MMEScore(
        categories=scores,
        perception=sum(score for name, score in scores.items() if name in PERCEPTION),
        cognition=sum(score for name, score in scores.items() if name in COGNITION),
        pairs={category: len(pairs) for category, pairs in whole.items()},
        incomplete=sum(len(groups) for groups in pictures.values()) - sum(map(len, whole.values())),
    )


def _score(pairs: list[list[float]]) -> float:
    accuracy = sum(map(sum, pairs)) / (_PAIR * len(pairs))
    both = sum(sum(pair) == _PAIR for pair in pairs) / len(pairs)
    return 100 * (accuracy + both)
