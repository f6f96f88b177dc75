"""What became of the exports that were to be judged, and which is the best: `best.json` in a run's output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.storage import exists, join, read_bytes, write_atomic
from pipelines.training.recipe import StageName, TrainRecipe

BEST = "best.json"
Outcome = Literal["judged", "failed", "passed_over"]
_OUTCOMES: tuple[Outcome, ...] = ("judged", "failed", "passed_over")


@dataclass(frozen=True, kw_only=True)
class Export:
    """One export of a run.

    Attributes:
        name: of its folder.
        digest: its identity.
        stage: that it comes from.
        step: of that stage.
    """

    name: str
    digest: str
    stage: StageName
    step: int


@dataclass(frozen=True, kw_only=True)
class Verdict(Export):
    """What became of an export.

    Attributes:
        outcome: judged; failed, the time limit included; or passed over, since another came while one was judged.
        why: it was not judged.
        items: of the suite.
        suite_digest: of the suite.
        scores: accuracy under `micro`, `macro` and each dimension's code, from 0 to 1.
    """

    outcome: Outcome
    why: str = ""
    items: int = 0
    suite_digest: str = ""
    scores: dict[str, float] = field(default_factory=dict)


def verdict_on(export: Export, outcome: Outcome, **facts: Any) -> Verdict:
    """A verdict with what is known of its export."""
    return Verdict(**asdict(export), outcome=outcome, **facts)


class Verdicts:
    """The verdicts of a run, kept in its output.

    What other settings have found there is not compared with ours and gives way to it: another suite is another exam.
    An export that is made anew is another export.

    Args:
        recipe: of the run.

    Raises:
        ValueError: if the file that is there cannot be read.
    """

    def __init__(self, recipe: TrainRecipe) -> None:
        self._place, self._stages = join(recipe.output, BEST), recipe.stages
        self._metric = recipe.validation.metric
        asked = recipe.validation
        self._exam = {"suite": asdict(asked.suite), "max_new_tokens": asked.max_new_tokens}
        self._verdicts: dict[str, Verdict] = {}
        if exists(self._place):
            self._verdicts = {verdict.name: verdict for verdict in self._found()}

    def _found(self) -> list[Verdict]:
        """What earlier parts of the run have found, if they asked the same."""
        try:
            found = json.loads(read_bytes(self._place))
            known = [one for outcome in _OUTCOMES for one in found[outcome]] if found["exam"] == self._exam else []
            return [Verdict(**one) for one in known]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{self._place} cannot be read ({error!r}): delete it to have all judged anew") from error

    def of(self, export: Export) -> Verdict | None:
        """The verdict on an export, if there is one."""
        found = self._verdicts.get(export.name)
        return found if found is not None and found.digest == export.digest else None

    def best(self, stage: StageName | None = None) -> Verdict | None:
        """The best export of a stage, or of the last stage of which one was judged; of equals the later."""
        judged = [one for one in self._verdicts.values() if one.outcome == "judged" and stage in (None, one.stage)]
        return max(judged, key=self._rank, default=None)

    def add(self, verdict: Verdict) -> None:
        """Record a verdict, in one act."""
        self._verdicts[verdict.name] = verdict
        self._verdicts = dict(sorted(self._verdicts.items(), key=lambda pair: self._when(pair[1])))
        write_atomic(self._place, (json.dumps(self._report(), indent=1) + "\n").encode())

    def _rank(self, verdict: Verdict) -> tuple[int, float, int]:
        stage, step = self._when(verdict)
        return stage, verdict.scores[self._metric], step

    def _when(self, verdict: Verdict) -> tuple[int, int]:
        return self._stages.index(verdict.stage), verdict.step

    def _report(self) -> dict[str, Any]:
        best = self.best()
        return {
            "name": best and best.name,
            "digest": best and best.digest,
            "metric": self._metric,
            "value": best and best.scores[self._metric],
            "items": best.items if best else 0,
            "suite_digest": best and best.suite_digest,
            "exam": self._exam,
            **{kind: [asdict(one) for one in self._verdicts.values() if one.outcome == kind] for kind in _OUTCOMES},
        }
