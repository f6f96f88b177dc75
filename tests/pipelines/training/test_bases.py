from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import qmop
from cluster.progress import Progress
from pipelines.training.bases import base_config, base_of, make_base, require_eyes_for_words
from pipelines.training.dry_run import stage_model
from pipelines.training.exports import local_copy, read_card
from pipelines.training.parts import Parts
from pipelines.training.recipe import TrainRecipe
from qmop.answering import answer, prompt
from qmop.loading import derive
from qmop.tiny.base import base_path
from tests.pipelines.training.base_parts import save_language, save_llava, save_vision, words

PLAIN = TrainRecipe(corpus="c", output="o")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    save_language(folder / "language")
    save_vision(folder / "vision")
    save_llava(folder / "llava")
    return folder


@pytest.fixture(scope="module")
def pair(parts: Path) -> str:
    """A base out of a language model and a CLIP."""
    both = Parts(language=str(parts / "language"), vision=str(parts / "vision"))
    return make_base(both, str(parts / "run"), Progress())


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (60, 96, 3), dtype=np.uint8))


def test_every_number_of_the_parts_is_in_the_base_in_its_own_precision(parts: Path, pair: str) -> None:
    made, speaker = load_file(Path(pair, "model.safetensors")), load_file(parts / "language" / "model.safetensors")
    for name, value in speaker.items():
        ours = made[name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)]
        assert ours.dtype == torch.float16
        assert torch.equal(ours[: len(value)], value), name
    clip = load_file(parts / "vision" / "model.safetensors")
    assert torch.equal(made["model.query_encoder.visual_projection.weight"], clip["visual_projection.weight"])
    tower = [name for name in made if "vision_tower" in name]
    assert len(tower) == len([name for name in clip if name.startswith("vision_model.")])
    key = "encoder.layers.3.mlp.fc1.weight"
    assert torch.equal(next(made[n] for n in tower if n.endswith(key)), clip[f"vision_model.{key}"])
    key = "encoder.layers.1.mlp.fc1.weight"
    assert torch.equal(
        next(v for n, v in made.items() if "text_tower" in n and n.endswith(key)), clip[f"text_model.{key}"]
    )


def test_new_words_are_the_mean_of_the_old_ones(pair: str) -> None:
    model, processor = qmop.load(pair)
    before = len(words())
    rows = model.get_input_embeddings().weight
    assert len(rows) % 64 == 0
    assert len(rows) > before
    assert processor.image_token_id == model.config.image_token_id >= before
    assert torch.allclose(rows[before:], rows[:before].mean(0), atol=1e-4)


def test_training_derives_from_it_and_it_answers(pair: str) -> None:
    with local_copy(pair) as folder:
        model, processor = derive(folder, "qmop", 16, {"stage": 2})
    [told] = answer(model, processor, [photo()], ["what colour is the circle ?"], max_new_tokens=3)
    assert told.visual_tokens == 16
    assert told.branch_weights is not None


def test_prompts_begin_once_whoever_cuts_them_into_tokens(pair: str) -> None:
    _, processor = qmop.load(pair)
    text = prompt(processor, "what is this ?")
    trained = processor.tokenizer.encode(text, add_special_tokens=False)
    answered = processor.tokenizer(text)["input_ids"]
    assert trained == answered
    assert trained.count(processor.tokenizer.bos_token_id) == 1
    assert trained[0] == processor.tokenizer.bos_token_id
    assert text.count("<image>") == 1
    assert text.endswith("ASSISTANT:")


def test_pictures_are_padded_to_squares_not_cut(pair: str) -> None:
    _, processor = qmop.load(pair)
    picture = Image.new("RGB", (192, 96), (255, 255, 255))
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 96, 96)
    white, rows = pixels.max(), (pixels[0] > pixels[0].max() - 0.1).float().mean(1)
    assert white > 1
    assert rows[48] == 1
    assert rows[2] == 0  # a cut picture would be white here as well


def test_a_base_is_made_once(parts: Path, pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = Path(pair, "checkpoint.json").stat().st_mtime_ns
    recipe = replace(PLAIN, output=str(parts / "run"), language=str(parts / "language"), vision=str(parts / "vision"))
    monkeypatch.setattr("pipelines.training.bases.put_together", lambda _: pytest.fail("made again"))
    assert base_of(recipe, Progress()) == pair
    assert Path(pair, "checkpoint.json").stat().st_mtime_ns == stamp
    assert read_card(pair).stage == "base"


def test_a_run_without_parts_starts_from_its_checkpoint() -> None:
    assert base_of(PLAIN, Progress()) == str(base_path("tiny").absolute())


def test_a_stock_llava_becomes_a_base(parts: Path) -> None:
    uri = make_base(Parts(llava=str(parts / "llava")), str(parts / "other"), Progress())
    model, processor = derive(uri, "average_pool", 16)
    [told] = answer(model, processor, [photo()], ["what is this ?"], max_new_tokens=2)
    assert told.visual_tokens == 16
    assert model.config.query_config is None


def test_a_method_that_reads_questions_needs_the_text_tower(parts: Path) -> None:
    blind = replace(PLAIN, llava=str(parts / "llava"))
    with pytest.raises(ValueError, match=r"vision is missing, but qmop reads the question \(query, text_space\)"):
        stage_model(blind, "tune", base_config(blind))
    seeing = replace(blind, vision=str(parts / "vision"))
    config = base_config(seeing)
    config.compressor = "qmop"
    require_eyes_for_words(seeing, config)


def test_the_configuration_known_beforehand_is_that_of_the_base(parts: Path, pair: str) -> None:
    recipe = replace(PLAIN, language=str(parts / "language"), vision=str(parts / "vision"))
    early, late = base_config(recipe), qmop.load(pair)[0].config
    for name in ("vision_config", "query_config"):
        mine, theirs = getattr(early, name), getattr(late, name)
        assert (mine.hidden_size, mine.num_hidden_layers) == (theirs.hidden_size, theirs.num_hidden_layers)
    assert early.query_config.projection_dim == late.query_config.projection_dim
    assert 0 <= late.text_config.vocab_size - early.text_config.vocab_size < 66


def test_tied_words_stay_tied(parts: Path, tmp_path: Path) -> None:
    save_language(tmp_path / "tied", tied=True, dtype=torch.float32)
    uri = make_base(Parts(language=str(tmp_path / "tied"), vision=str(parts / "vision")), str(tmp_path), Progress())
    model, _ = qmop.load(uri)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


@pytest.mark.parametrize(
    ("language", "vision", "message"),
    [
        ("vision", "vision", "holds a clip model, which writes no text by itself"),
        ("language", "language", "holds a llama model: give a CLIP or SigLIP"),
    ],
)
def test_parts_of_the_wrong_kind_are_refused(parts: Path, language: str, vision: str, message: str) -> None:
    wrong = Parts(language=str(parts / language), vision=str(parts / vision))
    with pytest.raises(ValueError, match=message):
        make_base(wrong, str(parts / "wrong"), Progress())
    assert not (parts / "wrong").exists()
