"""What every registered method must keep, through the whole tiny model: a new method is tested by being there."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qmop.compressors import build_compressor, list_compressors, projector_spec
from qmop.compressors.registry import option_names
from qmop.features import Query, VisualFeatures
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.assemble import tiny_model, tiny_processor

Pictures = Callable[[int], list[Image.Image]]
Model = QMoPForConditionalGeneration
MakeFeatures = Callable[..., VisualFeatures]
MakeQuery = Callable[..., Query]
Models = Callable[[str], tuple[Model, QMoPProcessor]]

DECLARATIONS = list_compressors()
EVERY = list(DECLARATIONS)
TRAINED = [name for name, declaration in DECLARATIONS.items() if declaration.trained]
GUIDED = [name for name, declaration in DECLARATIONS.items() if declaration.text_guided]
ELASTIC = [name for name, declaration in DECLARATIONS.items() if declaration.elastic]
IN_LLM = [name for name, declaration in DECLARATIONS.items() if declaration.acts == "in_llm"]
WHOLE = ["mlp", *IN_LLM]
"""Methods that hand every patch to the language model."""
QUESTIONS = [
    "what colour is the circle ?",
    "how many red objects ?",
    "which texture has the background of it ?",
    "red ?",
]


def lively(model: Model, seed: int = 0) -> Model:
    """Larger random weights, so that pictures and questions make a visible difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module is not model.lm_head:
                spread = module.weight[0].numel() ** -0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * spread)
    return model


def built(method: str) -> tuple[Model, QMoPProcessor]:
    torch.manual_seed(1)
    model = lively(tiny_model(method, None if method == "mlp" else 16))
    return model, QMoPProcessor.for_config(model.config, tiny_processor())


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    kept: dict[str, tuple[Model, QMoPProcessor]] = {}

    def get(method: str) -> tuple[Model, QMoPProcessor]:
        if method not in kept:
            model, processor = built(method)
            kept[method] = model.requires_grad_(requires_grad=False), processor
        return kept[method]

    yield get
    kept.clear()


def batch_of(processor: QMoPProcessor, images: list[Image.Image], counts: list[int], **settings: Any) -> Any:
    """A prompt for each count of pictures, each with a question of its own length."""
    texts = [
        f"<user> {'<image> ' * count}{question} <assistant>" for count, question in zip(counts, QUESTIONS, strict=False)
    ]
    asked = QUESTIONS[: len(texts)]
    return processor(images=images or None, text=texts, query=asked, padding=True, return_tensors="pt", **settings)


def encoded(model: Model, batch: Any) -> Any:
    names = [name for name in batch if name not in ("input_ids", "attention_mask")]
    return model.get_image_features(**{name: batch[name] for name in names})


