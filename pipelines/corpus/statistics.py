"""What a corpus consists of, counted part by part so that the sum is exact, written as JSON and drawn."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tokenizers import Tokenizer

from cluster import storage
from pipelines.corpus.samples import Sample

NAMES = ("statistics.json", "statistics.png")
TEXT_ONLY = "text only"
SEVERAL = "several pictures"
_PER_OCTAVE = 4
_MOST_TICKS = 5
_TITLES = {
    "images": "pictures per sample",
    "width": "width, pixels",
    "height": "height, pixels",
    "aspect_permille": "width / height, per mille",
    "image_bytes": "bytes per image",
    "turns": "turns per sample (question and answer)",
    "question_words": "words per question",
    "answer_words": "words per answer or caption",
    "answer_characters": "characters per answer or caption",
    "tokens": "tokens of text per sample",
}

Tally = dict[str, Any]
"""Whole numbers counted: `count`, `sum`, `min`, `max`, and `bins`, four to an octave, by their number as text."""
Statistics = dict[str, Any]


def tally(values: Iterable[int]) -> Tally:
    """Count whole numbers; a zero has the bin -1."""
    listed = list(values)
    bins = Counter(str(-1 if value < 1 else int(_PER_OCTAVE * math.log2(value))) for value in listed)
    ends = {"min": min(listed), "max": max(listed)} if listed else {"min": None, "max": None}
    return {"count": len(listed), "sum": sum(listed), **ends, "bins": dict(bins)}


def measure(samples: Iterable[Sample], tokenizer: str | None) -> Statistics:
    """The statistics of some samples.

    Args:
        samples: validated.
        tokenizer: where a `tokenizer.json` lies; no tokens are counted when absent.
    """
    values: dict[str, list[int]] = {name: [] for name in _TITLES if name != "tokens" or tokenizer}
    kinds: Counter[str] = Counter()
    for sample in samples:
        kinds[_kind(sample)] += 1
        found = [("images", len(sample.images)), *_of_texts(sample, tokenizer)]
        for name, value in chain(found, *map(_of_image, sample.images)):
            values[name].append(value)
    return {"kinds": dict(kinds)} | {name: tally(listed) for name, listed in values.items()}


def merged(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts together: the same as if they had been one."""
    total: Statistics = {}
    for part in parts:
        total = {name: _sum(total.get(name), value) for name, value in part.items()}
    return total


def to_json(statistics: Statistics, quarantined: Mapping[str, int]) -> bytes:
    """The file's bytes: means, and bins as `[from, to, count]` with `to` left out of the bin."""
    written = {
        name: _readable(value) if "bins" in value else dict(sorted(value.items())) for name, value in statistics.items()
    }
    return json.dumps(written | {"quarantined": dict(sorted(quarantined.items()))}, indent=1).encode() + b"\n"


def draw(statistics: Statistics, quarantined: Mapping[str, int]) -> bytes:
    """The same as a PNG."""
    tallies = {name: title for name, title in _TITLES.items() if statistics.get(name, {}).get("count")}
    columns = 3
    rows = math.ceil((len(tallies) + 2) / columns)
    figure = Figure(figsize=(4.6 * columns, 2.7 * rows), layout="tight")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    _bars(axes.pop(0), dict(statistics.get("kinds", {})), "samples by kind")
    _bars(axes.pop(0), dict(quarantined), "quarantined by reason")
    for name, title in tallies.items():
        _histogram(axes.pop(0), statistics[name], title)
    for unused in axes:
        unused.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def tokenizer_uri(given: str) -> str:
    """The file that a recipe's tokenizer means."""
    return given if given.endswith(".json") else storage.join(given, "tokenizer.json")


@lru_cache(maxsize=1)
def load_tokenizer(given: str) -> Tokenizer:
    """The tokenizer of a recipe.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read.
    """
    uri = tokenizer_uri(given)
    data = storage.read_bytes(uri)
    try:
        return Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"tokenizer: {uri} is no tokenizer.json ({error}), name another or leave it out") from error


