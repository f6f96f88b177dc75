"""Where samples come from. A source cuts itself into units, one per shard, and reads each of them on its own."""

from __future__ import annotations

from pipelines.corpus.recipe import PrepareRecipe
from pipelines.corpus.sources.base import Source, Unit
from pipelines.corpus.sources.folder import FolderSource
from pipelines.corpus.sources.img2dataset import Img2DatasetSource
from pipelines.corpus.sources.llava import LlavaSource
from pipelines.corpus.sources.parquet import ParquetSource
from pipelines.corpus.sources.rendered import RenderedSource
from pipelines.corpus.sources.webdataset import WebDatasetSource

__all__ = ["Source", "Unit", "open_source"]


def open_source(recipe: PrepareRecipe) -> Source:
    """The source that a recipe names.

    Raises:
        FileNotFoundError: if a file or folder of the source does not exist.
        ValueError: if what is there does not have the documented form as a whole.
    """
    if recipe.source == "rendered":
        return RenderedSource(recipe.seed, recipe.count, recipe.questions_per_scene)
    assert recipe.images is not None
    images, prompt, limits = recipe.images, recipe.caption_prompt, recipe.limits
    most = limits.max_bytes, limits.max_images
    match recipe.source:
        case "img2dataset":
            return Img2DatasetSource(images, prompt, *most)
        case "parquet":
            return ParquetSource(images, recipe.image_field, recipe.text_field, recipe.id_field, prompt, *most)
        case "folder":
            return FolderSource(images, recipe.text_field, prompt, *most)
        case "webdataset":
            return WebDatasetSource(images, prompt, *most)
    assert recipe.annotations is not None
    return LlavaSource(recipe.annotations, images, *most)
