"""What people put around a model: adapters, quantised weights, compilation, checkpointed activations."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from qmop.compressors import list_compressors
from qmop.fitting import take_image_inputs
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.assemble import tiny_config, tiny_processor

pytestmark = pytest.mark.slow

Pictures = Callable[[int], list[Image.Image]]

QUESTIONS = ["what colour is the circle ?", "how many red objects ?"]
GREEDY = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
WHOLE = "model.multi_modal_projector"
FIXED = sorted(name for name, declared in list_compressors().items() if declared.fixed_count)
BREAKS = {
    "qmop": "runs each branch on the images that chose it, which takes a look at the weights",
    "qmop-elastic": "as qmop",
    "random_tokens": "draws its places with numpy",
}
"""Methods of fixed count that a compiler cannot follow in one piece, and why."""


def small(method: str, tokens: int | None = 16, width: int = 160, **options: Any) -> QMoPForConditionalGeneration:
    """A model of few layers, whose pictures and questions make a visible difference."""
    if method == "fastv":
        options = {"layer": 1, **options}
    config = tiny_config(method, tokens, **options)
    language = config.text_config
    language.num_hidden_layers, language.hidden_size = 2, width
    language.num_attention_heads = language.num_key_value_heads = width // 32
    config.vision_config.num_hidden_layers = 3
    config.feature_levels = [0, 1, 2, 3]
    torch.manual_seed(0)
    model = QMoPForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model


@pytest.fixture
def batch(pictures: Pictures) -> Callable[[QMoPForConditionalGeneration], Any]:
    """`batch(model)`: two prompts of different lengths, with targets."""

    def build(model: QMoPForConditionalGeneration) -> Any:
        processor = QMoPProcessor.for_config(model.config, tiny_processor())
        text = [f"<user> <image> {question} <assistant> red" for question in QUESTIONS]
        made = processor(images=pictures(2), text=text, query=QUESTIONS, padding=True, return_tensors="pt")
        made["labels"] = made["input_ids"].clone()
        made["labels"][:, :-1] = -100
        return made

    return build


Batch = Callable[[QMoPForConditionalGeneration], Any]


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep every line
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("method", ["qmop", "window_pool", "prune"])
def test_lora_trains_adapters_and_projector_and_comes_back(batch: Batch, tmp_path: Path, method: str) -> None:
    peft = pytest.importorskip("peft")
    base = small(method).requires_grad_(requires_grad=False)
    inputs = batch(base)
    before, stock = base(**inputs).logits, copy.deepcopy(base)
    lora = peft.LoraConfig(
        r=4,
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, lora)
    assert torch.equal(model(**inputs).logits, before)  # adapters start at zero
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert {"lora" in name or ".multi_modal_projector." in name for name in trained} == {True}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = model.train()(**inputs).loss
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    after = model.eval()(**inputs).logits
    assert (after - before).abs().max() > 1e-2
    told = model.generate(**{**inputs, "labels": None}, **GREEDY)
    with model.disable_adapter():
        torch.testing.assert_close(model(**inputs).logits, before)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".md"}
    again = peft.PeftModel.from_pretrained(stock, tmp_path).eval()
    assert torch.equal(again(**inputs).logits, after)
    merged = again.merge_and_unload()
    assert isinstance(merged, QMoPForConditionalGeneration)
    torch.testing.assert_close(merged(**inputs).logits, after, rtol=0, atol=1e-4)
    assert torch.equal(merged.generate(**{**inputs, "labels": None}, **GREEDY), told)


@pytest.mark.parametrize("method", ["qmop", "window_pool"])
@pytest.mark.parametrize(
    ("settings", "kind", "nearness"),
    [
        ({"load_in_8bit": True}, "Linear8bitLt", 0.99),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "Linear4bit", 0.85),
    ],
)
def test_weights_are_quantised_while_loading(  # noqa: PLR0917 - four are parameters
    batch: Batch, tmp_path: Path, settings: dict[str, Any], kind: str, nearness: float, method: str
) -> None:
    """With the projector left whole: its router is narrower than the blocks of four-bit kernels."""
    pytest.importorskip("bitsandbytes")
    model = small(method, width=128)  # of which those blocks are a divisor
    inputs = batch(model)
    model.save_pretrained(tmp_path / "whole")
    expected = model(**inputs).logits
    asked = BitsAndBytesConfig(**settings, llm_int8_skip_modules=[WHOLE, "lm_head"])
    half = QMoPForConditionalGeneration.from_pretrained(
        tmp_path / "whole", quantization_config=asked, dtype=torch.float32
    )
    half.save_pretrained(tmp_path / "half")  # before its first pass, in which four-bit weights are packed anew on CPUs
    linear = {name: type(part).__name__ for name, part in half.named_modules() if isinstance(part, nn.Linear)}
    kept = {name for name in linear if name.startswith(WHOLE) or name == "lm_head"}
    assert {linear[name] for name in kept} == {"Linear"}
    assert {linear[name] for name in set(linear) - kept} == {kind}
    with torch.no_grad():
        told = half(**inputs).logits
    if method != "qmop":  # which may choose other branches after rounding
        assert nn.functional.cosine_similarity(told, expected, dim=-1)[:, -1].min() > nearness
    produced = half.generate(**{**inputs, "labels": None}, **GREEDY)
    assert produced.shape[1] == inputs["input_ids"].shape[1] + 3
    size = sum(path.stat().st_size for path in (tmp_path / "half").glob("*.safetensors"))
    assert size < 0.7 * (tmp_path / "whole" / "model.safetensors").stat().st_size
    again = QMoPForConditionalGeneration.from_pretrained(tmp_path / "half").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, told, rtol=0, atol=1e-4)


def features_and_query(model: QMoPForConditionalGeneration, inputs: Any) -> tuple[Any, Any]:
    """What the projector is given."""
    seen: list[Any] = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, given: seen.append(given))
    with torch.no_grad():
        model.get_image_features(**take_image_inputs(dict(inputs)))
    hook.remove()
    return seen[0][0], seen[0][1]


@pytest.mark.parametrize("method", FIXED)
def test_projectors_of_fixed_count_compile_in_one_piece(batch: Batch, method: str) -> None:
    model = small(method, None if method == "mlp" else 16)
    projector = model.model.multi_modal_projector
    features, query = features_and_query(model, batch(model))
    with torch.no_grad():
        expected = projector(features, query).tokens_BMC
        compiled = torch.compile(projector, backend="eager", fullgraph=method not in BREAKS)
        torch.testing.assert_close(compiled(features, query).tokens_BMC, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["qmop", "qmop-elastic"])
def test_the_mixture_compiles_in_one_piece_where_every_branch_runs(batch: Batch, method: str) -> None:
    model = small(method, select="all")
    projector = model.model.multi_modal_projector
    features, query = features_and_query(model, batch(model))
    with torch.no_grad():
        expected = projector(features, query).tokens_BMC
        compiled = torch.compile(projector, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(features, query).tokens_BMC, expected, rtol=0, atol=1e-5)


def test_gradients_pass_through_a_compiled_projector(batch: Batch) -> None:
    model = small("window_pool")
    projector = model.model.multi_modal_projector
    features, query = features_and_query(model, batch(model))
    projector(features, query).tokens_BMC.square().sum().backward()
    expected = {name: value.grad.clone() for name, value in projector.named_parameters()}
    projector.zero_grad()
    torch.compile(projector, backend="aot_eager")(features, query).tokens_BMC.square().sum().backward()
    for name, value in projector.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "options"), [("window_pool", {}), ("qmop", {"select": "all"})])
def test_the_whole_model_compiles_in_one_piece(batch: Batch, method: str, options: dict[str, Any]) -> None:
    """Once it has run (transformers sets hooks on the first pass); stock LLaVA's own check reads a scalar."""
    model = small(method, **options)
    inputs = {name: value for name, value in batch(model).items() if name != "labels"}
    with torch.no_grad(), torch._dynamo.config.patch(capture_scalar_outputs=True):
        expected = model(**inputs).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=0, atol=1e-5)


def gradients(model: QMoPForConditionalGeneration, inputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("method", ["qmop", "window_pool"])
@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_activations_change_no_gradient(batch: Batch, method: str, *, frozen: bool) -> None:
    """All of it in training, or, as in the alignment stage, the projector alone."""
    model = small(method).train()
    if frozen:
        model.requires_grad_(requires_grad=False)
        model.model.multi_modal_projector.requires_grad_()
    inputs = batch(model)
    expected = gradients(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model.model.language_model.layers[0].self_attn.register_forward_hook(count)
    found = gradients(model, inputs)
    assert passes == 2  # once forward, once again on the way back
    assert set(found) == set(expected)
    assert all(WHOLE in name for name in found) == frozen
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