def _kind(sample: Sample) -> str:
    """The format of the only picture, or that there is none or more than one."""
    return {0: TEXT_ONLY, 1: "".join(sample.extensions)}.get(len(sample.images), SEVERAL)


def _of_image(image: bytes) -> list[tuple[str, int]]:
    """Sizes as they are stored; a viewer may turn the picture."""
    with Image.open(io.BytesIO(image)) as picture:
        width, height = picture.size
    aspect = (1000 * width + height // 2) // height
    return [("width", width), ("height", height), ("aspect_permille", aspect), ("image_bytes", len(image))]


def _of_texts(sample: Sample, tokenizer: str | None) -> list[tuple[str, int]]:
    messages = sample.record["messages"]
    found = [("turns", len(messages) // 2)]
    for message in messages:
        words = len(message["text"].split())
        if message["role"] == "user":
            found.append(("question_words", words))
        else:
            found += [("answer_words", words), ("answer_characters", len(message["text"]))]
    if tokenizer:
        encoded = load_tokenizer(tokenizer).encode_batch([message["text"] for message in messages])
        found.append(("tokens", sum(len(one.ids) for one in encoded)))
    return found


def _sum(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    if one is None:
        return other
    if "bins" not in other:
        return dict(Counter(one) + Counter(other))
    ends = {
        name: choose((tally[name] for tally in (one, other) if tally[name] is not None), default=None)
        for name, choose in (("min", min), ("max", max))
    }
    bins = dict(Counter(one["bins"]) + Counter(other["bins"]))
    return {"count": one["count"] + other["count"], "sum": one["sum"] + other["sum"], **ends, "bins": bins}


def _edges(number: int) -> tuple[float, float]:
    return (0.0, 1.0) if number < 0 else (2 ** (number / _PER_OCTAVE), 2 ** ((number + 1) / _PER_OCTAVE))


def _readable(value: Tally) -> dict[str, Any]:
    mean = round(value["sum"] / value["count"], 3) if value["count"] else None
    bins = [(*_edges(int(number)), value["bins"][number]) for number in sorted(value["bins"], key=int)]
    listed = [[round(low, 3), round(high, 3), count] for low, high, count in bins]
    return {name: value[name] for name in ("count", "sum", "min", "max")} | {"mean": mean, "bins": listed}


def _bars(axes: Axes, counts: dict[str, int], title: str) -> None:
    names = sorted(counts, key=lambda name: counts[name])
    bars = axes.barh(names, [counts[name] for name in names], color="tab:blue")
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.margins(x=0.2)
    axes.set_title(title if counts else f"{title}: none", fontsize=10)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if not counts:
        axes.set_axis_off()


def _histogram(axes: Axes, value: Tally, title: str) -> None:
    """Bars of equal width, so the axis is logarithmic, with the zero beside the one."""
    numbers = sorted(int(number) for number in value["bins"])
    heights = [value["bins"][str(number)] for number in numbers]
    axes.bar(numbers, heights, 1, align="edge", color="tab:blue", edgecolor="white", linewidth=0.5)
    octaves = range(math.floor(max(numbers[0], 0) / _PER_OCTAVE), numbers[-1] // _PER_OCTAVE + 2)
    shown = octaves[:: math.ceil(len(octaves) / _MOST_TICKS)]
    ticks = {-1: "0"} if numbers[0] < 0 else {}
    ticks |= {octave * _PER_OCTAVE: f"{2**octave:,}" for octave in shown}
    axes.set_xticks(list(ticks), list(ticks.values()))
    mean = value["sum"] / value["count"]
    axes.axvline(_PER_OCTAVE * math.log2(mean) if mean > 1 else mean - 1, color="tab:red", linewidth=1)
    axes.set_title(f"{title}\n{value['min']:,} to {value['max']:,}, mean {mean:,.1f} (red)", fontsize=10)
