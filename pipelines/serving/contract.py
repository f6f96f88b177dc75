"""What the HTTP side and an engine tell each other; knows neither torch nor Ray.

An engine takes *several* jobs per call, so that one that decodes in batches fits without a change on the HTTP side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image

FinishReason = Literal["stop", "length", "cancelled"]


class PromptError(ValueError):
    """A prompt that this model cannot take; its sentence is shown to the client."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One conversation, ready for a processor.

    Args:
        messages: `{"role", "content": [{"type": "image"} | {"type": "text", "text"}]}`, in order.
        images: RGB pictures in the order of their places in `messages`.
        question: the text that guides the compression, the last user turn's.
    """

    messages: Sequence[Mapping[str, Any]]
    images: Sequence[Image.Image]
    question: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn; greedy at temperature 0, and at one too small to divide by."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VisualUsage:
    """What the compression did to the pictures of one prompt.

    Args:
        method: registered name of the compression method.
        visual_tokens: tokens that the language model read, over all pictures.
        visual_tokens_original: tokens that it would have read without compression.
        branch_weights: the router's weight per branch, averaged over the pictures; None without a router.
    """

    method: str
    visual_tokens: int = 0
    visual_tokens_original: int = 0
    branch_weights: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """How a job ended; its text went out piece by piece through `Job.emit`."""

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    visual: VisualUsage


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One answer to be generated.

    Args:
        prompt: the conversation.
        sampling: how to draw the answer.
        emit: takes each new piece of text; called from the engine's thread.
        done: takes the completion, or the exception that ended the job; called once.
        cancelled: set when nobody waits any more; the engine stops at the next token.
    """

    prompt: Prompt
    sampling: Sampling
    emit: Callable[[str], None]
    done: Callable[[Completion | Exception], None]
    cancelled: threading.Event


class ChatEngine(Protocol):
    """A loaded model. `run` is called from one thread at a time and never from an event loop."""

    batch_limit: int

    def check(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refuse messages that the model cannot take, before they wait; quick, and called from any thread.

        Raises:
            PromptError: naming what is wrong and the way out.
        """
        ...  # pragma: no cover

    def run(self, jobs: Sequence[Job]) -> None:
        """Generate every answer and call each job's `done` exactly once."""
        ...  # pragma: no cover
