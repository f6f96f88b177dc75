import io

from PIL import Image

from pipelines.evaluation import judge
from qmop.answering import Answer
from qmop.vtcbench.rendered import RenderedItem, suite


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
