"""Which exports of a run stay, and how the others go."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from cluster.storage import exists, join, list_files, remove, write_atomic
from pipelines.training.exports import CARD, RETIRED, read_card
from pipelines.training.plans import export_uris
from pipelines.training.recipe import StageName, TrainRecipe
from pipelines.training.verdicts import Export


def name_of(uri: str) -> str:
    """An export's name, which is that of its folder."""
    return uri.rsplit("/", 1)[-1]


def surplus(recipe: TrainRecipe, stage: StageName, step: int, exempt: Collection[str]) -> list[str]:
    """Folders of the exports that a stage has no more use for once it has made the one of a step.

    Args:
        recipe: of the run.
        stage: the stage.
        step: of its latest export.
        exempt: names of exports that stay whatever their age.
    """
    made = [uri for at, uri in export_uris(recipe, stage).items() if at <= step]
    keep = recipe.validation.keep_exports
    return [uri for uri in made[:-keep] if name_of(uri) not in exempt] if keep else []


def retire(uri: str) -> bool:
    """Remove an export, and leave a mark by which a run that goes on knows that it had been made.

    Returns:
        Whether there was one.
    """
    there = exists(join(uri, CARD))
    if not there and not exists(join(uri, RETIRED)):
        return False
    if there:
        write_atomic(join(uri, RETIRED), b'{"removed_for": "validation.keep_exports"}\n')
        remove(join(uri, CARD))
    for name in list_files(uri, recursive=True):
        if name_of(name) != RETIRED:
            remove(name)
    return there


def still_there(recipe: TrainRecipe, stage: StageName) -> list[Export]:
    """The exports of a stage that are whole, in the order of their steps."""
    found = []
    for step, uri in export_uris(recipe, stage).items():
        with suppress(OSError, ValueError):  # absent, damaged, or out of reach
            card = read_card(uri)
            found.append(Export(name=card.name, digest=card.digest, stage=stage, step=step))
    return found
