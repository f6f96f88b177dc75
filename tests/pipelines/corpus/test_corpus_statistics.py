"""Statistics: counted by part, the same as counted at once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from cluster.progress import Progress
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import Limits
from pipelines.corpus.samples import Raw, Sample
from pipelines.corpus.statistics import draw, measure, merged, tally, to_json
from pipelines.corpus.validation import check
from tests.pipelines.corpus.formats import Record, recipe, write


def sample(number: int, images: tuple[bytes, ...], *texts: str) -> Sample:
    turns = [{"role": ("user", "assistant")[place % 2], "text": text} for place, text in enumerate(texts)]
    found = check(Raw(position=number, identity="a", images=images, messages=turns, origin={}), Limits())
    assert isinstance(found, Sample)
    return found


@pytest.fixture
def samples(jpegs: list[bytes]) -> list[Sample]:
    seeing = [sample(number, (data,), "What is it?", "word " * (number + 1)) for number, data in enumerate(jpegs[:6])]
    return [*seeing, sample(6, (), "a", "b", "c d", "e f g")]


def test_what_is_counted(samples: list[Sample]) -> None:
    found = json.loads(to_json(measure(samples, None), {"no_caption": 2}))
    assert found["kinds"] == {"jpg": 6, "text only": 1}
    assert [found["width"][name] for name in ("count", "min", "max", "mean")] == [6, 240, 240, 240.0]
    assert found["aspect_permille"]["sum"] == 6 * 1333
    assert found["answer_words"] == {
        "count": 8,
        "sum": 25,
        "min": 1,
        "max": 6,
        "mean": 3.125,
        "bins": [
            [1.0, 1.189, 2],
            [2.0, 2.378, 1],
            [2.828, 3.364, 2],
            [4.0, 4.757, 1],
            [4.757, 5.657, 1],
            [5.657, 6.727, 1],
        ],
    }
    assert found["turns"]["sum"] == 8
    assert found["quarantined"] == {"no_caption": 2}
    assert "tokens" not in found


def test_tokens_are_counted_by_the_tokenizer_that_is_named(samples: list[Sample], tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"word": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    found = measure(samples, str(tmp_path))["tokens"]
    assert (found["count"], found["sum"], found["min"], found["max"]) == (7, 6 * 4 + 21 + 7, 5, 10)


def test_parts_add_up_to_the_whole(samples: list[Sample]) -> None:
    parts = [measure(samples[:2], None), measure([], None), measure(samples[2:], None)]
    assert to_json(merged(parts), {}) == to_json(measure(samples, None), {})


@given(st.lists(st.lists(st.integers(0, 10**9), max_size=5), min_size=1, max_size=5))
def test_tallies_add_up_exactly(lists: list[list[int]]) -> None:
    parts = [{"x": tally(listed)} for listed in lists]
    assert merged(parts) == {"x": tally([value for listed in lists for value in listed])}


def test_a_corpus_has_its_statistics_beside_the_manifest(
    jpegs: list[bytes], tmp_path: Path, progress: Progress
) -> None:
    records = [Record(f"{number}", data, "Some words.") for number, data in enumerate(jpegs[:7])]
    records.append(Record("silent", jpegs[8], None))
    fields = write("folder", tmp_path / "raw", records)
    prepare(recipe("folder", str(tmp_path / "out"), fields), progress)
    found = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert (found["kinds"], found["quarantined"], found["image_bytes"]["count"]) == ({"jpg": 7}, {"no_caption": 1}, 7)
    assert found["image_bytes"]["sum"] == sum(len(data) for data in jpegs[:7])
    with Image.open(tmp_path / "out" / "statistics.png") as picture:
        assert min(picture.size) > 500
    other = prepare(recipe("folder", str(tmp_path / "one"), fields, samples_per_shard=100), progress)
    assert (tmp_path / "one" / "statistics.json").read_bytes() == (tmp_path / "out" / "statistics.json").read_bytes()
    assert len(other.shards) == 1


def test_a_corpus_without_pictures_can_be_drawn() -> None:
    texts = measure([sample(0, (), "", "b")], None)
    with Image.open(io.BytesIO(draw(texts, {}))) as picture:
        assert picture.format == "PNG"


def test_a_tokenizer_that_is_none_is_named(jpegs: list[bytes], tmp_path: Path, progress: Progress) -> None:
    fields = write("folder", tmp_path / "raw", [Record("a", jpegs[0], "x")])
    (tmp_path / "tokenizer.json").write_text("{}")
    for named, error in ((str(tmp_path), "is no tokenizer"), (str(tmp_path / "nowhere"), "does not exist")):
        with pytest.raises((ValueError, FileNotFoundError), match=error):
            prepare(recipe("folder", str(tmp_path / "out"), fields, tokenizer=named), progress)
