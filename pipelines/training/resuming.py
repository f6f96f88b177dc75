"""From which state a run goes on: the newest that every process can load, the others refused by name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.distributed as dist

from pipelines.training.agreement import from_rank_zero
from pipelines.training.recipe import StageName, TrainRecipe, states_folder
from pipelines.training.state_loading import DamagedStateError, load_state
from pipelines.training.states import Found, latest


def find_state(recipe: TrainRecipe, board: Any, refused: Mapping[str, str], told: Mapping[str, str]) -> Found:
    """The newest state of the run whose card and sizes are right; tells which newer ones are refused, and why.

    Args:
        recipe: of the run.
        board: actor that takes notes for the driver.
        refused: states that are known not to be usable, with the reasons.
        told: those of them that the driver has heard of.
    """
    found = latest(states_folder(recipe), recipe.stages, refused)
    for uri, why in found.refused.items():
        if uri not in told:
            board.post.remote({"kind": "refused", "name": uri, "why": why})
    return found


def resume(engine: Any, found: Found, recipe: TrainRecipe, stage: StageName, board: Any) -> int:
    """Load a stage's state, or the newest one before it that is whole; a collective call.

    Digests are looked at only here, since that takes as long as reading: what turns out to be damaged is refused by
    all processes, which then agree on the next older state.

    Returns:
        The steps that are done; 0 where the stage has no state that can be loaded.
    """
    while (uri := found.uri) is not None and (card := found.card) is not None and card.stage == stage:
        began = time.monotonic()
        try:
            size = load_state(engine, uri, card)
        except DamagedStateError as error:
            refused = {**found.refused, uri: str(error)}
            found = from_rank_zero(partial(find_state, recipe, board, refused, found.refused))
            continue
        if dist.get_rank() == 0:
            seconds = time.monotonic() - began
            board.post.remote({"kind": "resumed", "name": card.name, "bytes": size, "seconds": seconds})
        return card.step
    return 0
