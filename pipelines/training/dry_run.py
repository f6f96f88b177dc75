"""A run on paper: parameters, steps, tokens and memory of a recipe, without weights and without a GPU.

The model's graph is built on torch's meta device, so a 13B model costs seconds and no memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cluster.progress import Progress
from pipelines.corpus.manifest import load_manifest, require_all_there
from pipelines.training.bases import base_config, require_eyes_for_words
from pipelines.training.dry_run_figures import DryRun, Group, StageFigures
from pipelines.training.engine import deepspeed_config, quiet_start
from pipelines.training.memory_needs import (
    GIB,
    OFFLOADS,
    Load,
    Machines,
    Offload,
    language_activations,
    needs_of,
    picture_activations,
    state_file_bytes,
)
from pipelines.training.objective import freeze
from pipelines.training.recipe import StageName, TrainRecipe, compressor_options
from qmop.compressors.mixture import Mixture
from qmop.configuration_qmop import QMoPConfig
from qmop.language_shape import LanguageShape
from qmop.modeling_qmop import QMoPForConditionalGeneration

_WIDTHS = {"fp32": 4, "bf16": 2}
_START_BYTES = 8
"""Of a parameter while a process derives its model: base and model are there at once, in single precision."""


def print_dry_run(recipe: TrainRecipe, progress: Progress) -> DryRun:
    """Say what a recipe would do, then refuse it if it cannot fit or its corpus is not whole.

    Raises:
        ValueError: if the recipe's GPUs are too small, the corpus lacks shards, or DeepSpeed refuses its configuration.
    """
    with progress.stage(f"dry run of {recipe.compressor} at {recipe.tokens} tokens"):
        gpu_bytes = None if recipe.gpu_gib is None else int(recipe.gpu_gib * GIB)
        figures = dry_run(recipe, gpu_bytes=gpu_bytes, gpus_per_node=recipe.gpus_per_node)
    for line in figures.markdown().splitlines():
        progress.say(line)
    figures.require_fit()
    _look_at_corpus(recipe, progress)
    return figures


def _look_at_corpus(recipe: TrainRecipe, progress: Progress) -> None:
    """Refuse a corpus that lacks shards; one that is not made yet, or out of reach, is nothing that a plan needs."""
    try:
        manifest = load_manifest(recipe.corpus)
        require_all_there(manifest)
    except OSError as error:
        progress.say(f"corpus {recipe.corpus} was not looked at: {error}")
    else:
        progress.say(f"corpus {recipe.corpus}: {manifest.written} samples in {len(manifest.shards)} shards, all there")


def dry_run(recipe: TrainRecipe, gpu_bytes: int | None = None, gpus_per_node: int = 8) -> DryRun:
    """A recipe in numbers; nothing is loaded, nothing started.

    Args:
        recipe: of the run.
        gpu_bytes: memory of one GPU; that of this machine's when None, if it has one.
        gpus_per_node: GPUs of one machine.

    Raises:
        FileNotFoundError: if the base's configuration cannot be found.
        ValueError: if method, options, budget or DeepSpeed's configuration are wrong.
    """
    if gpu_bytes is None and torch.cuda.is_available():
        gpu_bytes = torch.cuda.get_device_properties(0).total_memory
    require_accepted(recipe)
    base = _base_config(recipe)
    machines = Machines(gpus=recipe.workers, per_node=gpus_per_node)
    return DryRun(
        compressor=recipe.compressor,
        machines=machines,
        micro_batch=recipe.micro_batch,
        gpu_bytes=gpu_bytes,
        stages=tuple(_figures(recipe, stage, base, machines) for stage in recipe.stages),
    )


def _base_config(recipe: TrainRecipe) -> QMoPConfig:
    try:
        return base_config(recipe)
    except FileNotFoundError as error:
        if recipe.parts is not None:
            raise
        raise FileNotFoundError(
            f"{error}; before it exists, a dry run takes the parts that it will be made of: --base tiny --language ... "
            "--vision ..."
        ) from error


def require_accepted(recipe: TrainRecipe) -> None:
    """Have DeepSpeed read the recipe's configuration as an engine would.

    Raises:
        ValueError: with DeepSpeed's reason, if it refuses.
    """
    quiet_start()
    from deepspeed.runtime.config import DeepSpeedConfig  # noqa: PLC0415 - after quiet_start

    config = deepspeed_config(recipe, recipe.workers)
    # Read in a single process, where DeepSpeed knows of one GPU.
    alone = {**config, "train_batch_size": config["train_batch_size"] // recipe.workers}
    try:
        DeepSpeedConfig(alone)
    except (AssertionError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"DeepSpeed refuses the recipe's configuration ({why}): correct zero or zero_options"
        ) from error


def stage_model(recipe: TrainRecipe, stage: StageName, base: QMoPConfig) -> QMoPForConditionalGeneration:
    """The model of a stage without memory, with what the stage freezes frozen.

    Raises:
        ValueError: if method, options or budget do not suit the base.
    """
    fields = base.to_dict()
    fields.update(
        compressor=recipe.compressor,
        compressor_tokens=recipe.tokens,
        compressor_options=compressor_options(recipe, stage),
    )
    config = QMoPConfig.from_dict(fields)
    require_eyes_for_words(recipe, config)
    with torch.device("meta"):
        model = QMoPForConditionalGeneration(config)
    model.tie_weights()
    freeze(model, stage, recipe.lora)
    return model


def groups_of(model: QMoPForConditionalGeneration) -> tuple[Group, ...]:
    """Parameters by part of the model, each counted once; nothing is left out."""
    inner = model.model
    parts: dict[str, nn.Module | None] = {"vision tower": inner.vision_tower, "text tower": inner.query_encoder}
    parts |= _projector_parts(inner.multi_modal_projector)
    parts |= {"language model": nn.ModuleList([inner.language_model, model.lm_head])}
    seen: set[int] = set()
    groups = []
    for name, module in parts.items():
        own = [parameter for parameter in _parameters(module) if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in own}
        if own:
            trained = sum(parameter.numel() for parameter in own if parameter.requires_grad)
            groups.append(Group(name=name, parameters=sum(p.numel() for p in own), trained=trained))
    assert len(seen) == len(list(model.parameters())), "every parameter belongs to a group"
    return tuple(groups)


def _projector_parts(projector: Any) -> dict[str, nn.Module | None]:
    parts: dict[str, nn.Module | None] = {}
    if isinstance(method := projector.compressor, Mixture):
        parts |= {f"projector: {name}": branch for name, branch in method.branches.items()}
        parts["projector: router"] = method.router
    parts["projector: compressor"] = method  # what its named parts left over
    parts["projector: connector"] = projector.connector
    return parts


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())


def _figures(recipe: TrainRecipe, stage: StageName, base: QMoPConfig, machines: Machines) -> StageFigures:
    model = stage_model(recipe, stage, base)
    groups, visual = groups_of(model), model.model.multi_modal_projector.token_count()
    if recipe.max_length <= visual:
        raise ValueError(
            f"max_length is {recipe.max_length}, but stage {stage} shows {visual} visual tokens: leave room for "
            "question and answer as well"
        )
    steps, width = recipe.stage(stage).steps, _WIDTHS[recipe.precision]
    load = Load(
        trained=sum(group.trained for group in groups),
        frozen=sum(group.parameters - group.trained for group in groups),
        largest=max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()),
        width=width,
        activations=_activations(recipe, stage, model, width),
    )
    pairs: list[tuple[int, Offload]] = [(zero, offload) for zero, ways in OFFLOADS.items() for offload in ways]
    needs = {(zero, offload): needs_of(load, zero, offload, machines) for zero, offload in pairs}
    return StageFigures(
        name=stage,
        steps=steps,
        samples=steps * recipe.global_batch,
        visual_tokens=visual,
        visual_per_step=visual * recipe.global_batch,
        most_per_step=recipe.max_length * recipe.global_batch,
        groups=groups,
        needs=tuple(needs.values()),
        planned=needs[recipe.zero, _offload(recipe)],
        export_bytes=width * (load.trained + load.frozen),
        state_bytes=state_file_bytes(load.trained),
        start_bytes=_START_BYTES * (load.trained + load.frozen) * machines.used,
    )


def _activations(recipe: TrainRecipe, stage: StageName, model: QMoPForConditionalGeneration, width: int) -> int:
    """Of a micro-batch whose rows are all as long as they may be, each with one picture."""
    config, vision = model.config, model.config.vision_config
    words = language_activations(
        LanguageShape.of(config.text_config),
        config.text_config.vocab_size,
        recipe.micro_batch * recipe.max_length,
        width,
        trained=stage == "tune",
        recompute=recipe.gradient_checkpointing,
    )
    patches = (vision.image_size // vision.patch_size) ** 2
    layers = vision.num_hidden_layers
    return words + picture_activations(recipe.micro_batch, patches, vision.hidden_size, layers, width)


def _offload(recipe: TrainRecipe) -> Offload:
    """What the recipe's own options put into the host's memory."""
    away = {name for name in ("offload_optimizer", "offload_param") if _is_away(recipe.zero_options.get(name))}
    if recipe.zero == 0 or not away:
        return "none"
    return "optimizer and parameters" if "offload_param" in away and recipe.zero == 3 else "optimizer"  # noqa: PLR2004


def _is_away(option: Any) -> bool:
    return isinstance(option, dict) and option.get("device", "none") != "none"
