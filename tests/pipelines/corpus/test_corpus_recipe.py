"""What a user can ask for wrongly, and which fields make another corpus."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.corpus.recipe import Duplicates, Limits, PrepareRecipe

GOOD: dict[str, Any] = {"source": "llava", "output": "out", "annotations": "a.json", "images": "photos"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"source": "laion"}, "source is 'laion'"),
        ({"output": ""}, "output is empty"),
        ({"annotations": None}, "annotations is not set"),
        ({"images": None}, "images is not set"),
        ({"source": "img2dataset", "images": None}, "images is not set"),
        ({"source": "parquet", "images": None}, "images is not set, source=parquet needs it"),
        ({"source": "folder", "images": ""}, "images is not set, source=folder needs it"),
        ({"samples_per_shard": 0}, "samples_per_shard is 0"),
        ({"max_bad_share": 1.5}, "max_bad_share is 1.5"),
        ({"tolerated_bad": -1}, "tolerated_bad is -1"),
        ({"source": "rendered", "count": 0}, "count is 0"),
        ({"source": "rendered", "seed": -1}, "seed is -1, but it must be at least 0"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PrepareRecipe(**(GOOD | changes))


def test_limits_must_allow_something() -> None:
    with pytest.raises(ValueError, match=r"limits\.max_pixels is 0"):
        Limits(max_pixels=0)


@pytest.mark.parametrize("distance", [-1, 32])
def test_a_distance_between_hashes_must_tell_something(distance: int) -> None:
    with pytest.raises(ValueError, match=rf"duplicates\.near_distance is {distance}"):
        Duplicates(near_distance=distance)
    assert not Duplicates().wanted
    assert Duplicates(near_distance=0).wanted


def test_columns_make_another_corpus_of_parquet_alone() -> None:
    changed = GOOD | {"image_field": "photo", "id_field": "key", "caption_prompt": "Say."}
    assert PrepareRecipe(**GOOD).content() == PrepareRecipe(**changed).content()
    parquet = {"source": "parquet"}
    assert PrepareRecipe(**(GOOD | parquet)).content() != PrepareRecipe(**(changed | parquet)).content()


def test_places_and_ceilings_do_not_make_another_corpus() -> None:
    one = PrepareRecipe(**GOOD)
    moved = PrepareRecipe(**(GOOD | {"output": "b", "images": "c", "max_bad_share": 0.5, "count": 3, "seed": 9}))
    assert one.content() == moved.content()


@pytest.mark.parametrize(
    "changes", [{"samples_per_shard": 7}, {"limits": Limits(max_bytes=9)}, {"duplicates": Duplicates(exact=True)}]
)
def test_shards_limits_and_repetitions_make_another_corpus(changes: dict[str, Any]) -> None:
    assert PrepareRecipe(**GOOD).content() != PrepareRecipe(**(GOOD | changes)).content()
