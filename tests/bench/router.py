"""What QMoP's router does while it trains, by dimension of VTCBench, with and without noise and annealing.

Four runs of the quickstart's recipe that differ in the router's schedule alone. Exports along the tuning stage answer
the same rendered items; drawn are the branches' mean weights by dimension, as they are used (the two strongest).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np

from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from cluster.storage import join
from jobs.quickstart import QuickstartRecipe
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.evaluation.recipe import EvaluateRecipe, SuiteRecipe
from pipelines.evaluation.runner import evaluate
from pipelines.evaluation.store import read_index
from pipelines.training.exports import read_card
from pipelines.training.recipe import RouterSchedule, TrainRecipe
from pipelines.training.trainer import train
from qmop.compressors.mixture import BRANCHES
from tests.pipelines.training.killing import notes

mpl.use("Agg")
from matplotlib import pyplot as plt

PICTURE = Path(__file__).with_name("router.png")
SAMPLES, ITEMS, EXPORTS = 6000, 500, 6
PLAIN = RouterSchedule()
SCHEDULES = {
    "noise, annealed": PLAIN,
    "no noise, annealed": replace(PLAIN, noise_start=0.0),
    "noise, one temperature": replace(PLAIN, temperature_start=PLAIN.temperature_end),
    "no noise, one temperature": replace(PLAIN, noise_start=0.0, temperature_start=PLAIN.temperature_end),
}
COLOURS = ("#1b6ca8", "#e08214", "#3a923a")


@dataclass(frozen=True)
class Course:
    """One run: mean weights `(exports, branches)` by dimension, and what the soft weights did in the end.

    Attributes:
        steps: of the exports.
        weights: by dimension.
        entropy: of a sample's soft weights in nats, mean over the last steps; `log 3` is 1.10.
        load_entropy: of the mean soft weights, which tells whether all samples go the same way.
        accuracy: of the last export, in percent.
    """

    steps: list[int]
    weights: dict[str, np.ndarray]
    entropy: float
    load_entropy: float
    accuracy: float


def course(folder: str, name: str, schedule: RouterSchedule, progress: Progress) -> Course:
    """Train one schedule and look at its exports."""
    plain = QuickstartRecipe().train
    place = {"corpus": join(folder, "corpus"), "output": join(folder, name.replace(", ", "-").replace(" ", "-"))}
    tune = replace(plain.tune, exports=EXPORTS)
    recipe: TrainRecipe = replace(plain, router=schedule, tune=tune, log_every=1, **place)
    exports = [uri for uri in train(recipe, progress).exports if read_card(uri).stage == "tune"]
    store = join(recipe.output, "judged")
    steps = {f"at {read_card(uri).step}": uri for uri in exports}
    asked = EvaluateRecipe(
        checkpoints=[f"{label}={uri}" for label, uri in steps.items()],
        output=store,
        rendered=SuiteRecipe(seed=3, count=ITEMS, items_per_shard=125),
    )
    evaluate(asked, progress)
    records, _ = read_index(store)
    by: dict[str, dict[str, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        assert record.branch_weights is not None
        by[record.dimension][record.label].append(record.branch_weights)
    last = [record.score for record in records if record.label == list(steps)[-1]]
    late = [note for note in notes(recipe.output, "step") if "branch_weights" in note][-20:]
    load = np.mean([note["branch_weights"] for note in late], axis=0)
    return Course(
        steps=[read_card(uri).step for uri in exports],
        weights={d: np.array([np.mean(labels[label], axis=0) for label in steps]) for d, labels in by.items()},
        entropy=float(np.mean([note["router_entropy"] for note in late])),
        load_entropy=float(-(load * np.log(load.clip(1e-9))).sum()),
        accuracy=100 * float(np.mean(last)),
    )


def draw(courses: dict[str, Course], place: Path) -> None:
    """A row of panels per schedule, a panel per dimension."""
    dimensions = list(next(iter(courses.values())).weights)
    figure, panels = plt.subplots(
        len(courses), len(dimensions), figsize=(2.3 * len(dimensions), 1.9 * len(courses)), sharex=True, sharey=True
    )
    for row, (name, one) in zip(panels, courses.items(), strict=True):
        for panel, dimension in zip(row, dimensions, strict=True):
            for branch, colour, values in zip(BRANCHES, COLOURS, one.weights[dimension].T, strict=True):
                panel.plot(one.steps, values, color=colour, label=branch, marker="o", markersize=2.5)
            panel.set_ylim(0, 1)
            panel.grid(alpha=0.3)
        row[0].set_ylabel(name, fontsize=7)
    for panel, dimension in zip(panels[0], dimensions, strict=True):
        panel.set_title(dimension, fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("step", fontsize=8)
    panels[0][0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(place, dpi=110)
    plt.close(figure)


def table(courses: dict[str, Course]) -> str:
    """Weights at the end by dimension, entropies and accuracy."""
    dimensions = list(next(iter(courses.values())).weights)
    head = ["router", *dimensions, "entropy of a sample", "entropy of the mean", "accuracy"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, one in courses.items():
        shares = ["/".join(f"{100 * weight:.0f}" for weight in one.weights[d][-1]) for d in dimensions]
        ends = [f"{one.entropy:.2f}", f"{one.load_entropy:.2f}", f"{one.accuracy:.1f}"]
        lines.append("| " + " | ".join([name, *shares, *ends]) + " |")
    return "\n".join(lines)


def run() -> str:
    """Four runs, a picture and a table."""
    progress = Progress()
    with tempfile.TemporaryDirectory() as folder, ray_session(RaySettings(), progress):
        prepare(PrepareRecipe(source="rendered", output=join(folder, "corpus"), count=SAMPLES, seed=2), progress)
        courses = {name: course(folder, name, schedule, progress) for name, schedule in SCHEDULES.items()}
    draw(courses, PICTURE)
    plain = QuickstartRecipe().train
    head = f"{plain.tokens} tokens, {plain.align.steps} + {plain.tune.steps} steps, seed {plain.seed}, {ITEMS} items; "
    return f"{head}weights of {', '.join(BRANCHES)} in percent at the end, natural logarithms\n\n{table(courses)}"
