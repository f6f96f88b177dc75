"""The driver's side of training: check everything first, then let Ray Train run the loop and pass on what it says."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.capacity import require
from cluster.failures import JobFailedError
from cluster.holding import held
from cluster.processes import handlers_kept
from cluster.progress import Progress
from cluster.session import ray_session
from cluster.storage import arrow_filesystem, exists, join, read_bytes, remove_abandoned, sha256_of, write_atomic
from pipelines.board import listening, open_board
from pipelines.corpus.feed import READING_CPUS
from pipelines.corpus.manifest import Manifest, load_manifest, require_all_there
from pipelines.training.bases import base_config, base_of, require_eyes_for_words
from pipelines.training.entry import Sealed, enter
from pipelines.training.exports import CARD, WEIGHTS, is_complete
from pipelines.training.failures import explained
from pipelines.training.news import News
from pipelines.training.plans import LoopSettings, StagePlan, export_uris, stage_plans
from pipelines.training.recipe import SHAPING, TrainRecipe, compressor_options
from pipelines.training.retention import name_of
from pipelines.training.signing import has_key
from pipelines.training.tracking import check_trackers, open_trackers
from pipelines.training.validation import outstanding, validation_of
from qmop.compressors import projector_spec
from qmop.configuration_qmop import QMoPConfig

_RUN, _HOLDER, _LONGEST = "run.json", "run.lease.json", 60


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run leaves: the folders of its exports that stay, in order, and whether it had to train."""

    exports: tuple[str, ...]
    trained: bool


def train(recipe: TrainRecipe, progress: Progress) -> TrainResult:
    """Run a recipe to its end; stages that are already exported are not run again.

    Raises:
        ValueError: for a recipe that cannot run, a corpus that lacks shards, or an empty key for states; before
            anything is started.
        HeldError: if another process that lives trains into the same output.
        FileNotFoundError: if corpus or base are missing.
        JobFailedError: if it ended before its last step, more often than `max_failures` allows, or has gone on behind
            steps that a changed schedule wants exports of.
    """
    has_key()
    check_compressor(recipe)
    check_trackers(recipe.trackers)
    exports = tuple(uri for stage in recipe.stages for uri in export_uris(recipe, stage).values())
    manifest = load_manifest(recipe.corpus)
    if not all(is_complete(uri) for uri in exports):
        require_all_there(manifest)
    with held(join(recipe.output, _HOLDER), f"output {recipe.output}", say=progress.say):
        remove_abandoned(recipe.output)
        plans = _run_what_is_left(recipe, manifest, progress)
    if missing := [name_of(uri) for uri in exports if not is_complete(uri)]:
        raise JobFailedError(
            f"training ended without {', '.join(missing)}: it went on behind these steps, since the schedule was "
            "changed after them; take the old schedule, or another output"
        )
    return TrainResult(exports=tuple(uri for uri in exports if exists(join(uri, CARD))), trained=bool(plans))


def _run_what_is_left(recipe: TrainRecipe, manifest: Manifest, progress: Progress) -> tuple[StagePlan, ...]:
    """Run what is left to do in an output that no other run writes to; the stages that were left."""
    base = base_of(recipe, progress)
    plans = stage_plans(recipe, manifest.digest, base)
    _claim(recipe, manifest, base)
    if not plans:
        progress.say(f"training {recipe.compressor}: reusing all checkpoints in {recipe.output}")
    if outstanding(recipe) or plans:
        _run(recipe, plans, progress)
    return plans


def _run(recipe: TrainRecipe, plans: tuple[StagePlan, ...], progress: Progress) -> None:
    """Train what is planned, and judge what is to be judged."""
    with ray_session(recipe.ray, progress):
        gpu = ray.cluster_resources().get("GPU", 0) >= recipe.workers
        _require_room(recipe, progress, training=bool(plans), gpu=gpu)
        how = f"{recipe.workers} workers, ZeRO-{recipe.zero}"
        title = f"training {recipe.compressor} at {recipe.tokens} tokens with {how}"
        with progress.stage(title if plans else f"judging exports of {recipe.output}"):
            _fit(recipe, plans, progress, gpu=gpu)


