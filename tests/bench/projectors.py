"""Every projector at the size of LLaVA-1.5-7B: parameters, MACs, time and peak memory as ratios to the plain MLP.

What is timed is what a method adds to towers and language model: reading the tower's states (class attention, keys,
patches in text space, stacked levels) and the projector. A method and the MLP are always timed side by side.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from qmop.compressors import list_compressors
from qmop.compressors.mixture import Mixture
from qmop.compressors.projector import Connector, Projector, build_projector
from qmop.cost import QUESTION_TOKENS, llava_config
from qmop.encoders import QueryEncoder, visual_features
from qmop.features import CompressedTokens, Query
from qmop.language_shape import VICUNA_7B
from qmop.mac_counter import macs_of
from qmop.peak_memory import peak_bytes
from qmop.profiler import device_name

GRID, WIDTH, LANGUAGE, PICTURE = 24, 1024, VICUNA_7B.width, 336
BUDGETS, BATCHES = (144, 64), (1, 8)
LAYERS, LEVELS = 4, [1, 2, 3, 4]
"""A tower of four layers stands in for that of 24: only its last blocks are read."""
BETWEEN = 4
"""So many methods are timed between two timings of the MLP."""
OWN_LIMIT, TIME_LIMIT = 7.3e9, 0.70

Device = torch.device


def progress(line: str) -> None:
    """A line to the terminal, beside the table."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a bench talks to the terminal


