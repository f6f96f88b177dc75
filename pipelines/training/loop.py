"""What every training process runs: the stages of a recipe one after the other."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pipelines.training.engine import quiet_start
from pipelines.training.exports import is_complete
from pipelines.training.plans import LoopSettings, StagePlan
from pipelines.training.recipe import states_folder
from pipelines.training.stage import StageRun
from pipelines.training.states import Found, forget_unfinished, latest


def train_loop(settings: LoopSettings) -> None:
    """Entry point of a training process under Ray Train."""
    quiet_start()
    import deepspeed  # noqa: PLC0415 - after quiet_start

    torch.set_num_threads(max(1, int(settings.recipe.cpus_per_worker)))
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo")
    found = _found_state(settings)
    for plan in settings.plans:
        if _already_exported(plan):
            continue
        resuming = found.card is not None and found.card.stage == plan.name
        StageRun(settings, plan).run(found if resuming else Found())


def _found_state(settings: LoopSettings) -> Found:
    """The latest resumable state of the run; one process looks and tidies up, so that all agree."""
    seen: list[Found | None] = [None]
    if dist.get_rank() == 0:
        folder = states_folder(settings.recipe)
        forget_unfinished(folder)
        seen = [latest(folder, settings.recipe.stages)]
        for uri, why in seen[0].refused.items():  # type: ignore[union-attr]
            settings.board.post.remote({"kind": "refused", "name": uri, "why": why})
    dist.broadcast_object_list(seen)
    assert seen[0] is not None
    return seen[0]


def _already_exported(plan: StagePlan) -> bool:
    """Whether a stage was finished before a restart; one process looks, so that all agree."""
    seen = [all(is_complete(uri) for uri in plan.exports) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(seen)
    return bool(seen[0])
