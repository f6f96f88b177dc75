"""Every way to generate, with guided and unguided methods, of fixed and of varying counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import TextIteratorStreamer

from qmop.fitting import take_image_inputs
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.assemble import tiny_config, tiny_processor

METHODS = {"qmop": 16, "prune": 16, "mlp": None, "window_pool": 16, "recoverable": 40}
NEW = 4
LENGTH = {"max_new_tokens": NEW, "min_new_tokens": NEW}
GREEDY = {**LENGTH, "do_sample": False}
BEAMS = {**GREEDY, "num_beams": 3}


@dataclass(frozen=True)
class Row:
    """One prompt: its pictures by number, and its question."""

    pictures: tuple[int, ...]
    question: str

    @property
    def text(self) -> str:
        return f"<user> {'<image> ' * len(self.pictures)}{self.question} <assistant>"


ROWS = [
    Row((0,), "what colour is the circle ?"),
    Row((1, 2), "how many red objects ?"),
    Row((), "which texture has the background of it ?"),
    Row((3,), "is it red ?"),
]
"""One picture, several, none, and one again: rows of four lengths."""


@dataclass(frozen=True)
class Setup:
    """A model, its processor, and pictures."""

    model: QMoPForConditionalGeneration
    processor: QMoPProcessor
    pictures: list[Image.Image]

    def batch(self, *rows: Row) -> Any:
        images = [self.pictures[number] for row in rows for number in row.pictures]
        return self.processor(
            images=images or None,
            text=[row.text for row in rows],
            query=[row.question for row in rows],
            padding=True,
            return_tensors="pt",
        )

    def told(self, *rows: Row, **settings: Any) -> Tensor:
        """The new tokens of each row."""
        batch = self.batch(*rows)
        produced = self.model.generate(**batch, **settings)
        copies = len(produced) // len(rows)
        length = batch["input_ids"].shape[1]
        assert torch.equal(produced[:, :length], batch["input_ids"].repeat_interleave(copies, dim=0))
        return produced[:, length:]


def lively(model: QMoPForConditionalGeneration) -> QMoPForConditionalGeneration:
    """Larger random weights, so that pictures and questions make a visible difference to what is told."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:  # embeddings stay small, or each word repeats itself
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
    return model.requires_grad_(requires_grad=False)


@pytest.fixture(scope="module", params=METHODS)
def setup(request: pytest.FixtureRequest, pictures: Callable[[int], list[Image.Image]]) -> Setup:
    """One method's model."""
    torch.manual_seed(1)
    config = tiny_config(request.param, METHODS[request.param])
    config.text_config.num_hidden_layers = 2
    config.vision_config.num_hidden_layers = 3
    model = lively(QMoPForConditionalGeneration(config).eval())
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    smooth = [picture.resize((6, 6)).resize((96, 96)) for picture in pictures(2)]
    return Setup(model, QMoPProcessor.for_config(model.config, tiny_processor()), [*pictures(2), *smooth])


def test_the_rows_ask_for_different_things(setup: Setup) -> None:
    batch = setup.batch(*ROWS)
    assert batch["attention_mask"].sum(1).unique().numel() == 4
    assert batch["image_rows"].tolist() == [0, 1, 1, 3]
    assert (batch["attention_mask"][:, -1] == 1).all()  # padded on the left
    told = setup.told(*ROWS, **GREEDY)
    assert len(set(map(tuple, told.tolist()))) > 2
    counts = setup.model.get_image_features(**take_image_inputs(dict(batch))).compressed.counts_B
    assert (counts.unique().numel() > 2) == (setup.model.config.compressor == "recoverable")


def test_pictures_and_questions_change_what_is_told(setup: Setup) -> None:
    def first(batch: Any) -> Tensor:
        return setup.model(**batch).logits[:, -1]

    row = ROWS[0]
    told = first(setup.batch(row))
    assert (first(setup.batch(Row((1,), row.question))) - told).abs().max() > 1e-2
    other = {name: value for name, value in setup.batch(ROWS[3]).items() if name.startswith("query_")}
    guided = setup.model.model.multi_modal_projector.declaration.text_guided
    assert ((first({**setup.batch(row), **other}) - told).abs().max() > 1e-4) == guided


def test_each_greedy_row_is_its_single_result(setup: Setup) -> None:
    together = setup.told(*ROWS, **GREEDY)
    alone = torch.cat([setup.told(row, **GREEDY) for row in ROWS])
    assert torch.equal(together, alone)
    assert torch.equal(together, setup.told(*ROWS, **GREEDY))


def test_the_cache_changes_nothing(setup: Setup) -> None:
    cached = setup.model.generate(
        **setup.batch(*ROWS), **GREEDY, use_cache=True, output_logits=True, return_dict_in_generate=True
    )
    plain = setup.model.generate(
        **setup.batch(*ROWS), **GREEDY, use_cache=False, output_logits=True, return_dict_in_generate=True
    )
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), rtol=0, atol=1e-4)