def _require_room(recipe: TrainRecipe, progress: Progress, *, training: bool, gpu: bool) -> None:
    """Training and validation hold their resources at the same time."""
    parts, cpus, gpus = [], 0.0, 0.0
    if training:
        parts.append(f"training with {recipe.workers} workers")
        cpus += recipe.workers * recipe.cpus_per_worker + READING_CPUS
        gpus += recipe.workers if gpu else 0
    if recipe.validation.every:
        parts.append("validation")
        cpus += recipe.validation.num_cpus
        gpus += recipe.validation.num_gpus
    require(what=" and ".join(parts), num_cpus=cpus, num_gpus=gpus, progress=progress)


def check_compressor(recipe: TrainRecipe) -> None:
    """Build the projector without memory, so that a wrong method, option or budget is refused at once."""
    fields = base_config(recipe).to_dict()
    for stage in recipe.stages:
        options = compressor_options(recipe, stage)
        fields.update(compressor=recipe.compressor, compressor_tokens=recipe.tokens, compressor_options=options)
        try:
            config = QMoPConfig.from_dict(fields)
            with torch.device("meta"):
                projector = projector_spec(config).build()
        except TypeError as error:
            raise ValueError(f"options {recipe.options} do not fit {recipe.compressor}: {error}") from error
        require_eyes_for_words(recipe, config)
        if recipe.max_length <= projector.token_count():
            raise ValueError(
                f"max_length is {recipe.max_length}, but stage {stage} shows {projector.token_count()} visual tokens: "
                "leave room for question and answer as well"
            )


def _claim(recipe: TrainRecipe, manifest: Manifest, base: str) -> None:
    """Write the recipe beside its run, or refuse a folder that holds a run of another recipe or corpus."""
    place = join(recipe.output, _RUN)
    weights = sha256_of(join(base, WEIGHTS))
    mine = {"digest": recipe.digest, "corpus": manifest.digest, "base": weights, "recipe": asdict(recipe)}
    mine = json.loads(json.dumps(mine))
    if not exists(place):
        write_atomic(place, (json.dumps(mine, indent=2) + "\n").encode())
        return
    theirs = json.loads(read_bytes(place))
    before = {**theirs.get("recipe", {}), "corpus": theirs.get("corpus"), "base": theirs.get("base")}
    now = {**mine["recipe"], "corpus": mine["corpus"], "base": mine["base"]}
    changed = [
        name for name in (*SHAPING, "corpus") if before.get(name) != now[name] and name not in recipe.allow_changes
    ]
    if changed:
        told = ", ".join(f"{name}: {_short(before.get(name))} -> {_short(now[name])}" for name in changed)
        raise ValueError(
            f"output {recipe.output} holds a run of another recipe ({told}): choose another output, delete that "
            f"folder, or say what may differ: --allow_changes {' '.join(changed)}"
        )
    write_atomic(place, (json.dumps(mine, indent=2) + "\n").encode())


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _fit(recipe: TrainRecipe, plans: tuple[StagePlan, ...], progress: Progress, *, gpu: bool) -> None:
    board = open_board()
    filesystem, path = arrow_filesystem(join(recipe.output, "ray"))
    trainer = TorchTrainer(
        enter,
        train_loop_config=Sealed(settings=ray.put(LoopSettings(recipe=recipe, plans=plans, board=board))),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=recipe.watchdog_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(recipe.min_workers, recipe.workers) if recipe.min_workers else recipe.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": recipe.cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=recipe.digest[:12],
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=recipe.max_failures),
        ),
    )
    name = f"{recipe.compressor}-{recipe.tokens}-{recipe.digest[:8]}"
    trackers = open_trackers(recipe.trackers, recipe.output, name, say=progress.say)
    trackers.facts({"recipe": asdict(recipe), "digest": recipe.digest})
    news, validation = News(recipe, progress, trackers), validation_of(recipe, progress, board.post.remote)

    def hear(note: dict[str, Any]) -> None:
        news.hear(note)
        validation.hear(note)

    try:
        with handlers_kept(), listening(board, hear), validation:
            if plans:
                with explained(recipe):
                    trainer.fit()
    finally:
        news.close()
