"""From a parsed request to what an engine takes: rules about the conversation checked, pictures still encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.serving.contract import Prompt, Sampling
from pipelines.serving.errors import bad_request
from pipelines.serving.images import ImageLimits, Picture, read_data_url
from pipelines.serving.protocol import ChatRequest, ImagePart, Message

_MAX_STOPS = 4
_MAX_STOP_LENGTH = 64


def sampling_of(request: ChatRequest, max_new_tokens: int) -> Sampling:
    """How the answer is to be drawn, under the service's cap on new tokens.

    Raises:
        ApiError: 400 for stop texts that cannot be honoured.
    """
    stops = tuple(request.stop)
    if len(stops) > _MAX_STOPS or not all(1 <= len(stop) <= _MAX_STOP_LENGTH for stop in stops):
        message = f"stop takes at most {_MAX_STOPS} texts of 1 to {_MAX_STOP_LENGTH} characters: shorten it."
        raise bad_request(message, param="stop")
    asked = min(request.max_completion_tokens or max_new_tokens, request.max_tokens or max_new_tokens)
    return Sampling(
        max_new_tokens=min(asked, max_new_tokens),
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=stops,
    )


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A conversation that may wait; fields as `Prompt` has them, with the pictures still encoded."""

    messages: Sequence[Mapping[str, Any]]
    pictures: Sequence[Picture]
    question: str

    def prompt(self) -> Prompt:
        """The conversation with its pictures decoded; slow and large, so call it when its turn has come.

        Raises:
            ApiError: 400, naming a picture that is damaged.
        """
        images = [picture.decode() for picture in self.pictures]
        return Prompt(messages=self.messages, images=images, question=self.question)


def draft_of(request: ChatRequest, limits: ImageLimits, max_images: int) -> Draft:
    """The conversation, checked as far as it can be before a picture is decoded; keep it off the event loop.

    Raises:
        ApiError: 400, naming the message at fault.
    """
    _check_turns(request, max_images)
    pictures: list[Picture] = []
    messages = [_turn(message, place, pictures, limits) for place, message in enumerate(request.messages)]
    return Draft(messages=messages, pictures=pictures, question=request.messages[-1].text)


def _check_turns(request: ChatRequest, max_images: int) -> None:
    last = len(request.messages) - 1
    if request.messages[-1].role != "user":
        raise bad_request("The last message must be the user's: add the question.", param=f"messages.{last}.role")
    if not request.messages[-1].text.strip():
        raise bad_request("The last message asks nothing: add a text part.", param=f"messages.{last}.content")
    count = 0
    for place, message in enumerate(request.messages):
        pictures = sum(isinstance(part, ImagePart) for part in message.content)
        if pictures and message.role != "user":
            raise bad_request("Only the user's messages may hold images.", param=f"messages.{place}.content")
        count += pictures
    if count > max_images:
        sentence = f"The conversation holds {count} images, but at most {max_images} are read: send fewer."
        raise bad_request(sentence, code="too_many_images", param="messages")


def _turn(message: Message, place: int, pictures: list[Picture], limits: ImageLimits) -> dict[str, Any]:
    content: list[dict[str, str]] = []
    for index, part in enumerate(message.content):
        if isinstance(part, ImagePart):
            pictures.append(read_data_url(part.image_url.url, limits, f"messages.{place}.content.{index}.image_url"))
            content.append({"type": "image"})
        else:
            content.append({"type": "text", "text": part.text})
    return {"role": "system" if message.role == "developer" else message.role, "content": content}
