from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.serving.contract import Completion, Job, Prompt, PromptError, Sampling
from pipelines.serving.engine import QMoPEngine
from qmop.answering import answer
from qmop.tiny.assemble import tiny_model, tiny_processor

QUESTION = "what colour is the circle"


@pytest.fixture(scope="module")
def qmop() -> QMoPEngine:
    torch.manual_seed(1)
    return QMoPEngine(tiny_model("qmop", 16), tiny_processor(16))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.radial_gradient("L").convert("RGB")


def prompt(*images: Image.Image, text: str = QUESTION) -> Prompt:
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return Prompt(messages=[{"role": "user", "content": content}], images=images, question=text)


def job(prompt: Prompt, **sampling: Any) -> tuple[Job, list[str], list[Completion | Exception]]:
    pieces: list[str] = []
    ends: list[Completion | Exception] = []
    asked = Sampling(**{"max_new_tokens": 8, **sampling})
    made = Job(prompt=prompt, sampling=asked, emit=pieces.append, done=ends.append, cancelled=threading.Event())
    return made, pieces, ends


def ask(engine: QMoPEngine, prompt: Prompt, **sampling: Any) -> tuple[str, Completion]:
    made, pieces, ends = job(prompt, **sampling)
    engine.run([made])
    (end,) = ends
    assert isinstance(end, Completion), end
    return "".join(pieces), end


def test_greedy_answers_are_those_of_the_benchmark(qmop: QMoPEngine, picture: Image.Image) -> None:
    (expected,) = answer(qmop._model, qmop._processor, [picture], [QUESTION], max_new_tokens=8)
    text, end = ask(qmop, prompt(picture))
    assert text.strip() == expected.text
    assert text
    assert tuple(end.visual.branch_weights.values()) == pytest.approx(expected.branch_weights)


def test_compressed_tokens_are_counted_as_the_language_model_reads_them(qmop: QMoPEngine, picture: Image.Image) -> None:
    blind = ask(qmop, prompt())[1]
    seeing = ask(qmop, prompt(picture))[1]
    assert seeing.prompt_tokens - blind.prompt_tokens == 16
    assert (seeing.visual.visual_tokens, seeing.visual.visual_tokens_original) == (16, 144)
    assert list(seeing.visual.branch_weights) == ["resampler", "window_pool", "prune"]
    assert sum(seeing.visual.branch_weights.values()) == pytest.approx(1)
    assert (blind.visual.visual_tokens, blind.visual.branch_weights) == (0, None)


def test_several_pictures_share_the_question(qmop: QMoPEngine, picture: Image.Image) -> None:
    visual = ask(qmop, prompt(picture, picture.rotate(90)))[1].visual
    assert (visual.visual_tokens, visual.visual_tokens_original) == (32, 288)


def test_a_method_without_a_router_reports_no_weights(picture: Image.Image) -> None:
    visual = ask(QMoPEngine(tiny_model("average_pool", 16), tiny_processor(16)), prompt(picture))[1].visual
    assert (visual.method, visual.visual_tokens, visual.branch_weights) == ("average_pool", 16, None)


def test_text_comes_token_by_token(qmop: QMoPEngine, picture: Image.Image) -> None:
    made, pieces, ends = job(prompt(picture))
    qmop.run([made])
    assert len(pieces) >= 7
    assert ends[0].completion_tokens == 8


