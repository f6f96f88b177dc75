"""What lmms-eval calls for VTCBench: pictures, texts and scores. Written beside the task files, where it stands alone.

lmms-eval --model MODEL --model_args ... --tasks vtcbench --include_path FOLDER --log_samples --output_path OUT
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from qmop.vtcbench.scorers import SCORERS

RENDERED = "rendered"
LEAD = "Answer with one of these and nothing else:"


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """The item's one picture."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The question; rendered ones with their choices, unless the model's `options` is false in the task file.

    A model that was not trained on these questions cannot know in which words they are to be answered.
    """
    told = (lmms_eval_specific_kwargs or {}).get("options", True)
    if not told or doc["source"] != RENDERED or not doc["choices"]:
        return str(doc["question"])
    return f"{doc['question']}\n{LEAD} {', '.join(doc['choices'])}."


def doc_to_target(doc: dict[str, Any]) -> str:
    """An accepted answer."""
    return str(doc["answers"][0])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The score by the item's own rule, whether it could be read, and the score with its level."""
    item: Any = SimpleNamespace(key=doc["key"], answers=tuple(doc["answers"]), choices=tuple(doc["choices"]))
    judged = SCORERS[doc["scorer"]](results[0].strip(), item)
    levelled = (doc["level"], judged.value)
    return {
        "acc": judged.value,
        "unparsable": float(not judged.parsable),
        **{f"acc_{level}": levelled for level in ("core", "hard", "held_out")},
    }


def core(found: list[tuple[str, float]]) -> float:
    """Accuracy on core items."""
    return _on("core", found)


def hard(found: list[tuple[str, float]]) -> float:
    """Accuracy on hard items."""
    return _on("hard", found)


def held_out(found: list[tuple[str, float]]) -> float:
    """Accuracy on held-out items."""
    return _on("held_out", found)


def _on(level: str, found: list[tuple[str, float]]) -> float:
    """The mean over a level's items; no number where `--limit` left none of them."""
    scores = [score for name, score in found if name == level]
    return sum(scores) / len(scores) if scores else float("nan")