@pytest.mark.parametrize("method", EVERY)
def test_a_batch_equals_its_pictures(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    images = pictures(3)
    together = encoded(model, batch_of(processor, images, [1, 1, 1]))
    for row in range(3):
        single = processor(images=[images[row]], text="<image> a", query=QUESTIONS[row], return_tensors="pt")
        alone = encoded(model, single)
        torch.testing.assert_close(together.pooler_output[row], alone.pooler_output[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", EVERY)
def test_mixed_rows_equal_themselves_alone(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    images, counts = pictures(3), [2, 0, 1]
    together = model(**batch_of(processor, images, counts)).logits[:, -1]
    starts = [0, 2, 2]
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        text = f"<user> {'<image> ' * count}{QUESTIONS[row]} <assistant>"
        mine = images[start : start + count]
        single = processor(images=mine or None, text=text, query=QUESTIONS[row], return_tensors="pt")
        torch.testing.assert_close(together[row], model(**single).logits[0, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", EVERY)
def test_the_count_is_what_was_promised(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    kept = encoded(model, batch_of(processor, pictures(3), [1, 1, 1])).compressed
    promised = model.model.multi_modal_projector.token_count()
    assert promised == processor.visual_tokens == (144 if method in WHOLE else 16)
    if DECLARATIONS[method].fixed_count:
        assert kept.counts_B.tolist() == [promised] * 3
    assert kept.counts_B.max() <= promised
    assert kept.counts_B.min() >= 1
    assert kept.tokens_BMC.shape[2] == 160


@pytest.mark.parametrize("method", EVERY)
def test_kept_patches_are_different_ones(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    kept = encoded(model, batch_of(processor, pictures(2), [1, 1])).compressed
    if kept.kept_BM is None:
        return
    for row in range(2):
        mine = kept.kept_BM[row] if kept.mask_BM is None else kept.kept_BM[row][kept.mask_BM[row]]
        patches = mine[mine >= 0].tolist()
        assert len(set(patches)) == len(patches)
        assert all(0 <= patch < 144 for patch in patches)


@pytest.mark.parametrize("method", EVERY)
def test_half_precision_runs(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    half = copy.deepcopy(model).bfloat16()
    batch = batch_of(processor, pictures(2), [1, 1])
    logits = half(**batch).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize("method", TRAINED)
def test_gradients_reach_every_parameter(pictures: Pictures, method: str) -> None:
    model, processor = built(method)
    model.requires_grad_(requires_grad=False).model.multi_modal_projector.requires_grad_()
    model.train()
    batch = batch_of(processor, pictures(2), [1, 1])
    model(**batch, labels=batch["input_ids"]).loss.backward()
    projector = model.model.multi_modal_projector
    assert [name for name, value in projector.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("method", GUIDED)
def test_a_missing_question_is_refused(models: Models, pictures: Pictures, method: str) -> None:
    if method in IN_LLM:
        pytest.skip("the language model has the question in its prompt")
    model, processor = models(method)
    batch = processor(images=pictures(1), text="<image> a", return_tensors="pt")
    with pytest.raises(ValueError, match=rf"query is missing, but {method}.*pass query= to the processor"):
        model(**batch)


@pytest.mark.parametrize("method", ELASTIC)
def test_elastic_methods_take_smaller_budgets(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    batch = batch_of(processor, pictures(2), [1, 1], visual_tokens=9)
    kept = encoded(model, batch).compressed
    assert kept.counts_B.max() <= 9
    assert model(**batch).logits.isfinite().all()
    fewer = batch_of(processor, pictures(2), [1, 1])
    fewer["visual_tokens"] = 9
    torch.testing.assert_close(model(**batch).logits[:, -1], model(**fewer).logits[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in EVERY if name not in (*ELASTIC, *WHOLE)])
def test_other_methods_refuse_another_budget(models: Models, pictures: Pictures, method: str) -> None:
    model, processor = models(method)
    with pytest.raises(ValueError, match=r"tokens is 9, but this .* was built for 16: build another"):
        encoded(model, batch_of(processor, pictures(1), [1], visual_tokens=9))


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("tokens", [0, -1, 145])
def test_budgets_beyond_the_grid_are_refused(method: str, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens is {tokens}, but .*choose"):
        build_compressor(method, grid=12, width=32, tokens=tokens)


@pytest.mark.parametrize("method", EVERY)
def test_other_grids_widths_and_the_default_budget(method: str) -> None:
    with torch.device("meta"):
        for grid, width in ((24, 1024), (27, 1152), (16, 768)):
            compressor = build_compressor(method, grid=grid, width=width)
            if method not in WHOLE:
                assert compressor.tokens == {24: 144, 27: 81, 16: 64}[grid]


def test_weights_of_branches_sum_to_one(models: Models, pictures: Pictures) -> None:
    for method in ("qmop", "qmop-elastic"):
        model, processor = models(method)
        weights: Tensor = encoded(model, batch_of(processor, pictures(3), [1, 1, 1])).compressed.branch_weights_BS
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
        assert (weights > 0).sum(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize("method", EVERY)
def test_features_of_another_grid_are_refused(method: str) -> None:
    torch.manual_seed(0)
    compressor = projector_spec(tiny_model(method, None if method == "mlp" else 16).config).build().compressor
    features = VisualFeatures(patches_BNC=torch.randn(1, 169, compressor.width), grid=(13, 13))
    with pytest.raises(ValueError, match=r"169 patches, but (this method was built for a 12 x 12 grid|downsample)"):
        compressor(features)


@pytest.mark.parametrize("method", EVERY)
def test_a_budget_that_is_not_whole_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"tokens is 16\.0, but .*a whole number"):
        build_compressor(method, grid=12, width=16, tokens=16.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"grid": 0}, "grid is 0, .*: choose 1 or more"),
        ({"grid": -2}, "grid is -2, .*: choose 1 or more"),
        ({"grid": 2.5}, "grid is 2.5, .*: choose a whole number"),
        ({"grid": "12"}, "grid is '12', .*: choose a whole number"),
        ({"grid": -2, "tokens": 4}, "grid is -2, .*: choose 1 or more"),
        ({"width": 0}, "width is 0, .*: choose 1 or more"),
        ({"tokens": True}, "tokens is True, .*: choose a whole number, 1 to 144"),
    ],
)
@pytest.mark.parametrize("method", EVERY)
def test_sizes_that_are_no_counts_are_refused(method: str, sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_compressor(method, **{"grid": 12, "width": 16, **sizes})


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("resampler", {"heads": "8"}),
        ("window_pool", {"heads": 2.0}),
        ("tokenpacker", {"heads": "8"}),
        ("tokenpacker", {"levels": 1.5}),
        ("quecc", {"language_width": 0}),
        ("mqt", {"queries": 2.5}),
        ("mqt", {"heads": 4.0}),
        ("mqt", {"language_width": "12"}),
        ("c_abstractor", {"depth": 1.5}),
        ("c_abstractor", {"hidden": "16"}),
        ("c_abstractor", {"group_width": 1.0}),
        ("c_abstractor", {"squeeze": float("nan")}),
        ("c_abstractor", {"language_width": -1}),
        ("pixel_shuffle", {"language_width": 0}),
        ("cdpruner", {"theta": "x"}),
        ("cdpruner", {"theta": float("nan")}),
        ("prune", {"lam": "0.5"}),
        ("visionzip", {"contextual": 1.5}),
        ("random_tokens", {"seed": 1.5}),
        ("prumerge", {"neighbours": 1.5}),
        ("fastv", {"layer": 1.5}),
        ("recoverable", {"pull": float("nan")}),
        ("recoverable", {"members": 1.5}),
        ("recoverable", {"shares": 1}),
        ("recoverable", {"shares": (1, float("nan"), 1)}),
        ("recoverable", {"shares": ("1", 1, 1)}),
        ("qmop", {"top_k": "2"}),
        ("qmop", {"top_k": 1.5}),
        ("qmop", {"threshold": "0.5"}),
        ("qmop", {"text_width": 0}),
        ("qmop-elastic", {"budgets": 16}),
        ("qmop-elastic", {"budgets": [16.0]}),
    ],
)
def test_options_of_a_wrong_kind_are_named(method: str, options: dict[str, Any]) -> None:
    ((field, value),) = options.items()
    named = "tokens is 16.0" if value == [16.0] else f"{field} is {value!r}"
    with pytest.raises(ValueError, match=re.escape(named)):
        build_compressor(method, grid=12, width=16, tokens=16, **options)


@pytest.mark.parametrize("router", [{"hidden": 2.5}, {"temperature": "hot"}, {"temperature": True}], ids=repr)
def test_router_fields_of_a_wrong_kind_are_named(router: dict[str, Any]) -> None:
    ((field, value),) = router.items()
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        build_compressor("qmop", grid=12, width=16, tokens=16, router=router)


@pytest.mark.parametrize(
    ("method", "options"),
    [*((name, {}) for name in ELASTIC), ("resampler", {"nested": True}), ("window_pool", {"elastic": True})],
)
@pytest.mark.parametrize("tokens", [4.0, 2.5])
def test_a_call_with_a_budget_that_is_not_whole_is_refused(
    models: Models, pictures: Pictures, method: str, options: dict[str, Any], tokens: float
) -> None:
    model, processor = models(method) if not options else (tiny_model(method, 16, **options), tiny_processor(16))
    texts = ["<user> <image> red ?"]
    batch = processor(images=pictures(1), text=texts, query=texts, padding=True, return_tensors="pt")
    seen = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match=f"tokens is {tokens}, but"):
        model.get_image_features(**seen, visual_tokens=tokens)


@pytest.mark.parametrize("method", EVERY)
def test_no_pictures_give_no_tokens(make_features: MakeFeatures, make_query: MakeQuery, method: str) -> None:
    widths = {"text_width": 8, "language_width": 12}
    options = {name: width for name, width in widths.items() if name in option_names(method)}
    compressor = build_compressor(method, grid=6, width=16, **options)
    features = make_features(0, grid=3 if method == "downsample" else 6)
    for mode in (compressor.eval(), compressor.train()):
        found = mode(features, make_query(0))
        shown = 36 if method in WHOLE else 9
        assert found.tokens_BMC.shape[0] == 0
        assert found.tokens_BMC.shape[1] == shown or not compressor.declaration.fixed_count
        assert found.per_image() == []