class Towers:
    """States of a vision tower, made once, with what reads them, and the text tower of a question."""

    def __init__(self, device: Device, dtype: torch.dtype) -> None:
        config = llava_config("qmop", tokens=144)
        config.vision_config.num_hidden_layers = LAYERS
        torch.manual_seed(0)
        self.device, self.dtype = device, dtype
        self.encoder = QueryEncoder(config.query_config, config.vision_config).to(device, dtype).eval()
        self.tower = CLIPVisionModel(config.vision_config).to(device, dtype).eval()
        places = 1 + GRID * GRID
        self.states = tuple(self._random(max(BATCHES), places, WIDTH) for _ in range(LAYERS + 1))
        self.pixels, self.language_BD = self._random(max(BATCHES), 3, PICTURE, PICTURE), self._random(8, LANGUAGE)
        self.ids = torch.randint(3, 49405, (max(BATCHES), QUESTION_TOKENS), device=device)
        self.ids[:, -1] = config.query_config.eos_token_id
        self.question = self.encoder(self.ids, last=True)
        self.question.language_BD = self.language_BD
        self.tower.forward = self._remembered

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def _remembered(self, pixels_BCHW: Tensor, **_: object) -> SimpleNamespace:
        """The states of as many pictures, of their size, without a pass of the tower."""
        batch, _, height, width = pixels_BCHW.shape
        patch = self.tower.config.patch_size
        places = 1 + (height // patch) * (width // patch)
        return SimpleNamespace(hidden_states=tuple(state[:batch, :places] for state in self.states))

    def run(self, projector: Projector, batch: int) -> CompressedTokens:
        """Read and project."""
        pixels = projector.compressor.picture(self.pixels[:batch], self.tower.config.patch_size)
        features = visual_features(self.tower, pixels, projector.declaration, levels=LEVELS, query_encoder=self.encoder)
        return projector(features, self.asked(batch) if "query" in projector.declaration.reads else None)

    def asked(self, batch: int) -> Query:
        """The questions, encoded before."""
        return self.question.rows(torch.arange(batch, device=self.device))

    def encode(self, batch: int) -> Query:
        """The text tower's pass over as many questions."""
        return self.encoder(self.ids[:batch])


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table: a method at a budget."""

    label: str
    tokens: int
    projector: Projector


def cases(towers: Towers) -> tuple[Case, list[Case], list[str]]:
    """The MLP, every other method at every budget, and what could not be built and why."""
    connector = Connector(WIDTH, LANGUAGE)
    plain = Case(label="mlp", tokens=GRID * GRID, projector=_built("mlp", GRID * GRID, towers, connector))
    found, refused = [], []
    for name in list_compressors():
        for tokens in BUDGETS if name != "mlp" else ():
            try:
                found += _rows(name, tokens, towers, connector)
            except ValueError as error:
                refused.append(f"{name} at {tokens}: {error}")
    return plain, found, refused


def _rows(name: str, tokens: int, towers: Towers, connector: nn.Module) -> list[Case]:
    """A method's rows; a mixture has one with its two dearest branches and one with all."""
    built = _built(name, tokens, towers, connector)
    method = built.compressor
    if not isinstance(method, Mixture):
        return [Case(label=name, tokens=tokens, projector=built)]
    dearest(method)
    dense = _built(name, tokens, towers, connector)
    dense.compressor.select = "all"
    return [
        Case(label=f"{name}, two branches", tokens=tokens, projector=built),
        Case(label=f"{name}, all branches", tokens=tokens, projector=dense),
    ]


def dearest(method: Mixture) -> None:
    """Make the router choose resampler and pooling, the two branches with the most work."""
    nn.init.zeros_(method.router.leave.weight)
    with torch.no_grad():
        method.router.leave.bias.copy_(torch.tensor([1.0, 1.0, -9.0]))


def _built(name: str, tokens: int, towers: Towers, connector: nn.Module) -> Projector:
    projector = build_projector(name, grid=GRID, width=WIDTH, tokens=tokens, language_width=LANGUAGE)
    if isinstance(projector.connector, Connector):
        projector.connector = connector
    return projector.to(towers.device, towers.dtype).eval()


def seconds(call: Callable[[], object], device: Device) -> float:
    """Time of one call, with the device's work done."""
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - started


def wait(device: Device) -> None:
    """Until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def where(device: Device, dtype: torch.dtype) -> str:
    """Device, precision and library, in words."""
    return f"{device_name(device)}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}"


def spread(values: Iterable[float]) -> str:
    """Median and quartiles."""
    values = list(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def timed(
    towers: Towers, plain: Case, others: list[Case], batch: int, rounds: int
) -> tuple[list[float], list[list[float]]]:
    """Seconds of the MLP, and of each case its ratios to the MLP's mean before and after it, one per round."""
    ratios: list[list[float]] = [[] for _ in others]
    plains, order = [], random.Random(0)

    def one(case: Case) -> float:
        return seconds(lambda: towers.run(case.projector, batch), towers.device)

    one(plain)
    for number in range(rounds):
        places = order.sample(range(len(others)), len(others))
        before = one(plain)
        for start in range(0, len(places), BETWEEN):
            group = [(place, one(others[place])) for place in places[start : start + BETWEEN]]
            after = one(plain)
            for place, taken in group:
                ratios[place].append(taken / ((before + after) / 2))
            plains.append(before)
            before = after
        progress(f"batch {batch}: round {number + 1} of {rounds}")
    return plains, ratios


def table(towers: Towers, rounds: dict[int, int]) -> str:
    """The Markdown table of all methods."""
    progress("building the projectors")
    plain, others, refused = cases(towers)
    every = [plain, *others]
    macs = [macs_of(partial(towers.run, case.projector, 1)) for case in every]
    heads, columns = [], []
    for batch in BATCHES:
        head, filled = _measured(towers, every, batch, rounds[batch])
        heads.append(head)
        columns += filled
    titles = [f"{what} / mlp, batch {batch}" for batch in BATCHES for what in ("time", "memory")]
    lines = [
        f"{GRID * GRID} x {WIDTH} -> {LANGUAGE}, {where(towers.device, towers.dtype)}",
        *heads,
        "",
        f"| method | tokens | parameters | MACs | MACs / mlp | {' | '.join(titles)} |",
        "|" + "---|" * (5 + len(titles)),
    ]
    for place, case in enumerate(every):
        parameters = sum(parameter.numel() for parameter in case.projector.parameters())
        size = [f"{parameters:,}", f"{macs[place] / 1e9:.2f} G", f"{macs[place] / macs[0]:.2f}"]
        row = [case.label, str(case.tokens), *size, *(column[place] for column in columns)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *(f"Not built: {line}." for line in refused)]) + "\n"


