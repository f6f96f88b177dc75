"""What `qmop prepare` can be asked for."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Literal

from cluster.bounds import require_at_least
from cluster.session import RaySettings

SOURCES = ("llava", "img2dataset", "parquet", "folder", "webdataset", "rendered")
_HASH_BITS = 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one sample's images may cost, checked from their headers before anything is decoded.

    Attributes:
        max_bytes: largest encoded image, bytes.
        max_pixels: largest width times height.
        max_frames: most frames; an animation is not a picture.
        max_images: most images of one sample; every one of them costs visual tokens in training.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    max_frames: int = 1
    max_images: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        require_at_least(self, 1, "max_bytes", "max_pixels", "max_frames", "max_images", inside="limits.")


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Which repetitions are put aside; the first in the order of the source stays.

    Attributes:
        exact: a sample whose image bytes and texts came before.
        near_distance: a sample whose picture looks like an earlier one: at most so many of the 64 bits of its
            perceptual hash differ, and so for each of several, in order. The texts do not matter, so leave it unset
            where one picture has several conversations.
    """

    exact: bool = False
    near_distance: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        if self.near_distance is not None and not 0 <= self.near_distance < _HASH_BITS // 2:
            raise ValueError(f"duplicates.near_distance is {self.near_distance}, it must lie between 0 and 31")

    @property
    def wanted(self) -> bool:
        """Whether anything is looked for."""
        return self.exact or self.near_distance is not None


@dataclass(frozen=True, kw_only=True)
class PrepareRecipe:
    """Turn a source of pictures and texts into validated shards with a manifest.

    Attributes:
        source: where samples come from: a LLaVA JSON with its image folder, an img2dataset output folder, parquet with
            image structs as Hugging Face writes it, a folder of images with captions, WebDataset tars of any maker, or
            our own renderer.
        output: folder or URI that receives shards, manifest.json, statistics and what was quarantined.
        annotations: LLaVA JSON file (source=llava).
        images: folder that the JSON's image paths are relative to (source=llava), the img2dataset folder, the image
            folder, or the folder, file or glob of parquet files or tars.
        image_field: column of the images, or of lists of them (source=parquet).
        text_field: column of captions or of conversations (source=parquet and the metadata file of source=folder);
            when absent the first there is of conversations, messages, caption, text.
        id_field: column of the records' own names, which need not be there nor be unique (source=parquet).
        samples_per_shard: input records per shard; a shard holds fewer where records were quarantined.
        caption_prompt: the user's words where a source has captions alone.
        max_bad_share: the run fails when more than this share of the input is quarantined and also more samples than
            tolerated_bad; what img2dataset itself failed to download does not count.
        tolerated_bad: so many bad samples never fail a run by themselves, so that a folder of twenty pictures survives
            three bad ones; a run without a single good sample fails all the same.
        limits: limits of one sample's images.
        duplicates: which repetitions are put aside; none by default.
        tokenizer: a `tokenizer.json`, or the folder that holds it, that the statistics count tokens with.
        count: samples to render (source=rendered).
        seed: seed of the renderer (source=rendered).
        questions_per_scene: rendered samples that share a picture, one question each (source=rendered).
        overwrite: replace whatever corpus the output folder holds, and look at every image again.
        ray: how to reach or start Ray.
    """

    source: Literal["llava", "img2dataset", "parquet", "folder", "webdataset", "rendered"]
    output: str
    annotations: str | None = None
    images: str | None = None
    image_field: str = "image"
    text_field: str | None = None
    id_field: str = "id"
    samples_per_shard: int = 1000
    caption_prompt: str = "Describe the picture."
    max_bad_share: float = 0.01
    tolerated_bad: int = 10
    limits: Limits = field(default_factory=Limits)
    duplicates: Duplicates = field(default_factory=Duplicates)
    tokenizer: str | None = None
    count: int = 10_000
    seed: int = 0
    questions_per_scene: int = 3
    overwrite: bool = False
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a ValueError that names the field."""
        if self.source not in SOURCES:
            raise ValueError(f"source is {self.source!r}, expected one of {', '.join(SOURCES)}")
        if not self.output:
            raise ValueError("output is empty, name the folder that receives the shards")
        require_at_least(self, 1, "samples_per_shard", "count", "questions_per_scene")
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ValueError(f"max_bad_share is {self.max_bad_share}, it must lie between 0 and 1")
        require_at_least(self, 0, "tolerated_bad", "seed")
        self._require_paths()

    def _require_paths(self) -> None:
        needed = {"llava": ("annotations", "images"), "rendered": ()}.get(self.source, ("images",))
        for name in needed:
            if not getattr(self, name):
                raise ValueError(f"{name} is not set, source={self.source} needs it: give a path or URI")

    def content(self) -> dict[str, object]:
        """The fields that decide the bytes of the corpus, for hashing: no paths, no ceilings.

        What lies behind the paths enters through the source's fingerprint instead.
        """
        shared: dict[str, object] = {
            "source": self.source,
            "samples_per_shard": self.samples_per_shard,
            "limits": astuple(self.limits),
            "duplicates": [self.duplicates.exact, self.duplicates.near_distance],
        }
        own: dict[str, tuple[str, ...]] = {
            "llava": (),
            "img2dataset": ("caption_prompt",),
            "parquet": ("caption_prompt", "image_field", "text_field", "id_field"),
            "folder": ("caption_prompt", "text_field"),
            "webdataset": ("caption_prompt",),
            "rendered": ("count", "seed", "questions_per_scene"),
        }
        return shared | {name: getattr(self, name) for name in own[self.source]}
