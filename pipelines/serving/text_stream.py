"""From token ids to text that may be shown: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"


class Detokenizer:
    """Decodes ids as they come.

    A piece is held back while it ends inside a character, and decoding looks back one piece, because many
    tokenizers decide about a leading space from what stands before.

    Args:
        decode: turns ids into text, special tokens left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._before = 0
        self._shown = 0

    def push(self, ids: Sequence[int], *, final: bool = False) -> str:
        """Take further ids and return the text that they complete; `final` lets an unfinished character out."""
        self._ids.extend(ids)
        known = self._decode(self._ids[self._before : self._shown])
        text = self._decode(self._ids[self._before :])
        if not final and text.endswith(_UNFINISHED):
            return ""
        self._before, self._shown = self._shown, len(self._ids)
        return text[len(known) :]


class StopText:
    """Cuts a text before the first stop, and holds back what may become one.

    Args:
        stops: texts that end the answer; they are not part of it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.reached = False

    def push(self, text: str, *, final: bool = False) -> str:
        """Take further text and return what may be shown of it."""
        if self.reached:
            return ""
        held = self._held + text
        # The stop that is complete first counts, so that the cut does not depend on how the text was chopped up.
        ends = [(place + len(stop), place) for stop in self._stops if (place := held.find(stop)) >= 0]
        if ends:
            self.reached, self._held = True, ""
            return held[: min(ends)[1]]
        keep = 0 if final else max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
