"""What a reader of a source yields: a sample with its question as it is asked, or a fault in the sample's place."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from qmop.pixels import to_rgb
from qmop.vtcbench.items import Item
from qmop.vtcbench.shards import picture_kind

LETTERS = "ABCDEFGHIJ"
_SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_LONGEST_KEY = 70
"""Of an id inside a key: a USTAR name has room for 100 bytes."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question of a source.

    Attributes:
        source: short name of the source.
        id: the source's own name of the question where it has one; the same in every format of the source if it can be.
        question: as it is asked, options and format prompt included.
        answers: accepted answers.
        task: what the source calls the kind of question, behind the source's name.
        scorer: the source's own rule, by its name in `qmop.vtcbench.scorers`.
        choices: the options, where the question has some.
        load: reads the encoded picture.
    """

    source: str
    id: str
    question: str
    answers: tuple[str, ...]
    task: str
    scorer: str
    load: Callable[[], bytes]
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The item's key: source and id in characters that fit a tar member and a URL."""
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", self.id)
        if len(plain) > _LONGEST_KEY:
            plain = hashlib.sha256(self.id.encode()).hexdigest()[:32]
        return f"{self.source}-{plain}"

    def item(self, dimension: str) -> Item:
        """The sample as an item of a dimension."""
        return Item(
            key=self.key,
            question=self.question,
            answers=self.answers,
            dimension=dimension,
            task=self.task,
            source=self.source,
            scorer=self.scorer,
            choices=self.choices,
        )

    def picture(self) -> bytes:
        """The encoded picture as PNG, JPEG or WebP; other formats become PNG without loss.

        Raises:
            ValueError: if it is missing or cannot be decoded.
        """
        try:
            data = self.load()
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                return data if _kept(data) else _as_png(picture)
        except FileNotFoundError as error:
            raise ValueError(f"{self.source} {self.id}: its picture {error.filename} is missing") from error
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{self.source} {self.id}: its picture cannot be decoded ({error})") from error


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of a source that is no sample.

    Attributes:
        source: short name of the source.
        id: as far as it is known, else the place in the file.
        reason: one of a few words, for counting.
        detail: one sentence for people.
    """

    source: str
    id: str
    reason: str
    detail: str


class RowError(ValueError):
    """A row that cannot be a sample; `reason` is one of a few words, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def short_question(question: str) -> str:
    """A question for a free short answer, in LLaVA-1.5's published wording."""
    return f"{question.strip()}\n{_SHORT}"


def option_question(question: str, options: Sequence[str], context: str = "") -> str:
    """A question with lettered options, in LLaVA-1.5's published wording."""
    lines = [f"Context: {context.strip()}"] if context.strip() else []
    lines += [question.strip(), *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))]
    return "\n".join([*lines, _LETTER])


def lettered(question: str) -> str:
    """A question that lists its options itself, with the format prompt behind it."""
    return f"{question.strip()}\n{_LETTER}"


def checked_letter(answer: object, options: int) -> str:
    """The letter of the right option.

    Raises:
        RowError: if it is none of the first `options` letters.
    """
    letter = str(answer).strip().upper()
    if len(letter) != 1 or letter not in LETTERS[:options]:
        raise RowError("unknown_letter", f"its answer is {answer!r}, expected one of {', '.join(LETTERS[:options])}")
    return letter


def checked_question(question: object) -> str:
    """The question's text.

    Raises:
        RowError: if there is none.
    """
    if not isinstance(question, str) or not question.strip():
        raise RowError("no_question", f"its question is {question!r}, expected a text")
    return question


def _kept(data: bytes) -> bool:
    try:
        picture_kind(data)
    except ValueError:
        return False
    return True


def _as_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    to_rgb(picture).save(buffer, "PNG")
    return buffer.getvalue()
