from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration

from qmop import profiler
from qmop.answering import prompt
from qmop.profiler import STAGES, Timing, profile
from qmop.surgery import compress
from qmop.tiny.assemble import tiny_config, tiny_model, tiny_processor

CPU = torch.device("cpu")
QUESTION = "what colour is the circle ?"


def batch_of(pictures: Callable[[int], list[Image.Image]], rows: int, visual_tokens: int) -> dict[str, Any]:
    processor = tiny_processor(visual_tokens)
    texts = [prompt(processor, QUESTION)] * rows
    return dict(processor(images=pictures(rows), text=texts, query=[QUESTION] * rows, return_tensors="pt"))


def stock_model() -> LlavaForConditionalGeneration:
    ours = tiny_config()
    config = LlavaConfig(
        vision_config=ours.vision_config, text_config=ours.text_config, image_token_index=ours.image_token_id
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by a second with each look at it."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(profiler._Clock, "mark", lambda _: next(ticks))


@pytest.mark.usefixtures("ticking")
def test_stages_of_a_guided_model(pictures: Callable[[int], list[Image.Image]]) -> None:
    watch = profiler._Watch(tiny_model("qmop", tokens=16), decode_tokens=3)
    stages = watch.round(batch_of(pictures, 2, 16))
    assert [name for name, _, _ in watch.seen] == [
        "encoder", "text tower", "projector", "prefill", "head", *["prefill", "head"] * 3,
    ]  # fmt: skip
    # Each part looks at the clock on entering and leaving; before the first token that is ten times, after `begin`.
    assert stages == {
        "encoder": 1000,
        "text tower": 1000,
        "projector": 1000,
        "prefill": 2000,
        "other": 5000,
        "first token": 10000,
        "decode, per token": 4000,
    }
    assert watch.prompt_tokens == 16 + 9


@pytest.mark.usefixtures("ticking")
def test_stages_of_a_stock_llava(pictures: Callable[[int], list[Image.Image]]) -> None:
    stages = profiler._Watch(stock_model(), decode_tokens=1).round(
        {k: v for k, v in batch_of(pictures, 1, 144).items() if "query" not in k}
    )
    assert set(STAGES) - set(stages) == {"text tower"}
    assert stages["first token"] == 8000


@pytest.mark.usefixtures("ticking")
def test_stages_of_an_attached_method(pictures: Callable[[int], list[Image.Image]]) -> None:
    model, batch = stock_model(), batch_of(pictures, 1, 144)
    encoder = tiny_model("prune", tokens=16).model.query_encoder
    with compress(model, "prune", tokens=16, text_encoder=encoder):
        watch = profiler._Watch(model, decode_tokens=1)
        stages = watch.round(batch)
    assert set(stages) == set(STAGES)
    assert (stages["text tower"], stages["first token"]) == (1000, 10000)
    assert watch.prompt_tokens == 16 + 9


@pytest.mark.usefixtures("ticking")
def test_the_language_models_pass_over_a_question_is_no_prefill() -> None:
    watch = profiler._Watch(tiny_model(), decode_tokens=1)
    watch.seen[:] = [
        ("encoder", 1, 2), ("prefill", 2, 7), ("projector", 7, 8), ("prefill", 8, 18), ("head", 18, 19),
        ("prefill", 20, 22), ("head", 22, 24),
    ]  # fmt: skip
    stages = watch._sorted(0)
    assert (stages["text tower"], stages["prefill"], stages["other"]) == (5000, 11000, 1000)
    assert (stages["first token"], stages["decode, per token"]) == (19000, 5000)


def test_a_profile_of_a_batch(pictures: Callable[[int], list[Image.Image]]) -> None:
    model, batch = tiny_model("qmop", tokens=16), batch_of(pictures, 2, 16)
    found = profile(model, batch, rounds=3, decode_tokens=2)
    assert tuple(found.stages) == STAGES
    assert (found.rows, found.images, found.prompt_tokens, found.rounds) == (2, 2, 25, 3)
    assert found.weights_bytes == sum(value.nbytes for value in [*model.parameters(), *model.buffers()])
    for timing in found.stages.values():
        assert timing.low <= timing.median <= timing.high
    table = found.markdown()
    assert "2 prompts of 25 tokens, 2 images, " in table
    assert all(f"| {name} | " in table for name in STAGES)


def test_no_hook_stays_behind(pictures: Callable[[int], list[Image.Image]]) -> None:
    model, batch = tiny_model("qmop", tokens=16), batch_of(pictures, 1, 16)
    profile(model, batch, rounds=1, decode_tokens=1)
    del batch["query_input_ids"]
    with pytest.raises(ValueError, match="query is missing"):
        profile(model, batch, rounds=1, decode_tokens=1)
    left = [
        hook for part in model.modules() for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    ]
    assert not [hook for hook in left if hook.__module__ == profiler.__name__]


def test_median_and_quartiles() -> None:
    assert Timing.of([5.0, 1.0, 2.0, 3.0, 100.0]) == Timing(median=3.0, low=2.0, high=5.0)
    assert Timing.of([4.0]) == Timing(median=4.0, low=4.0, high=4.0)


def test_peak_grows_with_the_visual_tokens(pictures: Callable[[int], list[Image.Image]]) -> None:
    peaks = [
        profile(tiny_model(name, tokens=tokens), batch_of(pictures, 4, tokens), rounds=1).peak_bytes
        for name, tokens in (("mlp", 144), ("average_pool", 16))
    ]
    assert peaks[0] > 1.2 * peaks[1]


def test_what_cannot_be_timed_is_refused(pictures: Callable[[int], list[Image.Image]]) -> None:
    model, batch = tiny_model(), batch_of(pictures, 1, 144)
    with pytest.raises(ValueError, match="rounds is 0"):
        profile(model, batch, rounds=0)
    with pytest.raises(ValueError, match="batch has no pixel_values"):
        profile(model, {"input_ids": batch["input_ids"]})
    with pytest.raises(ValueError, match="the model is on meta"):
        profile(model.to("meta"), batch)
