"""What QMoP's router does while it trains, by dimension of VTCBench, with and without noise and annealing.

Runs of the comparison at tiny size (`qmop.tiny.comparison`) that differ in the router's schedule alone. Every 25 steps
of the tuning stage the router weights the branches for the same rendered items, without noise, at its present
temperature. Material and finished runs are kept in `runs/comparison`, so what was interrupted goes on.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

from qmop.annealing import RouterSchedule
from qmop.compressors.mixture import BRANCHES, Mixture
from qmop.tiny.comparison.material import Material, make_material
from qmop.tiny.comparison.rows import PRIMARY, ROWS, Settings, Unit
from qmop.tiny.comparison.runs import examine
from qmop.tiny.comparison.student import Student, enrol, see, tune
from qmop.vtcbench.items import DIMENSIONS
from tests.bench.projectors import progress

mpl.use("Agg")
from matplotlib import pyplot as plt

PICTURE, WORK = Path(__file__).with_name("router.png"), Path("runs/comparison/material")
COURSES = Path("runs/comparison/router")
SETTINGS = Settings(items=1000, suite_seed=6000)
SEEDS, WORKERS = (0, 1), 2
PLAIN = RouterSchedule()
SCHEDULES = {
    "noise, annealed": PLAIN,
    "no noise, annealed": replace(PLAIN, noise_start=0.0),
    "noise, one temperature": replace(PLAIN, temperature_start=PLAIN.temperature_end),
    "no noise, one temperature": replace(PLAIN, noise_start=0.0, temperature_start=PLAIN.temperature_end),
}
COLOURS = ("#1b6ca8", "#e08214", "#3a923a")


@dataclass(frozen=True, kw_only=True)
class Course:
    """One run.

    Attributes:
        weights: `(looks, dimensions, branches)`, means over the items of a dimension.
        entropy: `(looks,)`, of an item's weights in nats, mean over items; `log 3` is 1.10.
        load: `(looks,)`, entropy of the mean weights: whether all items go the same way.
        accuracy: at the end, in percent.
    """

    weights: NDArray[np.float64]
    entropy: NDArray[np.float64]
    load: NDArray[np.float64]
    accuracy: float


def entropy(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """In nats, over the last axis."""
    found: NDArray[np.float64] = -(weights * np.log(weights.clip(1e-12))).sum(-1)
    return found


@torch.no_grad()
def weigh(student: Student, material: Material) -> NDArray[np.float64]:
    """The router's weights for every item, `(items, branches)`."""
    method = student.compressor
    assert isinstance(method, Mixture)
    noise, method.router.noise = method.router.noise, 0.0
    seen = see(material.exam, [row[0] for row in material.exam.by_picture], student)
    weights = method.router(seen.features.need("summary_BC"), seen.query.text_BE).double().numpy()
    method.router.noise = noise
    return weights


def kept(name: str, seed: int) -> Path:
    """Where a finished run is kept."""
    return COURSES / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.npz"


def course(name: str, seed: int) -> Course:
    """Train one schedule and look on, or read what was kept of it."""
    if kept(name, seed).is_file():
        with np.load(kept(name, seed), allow_pickle=False) as file:
            return Course(**{field: file[field] for field in file.files} | {"accuracy": float(file["accuracy"])})
    found = run_course(name, seed)
    COURSES.mkdir(parents=True, exist_ok=True)
    np.savez(kept(name, seed), **asdict(found))
    return found


def run_course(name: str, seed: int) -> Course:
    """Train one schedule and look on."""
    torch.set_num_threads(1)
    material = make_material(SETTINGS, WORK, lambda _: None)
    unit = Unit(row=replace(ROWS["qmop"], router=SCHEDULES[name]), tokens=PRIMARY, seed=seed)
    student, looks = enrol(SETTINGS, unit), []

    def look(_: str) -> None:
        if student.model.lm_head.weight.requires_grad:  # it tunes
            looks.append(weigh(student, material))

    tune(student, SETTINGS, unit, material, look)
    records = examine(student, unit, material, "", 0.0)
    seen, dimension = np.array(looks), np.array([item.dimension for item in material.items])
    return Course(
        weights=np.stack([seen[:, dimension == name].mean(axis=1) for name in DIMENSIONS], axis=1),
        entropy=entropy(seen).mean(axis=1),
        load=entropy(seen.mean(axis=1)),
        accuracy=100 * float(np.mean([record.score for record in records])),
    )


def draw(courses: dict[str, list[Course]], place: Path) -> None:
    """A row of panels per schedule: a panel per dimension, and one of entropies; thin lines are further seeds."""
    columns = [*DIMENSIONS, "entropy"]
    figure, panels = plt.subplots(
        len(courses), len(columns), figsize=(2.1 * len(columns), 1.8 * len(courses)), sharex=True, sharey="col"
    )
    for row, (name, runs) in zip(panels, courses.items(), strict=True):
        for width, run in zip((1.8, *[0.7] * len(runs)), runs, strict=False):
            steps = np.linspace(0, SETTINGS.tune_steps, len(run.entropy))
            for panel, weights in zip(row[:-1], run.weights.transpose(1, 2, 0), strict=True):
                for branch, colour, values in zip(BRANCHES, COLOURS, weights, strict=True):
                    panel.plot(steps, values, color=colour, linewidth=width, label=branch if width > 1 else None)
                panel.set_ylim(0, 1)
            row[-1].plot(steps, run.entropy, color="black", linewidth=width, label="of an item" if width > 1 else None)
            row[-1].plot(
                steps,
                run.load,
                color="black",
                linestyle=":",
                linewidth=width,
                label="of the mean" if width > 1 else None,
            )
            row[-1].set_ylim(0, np.log(len(BRANCHES)) * 1.05)
        row[0].set_ylabel(name, fontsize=7)
        for panel in row:
            panel.grid(alpha=0.3)
            panel.tick_params(labelsize=7)
    for panel, title in zip(panels[0], columns, strict=True):
        panel.set_title(title, fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("step", fontsize=8)
    for panel in (panels[0][0], panels[0][-1]):
        panel.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(place, dpi=110)
    plt.close(figure)


def table(courses: dict[str, list[Course]]) -> str:
    """Weights at the end by dimension, entropies and accuracy; a line per run."""
    head = ["router", "seed", *DIMENSIONS, "entropy of an item", "entropy of the mean", "accuracy"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, runs in courses.items():
        for seed, run in zip(SEEDS, runs, strict=True):
            shares = ["/".join(f"{100 * weight:.0f}" for weight in weights) for weights in run.weights[-1]]
            ends = [f"{run.entropy[-1]:.2f}", f"{run.load[-1]:.2f}", f"{run.accuracy:.1f}"]
            lines.append("| " + " | ".join([name, str(seed), *shares, *ends]) + " |")
    return "\n".join(lines)


def run() -> str:
    """All schedules and seeds, a picture and a table."""
    make_material(SETTINGS, WORK, progress, [(ROWS["qmop"], PRIMARY)])
    asked = [(name, seed) for seed in SEEDS for name in SCHEDULES]
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(course, name, seed) for name, seed in asked]
        done: dict[str, list[Course]] = {name: [] for name in SCHEDULES}
        for (name, seed), future in zip(asked, futures, strict=True):
            done[name].append(future.result())
            progress(f"router: {name}, seed {seed}")
    draw(done, PICTURE)
    head = f"{PRIMARY} of 144 tokens, {SETTINGS.align_steps} + {SETTINGS.tune_steps} steps, {SETTINGS.items} items; "
    return f"{head}weights of {', '.join(BRANCHES)} in percent at the end, natural logarithms\n\n{table(done)}"
