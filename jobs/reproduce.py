"""From downloads to the paper's Table 1 in one command, for a machine with network and eight GPUs. Never run so far.

Every part looks first whether its result is there, so the same command goes on where it stopped.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.bounds import require_at_least
from cluster.failures import JobFailedError
from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from cluster.storage import write_atomic
from jobs.recipes_reader import parse_recipe, shipped
from jobs.reproduce_downloads import fetch_all
from jobs.reproduce_table import COLUMNS, VANILLA, Scores, read_scores, table
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.training.bases import make_base
from pipelines.training.dry_run import print_dry_run
from pipelines.training.exports import FOLDER, export_name
from pipelines.training.parts import Parts
from pipelines.training.recipe import TrainRecipe
from pipelines.training.trainer import train

STAGES = ("stage1", "stage2")


@dataclass(frozen=True, kw_only=True)
class ReproduceRecipe:
    """A reproduction of Table 1 at 7B.

    Attributes:
        output: folder of downloads, corpora, runs, results and table.
        methods: names of shipped recipes without their `-stage1` and `-stage2`.
        vanilla: the uncompressed LLaVA that averages refer to.
        vision: the CLIP that its tower was taken from.
        eval_batch: questions that lmms-eval answers at once.
        dry_run: print what each training would need, and do nothing.
        ray: how to reach or start Ray.
    """

    output: str = "runs/table1"
    methods: list[str] = field(default_factory=lambda: ["llava-7b", "tokenpacker-7b"])
    vanilla: str = "llava-hf/llava-1.5-7b-hf"
    vision: str = "openai/clip-vit-large-patch14-336"
    eval_batch: int = 16
    dry_run: bool = False
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        known = {name.removesuffix("-stage1") for name in shipped() if name.endswith("-stage1")}
        if unknown := sorted(set(self.methods) - known):
            raise ValueError(f"methods names {', '.join(unknown)}: choose of {', '.join(sorted(known))}")
        require_at_least(self, 1, "eval_batch")


RECIPE = ReproduceRecipe


def run(recipe: ReproduceRecipe, progress: Progress) -> int:
    """Fetch, prepare, train, judge, and print the table."""
    home = Path(recipe.output).absolute()
    plans = {method: [_stage(recipe, method, stage) for stage in STAGES] for method in recipe.methods}
    for first, second in plans.values():
        print_dry_run(first, progress)
        print_dry_run(_as_parts(second, first), progress)
    if recipe.dry_run:
        return 0
    if importlib.util.find_spec("lmms_eval") is None:
        raise ValueError("lmms-eval, which judges, is not installed: pip install 'qmop[lmms-eval]'")
    fetch_all(home / "downloads", progress)
    with ray_session(recipe.ray, progress):
        for stage, annotations in zip(("align", "tune"), ("blip_laion_cc_sbu_558k", "llava_v1_5_mix665k"), strict=True):
            prepare(_corpus(home, stage, annotations), progress)
        exports = {method: _train(stages, progress) for method, stages in plans.items()}
    vanilla = _vanilla(recipe, home, progress)
    measured = {name: _judge(name, folder, recipe, progress) for name, folder in {VANILLA: vanilla, **exports}.items()}
    text = table(measured)
    write_atomic(home / "table1.md", text.encode())
    print(text, flush=True)  # noqa: T201 - the table is the job's result
    return 0


def _stage(recipe: ReproduceRecipe, method: str, stage: str) -> TrainRecipe:
    """A shipped recipe in this run's folders."""
    home = Path(recipe.output).absolute()
    corpus = home / "corpora" / ("align" if stage == "stage1" else "tune")
    words = ["--config", f"{method}-{stage}", "--corpus", str(corpus), "--output", str(home / f"{method}-{stage}")]
    if stage == "stage2":
        first = _stage(recipe, method, "stage1")
        words += ["--base", _last_export(first)]
    return parse_recipe("qmop train", "", TrainRecipe, words)


def _last_export(recipe: TrainRecipe) -> str:
    stage = recipe.stages[-1]
    name = export_name(recipe.compressor, recipe.tokens, stage, recipe.stage(stage).export_steps()[-1])
    return f"{recipe.output}/{FOLDER}/{name}"


def _as_parts(second: TrainRecipe, first: TrainRecipe) -> TrainRecipe:
    """Stage 2 over stage 1's parts, whose export need not be there for a dry run."""
    return replace(second, base="tiny", language=first.language, vision=first.vision)


def _corpus(home: Path, stage: str, annotations: str) -> PrepareRecipe:
    """The recipe of one of LLaVA's two sets; the few pictures that no longer exist are quarantined."""
    return PrepareRecipe(
        source="llava",
        annotations=str(home / "downloads" / f"{annotations}.json"),
        images=str(home / "downloads" / stage),
        output=str(home / "corpora" / stage),
    )


def _train(stages: list[TrainRecipe], progress: Progress) -> str:
    """Both stages, one after the other; the last export."""
    return [train(stage, progress).exports[-1] for stage in stages][-1]


def _vanilla(recipe: ReproduceRecipe, home: Path, progress: Progress) -> str:
    return make_base(Parts(llava=recipe.vanilla, vision=recipe.vision), str(home / "vanilla"), progress)


def _judge(name: str, checkpoint: str, recipe: ReproduceRecipe, progress: Progress) -> Scores:
    """Scores of a checkpoint on the paper's ten benchmarks, by lmms-eval in a process of its own."""
    folder = Path(recipe.output).absolute() / "results" / name
    if not any(folder.rglob("*results.json")):
        tasks = ",".join(column.task for column in COLUMNS)
        command = [sys.executable, "-m", "lmms_eval", "--model", "qmop", "--model_args", f"pretrained={checkpoint}"]
        command += ["--tasks", tasks, "--batch_size", str(recipe.eval_batch), "--output_path", str(folder)]
        with progress.stage(f"judging {name} on {len(COLUMNS)} benchmarks"):
            done = subprocess.run(command, check=False)  # noqa: S603 - our own command, without a shell
        if done.returncode:
            raise JobFailedError(f"lmms-eval failed on {name} with exit code {done.returncode}: its words stand above")
    return read_scores(folder)
