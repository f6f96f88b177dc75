"""The driver's side of training: check everything first, then let Ray Train run the loop and pass on what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.capacity import require
from cluster.processes import handlers_kept
from cluster.progress import Progress
from cluster.session import ray_session
from cluster.storage import arrow_filesystem, exists, join, read_bytes, sha256_of, write_atomic
from pipelines.board import Board, listening
from pipelines.corpus.feed import READING_CPUS, CorpusFeed
from pipelines.corpus.manifest import Manifest, load_manifest
from pipelines.training.bases import base_config, base_of, require_eyes_for_words
from pipelines.training.curves import curves
from pipelines.training.exports import FOLDER, WEIGHTS, export_name, is_complete
from pipelines.training.loop import train_loop
from pipelines.training.plans import LoopSettings, StagePlan
from pipelines.training.recipe import SHAPING, StageName, TrainRecipe, compressor_options
from pipelines.training.sight import Sight
from pipelines.training.tracking import Tracker, check_trackers, open_trackers
from qmop.compressors import projector_spec
from qmop.configuration_qmop import QMoPConfig

_RUN, _LONGEST = "run.json", 60
_NEWS = {
    "export": "exported {name} ({digest:.12})",
    "state": "saved {name} ({bytes:,} bytes, {seconds:.1f} s beside the training)",
    "state_failed": "WARNING: {name} was not saved by process {rank}, training goes on: {error}",
    "resumed": "resumed from {name} ({bytes:,} bytes read in {seconds:.1f} s)",
    "skipped": "WARNING: {stage} step {step}: the loss was not finite, so these samples were left out: {keys}",
    "refused": "WARNING: {name} cannot be used: {why}",
}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run leaves: the folders of all exports, in order, and whether anything had to be done."""

    exports: tuple[str, ...]
    trained: bool


def train(recipe: TrainRecipe, progress: Progress) -> TrainResult:
    """Run a recipe to its end; stages that are already exported are not run again.

    Raises:
        ValueError: for a recipe that cannot run; before anything is started.
        FileNotFoundError: if corpus or base are missing.
    """
    check_compressor(recipe)
    check_trackers(recipe.trackers)
    wanted = {name: _export_uris(recipe, name) for name in recipe.stages}
    exports = tuple(uri for uris in wanted.values() for uri in uris)
    manifest = load_manifest(recipe.corpus)
    base = base_of(recipe, progress)
    plans = _plans(recipe, wanted, manifest, base)
    _claim(recipe, manifest, base)
    if not plans:
        progress.say(f"training {recipe.compressor}: reusing all {len(exports)} checkpoints in {recipe.output}")
        return TrainResult(exports=exports, trained=False)
    with ray_session(recipe.ray, progress):
        gpu = ray.cluster_resources().get("GPU", 0) >= recipe.workers
        require(
            what=f"training with {recipe.workers} workers",
            num_cpus=recipe.workers * recipe.cpus_per_worker + READING_CPUS,
            num_gpus=recipe.workers if gpu else 0,
            progress=progress,
        )
        how = f"{recipe.workers} workers, ZeRO-{recipe.zero}"
        with progress.stage(f"training {recipe.compressor} at {recipe.tokens} tokens with {how}"):
            _fit(recipe, plans, progress, gpu=gpu)
    missing = [uri for uri in exports if not is_complete(uri)]
    assert not missing, f"training ended without the exports {missing}"
    return TrainResult(exports=exports, trained=True)


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


def _export_uris(recipe: TrainRecipe, stage: StageName) -> list[str]:
    names = [export_name(recipe.compressor, recipe.tokens, stage, s) for s in recipe.stage(stage).export_steps()]
    return [join(recipe.output, FOLDER, name) for name in names]


def _plans(
    recipe: TrainRecipe, wanted: dict[StageName, list[str]], manifest: Manifest, base: str
) -> tuple[StagePlan, ...]:
    """The stages that still have to run; each starts from the last export of the one before."""
    plans = []
    for number, (stage, uris) in enumerate(wanted.items()):
        feed = CorpusFeed(
            corpora=recipe.corpus,
            seed=recipe.seed * len(wanted) + number,
            micro_batch=recipe.micro_batch,
            slots=recipe.slots,
            samples=recipe.stage(stage).steps * recipe.global_batch,
        )
        if not all(is_complete(uri) for uri in uris):
            plans.append(
                StagePlan(
                    name=stage,
                    base=base,
                    feed=feed,
                    exports=tuple(uris),
                    corpus_digest=manifest.digest,
                )
            )
        base = uris[-1]
    return tuple(plans)


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
    before = {**theirs.get("recipe", {}), **{name: theirs.get(name) for name in ("corpus", "base")}}
    now = {**mine["recipe"], **{name: mine[name] for name in ("corpus", "base")}}
    names = (*SHAPING, *(name for name in ("corpus", "base") if name not in SHAPING))
    changed = [name for name in names if before.get(name) != now[name] and name not in recipe.allow_changes]
    if changed:
        told = ", ".join(f"{name}: {_short(before.get(name))} -> {_short(now[name])}" for name in changed)
        raise ValueError(
            f"output {recipe.output} holds a run of another recipe ({told}): choose another output, delete that "
            "folder, or name what may differ in allow_changes"
        )
    write_atomic(place, (json.dumps(mine, indent=2) + "\n").encode())


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _fit(recipe: TrainRecipe, plans: tuple[StagePlan, ...], progress: Progress, *, gpu: bool) -> None:
    board = Board.remote()  # type: ignore[attr-defined]
    filesystem, path = arrow_filesystem(join(recipe.output, "ray"))
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=LoopSettings(recipe=recipe, plans=plans, board=board),  # type: ignore[arg-type]
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
    notes: list[dict[str, Any]] = []
    name = f"{recipe.compressor}-{recipe.tokens}-{recipe.digest[:8]}"
    trackers = open_trackers(recipe.trackers, recipe.output, name, say=progress.say)
    trackers.facts({"recipe": asdict(recipe), "digest": recipe.digest})
    try:
        with handlers_kept(), listening(board, _teller(progress, notes, Sight(recipe), trackers)):
            trainer.fit()
    finally:
        _keep_notes(recipe, notes)
        trackers.close()


def _teller(
    progress: Progress, notes: list[dict[str, Any]], sight: Sight, trackers: Tracker
) -> Callable[[dict[str, Any]], None]:
    """Turns notes of the training processes into lines of progress and numbers for the trackers."""

    def tell(note: dict[str, Any]) -> None:
        notes.append(note)
        if note["kind"] != "step":
            progress.say(_NEWS[note["kind"]].format(**note))
            return
        seen = sight.see(note)
        trackers.scalars(seen.step, seen.scalars)
        progress.say(seen.line)

    return tell


def _keep_notes(recipe: TrainRecipe, notes: list[dict[str, Any]]) -> None:
    """Add the metrics to those of earlier parts of the run."""
    place = join(recipe.output, "metrics.jsonl")
    before = read_bytes(place) if exists(place) else b""
    write_atomic(place, before + "".join(json.dumps(note) + "\n" for note in notes).encode())
    if any(note["kind"] == "step" for note in notes):
        write_atomic(join(recipe.output, "curves.png"), curves(place))
