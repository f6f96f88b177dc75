"""Judge checkpoints on VTCBench (QMoP's benchmark of five dimensions), in parallel; finished units are reused."""

from __future__ import annotations

from cluster.progress import Progress
from pipelines.evaluation.gate import missed
from pipelines.evaluation.recipe import EvaluateRecipe
from pipelines.evaluation.runner import EvaluateResult, evaluate
from pipelines.evaluation.store import write_index
from qmop.vtcbench.report import summarise, to_markdown

RECIPE = EvaluateRecipe
INCOMPLETE, BELOW = 1, 3


def run(recipe: EvaluateRecipe, progress: Progress) -> int:
    """Evaluate, print the table; 1 if units are missing at the end, 3 if a checkpoint is below what was asked for."""
    result = evaluate(recipe, progress)
    replaced = write_index(recipe.output, result, added=recipe.watch)
    tell(result, progress)
    if replaced:
        progress.say(
            f"the report now shows this evaluation of {', '.join(replaced)}, and not an earlier one of another "
            "checkpoint or longest answer under the same label: to see both, name one LABEL=PATH"
        )
    if result.records:
        print(to_markdown(summarise(result.records)))  # noqa: T201 - the table is the job's result
    if result.failed:
        return INCOMPLETE
    if sentence := missed(result.records, recipe.fail_below):
        progress.say(f"fail-below {recipe.fail_below}: {sentence}")
        return BELOW
    return 0


def tell(result: EvaluateResult, progress: Progress) -> None:
    """The counts, which add up."""
    progress.say(
        f"units: {result.planned} planned = {result.done} done + {result.reused} reused + {len(result.failed)} failed"
    )
    for unit, error in result.failed.items():
        progress.say(f"failed: {unit}: {error}")
    for item, reason in result.poisoned.items():
        progress.say(f"could not be answered, counts as wrong: {item}: {reason}")
    if result.cut:
        whose = ", ".join(f"{count} of {label}" for label, count in result.cut.items())
        progress.say(
            f"{sum(result.cut.values())} of {len(result.records)} answers had not come to an end at the longest length "
            f"and may be cut ({whose}): allow more with --max_new_tokens"
        )
