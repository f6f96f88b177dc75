"""Judge checkpoints on VTCBench (QMoP's benchmark of five dimensions), in parallel; finished units are reused."""

from __future__ import annotations

from cluster.progress import Progress
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.evaluation.runner import EvaluateResult, evaluate
from pipelines.evaluation.store import write_index
from qmop.vtcbench.report import summarise, to_markdown

RECIPE = EvaluateRecipe
INCOMPLETE = 1


def run(recipe: EvaluateRecipe, progress: Progress) -> int:
    """Evaluate, print the table; 1 if units are missing at the end."""
    result = evaluate(recipe, progress)
    write_index(recipe.output, result)
    tell(result, progress)
    if result.records:
        print(to_markdown(summarise(result.records)))  # noqa: T201 - the table is the job's result
    return INCOMPLETE if result.failed else 0


def tell(result: EvaluateResult, progress: Progress) -> None:
    """The counts, which add up."""
    progress.say(
        f"units: {result.planned} planned = {result.done} done + {result.reused} reused + {len(result.failed)} failed"
    )
    for unit, error in result.failed.items():
        progress.say(f"failed: {unit}: {error}")
