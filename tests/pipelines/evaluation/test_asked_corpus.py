import json
from pathlib import Path

import pytest
from PIL import Image

from cluster.progress import Progress
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.evaluation.asked_corpus import corpus_suite
from qmop.vtcbench.items import UNLABELLED
from qmop.vtcbench.records import judge
from qmop.vtcbench.report import summarise, to_markdown
from qmop.vtcbench.suite import read_shard, write_suite


def corpus(folder: Path, *, pictures: bool) -> str:
    """A small LLaVA corpus: two short answers, one long one, one row without a picture."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, told in enumerate(("red", "two", "a red square on a grey wall")):
        Image.new("RGB", (40, 40), (200, 0, number)).save(folder / "images" / f"{number}.jpg")
        turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": told}]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns} if pictures else None)
    rows.append({"id": "t", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]})
    (folder / "a.json").write_text(json.dumps([row for row in rows if row]))
    recipe = PrepareRecipe(
        source="llava", annotations=str(folder / "a.json"), images=str(folder / "images"), output=str(folder / "corpus")
    )
    prepare(recipe, Progress())
    return recipe.output


def test_a_corpus_becomes_questions_with_its_own_answers(tmp_path: Path) -> None:
    suite = corpus_suite(corpus(tmp_path, pictures=True), str(tmp_path / "store"), Progress())
    assert suite is not None
    items = [rendered.item for shard in suite.shards for rendered in read_shard(suite.folder, shard)]
    assert [item.answers for item in items] == [("red",), ("two",), ("a red square on a grey wall",)]
    assert [item.scorer for item in items] == ["exact_match", "exact_match", "token_f1"]
    assert {item.dimension for item in items} == {UNLABELLED}
    again = corpus_suite(str(tmp_path / "corpus"), str(tmp_path / "store"), Progress())
    assert again == suite
    assert again.name == "corpus"


def test_its_records_count_in_the_micro_average_alone(tmp_path: Path) -> None:
    suite = corpus_suite(corpus(tmp_path, pictures=True), str(tmp_path / "store"), Progress())
    assert suite is not None
    facts = {"checkpoint": "c", "label": "a", "method": "mlp", "budget": 144, "visual_tokens": 144}
    records = [
        judge(rendered.item, "red", suite_digest=suite.digest, shard=shard.url, **facts)
        for shard in suite.shards
        for rendered in read_shard(suite.folder, shard)
    ]
    report = summarise(records)
    assert report.rows[0].micro.value == pytest.approx((1 + 0 + 2 / 6) / 3, abs=0.02)
    assert report.rows[0].macro is None
    assert "red" not in to_markdown(report)


def test_a_suite_is_left_alone_and_a_corpus_without_pictures_refused(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite", 1, 5, 5)
    assert corpus_suite(str(tmp_path / "suite"), str(tmp_path / "store"), Progress()) is None
    with pytest.raises(ValueError, match="without a single picture"):
        corpus_suite(corpus(tmp_path / "x", pictures=False), str(tmp_path / "store"), Progress())


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"suite .* has a manifest.json that cannot be read"):
        corpus_suite(str(tmp_path), str(tmp_path / "store"), Progress())
