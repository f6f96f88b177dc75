from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from qmop.conversation import Conversation
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.assemble import tiny_model, tiny_processor

Pictures = Callable[[int], list[Image.Image]]

SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 3, "do_sample": False}


@pytest.fixture(scope="module")
def model() -> QMoPForConditionalGeneration:
    torch.manual_seed(3)
    model = tiny_model("qmop", 16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and parameter is not model.lm_head.weight:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.requires_grad_(requires_grad=False)


@pytest.fixture
def processor() -> QMoPProcessor:
    return tiny_processor(16)


def encodings(model: QMoPForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call compressed."""
    calls: list[int] = []
    inner = model.get_image_features

    def counted(pixels: torch.Tensor, **kwargs: Any) -> Any:
        calls.append(len(pixels))
        return inner(pixels, **kwargs)

    monkeypatch.setattr(model, "get_image_features", counted)
    return calls


def test_sticky_reads_only_what_is_new(
    model: QMoPForConditionalGeneration, processor: QMoPProcessor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = encodings(model, monkeypatch)
    talk = Conversation(model, processor, "sticky", **SETTINGS)
    talk.ask("is it red ?", pictures(1))
    first = talk.read
    assert first == 16 + len(processor.tokenizer.encode("<s><user> is it red ? <assistant>", add_special_tokens=False))
    talk.ask("how many blue objects ?")
    # the last generated id, the end of the answer and the new turn; neither the picture nor the turns before
    assert talk.read <= 1 + len(processor.tokenizer.encode("</s><user> how many blue objects ? <assistant>"))
    assert calls == [1]
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2


def test_sticky_answers_as_without_a_cache(
    model: QMoPForConditionalGeneration, processor: QMoPProcessor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Conversation(model, processor, "sticky", **SETTINGS)
    asked: list[torch.Tensor] = []
    inner = model.generate

    def watched(**kwargs: Any) -> Any:
        asked.append(kwargs["input_ids"].clone())
        return inner(**kwargs)

    monkeypatch.setattr(model, "generate", watched)
    images = pictures(2)
    talk.ask("is it red ?", images[:1])
    talk.ask("how many blue objects ?")
    answer = talk.ask("which is larger ?", images[1:])
    ids, ends = asked[-1], {"first": "is it red ?", "second": "which is larger ?"}
    pixels = [processor.image_processor(image, return_tensors="pt")["pixel_values"] for image in images]
    kept = [
        model.get_image_features(pixel, **processor.query_inputs([question])).pooler_output[0]
        for pixel, question in zip(pixels, ends.values(), strict=True)
    ]
    assert (ids == processor.image_token_id).sum() == 32
    stock = super(QMoPForConditionalGeneration, model).generate
    from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: PLC0415 - one test's own

    fresh = stock(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=kept)},
        **SETTINGS,
    )
    told = processor.tokenizer.decode(fresh[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert answer == told


def test_latest_compresses_everything_anew(
    model: QMoPForConditionalGeneration, processor: QMoPProcessor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = encodings(model, monkeypatch)
    talk = Conversation(model, processor, "latest", **SETTINGS)
    talk.ask("is it red ?", pictures(1))
    first, kept = talk.read, talk._kept[0]
    talk.ask("how many blue objects ?")
    assert calls == [1, 1]
    assert talk.read > first
    assert not torch.equal(kept, talk._kept[0])


def test_the_first_turn_is_the_same_under_both_policies(
    model: QMoPForConditionalGeneration, processor: QMoPProcessor, pictures: Pictures
) -> None:
    answers = {
        Conversation(model, processor, policy, **SETTINGS).ask("is it red ?", pictures(1))
        for policy in ("latest", "sticky", "all")  # type: ignore[arg-type]
    }
    assert len(answers) == 1


def test_the_processors_policy_is_the_default(model: QMoPForConditionalGeneration, processor: QMoPProcessor) -> None:
    processor.query_policy = "sticky"
    assert Conversation(model, processor).policy == "sticky"


def test_words_are_no_placeholders(
    model: QMoPForConditionalGeneration, processor: QMoPProcessor, pictures: Pictures
) -> None:
    talk = Conversation(model, processor, "sticky", **SETTINGS)
    talk.ask("is <image> red ?", pictures(1))
    assert (talk._ids == processor.image_token_id).sum() == 16


def test_tiles_are_refused(model: QMoPForConditionalGeneration, processor: QMoPProcessor) -> None:
    processor.max_tiles = 4
    with pytest.raises(ValueError, match="max_tiles is 4, but a conversation shows whole pictures"):
        Conversation(model, processor)


def test_beams_are_refused(model: QMoPForConditionalGeneration, processor: QMoPProcessor) -> None:
    with pytest.raises(ValueError, match="num_beams is 3, but a conversation keeps one cache"):
        Conversation(model, processor, num_beams=3)


@pytest.mark.parametrize("policy", ["sticky", "latest"])
def test_a_turn_that_fails_was_not_taken(
    model: QMoPForConditionalGeneration, processor: QMoPProcessor, pictures: Pictures, policy: str
) -> None:
    first, second = pictures(2)
    plain, shaken = (Conversation(model, processor, policy=policy, **SETTINGS) for _ in range(2))
    for talk in (plain, shaken):
        talk.ask("what colour is the circle ?", [first])
    with pytest.raises(ValueError, match="nope"):
        shaken.ask("what is this ?", ["nope.png"])  # type: ignore[list-item]
    assert [turn["role"] for turn in shaken.messages] == ["user", "assistant"]
    assert plain.ask("how many red objects ?", [second]) == shaken.ask("how many red objects ?", [second])


def test_pictures_are_read_as_a_viewer_shows_them(
    model: QMoPForConditionalGeneration, processor: QMoPProcessor
) -> None:
    talks = [Conversation(model, processor, **SETTINGS) for _ in range(2)]
    clear = Image.new("RGBA", (96, 96), (0, 0, 0, 0))
    for talk, picture in zip(talks, (clear, Image.new("RGB", (96, 96), "white")), strict=True):
        talk.ask("is it red ?", [picture])
    assert torch.equal(talks[0]._pixels[0], talks[1]._pixels[0])
    with pytest.raises(ValueError, match="narrower than 1 : 50"):
        talks[0].ask("and this ?", [Image.new("RGB", (1, 60))])
    assert len(talks[0].messages) == 2
