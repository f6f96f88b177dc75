"""What every training process runs: the stages of a recipe one after the other."""

from __future__ import annotations

from functools import partial

import torch

from cluster.storage import remove_abandoned
from pipelines.training.agreement import from_rank_zero
from pipelines.training.engine import quiet_start
from pipelines.training.plans import LoopSettings
from pipelines.training.recipe import states_folder
from pipelines.training.resuming import find_state
from pipelines.training.signing import require_key
from pipelines.training.stage import StageRun
from pipelines.training.states import Found, forget_unfinished


def train_loop(settings: LoopSettings) -> None:
    """Run the stages that are not finished; from where the latest state of the run stands, if there is one.

    Raises:
        ValueError: if the run was started with a key for its states, and this process has none.
    """
    require_key(signed=settings.signed)
    quiet_start()
    import deepspeed  # noqa: PLC0415 - after quiet_start

    torch.set_num_threads(max(1, int(settings.recipe.cpus_per_worker)))
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo")
    found = from_rank_zero(partial(_found_state, settings))
    for plan in settings.plans:
        if from_rank_zero(plan.finished):
            continue
        resuming = found.card is not None and found.card.stage == plan.name
        StageRun(settings, plan).run(found if resuming else Found())


def _found_state(settings: LoopSettings) -> Found:
    """The latest resumable state of the run, after what killed processes left has been tidied up."""
    remove_abandoned(states_folder(settings.recipe))
    forget_unfinished(states_folder(settings.recipe))
    return find_state(settings.recipe, settings.board, refused={}, told={})
