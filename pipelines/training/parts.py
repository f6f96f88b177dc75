"""Where a run's base comes from when it is no checkpoint of ours: a stock LLaVA, or a language model and a CLIP.

Each part is a folder, an `s3://` prefix or a name of the Hugging Face hub (`owner/name`, or `owner/name@revision` to
pin one). Read are configurations, tokenizers and safetensors; pickled weights are not even fetched.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.storage import get_file, is_s3, list_sizes, sha256_of

EMBEDDED = "tiny"
"""The base where nothing is named."""

_KINDS = (".json", ".safetensors", ".model", ".txt", ".jinja")
_HUB = re.compile(r"^(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")
_MAKING = "1"
"""Changes whenever the same parts would give another base."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a base is made of; either `language` with `vision`, or `llava`, with `vision` where questions are read.

    Attributes:
        language: a causal language model with its tokenizer.
        vision: a CLIP or SigLIP with both towers, its tokenizer and its image processor.
        llava: a stock LLaVA with its processor.
    """

    language: str | None = None
    vision: str | None = None
    llava: str | None = None

    def __post_init__(self) -> None:
        if self.language and self.llava:
            raise ValueError(
                f"language is {self.language!r} and llava is {self.llava!r}, but a LLaVA brings its own language "
                "model: name one of the two"
            )
        if self.language and not self.vision:
            raise ValueError(
                f"language is {self.language!r} without vision: name the CLIP or SigLIP that it will see with, such "
                "as openai/clip-vit-large-patch14-336"
            )
        if self.vision and not (self.language or self.llava):
            raise ValueError(
                f"vision is {self.vision!r} alone: name the language model that will see with it, or the LLaVA whose "
                "tower was taken from it"
            )

    @property
    def named(self) -> dict[str, str]:
        """The parts that are there, by field."""
        fields = {"language": self.language, "vision": self.vision, "llava": self.llava}
        return {field: name for field, name in fields.items() if name}


def named_parts(base: str, language: str | None, vision: str | None, llava: str | None) -> Parts | None:
    """The parts that a recipe names, or None where it names a checkpoint.

    Raises:
        ValueError: if it names both, or parts that do not make a base.
    """
    parts = Parts(language=language, vision=vision, llava=llava)
    if not parts.named:
        return None
    if base != EMBEDDED:
        field, name = next(iter(parts.named.items()))
        raise ValueError(f"base is {base!r} and {field} is {name!r}: name a checkpoint or the parts of one, not both")
    return parts


def hub_name(place: str) -> str | None:
    """The name of a model on the hub without its revision; None for a folder or URI."""
    if is_s3(place) or Path(place).exists():
        return None
    match = _HUB.match(place)
    return match["name"] if match else None


@contextmanager
def local_part(field: str, place: str, *, only_config: bool = False) -> Iterator[Path]:
    """A part as a local folder; a temporary copy if it lies in S3, the hub's own cache if it comes from there.

    Args:
        field: what the recipe calls it, for messages.
        place: folder, URI or name on the hub.
        only_config: fetch config.json and nothing else.

    Raises:
        FileNotFoundError: if nothing is there, or it holds no model.
        ValueError: if it has no weights in safetensors.
    """
    if is_s3(place):
        with tempfile.TemporaryDirectory() as scratch:
            _copy_down(place, Path(scratch), only_config=only_config)
            yield _checked(field, place, Path(scratch), only_config=only_config)
        return
    name = hub_name(place)
    folder = Path(place) if name is None else _from_hub(field, place, only_config=only_config)
    yield _checked(field, place, folder, only_config=only_config)


def digest_of(folders: dict[str, Path]) -> str:
    """SHA-256 over the content of every file that a base is made of, and over how it is made."""
    digest = hashlib.sha256(_MAKING.encode())
    for field, folder in sorted(folders.items()):
        for path in sorted(path for path in folder.iterdir() if path.suffix in _KINDS and path.is_file()):
            digest.update(f"{field}/{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _checked(field: str, place: str, folder: Path, *, only_config: bool) -> Path:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{field} is {place!r}, which holds no model: give a folder or s3:// prefix with config.json, or a name of "
            "the Hugging Face hub"
        )
    if not only_config and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{field} is {place!r}, which has no weights in safetensors (pickled ones are not read): name a revision "
            "that has them, as in owner/name@refs/pr/1, or save the model again with save_pretrained"
        )
    return folder


def _copy_down(uri: str, target: Path, *, only_config: bool) -> None:
    for name in list_sizes(uri):
        file = name.rsplit("/", 1)[-1]
        if file != "config.json" and (only_config or Path(file).suffix not in _KINDS):
            continue
        get_file(name, target / file)


def _from_hub(field: str, place: str, *, only_config: bool) -> Path:
    """The hub's local cache of a model, filled where the network allows it."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a second that reading a recipe does without
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415 - as above

    match = _HUB.match(place)
    assert match is not None, f"{place} is a name of the hub"
    wanted = ["config.json"] if only_config else [f"*{kind}" for kind in _KINDS]
    try:
        return Path(snapshot_download(match["name"], revision=match["revision"], allow_patterns=wanted))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"{field} is {place!r}, which is no folder here and did not come from the Hugging Face hub ({why}): give a "
            "folder, or fetch it where there is network, with HF_TOKEN set if it is gated"
        ) from error
