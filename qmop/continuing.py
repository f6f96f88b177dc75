"""What a call of `generate` must not ask for where prompts are shortened, or tokens dropped in the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def asked_setting(kwargs: Mapping[str, Any], defaults: Any, name: str) -> Any:
    """A generation setting as stock `generate` finds it.

    Args:
        kwargs: of the call; a setting there goes before that of its `generation_config`.
        defaults: the model's own `generation_config`, for what the call leaves open.
        name: of the setting.
    """
    if name in kwargs:
        return kwargs[name]
    own = getattr(kwargs.get("generation_config"), name, None)
    return getattr(defaults, name, None) if own is None else own


def require_whole_prefill(kwargs: Mapping[str, Any], defaults: Any) -> None:
    """Refuse to see a prompt in pieces, of which none shows every picture to the prompt's last token.

    Args:
        kwargs: of `generate`.
        defaults: the model's own `generation_config`.

    Raises:
        ValueError: if `prefill_chunk_size` is set in the call, its configuration or the model's.
    """
    if (chunk := asked_setting(kwargs, defaults, "prefill_chunk_size")) is not None:
        raise ValueError(
            f"prefill_chunk_size is {chunk}, but a method inside the language model drops tokens in one pass: "
            "leave it out, or pass prefill_chunk_size=None where the model's generation_config sets it"
        )
