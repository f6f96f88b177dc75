"""One way to train, in processes that work when they are told: `python -m tests.bench.training_ways WAY FOLDER`.

All ways take the same steps: the same model, optimiser, samples per step and number of processes. A block of steps
begins when `FOLDER/go-WAY-N` appears; its seconds are left in `FOLDER/done-WAY-N`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer
from torch.nn.parallel import DistributedDataParallel

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from pipelines.board import open_board
from pipelines.corpus.manifest import load_manifest
from pipelines.corpus.micro_batches import MicroBatch
from pipelines.corpus.reader import read_shard
from pipelines.training.batches import Batch, Collator
from pipelines.training.engine import quiet_start, start_engine
from pipelines.training.memory import settle
from pipelines.training.objective import Objective, freeze
from pipelines.training.plans import LoopSettings, stage_plans
from pipelines.training.recipe import StageRecipe, TrainRecipe, compressor_options
from pipelines.training.stage import StageRun, Taken
from pipelines.training.states import Found
from qmop.loading import derive
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.assemble import tiny_config, tiny_processor

STEPS, WORLD = 8, 2
"""Of a block; processes."""
ROUNDS = 9
"""Blocks of every way."""
SAVE_EVERY = STEPS * ROUNDS + 1
"""A state is begun inside one more block: what it costs is measured apart, and nobody is stopped meanwhile."""
WIDTH, INNER, LAYERS, HEADS = 768, 2048, 8, 12
"""Of the language model: so large that a sample's step costs much more than its preparation, as real ones' do."""
LONGEST_S, _POLL_S = 1800.0, 0.01
TRAINER = "trainer-"
"""Each of our training processes leaves a file of this name with its number."""


def recipe_in(folder: Path) -> TrainRecipe:
    """The tuning stage of QMoP, long enough for every block."""
    return TrainRecipe(
        corpus=str(folder / "corpus"),
        output=str(folder / "run"),
        base=str(folder / "base"),
        align=StageRecipe(steps=0),
        tune=StageRecipe(steps=2000, projector_rate=1e-4, language_rate=1e-5, warmup=0.0),
        micro_batch=2,
        global_batch=8,
        workers=WORLD,
        zero=1,
        save_every=SAVE_EVERY,
        log_every=1,
    )


def make_base(folder: Path) -> None:
    """The embedded towers' shapes with a larger language model behind them, all with random weights."""
    torch.manual_seed(0)
    config = tiny_config()
    words = config.text_config
    words.hidden_size, words.intermediate_size, words.num_hidden_layers = WIDTH, INNER, LAYERS
    words.num_attention_heads = words.num_key_value_heads = HEADS
    words.head_dim = WIDTH // HEADS
    QMoPForConditionalGeneration(config).save_pretrained(folder / "base")
    tiny_processor().save_pretrained(folder / "base")


class Paced:
    """Lets blocks begin when they are told to and writes down how long they took."""

    def __init__(self, folder: Path, way: str) -> None:
        self.folder, self.way, self.block, self.taken = folder, way, 0, 0
        self.began = self.spent = 0.0

    def before(self) -> None:
        """Wait at the beginning of a block."""
        if self.taken == 0:
            deadline = time.monotonic() + LONGEST_S
            while not (self.folder / f"go-{self.way}-{self.block}").exists():
                if time.monotonic() > deadline:
                    raise TimeoutError("nobody said go")
                time.sleep(_POLL_S)
            dist.barrier()
            self.began, self.spent = time.monotonic(), time.process_time()

    def after(self, **told: float) -> None:
        """Count a step; leave the block's seconds behind its last."""
        self.taken += 1
        if self.taken == STEPS:
            own_cpu = torch.tensor(time.process_time() - self.spent)
            dist.all_reduce(own_cpu)
            if dist.get_rank() == 0:
                seconds = (time.monotonic() - self.began) / STEPS
                said = json.dumps({"seconds": seconds, "own_cpu": own_cpu.item() / STEPS, **told})
                place = self.folder / f"done-{self.way}-{self.block}"
                place.with_suffix(".part").write_text(said)
                place.with_suffix(".part").rename(place)
            self.block, self.taken = self.block + 1, 0


class PacedStage(StageRun):
    """Our stage, told when to go."""

    pace: Paced

    def _step(self, step: int, batches: Iterator[Batch]) -> Taken:
        self.pace.before()
        taken = super()._step(step, batches)
        self.pace.after(waited_s=taken.waited_s, stalled_s=self.saving.stalled_s)
        return taken


