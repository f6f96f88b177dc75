import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipelines.evaluation import judge
from pipelines.evaluation.discovery import discover
from pipelines.evaluation.units import Generation, Unit
from qmop.answering import Answer
from qmop.vtcbench.rendered import RenderedItem, suite
from qmop.vtcbench.suite import ShardInfo
from tests.pipelines.evaluation.test_discovery import export


def test_one_bad_item_costs_only_itself(monkeypatch: object) -> None:
    items = list(suite(0, 7))
    broken = RenderedItem(item=items[3].item, image=b"no picture")
    calls: list[int] = []

    def answer(model: object, processor: object, images: list, questions: list, *, max_new_tokens: int) -> list[Answer]:
        del model, processor, images, max_new_tokens
        calls.append(len(questions))
        return [Answer(text=question, visual_tokens=16) for question in questions]

    monkeypatch.setattr(judge, "answer", answer)  # type: ignore[attr-defined]
    told = judge._patiently(None, None, [*items[:3], broken, *items[4:]], 8)
    assert [one is None for one in told] == [False, False, False, True, False, False, False]
    assert [one.text for one in told if one] == [
        rendered.item.question for rendered in items if rendered is not items[3]
    ]
    assert calls == [1] * 6


def test_pictures_are_what_the_items_hold() -> None:
    rendered = next(iter(suite(0, 1)))
    assert Image.open(io.BytesIO(rendered.image)).size == (96, 96)


def test_a_checkpoint_made_anew_is_not_judged_under_its_old_digest(tmp_path: Path) -> None:
    (candidate,) = discover([str(export(tmp_path, 1))]).candidates
    shard = ShardInfo(url="s", sha256="s", md5="m", count=1, size=1)
    old = replace(candidate, digest="of what was there before")
    unit = Unit(candidate=old, shard=shard, suite_digest="s", generation=Generation(max_new_tokens=1))
    sitting = judge.Judge.__ray_metadata__.modified_class("store", "suite", 1, 1)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="exported anew"):
        sitting._model(unit)
