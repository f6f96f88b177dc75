"""How LLaVA selects what of a tower's output it reads; compressors read every patch and nothing else."""

from __future__ import annotations

from typing import Any

SELECTIONS = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""The stock selection that hands on every patch and nothing else, by family of vision towers."""


def require_every_patch(config: Any, place: object) -> None:
    """Refuse a LLaVA that was trained on something else than all patches of its tower.

    Args:
        config: its configuration.
        place: what it is called in the message.

    Raises:
        ValueError: if it was.
    """
    vision, chosen = config.vision_config.model_type, config.vision_feature_select_strategy
    if vision in SELECTIONS and chosen != SELECTIONS[vision]:
        raise ValueError(
            f"vision_feature_select_strategy of {place} is {chosen!r}, but compressors read the patches of a {vision}, "
            f"all of them and nothing else: give a LLaVA that was trained with {SELECTIONS[vision]!r}"
        )