def ours(folder: Path) -> None:
    """Ray Data, Ray Train and DeepSpeed: what `qmop train` does."""
    recipe, progress = recipe_in(folder), Progress(stream=io.StringIO())
    with ray_session(RaySettings(num_cpus=6, object_store_mb=300), progress):
        base = recipe.base
        plans = stage_plans(recipe, load_manifest(recipe.corpus).digest, str(base))
        settings = LoopSettings(recipe=recipe, plans=plans, board=open_board())
        TorchTrainer(
            _enter,
            train_loop_config={"settings": ray.put(settings), "folder": folder},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=WORLD, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(name="bench", storage_path=str(folder / "ray")),
        ).fit()


def _enter(sealed: dict[str, Any]) -> None:
    """Where a process under Ray Train begins; light for the controller, as `pipelines.training.entry` is."""
    from tests.bench.training_ways import paced_loop  # noqa: PLC0415 - the controller has no use for models

    paced_loop(ray.get(sealed["settings"]), sealed["folder"])


def paced_loop(settings: LoopSettings, folder: Path) -> None:
    """What a training process does, block for block."""
    quiet_start()
    import deepspeed  # noqa: PLC0415 - after quiet_start

    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    (folder / f"{TRAINER}{os.getpid()}").touch()
    stage = PacedStage(settings, settings.plans[0])
    stage.pace = Paced(folder, "ours")
    stage.run(Found())


def parts_of(recipe: TrainRecipe, collate: Collator) -> Iterator[list[Batch]]:
    """This process's micro-batches of step after step, made beforehand from the corpus, for ever."""
    manifest = load_manifest(recipe.corpus)
    stored = list(read_shard(manifest.uri(0), manifest.shards[0]))
    made = []
    for slot in range(2 * recipe.slots):
        if slot % WORLD == dist.get_rank():
            few = [stored[(slot * recipe.micro_batch + place) % len(stored)] for place in range(recipe.micro_batch)]
            positions = list(range(slot * recipe.micro_batch, (slot + 1) * recipe.micro_batch))
            records = [json.loads(one.record) for one in few]
            made.append(collate(MicroBatch(positions, [one.key for one in few], [one.images for one in few], records)))
    rounds = recipe.slots // WORLD
    return (list(islice(made, start % len(made), start % len(made) + rounds)) for start in count(step=rounds))


def alone(folder: Path, way: str) -> None:
    """Plain steps without Ray: DeepSpeed's engine, or torch's own data parallelism."""
    recipe = recipe_in(folder)
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    model, processor = derive(recipe.base, "qmop", recipe.tokens, compressor_options(recipe, "tune"))
    groups, objective = freeze(model, "tune"), Objective(model)
    step = deepspeed_step(recipe, objective, groups) if way == "deepspeed" else ddp_step(recipe, objective, groups)
    batches = parts_of(recipe, Collator(processor, seed=0, max_length=recipe.max_length))
    pace = Paced(folder, way)
    settle()
    for parts in batches:
        pace.before()
        own = torch.tensor(float(sum(part.targets for part in parts)))
        dist.all_reduce(own)
        step(parts, own.item())
        pace.after()


Step = Callable[[list[Batch], float], None]


def deepspeed_step(recipe: TrainRecipe, objective: Objective, groups: dict[str, Any]) -> Step:
    """A step of DeepSpeed's engine."""
    engine = start_engine(objective, groups, recipe.tune, recipe)
    engine.train()

    def step(parts: list[Batch], targets: float) -> None:
        for part in parts:
            loss, _ = engine(part.inputs, part.labels, dummy=part.dummy)
            engine.backward(loss * (WORLD * len(parts) / targets))
            engine.step()
            loss.item()

    return step


def ddp_step(recipe: TrainRecipe, objective: Objective, groups: dict[str, Any]) -> Step:
    """A step of torch's DistributedDataParallel."""
    wrapped = DistributedDataParallel(objective, find_unused_parameters=True)
    trained = [parameter for many in groups.values() for parameter in many]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, recipe.beta2))
    wrapped.train()

    def step(parts: list[Batch], targets: float) -> None:
        optimizer.zero_grad()
        for number, part in enumerate(parts):
            wrapped.require_backward_grad_sync = number + 1 == len(parts)
            loss, _ = wrapped(part.inputs, part.labels, dummy=part.dummy)
            (loss * (WORLD / targets)).backward()
            loss.item()
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimizer.step()

    return step


if __name__ == "__main__":
    way, place = sys.argv[1], Path(sys.argv[2])
    if way == "ours":
        ours(place)
    else:
        quiet_start()
        import deepspeed

        os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
        deepspeed.init_distributed("gloo")
        alone(place, way)
