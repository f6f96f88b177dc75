from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.evaluation.recipe import SuiteRecipe
from pipelines.training.recipe import StageName
from pipelines.training.verdicts import Export, Verdict, Verdicts, verdict_on
from tests.pipelines.training.judged import run_in


def judged(stage: StageName, step: int, micro: float, **scores: float) -> Verdict:
    export = Export(name=f"{stage}-{step}", digest="d", stage=stage, step=step)
    return verdict_on(export, "judged", items=10, suite_digest="s", scores={"micro": micro, **scores})


def test_the_best_is_of_the_last_stage_that_was_judged(tmp_path: Path) -> None:
    verdicts = Verdicts(run_in(tmp_path, align=2))
    assert verdicts.best() is None
    aligned, tuned = judged("align", 1, 0.9), judged("tune", 1, 0.2)
    for verdict in (aligned, tuned):
        verdicts.add(verdict)
        assert verdicts.best() == verdict
    assert verdicts.best("align") == aligned


def test_of_equals_the_later_is_the_best(tmp_path: Path) -> None:
    verdicts = Verdicts(run_in(tmp_path))
    for step, value in ((3, 0.5), (2, 0.5), (1, 0.4)):
        verdicts.add(judged("tune", step, value))
    assert verdicts.best() == judged("tune", 3, 0.5)


def test_the_metric_decides_and_may_change(tmp_path: Path) -> None:
    recipe = run_in(tmp_path)
    verdicts = Verdicts(recipe)
    verdicts.add(judged("tune", 1, 0.6, SC=0.1))
    verdicts.add(judged("tune", 2, 0.5, SC=0.3))
    by_counting = replace(recipe, validation=replace(recipe.validation, metric="SC"))
    assert [Verdicts(one).best().step for one in (recipe, by_counting)] == [1, 2]  # type: ignore[union-attr]


def test_what_another_suite_found_gives_way(tmp_path: Path) -> None:
    recipe = run_in(tmp_path)
    first = judged("tune", 1, 0.6)
    Verdicts(recipe).add(first)
    assert Verdicts(recipe).of(first) == first
    other = replace(recipe, validation=replace(recipe.validation, suite=SuiteRecipe(seed=7)))
    assert Verdicts(other).of(first) is None
    assert Verdicts(replace(recipe, validation=replace(recipe.validation, max_new_tokens=3))).best() is None


def test_an_account_that_cannot_be_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(ValueError, match=r"best.json cannot be read .*: delete it"):
        Verdicts(run_in(tmp_path))
