"""From nothing to a served model at tiny size: corpus, two-stage training, VTCBench, report, service, answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cluster.bounds import require_at_least
from cluster.ports import free_port, require_port
from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from cluster.storage import join
from jobs.evaluate import INCOMPLETE, tell
from jobs.questions import ask_about_a_picture
from jobs.report import ReportRecipe, write_report
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.evaluation.recipe import EvaluateRecipe, SuiteRecipe
from pipelines.evaluation.runner import evaluate
from pipelines.evaluation.store import write_index
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.serve import serve_until_stopped, serving
from pipelines.training.recipe import StageRecipe, TrainRecipe
from pipelines.training.trainer import check_compressor, train
from qmop.vtcbench.report import Report, to_markdown

_METHODS = ("qmop", "average_pool", "blind")
_FROM_FEATURES = {"norm": "qk", "value_init": "identity"}
"""At this size training is short, so the attention branches start as means of patches, which the connector knows."""


def _tiny_training() -> TrainRecipe:
    return TrainRecipe(
        corpus="",
        output="",
        options={"branches": {"resampler": _FROM_FEATURES, "window_pool": _FROM_FEATURES}},
        align=StageRecipe(steps=150),
        tune=StageRecipe(steps=240, projector_rate=5e-4, language_rate=5e-4, exports=2),
    )


@dataclass(frozen=True, kw_only=True)
class QuickstartRecipe:
    """The main job at tiny size; a second run reuses what is complete.

    Attributes:
        output: folder of everything that it makes.
        samples: question-answer pairs of the rendered corpus.
        train: recipe of QMoP; the baselines take the same with another compressor.
        suite: the VTCBench suite.
        tokens: visual tokens, of 144.
        port: of the service; a free one when absent.
        keep_serving: leave the service up at the end, until interrupted.
        corpus_seed: of the rendered pictures.
        ray: how to reach or start Ray.
    """

    output: str = "runs/quickstart"
    samples: int = 6000
    train: TrainRecipe = field(default_factory=_tiny_training)
    suite: SuiteRecipe = field(default_factory=lambda: SuiteRecipe(count=750, items_per_shard=125))
    tokens: int = 16
    port: int | None = None
    keep_serving: bool = False
    corpus_seed: int = 2
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        require_at_least(self, 1, "samples", "tokens")
        require_at_least(self, 0, "corpus_seed")


RECIPE = QuickstartRecipe


def run(recipe: QuickstartRecipe, progress: Progress) -> int:
    """Run every part in one Ray session and stop what was started."""
    if recipe.port is not None:
        require_port("127.0.0.1", recipe.port)
    corpus = join(recipe.output, "corpus")
    plans = [_recipe_of(recipe, method, corpus) for method in _METHODS]
    for plan in plans:
        check_compressor(plan)
    with ray_session(recipe.ray, progress):
        wanted = PrepareRecipe(source="rendered", output=corpus, count=recipe.samples, seed=recipe.corpus_seed)
        prepare(wanted, progress)
        runs = {plan.compressor: _tuned(train(plan, progress).exports) for plan in plans}
        report, complete = _judge(recipe, runs, progress)
        print(to_markdown(report), flush=True)  # noqa: T201 - the table is the job's result
        _serve_and_ask(recipe, _best(report, runs["qmop"]), progress)
    progress.say(f"report: {join(recipe.output, 'results', 'report.html')}")
    return 0 if complete else INCOMPLETE


def _tuned(exports: tuple[str, ...]) -> tuple[str, ...]:
    """The exports of the tuning stage."""
    return tuple(uri for uri in exports if "-tune-" in uri)


def _recipe_of(recipe: QuickstartRecipe, method: str, corpus: str) -> TrainRecipe:
    base = replace(
        recipe.train, corpus=corpus, output=join(recipe.output, method), compressor=method, tokens=recipe.tokens
    )
    if method == "qmop":
        return base
    if method == "blind":  # nothing to align: it only learns what words alone give
        steps = max(1, base.tune.steps // 2)
        return replace(base, options={}, align=StageRecipe(steps=0), tune=replace(base.tune, steps=steps, exports=1))
    return replace(base, options={})


def _judge(recipe: QuickstartRecipe, runs: dict[str, tuple[str, ...]], progress: Progress) -> tuple[Report, bool]:
    store = join(recipe.output, "results")
    named = ["uncompressed=tiny", f"blind={runs['blind'][-1]}", *runs["qmop"], *runs["average_pool"]]
    result = evaluate(EvaluateRecipe(checkpoints=named, output=store, rendered=recipe.suite), progress)
    write_index(store, result)
    tell(result, progress)
    for record in result.records:
        compressed = record.method in ("qmop", "average_pool")
        assert not compressed or record.visual_tokens == recipe.tokens, (
            f"{record.label} answered {record.key} with {record.visual_tokens} visual tokens, not {recipe.tokens}"
        )
    return write_report(ReportRecipe(results=store, inspect=True), progress), not result.failed


def _best(report: Report, exports: tuple[str, ...]) -> str:
    """The export with the highest micro accuracy."""
    scores = {row.label: row.micro.value for row in report.rows}
    return max(exports, key=lambda uri: scores.get(uri.rsplit("/", 1)[-1], 0.0))


def _serve_and_ask(recipe: QuickstartRecipe, checkpoint: str, progress: Progress) -> None:
    offer = ServeRecipe(checkpoint=checkpoint, model_name="qmop", port=recipe.port or free_port())
    with serving(offer, progress) as endpoint:
        ask_about_a_picture(endpoint, progress)
    if recipe.keep_serving:
        serve_until_stopped(offer, progress)