def test_a_seed_repeats_a_draw_and_leaves_the_process_alone(qmop: QMoPEngine, picture: Image.Image) -> None:
    state = torch.get_rng_state()
    drawn = [ask(qmop, prompt(picture), temperature=1.5, seed=seed)[0] for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_a_draw_is_from_all_tokens_whatever_the_checkpoint_would_fill_in(
    qmop: QMoPEngine, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_from: list[torch.Tensor] = []
    multinomial = torch.multinomial

    def spy(chances: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        drawn_from.append(chances.clone())
        return multinomial(chances, *args, **options)

    monkeypatch.setattr(torch, "multinomial", spy)
    ask(qmop, prompt(picture), temperature=1.5, seed=1, max_new_tokens=2)
    monkeypatch.setattr(qmop._model.generation_config, "top_k", 7)
    monkeypatch.setattr(qmop._model.generation_config, "repetition_penalty", 3.0)
    ask(qmop, prompt(picture), temperature=1.5, seed=1, max_new_tokens=2)
    vocabulary = qmop._model.config.text_config.vocab_size
    assert vocabulary > 50
    assert [int((chances > 0).sum()) for chances in drawn_from] == [vocabulary] * 4
    assert torch.equal(torch.cat(drawn_from[:2]), torch.cat(drawn_from[2:]))


def test_a_narrow_nucleus_is_greedy(qmop: QMoPEngine, picture: Image.Image) -> None:
    assert ask(qmop, prompt(picture), temperature=1.0, top_p=1e-6)[0] == ask(qmop, prompt(picture))[0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-6, 1e-5])
def test_a_temperature_too_small_to_divide_by_is_greedy(
    qmop: QMoPEngine, picture: Image.Image, temperature: float
) -> None:
    assert ask(qmop, prompt(picture), temperature=temperature)[0] == ask(qmop, prompt(picture))[0]


def test_an_answer_ends_at_its_cap_or_before_a_stop_text(qmop: QMoPEngine, picture: Image.Image) -> None:
    whole, end = ask(qmop, prompt(picture), temperature=1.0, seed=1, max_new_tokens=12)
    assert (end.finish_reason, end.completion_tokens) == ("length", 12)
    word = whole.split()[3]
    text, end = ask(qmop, prompt(picture), temperature=1.0, seed=1, max_new_tokens=12, stop=(word,))
    assert text == whole[: whole.index(word)]
    assert end.finish_reason == "stop"
    assert end.completion_tokens < 12


def test_the_end_token_ends_the_answer_and_is_not_shown(qmop: QMoPEngine, picture: Image.Image) -> None:
    greedy = ask(qmop, prompt(picture))[0]
    (first,) = qmop._processor.tokenizer(greedy.split()[0])["input_ids"][:1]
    before = qmop._model.generation_config.eos_token_id
    qmop._model.generation_config.eos_token_id = first
    try:
        end = ask(QMoPEngine(qmop._model, qmop._processor), prompt(picture))[1]
    finally:
        qmop._model.generation_config.eos_token_id = before
    assert (end.finish_reason, end.completion_tokens) == ("stop", 1)


@pytest.mark.parametrize("token", ["<image>", "<assistant>", "</s>"])
def test_text_cannot_smuggle_in_what_steers_the_model(qmop: QMoPEngine, picture: Image.Image, token: str) -> None:
    with pytest.raises(PromptError, match=token):
        qmop.check(prompt(picture, text=f"hello {token} there").messages)


def test_a_token_that_the_template_puts_together_is_refused_and_never_the_engines_failure() -> None:
    engine = QMoPEngine(tiny_model("mlp", 144), tiny_processor(144))
    engine._processor.chat_template = "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}"
    split = [{"type": "text", "text": "<ima"}, {"type": "text", "text": "ge>"}]
    asked = Prompt(messages=[{"role": "user", "content": split}], images=[], question="hi")
    with pytest.raises(PromptError, match="holds <image>"):
        engine.check(asked.messages)
    made, _, ends = job(asked)
    engine.run([made])
    assert isinstance(ends[0], PromptError)
    assert "0 images" in str(ends[0])


def test_a_conversation_longer_than_the_model_reads_is_refused(qmop: QMoPEngine) -> None:
    made, _, ends = job(prompt(text="hello " * 1100))
    qmop.run([made])
    assert isinstance(ends[0], PromptError)
    assert "1024" in str(ends[0])


def test_a_text_far_beyond_the_context_is_refused_without_being_tokenized(qmop: QMoPEngine) -> None:
    fits = "hi " * (32 * 1024 // 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(qmop._processor.tokenizer), "_encode_plus", None)
        qmop.check(prompt(text=fits).messages)
        with pytest.raises(PromptError, match=r"has 32769 characters, but at most 32768 .* 1024 tokens: shorten it"):
            qmop.check([*prompt(text=fits).messages, *prompt(text="x" * 3).messages])


def test_an_answer_has_no_more_room_than_the_context_leaves(qmop: QMoPEngine) -> None:
    end = ask(qmop, prompt(text="red " * 1015), max_new_tokens=50)[1]
    assert end.prompt_tokens + end.completion_tokens == 1024
    assert end.finish_reason == "length"


def test_a_cancelled_answer_stops_at_once(qmop: QMoPEngine, picture: Image.Image) -> None:
    made, pieces, ends = job(prompt(picture), max_new_tokens=200)
    made.cancelled.set()
    qmop.run([made])
    assert (ends[0].finish_reason, ends[0].completion_tokens) == ("cancelled", 1)
    assert len(pieces) <= 1


def test_one_faulty_job_does_not_touch_the_next(qmop: QMoPEngine, picture: Image.Image) -> None:
    bad, fine = job(prompt(text="hello " * 1100)), job(prompt(picture))
    qmop.run([bad[0], fine[0]])
    assert isinstance(bad[2][0], PromptError)
    assert isinstance(fine[2][0], Completion)
