"""Which text of a conversation is the question that guides compression. Answers never are.

The paper does not say what the query is when an image has several questions (Sec. 3.2 shows one). Here one turn is
drawn per sample in training; at inference the policy decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from qmop.compressors.base import one_of
from qmop.vtcbench.draws import Draws

QueryPolicy = Literal["latest", "sticky", "all"]
"""`latest`: the last user turn, so that a new question compresses the images anew. `sticky`: the question that came
with the first image, so that its tokens and the cache behind them stay valid. `all`: every user turn in order."""

Message = Mapping[str, Any]


def message_text(message: Message) -> str:
    """The words of a message, whether its content is a string or a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part.get("type") == "text")


def has_image(message: Message) -> bool:
    """Whether a message carries a picture."""
    content = message.get("content")
    return not isinstance(content, str) and any(part.get("type") in ("image", "image_url") for part in content or ())


def chosen_query(conversation: Sequence[Message], policy: QueryPolicy = "latest") -> str:
    """The question of a conversation under a policy; empty where no user has spoken.

    Raises:
        ValueError: for an unknown policy.
    """
    one_of("query_policy", policy, QueryPolicy)
    asked = [message for message in conversation if message.get("role") == "user"]
    if not asked:
        return ""
    if policy == "all":
        return " ".join(map(message_text, asked))
    if policy == "sticky":
        return message_text(next((message for message in asked if has_image(message)), asked[0]))
    return message_text(asked[-1])


def draw_turn(messages: Sequence[Mapping[str, str]], seed: int, position: int) -> tuple[str, str]:
    """One question and its answer out of a conversation, drawn by `(seed, position)`; other turns are left out.

    Query-guided tokens fit one question, so one turn is trained at a time.

    Args:
        messages: `{"role", "text"}` in order.
        seed: of the run.
        position: of the sample in the global order, so that any number of workers draws the same.
    """
    pairs = [
        (asked["text"], told["text"])
        for asked, told in pairwise(messages)
        if asked["role"] == "user" and told["role"] == "assistant"
    ]
    return Draws(seed, "turn", position).choice(pairs)
