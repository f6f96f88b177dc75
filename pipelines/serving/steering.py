"""What a model reads of a conversation, and whether its texts bring in what only the template may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from pipelines.serving.contract import PromptError

# Stands in for every text; whatever a template puts around it, it begins, ends and completes no special token.
_HARMLESS = "x"


class Template:
    """A processor's chat template; safe to use from several threads.

    Args:
        processor: with a tokenizer, an image token and a chat template.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        added = [str(token) for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
        known = [*processor.tokenizer.all_special_tokens, processor.image_token, *added]
        self._steering = tuple(dict.fromkeys(token for token in known if token))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation as the model reads it, up to where its answer begins.

        Args:
            messages: as `Prompt` has them.

        Raises:
            PromptError: if the template refuses the conversation, such as two turns of the user's in a row.
        """
        try:
            return str(self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:
            if type(error) is not TemplateError:  # its subclasses are faults of the template itself
                raise
            raise PromptError(
                f"This model's template does not take the conversation ({error}): let the user and the assistant take "
                "turns, and try it without a system message."
            ) from error

    def check(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refuse texts that hold special tokens, also those that only come about where the template joins texts.

        The rendered conversation is what counts: it may hold no other number of any special token than the same
        conversation with harmless texts.

        Args:
            messages: as `Prompt` has them.

        Raises:
            PromptError: naming the token, or as `render`.
        """
        read, expected = self.render(messages), self.render([_harmless(turn) for turn in messages])
        for token in self._steering:
            if read.count(token) != expected.count(token):
                raise PromptError(f"The text holds {token}, which steers this model: leave it out.")

    def require_places(self, prompt: str, images: int) -> None:
        """Refuse a rendered prompt whose placeholders are not as many as its `images`.

        Raises:
            PromptError: telling both numbers.
        """
        places = prompt.count(self._processor.image_token)
        if places != images:
            raise PromptError(
                f"The conversation has {images} images, but its texts as this model reads them have places for "
                f"{places}: leave {self._processor.image_token} out of the texts, or send another number of images."
            )


def _harmless(turn: Mapping[str, Any]) -> dict[str, Any]:
    parts = [part | {"text": _HARMLESS} if part["type"] == "text" else part for part in turn["content"]]
    return {**turn, "content": parts}
