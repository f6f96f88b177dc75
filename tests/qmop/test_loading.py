from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qmop.answering import answer
from qmop.loading import derive, load
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.assemble import tiny_config, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uncompressed checkpoint with random weights."""
    return saved(tmp_path_factory.mktemp("base"), tiny_model())


def saved(folder: Path, model: QMoPForConditionalGeneration) -> Path:
    model.save_pretrained(folder)
    tiny_processor(model.model.multi_modal_projector.token_count()).save_pretrained(folder)
    return folder


def differing(first: QMoPForConditionalGeneration, second: QMoPForConditionalGeneration) -> set[str]:
    """Names of parameters that not both have, or that differ in a bit."""
    one, two = first.state_dict(), second.state_dict()
    both = {name for name in one.keys() & two.keys() if torch.equal(one[name], two[name])}
    return (one.keys() | two.keys()) - both


def test_a_checkpoint_comes_back_ready_to_answer(base: Path) -> None:
    model, processor = load(base)
    assert not model.training
    assert model.dtype == torch.float32
    assert processor.visual_tokens == 144
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_half_precision_files_are_widened_unless_asked_otherwise(base: Path, tmp_path: Path) -> None:
    model, processor = load(base)
    model.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load(tmp_path)[0].dtype == torch.float32
    assert load(tmp_path, dtype=None)[0].dtype == torch.float16
    assert load(tmp_path, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{wrong} holds no model: expected a folder with config.json"):
            load(wrong)


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("llava", r"holds a llava model, not a qmop: build a model from it with qmop\.from_llava"),
        ("llama", "holds a llama model, not a qmop: give one that qmop has saved"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_the_way_out(
    base: Path, tmp_path: Path, family: str, said: str
) -> None:
    folder = shutil.copytree(base, tmp_path / "stock")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": family}))
    with pytest.raises(ValueError, match=said):
        load(folder)


@pytest.mark.parametrize(
    ("gone", "extra", "said"),
    [
        ("model.multi_modal_projector.connector.linear_1.bias", None, "missing_keys.*connector.linear_1.bias"),
        (None, "model.multi_modal_projector.linear_9.bias", "unexpected_keys.*linear_9.bias"),
        (None, "model.multi_modal_projector.connector.linear_1.bias", r"mismatched_keys.*linear_1.bias \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    base: Path, tmp_path: Path, gone: str | None, extra: str | None, said: str
) -> None:
    folder = shutil.copytree(base, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    if gone:
        del weights[gone]
    if extra:
        weights[extra] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"does not fit its own config.json.*{said}.*export it again"):
        load(folder)


def test_a_cut_file_is_refused_in_a_sentence(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"a \.safetensors file in .* is damaged.*export it again"):
        load(folder)


def test_pickled_weights_are_never_read(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "pickled")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds no model.*model\.safetensors"):
        load(folder)


@pytest.mark.parametrize("method", ["average_pool", "window_pool", "resampler", "prune", "blind", "qmop"])
def test_towers_connector_and_language_model_are_carried_over(base: Path, method: str) -> None:
    source, _ = load(base)
    model, processor = derive(base, method, tokens=16)
    assert not model.training
    assert (model.config.compressor, model.config.compressor_tokens) == (method, 16)
    assert processor.visual_tokens == 16
    assert all(".multi_modal_projector.compressor." in name for name in differing(source, model))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.generation_config.eos_token_id == source.generation_config.eos_token_id


def test_fresh_compressors_follow_the_seed(base: Path) -> None:
    def build(seed: int) -> QMoPForConditionalGeneration:
        torch.manual_seed(seed)
        return derive(base, "qmop", 16)[0]

    assert differing(build(1), build(1)) == set()
    assert differing(build(1), build(2))


def test_the_second_stage_takes_everything_from_the_first(base: Path, tmp_path: Path) -> None:
    first, processor = derive(base, "qmop", 16, {"stage": 1})
    assert processor.visual_tokens == 48
    first.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    second, processor = derive(tmp_path, "qmop", 16, {"stage": 2})
    assert processor.visual_tokens == 16
    assert second.model.multi_modal_projector.stage == 2
    assert differing(first, second) == set()


def test_another_method_takes_nothing_from_the_compressor_even_where_it_would_fit(tmp_path: Path) -> None:
    pooled = tiny_model("window_pool", 16)
    model, _ = derive(saved(tmp_path, pooled), "resampler", 16)
    changed = differing(pooled, model)
    assert "model.multi_modal_projector.compressor.query_MC" in changed
    assert "model.multi_modal_projector.compressor.attention.value.weight" in changed
    assert all(".compressor." in name for name in changed)


def test_another_budget_takes_what_has_the_same_shape(tmp_path: Path) -> None:
    pooled = tiny_model("window_pool", 16)
    model, _ = derive(saved(tmp_path, pooled), "window_pool", 9)
    assert differing(pooled, model) == {"model.multi_modal_projector.compressor.query_MC"}


@pytest.mark.parametrize(
    ("method", "tokens", "options", "said"),
    [
        ("window_poo", 16, {}, "did you mean 'window_pool'"),
        ("window_pool", 20, {}, "tokens is 20.*only into 144, 36, 16, 9, 4, 1 tokens"),
        ("prune", 0, {}, "tokens is 0.*choose 1 to 144"),
        ("prune", 16, {"lamda": 1}, "options names lamda"),
        ("window_pool", 16, {"heads": 5}, "heads is 5, which does not divide the width 128"),
    ],
)
def test_what_does_not_suit_the_base_is_refused(
    base: Path, method: str, tokens: int, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        derive(base, method, tokens, options)


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        derive(tmp_path / "none", "prune", 16)


def test_a_readout_of_its_own_leaves_no_connector_to_derive_from(base: Path, tmp_path: Path) -> None:
    model, processor = derive(base, "mqt", 16)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"average_pool needs a connector, but .* has none beside its mqt"):
        derive(tmp_path, "average_pool", 16)
    assert derive(tmp_path, "mqt", 36)[0].config.compressor_tokens == 36


def test_a_method_that_reads_questions_needs_a_text_tower(tmp_path: Path) -> None:
    config = tiny_config("average_pool", 36)
    config.query_config = None
    saved(tmp_path, QMoPForConditionalGeneration(config))
    with pytest.raises(ValueError, match=r"prune reads the question \(query, text_space\), but .* clip_checkpoint"):
        derive(tmp_path, "prune", 36)
    assert derive(tmp_path, "prune", 16, {"lam": 1.0})[0].config.image_seq_length == 16


def test_the_router_may_read_the_end_token_before_its_projection(
    base: Path, pictures: Callable[[int], list[Image.Image]]
) -> None:
    model, processor = derive(base, "qmop", 16, {"text_feature": "eos"})
    assert model.model.multi_modal_projector.compressor.router.enter.in_features == 128 + 128
    [told] = answer(model, processor, pictures(1), ["what colour is the circle ?"], max_new_tokens=2)
    assert told.visual_tokens == 16


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{broken", r"config\.json is no JSON .*save or copy it again"),
        ("[]", r"config\.json holds a list, not an object"),
    ],
)
def test_a_broken_configuration_is_named(base: Path, tmp_path: Path, content: str, said: str) -> None:
    folder = shutil.copytree(base, tmp_path / "broken")
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        load(folder)


def test_a_checkpoint_without_the_tokenizer_of_questions_is_refused(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "silent")
    shutil.rmtree(folder / "query_tokenizer")
    with pytest.raises(ValueError, match="silent lacks query_tokenizer/, the tokenizer of the text tower: copy"):
        load(folder)
    config = tiny_config("average_pool", 36)
    config.query_config = None
    saved(folder, QMoPForConditionalGeneration(config))
    shutil.rmtree(folder / "query_tokenizer")
    assert load(folder)[1].visual_tokens == 36  # nothing asks


def test_questions_are_cut_to_what_the_text_tower_reads(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "long")
    config = folder / "query_tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 10**30}))
    model, processor = load(folder)
    assert processor.query_tokenizer.model_max_length == 10**30
    assert model.model.query_encoder is not None
    for segments, shape in ((1, (1, 77)), (2, (1, 2, 77))):
        processor.query_segments = segments
        inputs = processor.query_inputs(["red " * 300])
        assert inputs["query_input_ids"].shape == shape
        query = model.model.query_encoder(inputs["query_input_ids"], inputs["query_attention_mask"])
        assert query.text_BE.isfinite().all()


def test_the_text_tower_is_frozen_and_the_rest_is_not(base: Path) -> None:
    for model in (load(base)[0], derive(base, "qmop", 16)[0]):
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        asking = {name for name, _ in model.named_parameters() if ".query_encoder." in name}
        assert len(asking) > 10
        assert learning == {name for name, _ in model.named_parameters()} - asking
