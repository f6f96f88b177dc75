"""What is compared: rows, budgets, seeds, and the comparisons that were registered before anything was run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from qmop.annealing import RouterSchedule

Group = Literal["reference", "branch", "method", "ablation"]

FULL = 144
BUDGETS = (16, 36, 9)
"""Visual tokens of 144, the primary budget first."""
PRIMARY = BUDGETS[0]
REGISTERED = tuple(("qmop", other) for other in ("tokenpacker", "resampler", "window_pool", "prune"))
"""Compared at the primary budget, with Holm's correction over all of them; whatever else is compared is exploratory."""
ORACLE = "oracle branch"
ORACLE_OF = ("resampler", "window_pool", "prune")
"""The oracle takes, item by item, whichever of these has it right; it needs no run of its own."""

_FROM_FEATURES = {"norm": "qk", "value_init": "identity"}
"""Tuning is short here, so both attention branches start as means of patches, alone as well as in the mixture."""
_BRANCHES = {"resampler": _FROM_FEATURES, "window_pool": _FROM_FEATURES}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: in the table.
        method: of the registry.
        group: what it is there for.
        options: the method's own fields.
        seeds: how many runs at the primary budget; two at the others.
        budgets: at which it runs; a single one where the budget changes nothing.
        aligned: whether it has an alignment stage; without one all steps tune.
        router: how the router's temperature and noise fall.
        shuffled: the question that the compressor is given belongs to another picture of the batch.
        oracle: the class token's attention, by which the method prunes, is made to point at what the question asks for.
        seeded: the method draws by a seed of its own, which is then the run's.
        tuned: whether anything is; else the method stands before the base's own connector and language model.
    """

    name: str
    method: str
    group: Group = "method"
    options: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    budgets: tuple[int, ...] = BUDGETS
    aligned: bool = True
    router: RouterSchedule = field(default_factory=RouterSchedule)
    shuffled: bool = False
    oracle: bool = False
    seeded: bool = False
    tuned: bool = True


def _qmop(name: str, **changed: Any) -> Row:
    options = {"branches": _BRANCHES, **changed.pop("options", {})}
    return Row(name=name, method="qmop", group="ablation", options=options, budgets=(PRIMARY,), **changed)


PRIMARY_ROWS = (
    Row(name="uncompressed", method="mlp", group="reference", budgets=(FULL,)),
    Row(name="blind", method="blind", group="reference", budgets=(PRIMARY,)),
    Row(name="random", method="random_tokens", group="reference", seeded=True),
    Row(name="downsample", method="downsample", group="reference"),
    Row(name="average_pool", method="average_pool", group="reference"),
    Row(name="blind pruning", method="prune", group="reference", options={"lam": 1.0}, seeds=2, budgets=(PRIMARY,)),
    Row(
        name="oracle pruning",
        method="prune",
        group="reference",
        options={"lam": 1.0},
        seeds=2,
        budgets=(PRIMARY,),
        oracle=True,
    ),
    Row(name="resampler", method="resampler", group="branch", options=_FROM_FEATURES, seeds=6),
    Row(name="window_pool", method="window_pool", group="branch", options=_FROM_FEATURES, seeds=6),
    Row(name="prune", method="prune", group="branch", seeds=6),
    Row(name="fusion", method="qmop", options={"branches": _BRANCHES, "select": "equal"}, seeds=6),
    Row(name="tokenpacker", method="tokenpacker", seeds=6),
    Row(name="qmop", method="qmop", options={"branches": _BRANCHES}, seeds=6),
)
"""The primary comparison."""

OTHER_METHODS = tuple(
    Row(name=method, method=method)
    for method in (
        *("recoverable", "pixel_shuffle", "ldp", "ldp_v2", "c_abstractor", "mqt", "qmop-elastic"),
        *("fastervlm", "prumerge", "visionzip", "cdpruner"),
    )
)

ABLATIONS = (
    _qmop("router: image alone", options={"router": {"inputs": "image"}}),
    _qmop("router: question alone", options={"router": {"inputs": "text"}}),
    _qmop("router: neither", options={"router": {"inputs": "none"}}),
    _qmop("router: another question", shuffled=True),
    _qmop("top 1", options={"top_k": 1}),
    _qmop("top 3", options={"top_k": 3}),
    _qmop("lambda 0", options={"branches": {**_BRANCHES, "prune": {"lam": 0.0}}}),
    _qmop("lambda 0.25", options={"branches": {**_BRANCHES, "prune": {"lam": 0.25}}}),
    _qmop("lambda 1", options={"branches": {**_BRANCHES, "prune": {"lam": 1.0}}}),
    _qmop("no noise", router=RouterSchedule(noise_start=0.0)),
    _qmop("one temperature", router=RouterSchedule(temperature_start=0.5)),
    _qmop("noise from 4", router=RouterSchedule(noise_start=4.0)),
    _qmop("temperature from 10", router=RouterSchedule(temperature_start=10.0)),
    _qmop("no alignment", aligned=False),
)

UNTUNED = (
    Row(name="untuned random", method="random_tokens", seeded=True, tuned=False),
    *(
        Row(name=f"untuned {method}", method=method, seeds=1, tuned=False)
        for method in (
            *("downsample", "average_pool", "prune", "recoverable"),
            *("fastervlm", "prumerge", "visionzip", "cdpruner"),
        )
    ),
)
"""Training-free methods as they are: their only parameters are the connector's. But for `random`, nothing depends on a
seed where nothing is tuned."""

ROWS = {row.name: row for row in (*PRIMARY_ROWS, *OTHER_METHODS, *ABLATIONS, *UNTUNED)}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all rows share.

    Attributes:
        base: folder of the base, or `tiny`.
        pictures: rendered pictures to tune on.
        world_seed: of these pictures.
        items: of the suite that judges.
        suite_seed: of the suite that judges.
        warm_steps: steps in which what a method has to learn from nothing learns to give pooled patches.
        align_steps: steps of the projector alone.
        tune_steps: steps of projector and language model.
        batch: pairs of a step.
        warm_rate: peak rate of the warm steps, with a warm-up and a straight descent.
        align_rate: peak rate of the align steps.
        tune_rate: peak rate of the tune steps.
    """

    base: str = "tiny"
    pictures: int = 8_000
    world_seed: int = 77
    items: int = 10_000
    suite_seed: int = 5_000
    warm_steps: int = 300
    align_steps: int = 200
    tune_steps: int = 500
    batch: int = 32
    warm_rate: float = 2e-3
    align_rate: float = 2e-3
    tune_rate: float = 6e-4


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One run: a row at a budget with a seed."""

    row: Row
    tokens: int
    seed: int

    @property
    def label(self) -> str:
        """Its name in the report."""
        return f"{self.row.name} @{self.tokens} #{self.seed}"

    def digest(self, settings: Settings, base_digest: str) -> str:
        """SHA-256 of everything that shapes the result."""
        row = {name: value for name, value in asdict(self.row).items() if name not in ("seeds", "budgets", "group")}
        if self.row.tuned:  # a later field: the records of what is tuned keep their names
            del row["tuned"]
        told = {"row": row, "tokens": self.tokens, "seed": self.seed, "base_digest": base_digest}
        shared = {name: value for name, value in asdict(settings).items() if name != "base"}
        return hashlib.sha256(json.dumps({**told, **shared}, sort_keys=True).encode()).hexdigest()


def plan(names: Sequence[str], budgets: Sequence[int], seeds: int | None = None) -> list[Unit]:
    """The units of some rows: primary budget first, and there seed by seed, so that a cut-short run is balanced.

    Args:
        names: of rows; one that comes again counts once.
        budgets: which of the rows' budgets.
        seeds: fewer runs than the rows ask for.

    Raises:
        ValueError: if a name or a budget is not known, or no run is wanted.
    """
    if unknown := [name for name in names if name not in ROWS]:
        raise ValueError(
            f"rows names {', '.join(unknown)}, which are neither rows nor groups: "
            f"choose among primary, methods, ablations, untuned, {', '.join(ROWS)}"
        )
    if odd := [str(tokens) for tokens in budgets if tokens not in (*BUDGETS, FULL)]:
        raise ValueError(
            f"budgets names {', '.join(odd)}, at which no row runs: "
            f"choose among {', '.join(map(str, (*BUDGETS, FULL)))}"
        )
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds is {seeds}, but a row needs a run: choose 1 or more, or leave it out")
    units = [
        Unit(row=ROWS[name], tokens=tokens, seed=seed)
        for name in dict.fromkeys(names)
        for tokens in ROWS[name].budgets
        if tokens in budgets or len(ROWS[name].budgets) == 1
        for seed in range(min(_seeds(ROWS[name], tokens), seeds or FULL))
    ]
    order = {tokens: place for place, tokens in enumerate((PRIMARY, FULL, *BUDGETS[1:]))}
    early = {PRIMARY: 0, FULL: 0}
    return sorted(units, key=lambda unit: (early.get(unit.tokens, order[unit.tokens]), unit.seed))


def _seeds(row: Row, tokens: int) -> int:
    return row.seeds if tokens in (PRIMARY, FULL) else min(row.seeds, 2)