def _measured(towers: Towers, every: list[Case], batch: int, rounds: int) -> tuple[str, tuple[list[str], list[str]]]:
    """What the MLP took, and the columns of time and memory; the first row is the MLP's."""
    progress(f"batch {batch}: memory of {len(every)} projectors")
    peaks = [peak_bytes(partial(towers.run, case.projector, batch), towers.device) for case in every]
    plains, ratios = timed(towers, every[0], every[1:], batch, rounds)
    took, held = 1000 * statistics.median(plains), peaks[0] / 2**20
    head = f"batch {batch}: the MLP took {took:.2f} ms and {held:.0f} MiB beside its weights; {rounds} rounds"
    return head, (["1.00", *map(spread, ratios)], [f"{peak / peaks[0]:.2f}" for peak in peaks])


def checks(towers: Towers, rounds: dict[int, int]) -> str:
    """QMoP against its two limits, and against TokenPacker with and without the text tower."""
    connector = Connector(WIDTH, LANGUAGE)
    two, every = _rows("qmop", 144, towers, connector)
    packer = _rows("tokenpacker", 144, towers, connector)[0]
    own, text = macs_of(partial(towers.run, every.projector, 1)), macs_of(partial(towers.encode, 1))
    met = "met" if own <= OWN_LIMIT else "missed"
    lines = [
        "| QMoP at 144 tokens | measured | limit |",
        "|---|---|---|",
        f"| own modules, all branches | {own / 1e9:.2f} GMAC | {OWN_LIMIT / 1e9} GMAC, {met} |",
        f"| text tower, {QUESTION_TOKENS} tokens | {text / 1e9:.2f} GMAC | none |",
    ]
    for batch in BATCHES:
        own, other, asking = _side_by_side(towers, two, packer, batch, rounds[batch])
        whole = [ours + text for ours, text in zip(own, asking, strict=True)]
        met = "met" if paired(own, other) <= TIME_LIMIT else "missed"
        lines.append(f"| time / TokenPacker's, batch {batch} | {against(own, other)} | {TIME_LIMIT:.2f}, {met} |")
        lines.append(f"| the same with the text tower, batch {batch} | {against(whole, other)} | none |")
    return "\n".join(lines) + "\n"


def _side_by_side(towers: Towers, ours: Case, theirs: Case, batch: int, rounds: int) -> list[list[float]]:
    """Seconds of two methods and of the text tower, one after the other in each round."""
    calls = [
        partial(towers.run, ours.projector, batch),
        partial(towers.run, theirs.projector, batch),
        partial(towers.encode, batch),
    ]
    taken = [[seconds(call, towers.device) for call in calls] for _ in range(rounds + 1)]
    progress(f"batch {batch}: {ours.label} and {theirs.label}, {rounds} rounds")
    return [list(column) for column in zip(*taken[1:], strict=True)]  # the first round warms up


def paired(own: list[float], other: list[float]) -> float:
    """Median ratio of times taken in the same round."""
    return statistics.median(one / two for one, two in zip(own, other, strict=True))


def against(own: list[float], other: list[float]) -> str:
    """Paired ratios, and the ratio of the best times, which other programs on the machine disturb least."""
    ratios = [one / two for one, two in zip(own, other, strict=True)]
    return f"{spread(ratios)}, best {min(own) / min(other):.2f}"


@torch.inference_mode()
def run() -> str:
    """Both tables on the CPU."""
    towers = Towers(Device("cpu"), torch.float32)
    return checks(towers, rounds={1: 15, 8: 7}) + "\n" + table(towers, rounds={1: 5, 8: 3})