def test_each_row_of_beams_is_its_single_result(setup: Setup) -> None:
    together = setup.told(*ROWS, **BEAMS)
    alone = torch.cat([setup.told(row, **BEAMS) for row in ROWS])
    assert torch.equal(together, alone)
    assert not torch.equal(together, setup.told(*ROWS, **GREEDY))


def test_beams_leave_encoded_pictures_as_they_were(setup: Setup) -> None:
    batch = setup.batch(*ROWS)
    images = setup.model.get_image_features(**take_image_inputs(batch))
    before = [tokens.clone() for tokens in images.pooler_output]
    told = [setup.model.generate(**batch, mm_encoder_outputs={"image": images}, **BEAMS) for _ in range(2)]
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[0], setup.model.generate(**setup.batch(*ROWS), **BEAMS))
    assert all(torch.equal(one, two) for one, two in zip(before, images.pooler_output, strict=True))


def test_several_sequences_of_each_row(setup: Setup) -> None:
    told = setup.told(*ROWS, **BEAMS, num_return_sequences=2)
    assert told.shape == (8, NEW)
    assert torch.equal(told[::2], setup.told(*ROWS, **BEAMS))
    assert not (told[::2] == told[1::2]).all(1).any()


def test_sampling_follows_the_seed(setup: Setup) -> None:
    def drawn(seed: int, **settings: Any) -> Tensor:
        torch.manual_seed(seed)
        return setup.told(*ROWS, **LENGTH, do_sample=True, top_k=0, **settings)

    first = drawn(0)
    assert torch.equal(first, drawn(0))
    assert not torch.equal(first, drawn(1))
    twice = drawn(0, num_return_sequences=2)
    assert twice.shape == (8, NEW)
    assert not torch.equal(twice[::2], twice[1::2])


def test_cold_sampling_is_greedy(setup: Setup) -> None:
    assert torch.equal(setup.told(*ROWS, **LENGTH, do_sample=True, temperature=1e-4), setup.told(*ROWS, **GREEDY))


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_stream_is_what_generate_returns(setup: Setup, row: int) -> None:
    words = setup.processor.tokenizer
    streamer = TextIteratorStreamer(words, skip_prompt=True, timeout=60)
    batch = setup.batch(ROWS[row])
    thread = Thread(target=setup.model.generate, kwargs={**batch, **GREEDY, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == words.decode(setup.told(ROWS[row], **GREEDY)[0])
    assert len(pieces) >= NEW  # one for each token, some of them empty until a word is whole


@pytest.mark.parametrize("policy", ["latest", "sticky"])
def test_several_turns_are_told_as_one_prompt(setup: Setup, policy: str) -> None:
    """A second question about the first picture, with a picture of its own: the template's way and by hand."""
    first, second = ROWS[0].question, ROWS[1].question
    talk = [
        {"role": "user", "content": [{"type": "image", "image": setup.pictures[0]}, {"type": "text", "text": first}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "image", "image": setup.pictures[1]}, {"type": "text", "text": second}]},
    ]
    setup.processor.query_policy = policy
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    batch = setup.processor.apply_chat_template([talk], **settings)
    text = setup.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    setup.processor.query_policy = "latest"
    assert text.count("<image>") == 2
    question = second if policy == "latest" else first
    by_hand = setup.processor(images=setup.pictures[:2], text=text, query=question, return_tensors="pt")
    assert set(batch) == set(by_hand)
    assert all(torch.equal(batch[name], by_hand[name]) for name in batch)
    told = setup.model.generate(**batch, **GREEDY)
    assert torch.equal(told, setup.model.generate(**batch, **GREEDY, use_cache=False))
    assert told.shape[1] == batch["input_ids"].shape[1] + NEW


def test_limits_count_the_prompt_as_it_was_passed(setup: Setup) -> None:
    batch = setup.batch(*ROWS)
    length = batch["input_ids"].shape[1]
    told = setup.model.generate(**batch, max_length=length + 3, min_length=length + 3, do_sample=False)
    assert torch.equal(told[:, length:], setup.told(*ROWS, **GREEDY)[:, :3])


def test_scores_are_those_of_the_forward_pass(setup: Setup) -> None:
    batch = setup.batch(*ROWS)
    out = setup.model.generate(**batch, **GREEDY, output_logits=True, return_dict_in_generate=True)
    logits = setup.model(**setup.batch(*ROWS)).logits[:, -1]
    torch.testing.assert_close(out.logits[0], logits, rtol=0, atol=1e-4)
    assert torch.equal(out.sequences[:, -NEW], nn.functional.one_hot(logits.argmax(-1), 263).argmax(-1))
