"""DeepSpeed: its configuration from a recipe, and its start on machines with and without a compiler."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipelines.training.recipe import StageRecipe, TrainRecipe


def quiet_start() -> None:
    """Make DeepSpeed start without building anything and without a page of notices.

    Its shared-memory collective is compiled just in time on the first start (most of a minute, and an error where
    there is no C++ compiler); gloo does the same work without it, so the op is always left out. DeepSpeed would find
    out about it, and about all others that nobody asks for, by running the compiler in every process.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import deepspeed  # noqa: PLC0415 - reads DS_ACCELERATOR when imported

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def deepspeed_config(recipe: TrainRecipe, world: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe on so many processes; every one takes equally many slots, some void."""
    rounds = -(-recipe.slots // world)
    zero: dict[str, Any] = {**recipe.zero_options, "stage": recipe.zero}
    if recipe.zero == 3:  # noqa: PLR2004 - a ZeRO stage
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "train_batch_size": recipe.micro_batch * rounds * world,
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_accumulation_steps": rounds,
        "gradient_clipping": recipe.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def start_engine(
    objective: nn.Module, groups: dict[str, list[nn.Parameter]], stage: StageRecipe, recipe: TrainRecipe
) -> Any:
    """Wrap the objective; each group has its own peak learning rate under the key `peak`."""
    import deepspeed  # noqa: PLC0415 - see quiet_start

    peaks = {"projector": stage.projector_rate, "language": stage.language_rate}
    optimizer = torch.optim.AdamW(
        [{"params": params, "lr": peaks[name], "peak": peaks[name]} for name, params in groups.items()],
        betas=(0.9, recipe.beta2),
        weight_decay=recipe.weight_decay,
    )
    config = deepspeed_config(recipe, dist.get_world_size())
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=config)
    return engine
