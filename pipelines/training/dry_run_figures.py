"""What a dry run found, and how it is shown and judged."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.training.memory_needs import GIB, Machines, Needs
from pipelines.training.recipe import StageName


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that belong together.

    Attributes:
        name: such as `projector: router`.
        parameters: how many there are.
        trained: how many of them the stage trains.
    """

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """One stage in numbers.

    Attributes:
        name: of the stage.
        steps: optimiser steps.
        samples: that it reads.
        visual_tokens: of one picture.
        visual_per_step: visual tokens of a step, where every sample has one picture.
        most_per_step: tokens of a step at most, if every row is as long as it may be.
        groups: of parameters; they add up to the model.
        needs: memory by ZeRO stage and offload.
        planned: what the recipe itself asks for, one of `needs`.
        export_bytes: of an exported checkpoint's weights.
        state_bytes: of a resumable state.
        start_bytes: of each machine's memory while its processes build the model.
    """

    name: StageName
    steps: int
    samples: int
    visual_tokens: int
    visual_per_step: int
    most_per_step: int
    groups: tuple[Group, ...]
    needs: tuple[Needs, ...]
    planned: Needs
    export_bytes: int
    state_bytes: int
    start_bytes: int

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(group.parameters for group in self.groups)

    @property
    def trained(self) -> int:
        """Parameters that the stage trains."""
        return sum(group.trained for group in self.groups)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A recipe in numbers.

    Attributes:
        compressor: of the recipe.
        machines: that it is spread over.
        micro_batch: rows that a GPU puts through the model at once.
        gpu_bytes: memory of one GPU; unknown when None.
        stages: in order.
    """

    compressor: str
    machines: Machines
    micro_batch: int
    gpu_bytes: int | None
    stages: tuple[StageFigures, ...]

    def require_fit(self) -> None:
        """Refuse what cannot fit.

        Raises:
            ValueError: naming the first stage that needs more than a GPU has, and what would fit.
        """
        for stage in self.stages:
            if self.gpu_bytes is not None and stage.planned.gpu > self.gpu_bytes:
                raise ValueError(
                    f"stage {stage.name} on ZeRO-{stage.planned.zero} needs {_gib(stage.planned.gpu)} GiB on each of "
                    f"{self.machines.gpus} GPUs, but one has {_gib(self.gpu_bytes)}: {self._way_out(stage)}"
                )

    def _way_out(self, stage: StageFigures) -> str:
        assert self.gpu_bytes is not None
        fitting = [needs for needs in stage.needs if needs.gpu <= self.gpu_bytes]
        if fitting:
            first = fitting[0]
            beside = "" if first.offload == "none" else f" with {first.offload} offloaded"
            return f"ZeRO-{first.zero}{beside} would fit ({_gib(first.gpu)} GiB)"
        if self.micro_batch > 1:
            return "lower micro_batch or max_length, set gradient_checkpointing, or name more workers"
        return "lower max_length, set gradient_checkpointing, or name more workers"

    def markdown(self) -> str:
        """Tables for people."""
        return "\n\n".join(_stage_markdown(stage, self) for stage in self.stages) + "\n"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def _stage_markdown(stage: StageFigures, run: DryRun) -> str:
    machines = run.machines
    facts = [
        f"Stage {stage.name}: {stage.steps:,} steps, {stage.samples:,} samples.",
        f"A picture is {stage.visual_tokens} visual tokens; a step has {stage.visual_per_step:,} of them.",
        f"A step has at most {stage.most_per_step:,} tokens in all.",
        f"An export is {_gib(stage.export_bytes)} GiB, a resumable state {_gib(stage.state_bytes)} GiB.",
        f"While the processes of a machine build the model they take {_gib(stage.start_bytes)} GiB of its memory.",
    ]
    parameters = ["| part | parameters | trained |", "|---|---:|---:|"]
    parameters += [f"| {group.name} | {group.parameters:,} | {group.trained:,} |" for group in stage.groups]
    parameters.append(f"| all | {stage.parameters:,} | {stage.trained:,} |")
    there = "" if run.gpu_bytes is None else f", of {_gib(run.gpu_bytes)}"
    table = [
        f"GiB on each of {machines.gpus} GPUs ({machines.nodes} x {machines.used}){there}; the recipe's own in bold.",
        "",
        "| ZeRO | offloaded | states | frozen | activations | reserve | GPU | host |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    table += [_needs_row(needs, stage.planned) for needs in stage.needs]
    return "\n".join([*facts, "", *parameters, "", *table])


def _needs_row(needs: Needs, planned: Needs) -> str:
    sizes = (needs.states, needs.frozen, needs.activations, needs.reserve, needs.gpu, needs.host)
    name = f"**{needs.zero}**" if needs == planned else str(needs.zero)
    return f"| {name} | {needs.offload} | {' | '.join(_gib(size) for size in sizes)} |"
