"""What a report needs of the checkpoints themselves: cost by configuration, times, drawings of what was kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from cluster.progress import Progress
from cluster.storage import exists, join, read_bytes
from pipelines.corpus.images import decode_image
from pipelines.evaluation.store import index_of
from pipelines.evaluation.units import facts_of
from pipelines.training.exports import CARD, local_copy, read_card
from qmop.configuration_qmop import QMoPConfig
from qmop.cost import Cost, cost_of
from qmop.loading import load
from qmop.profiler import Profile
from qmop.vtcbench.inspection import drawing, timed
from qmop.vtcbench.records import Record
from qmop.vtcbench.report import Sample

_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What was seen of checkpoints.

    Attributes:
        profiles: times by label.
        drawings: what was kept, drawn over the picture, by item key and label.
    """

    profiles: dict[str, Profile] = field(default_factory=dict)
    drawings: dict[tuple[str, str], bytes] = field(default_factory=dict)


def checkpoints_of(store: str, records: Iterable[Record], progress: Progress) -> dict[str, str]:
    """Where the checkpoint of each label lies, as far as it is still there and still the one that answered."""
    digests = {record.label: record.checkpoint for record in records}
    found: dict[str, str] = {}
    for unit in index_of(store)["units"]:
        if len(found) == len(digests):
            break
        facts = facts_of(unit, store)
        if facts.get("label") in digests and "uri" in facts:
            found[facts["label"]] = facts["uri"]
    gone = {label: why for label, digest in digests.items() if (why := _why_not(found.get(label), digest))}
    for label, why in gone.items():
        progress.say(f"no cost of {label}: {why}")
    return {label: found[label] for label in digests if label not in gone}


def costs_of(checkpoints: Mapping[str, str], progress: Progress) -> dict[str, Cost]:
    """The cost of each checkpoint by its configuration; a method that cannot be counted is named and left out."""
    costs: dict[str, Cost] = {}
    for label, uri in checkpoints.items():
        try:
            costs[label] = cost_of(QMoPConfig.from_dict(json.loads(read_bytes(join(uri, _CONFIG)))))
        except (ValueError, RuntimeError) as error:
            progress.say(f"no cost of {label}: {error}")
    return costs


def inspect(
    checkpoints: Mapping[str, str],
    asked: Sequence[tuple[bytes, str]],
    samples: Sequence[Sample],
    progress: Progress,
    *,
    rounds: int,
) -> Inspected:
    """Load every checkpoint, time it on this machine and draw what it keeps of the samples.

    Args:
        checkpoints: folders by label.
        asked: pictures and questions to be timed with, as one batch.
        samples: what to draw over.
        progress: for people.
        rounds: how often to time.
    """
    seen = Inspected()
    pictures = [(decode_image(image), question) for image, question in asked]
    for done, (label, uri) in enumerate(checkpoints.items(), start=1):
        try:
            _look(label, uri, pictures, samples, seen, rounds)
        except (ValueError, RuntimeError, OSError) as error:
            progress.say(f"{label} could not be inspected: {error}")
        progress.update("checkpoints inspected", done, len(checkpoints))
    return seen


def _look(  # noqa: PLR0917 - one checkpoint's part of `inspect`
    label: str,
    uri: str,
    asked: Sequence[tuple[Image.Image, str]],
    samples: Sequence[Sample],
    seen: Inspected,
    rounds: int,
) -> None:
    with local_copy(uri) as folder:
        model, processor = load(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    images, questions = zip(*asked, strict=True)
    seen.profiles[label] = timed(model, processor, images, questions, rounds=rounds)
    for sample in samples:
        if (drawn := drawing(model, processor, decode_image(sample.image), sample.question)) is not None:
            seen.drawings[sample.key, label] = drawn


def _why_not(uri: str | None, digest: str) -> str | None:
    """Why a checkpoint cannot be looked at; None if it can."""
    if uri is None:
        return "the results store does not say where its checkpoint is"
    if not exists(join(uri, _CONFIG)):
        return f"its checkpoint is no longer at {uri}"
    try:
        if exists(join(uri, CARD)) and read_card(uri).digest != digest:
            return f"another checkpoint is at {uri} now"
    except ValueError as error:  # damaged since
        return str(error)
    return None
