"""The harness's models over the tiny model; stand-ins have the shape of its requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from qmop.answering import answer
from qmop.harness_models import CheckpointModel, CompressedModel
from qmop.loading import load
from qmop.tiny.assemble import tiny_model, tiny_processor
from qmop.tiny.configs import query_config, vision_config
from qmop.tiny.tokenizer import query_tokenizer
from tests.fixtures.stock_llava import stock_llava, stock_processor

Pictures = Callable[[int], list[Image.Image]]
TASK, SPLIT = "colours", "test"


@dataclass(frozen=True)
class Request:
    """What of the harness's requests a model reads."""

    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint guided by the question, with random weights large enough to tell inputs apart."""
    folder = tmp_path_factory.mktemp("prune")
    torch.manual_seed(4)
    model = tiny_model("prune", 16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tiny_processor(16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> CheckpointModel:
    return CheckpointModel(pretrained=str(checkpoint), batch_size="3", device="cpu", dtype="float32", max_new_tokens=6)


DOCS = [
    ("what colour is the circle ?", 1, "red"),
    ("how many red objects are there ?", 1, " two"),
    ("is <image> like <image> ?", 2, "no"),
    ("which is one of the colours ?", 0, "blue circle"),
]


@pytest.fixture
def docs(model: CheckpointModel, pictures: Pictures) -> list[dict[str, Any]]:
    shown = pictures(4)
    docs = [
        {"question": question, "pictures": shown[place : place + count], "answer": target}
        for place, (question, count, target) in enumerate(DOCS)
    ]
    model.task_dict = {TASK: {SPLIT: docs}}
    return docs


def requests(docs: list[dict[str, Any]], second: Callable[[dict[str, Any]], Any]) -> list[Request]:
    return [
        Request((doc["question"], second(doc), lambda doc: doc["pictures"], row, TASK, SPLIT))
        for row, doc in enumerate(docs)
    ]


def generating(docs: list[dict[str, Any]], **options: Any) -> list[Request]:
    return requests(docs, lambda _: dict(options))


def test_answers_are_those_of_the_library(model: CheckpointModel, docs: list[dict[str, Any]], checkpoint: Path) -> None:
    ours, processor = load(checkpoint)
    shown, asked = [doc["pictures"][0] for doc in docs[:2]], [doc["question"] for doc in docs[:2]]
    expected = [one.text for one in answer(ours, processor, shown, asked, max_new_tokens=6)]
    assert model.generate_until(generating(docs[:2], temperature=0)) == expected
    assert len(set(expected)) == 2


def test_batches_of_mixed_pictures_answer_as_single_requests_do(
    model: CheckpointModel, docs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = model.generate_until(generating(docs))
    monkeypatch.setattr(model, "batch_size", 1)
    assert together == model.generate_until(generating(docs))
    assert len(set(together)) == 4


def test_pictures_are_fetched_when_their_batch_comes(
    model: CheckpointModel, docs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    monkeypatch.setattr(model, "batch_size", 2)
    monkeypatch.setattr(model, "_answers", lambda asked: happened.append("answer") or [""] * len(asked))

    def shown(doc: dict[str, Any]) -> list[Image.Image]:
        happened.append("fetch")
        return doc["pictures"]

    model.generate_until([Request((doc["question"], {}, shown, row, TASK, SPLIT)) for row, doc in enumerate(docs)])
    assert happened == ["fetch", "fetch", "answer"] * 2


def test_the_question_alone_guides_the_compression(model: CheckpointModel, docs: list[dict[str, Any]]) -> None:
    asked = [model._read(request.args, scored=False) for request in generating(docs)]
    batch = model.encode([one.prompt for one in asked], asked)
    words = model.processor.query_inputs(["is like ?"])["query_input_ids"]
    assert torch.equal(batch["query_input_ids"][2, : words.shape[1]], words[0])
    assert batch["image_rows"].tolist() == [0, 1, 2, 2]
    assert batch["attention_mask"][:, -1].tolist() == [1, 1, 1, 1]
    assert batch["attention_mask"][:, 0].tolist() == [0, 0, 1, 0]


def test_answers_stop_where_the_task_says(
    model: CheckpointModel, docs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = model.generate_until(generating(docs[:1]))
    words, lengths, generate = whole.split(), [], model.model.generate
    assert len(words) > 2

    def watched(**inputs: Any) -> torch.Tensor:
        rows: torch.Tensor = generate(**inputs)
        lengths.append(rows.shape[1] - inputs["input_ids"].shape[1])
        return rows

    monkeypatch.setattr(model.model, "generate", watched)
    (stopped,) = model.generate_until(generating(docs[:1], until=[words[2]]))
    assert stopped == " ".join(words[: words.index(words[2])])
    assert lengths[0] < 6  # nothing is written that would be cut off
    assert model.generate_until(generating(docs[:1], until="\n\n")) == [whole]  # which no token can end with
    (short,) = model.generate_until(generating(docs[:1], max_new_tokens=1))
    assert len(short) < len(whole)
    assert whole.startswith(short)


def test_losses_are_those_of_an_unpadded_pass(model: CheckpointModel, docs: list[dict[str, Any]]) -> None:
    scored = model.loglikelihood(requests(docs, lambda doc: doc["answer"]))
    assert model.loglikelihood(requests(docs, lambda _: lambda doc: doc["answer"])) == scored
    for request, (loss, greedy) in zip(requests(docs, lambda doc: doc["answer"]), scored, strict=True):
        one = model._read(request.args, scored=True)
        assert one.continuation == f" {one.continuation.strip()}"
        words = model.processor.tokenizer(one.continuation.strip())["input_ids"]
        batch = model.encode([f"{one.prompt} {one.continuation.strip()}"], [one])
        assert batch["input_ids"][0, -len(words) :].tolist() == words
        with torch.no_grad():
            logits = model.model(**batch).logits[0, -len(words) - 1 : -1].log_softmax(-1)
        assert loss == pytest.approx(-float(logits[range(len(words)), words].mean()), abs=1e-5)
        assert greedy == (logits.argmax(-1).tolist() == words)


def test_what_the_model_would_write_is_its_greedy_continuation(
    model: CheckpointModel, docs: list[dict[str, Any]]
) -> None:
    written = model.generate_until(generating(docs[:2], max_new_tokens=2))
    first, second = written[0].split()
    assert second != "blue"
    (loss, greedy), (worse, other) = (
        model.loglikelihood(requests(docs[:1], lambda _, text=text: text))[0] for text in (written[0], f"{first} blue")
    )
    assert greedy
    assert not other  # although it begins like it
    assert loss < worse


def test_scoring_needs_neither_document_nor_words(model: CheckpointModel) -> None:
    choice, nothing = model.loglikelihood([Request(("", "red")), Request(("what ?", ""))])
    assert choice[0] > 0
    assert nothing == (0.0, True)


def test_rounds_that_the_harness_steers_are_refused(model: CheckpointModel) -> None:
    with pytest.raises(NotImplementedError, match="2 requests have several rounds: choose tasks of a single round"):
        model.generate_until_multi_round([1, 2])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("batch_size", "auto", "batch_size is 'auto', but batches are of a fixed size here: choose 1 or more"),
        ("batch_size", 0, "batch_size is 0"),
        ("dtype", "int8", "dtype is 'int8': choose auto, float32, bfloat16 or float16"),
        ("dtype", "half precision", "dtype is 'half precision'"),
    ],
)
def test_wrong_arguments_are_refused(checkpoint: Path, field: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CheckpointModel(pretrained=str(checkpoint), **{field: value})


def test_half_precision_runs(checkpoint: Path, docs: list[dict[str, Any]]) -> None:
    half = CheckpointModel(pretrained=str(checkpoint), device="cpu", dtype="bfloat16", batch_size=2)
    half.task_dict = {TASK: {SPLIT: docs}}
    assert half.model.dtype == torch.bfloat16
    assert len(half.generate_until(generating(docs, max_new_tokens=2))) == 4


def test_another_budget_is_shown(checkpoint: Path, docs: list[dict[str, Any]]) -> None:
    more = CheckpointModel(pretrained=str(checkpoint), device="cpu", visual_tokens=36)
    more.task_dict = {TASK: {SPLIT: docs}}
    one = more._read(generating(docs)[0].args, scored=False)
    batch = more.encode([one.prompt], [one])
    assert int((batch["input_ids"] == more.model.config.image_token_id).sum()) == 36
    assert more.generate_until(generating(docs[:1], max_new_tokens=2))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock LLaVA and its processor."""
    folder = tmp_path_factory.mktemp("stock")
    stock_llava().save_pretrained(folder)
    stock_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with two towers, the vision tower of the same shape."""
    words, folder = query_tokenizer(), tmp_path_factory.mktemp("clip")
    text = query_config(words).to_dict()
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision_config().to_dict(), projection_dim=128)
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def compressed(stock: Path, docs: list[dict[str, Any]], **options: Any) -> CompressedModel:
    model = CompressedModel(pretrained=str(stock), device="cpu", max_new_tokens=4, **options)
    model.task_dict = {TASK: {SPLIT: docs}}
    return model


def test_a_stock_model_is_asked_with_and_without_a_method(stock: Path, docs: list[dict[str, Any]]) -> None:
    plain, zipped = compressed(stock, docs, batch_size=4), compressed(stock, docs, compressor="visionzip", tokens=16)
    whole, fewer = plain.generate_until(generating(docs)), zipped.generate_until(generating(docs))
    assert whole[:3] != fewer[:3]
    assert whole[3] == fewer[3]  # has no picture
    together = compressed(stock, docs, compressor="visionzip", tokens=16, batch_size=4)
    assert together.generate_until(generating(docs)) == fewer
    assert together.handle.projector.compressor.tokens == 16


def test_losses_of_a_compressed_model_do_not_depend_on_the_batch(
    stock: Path, clip: Path, docs: list[dict[str, Any]]
) -> None:
    options = {"compressor": "prune", "tokens": 16, "text_encoder": str(clip), "options": '{"lam": 0.25}'}
    alone, together = (compressed(stock, docs, batch_size=size, **options) for size in (1, 4))
    assert alone.handle.projector.compressor.lam == 0.25
    scored = [model.loglikelihood(requests(docs, lambda doc: doc["answer"])) for model in (alone, together)]
    for (one, first), (other, second) in zip(*scored, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
        assert first == second


@pytest.mark.parametrize("options", ["lam=1", "[1]", "{lam}"])
def test_options_that_are_no_object_are_refused(stock: Path, options: str) -> None:
    with pytest.raises(ValueError, match=r"options is .*: give a JSON object of the method's fields"):
        CompressedModel(pretrained=str(stock), device="cpu", compressor="visionzip", options=options)


def test_what_is_no_folder_of_a_stock_model_is_named_without_a_look_at_the_network(
    checkpoint: Path, tmp_path: Path
) -> None:
    for missing in ("models/llava-1.5-7b-hf", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{missing} holds no model: expected a folder with config.json"):
            CompressedModel(pretrained=str(missing), device="cpu")
    with pytest.raises(ValueError, match="holds a qmop model, not a stock LLaVA: choose the harness's model qmop"):
        CompressedModel(pretrained=str(checkpoint), device="cpu")
