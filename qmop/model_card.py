"""A README.md beside a saved model: what the hub shows, what the method is, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from qmop.compressors import projector_spec
from qmop.compressors.base import Declaration
from qmop.configuration_qmop import QMoPConfig
from qmop.loading import declared, model_family

TAGS = ("qmop", "llava", "visual-token-compression")

USE = """\
```python
from PIL import Image
from qmop import QMoPForConditionalGeneration, QMoPProcessor
from qmop.answering import answer
model, processor = QMoPForConditionalGeneration.from_pretrained("{name}"), QMoPProcessor.from_pretrained("{name}")
print(answer(model, processor, [Image.open("photo.png")], ["What colour is the car?"], max_new_tokens=64)[0].text)
```

transformers' own `AutoModelForImageTextToText` and `AutoProcessor` load it too, after `import qmop.modeling_qmop`.
"""


def write_card(
    folder: str | Path,
    *,
    name: str | None = None,
    base_model: str | Sequence[str] = (),
    datasets: str | Sequence[str] = (),
    license: str | None = None,  # noqa: A002 - the hub's own word
    notes: str = "",
) -> Path:
    """Write the model card of a saved model.

    Args:
        folder: written by `save_pretrained`.
        name: of the model on the hub, `owner/name`; the folder's own name when absent.
        base_model: hub names of what it was made from, such as the LLaVA and its CLIP.
        datasets: hub names of what it was trained on.
        license: the hub's identifier of the weights' licence.
        notes: Markdown that is added at the end, such as results and where they were measured.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if it holds a model of another kind, or a base or data set is no name of the hub.
    """
    place = Path(folder)
    if (family := model_family(place)) != QMoPConfig.model_type:
        raise ValueError(f"{place} holds a {family} model, and a card is written for qmop models only")
    config = QMoPConfig.from_pretrained(place, local_files_only=True)
    declaration, title = declared(config), name or place.resolve().name
    data = ModelCardData(
        library_name="qmop",
        pipeline_tag="image-text-to-text",
        base_model=_hub_names("base_model", base_model),
        datasets=_hub_names("datasets", datasets),
        license=license,
        tags=list(dict.fromkeys([*TAGS, declaration.name, *(["text-guided"] if declaration.text_guided else [])])),
    )
    head = f"---\n{data.to_yaml()}\n---\n"
    parts = [head, f"# {title}\n", _about(config, declaration), "## Use\n", USE.format(name=title)]
    (card := place / "README.md").write_text("\n".join([*parts, notes]).rstrip() + "\n", encoding="utf-8")
    return card


def _hub_names(field: str, names: str | Sequence[str]) -> list[str] | None:
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name):
            raise ValueError(f"{field} is {name!r}, but a card names what lies on the hub: write it as owner/name")
    return names or None


def _about(config: QMoPConfig, declaration: Declaration) -> str:
    """Method, budget and declaration."""
    spec = projector_spec(config)
    count = f"{spec.token_count()} of {spec.grid * spec.grid}"
    options = ", ".join(f"`{field}={value!r}`" for field, value in sorted((config.compressor_options or {}).items()))
    rows = {
        "method": f"`{declaration.name}` ({declaration.source})",
        "visual tokens per image": count if declaration.fixed_count else f"at most {count}",
        "budget per call": "any that fits" if declaration.elastic else "the built one",
        "its fields": options or "defaults",
        "reads beside the patches": ", ".join(f"`{field}`" for field in sorted(declaration.reads)) or "nothing",
        "the question guides it": "yes" if declaration.text_guided else "no",
        "has parameters of its own to train": "yes" if declaration.trained else "no",
        "acts": "before the language model" if declaration.acts == "pre_llm" else "inside the language model",
        "vision tower": f"`{config.vision_config.model_type}`, {config.vision_config.image_size} pixels",
        "language model": f"`{config.text_config.model_type}`, {config.text_config.num_hidden_layers} layers",
    }
    table = "".join(f"| {field} | {value} |\n" for field, value in rows.items())
    return f"A LLaVA whose visual tokens are compressed.\n\n| | |\n| --- | --- |\n{table}"
