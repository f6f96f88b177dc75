import hashlib
import json
from pathlib import Path

import pytest
import torch

import qmop
from cluster.storage import put_file, write_atomic
from pipelines.training.exports import CARD, WEIGHTS, export_name, local_copy, publish, read_card
from qmop.tiny.assemble import tiny_model, tiny_processor

FACTS = {
    "stage": "tune",
    "step": 7,
    "compressor": "average_pool",
    "tokens": 16,
    "seed": 0,
    "recipe_digest": "r",
    "corpus_digest": "c",
}


@pytest.fixture
def export(tmp_path: Path) -> str:
    model = tiny_model("average_pool", 16)
    uri = str(tmp_path / export_name("average_pool", 16, "tune", 7))
    publish(model, tiny_processor(16), model.state_dict(), uri, FACTS)
    return uri


def test_an_export_is_a_model_that_anybody_can_load(export: str) -> None:
    model, processor = qmop.load(export)
    assert (model.config.compressor, processor.visual_tokens) == ("average_pool", 16)
    assert read_card(export).name == "average_pool-16-tune-000007"


def test_no_pickle_is_written(export: str) -> None:
    kinds = {path.suffix for path in Path(export).rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".jinja", ".md"}


def test_a_folder_without_its_card_is_no_checkpoint(export: str) -> None:
    Path(export, CARD).unlink()
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        read_card(export)


@pytest.mark.parametrize("cut", [0, 1, 1000])
def test_a_file_cut_short_is_named(export: str, cut: int) -> None:
    weights = Path(export, WEIGHTS)
    weights.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(ValueError, match=WEIGHTS):
        read_card(export)


def test_weights_of_the_right_size_and_other_content_are_refused(export: str) -> None:
    weights = Path(export, WEIGHTS)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="digest"), local_copy(export):
        pass


def test_equal_weights_have_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    model, processor = tiny_model("average_pool", 16), tiny_processor(16)
    first = publish(model, processor, model.state_dict(), str(tmp_path / "a"), FACTS)
    again = publish(model, processor, model.state_dict(), str(tmp_path / "b"), FACTS)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    other = publish(model, processor, model.state_dict(), str(tmp_path / "c"), FACTS)
    assert first.digest == again.digest != other.digest


@pytest.mark.parametrize("name", ["/tmp/elsewhere", "../elsewhere", "a/../../elsewhere", "..\\\\elsewhere", ""])
def test_a_card_that_names_a_file_outside_is_refused(export: str, name: str) -> None:
    card = json.loads(Path(export, CARD).read_text())
    card["files"][name] = [1, "0" * 64]
    Path(export, CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="which is not inside it"):
        read_card(export)


@pytest.mark.pipeline
def test_nothing_is_written_outside_for_a_card_in_s3(export: str, s3_server: str, tmp_path: Path) -> None:
    assert s3_server
    victim, uri = tmp_path / "victim", "s3://test-bucket/evil"
    for path in Path(export).rglob("*"):
        if path.is_file():
            put_file(path, f"{uri}/{path.relative_to(export)}")
    card = json.loads(Path(export, CARD).read_text())
    card["files"][str(victim)] = [1, hashlib.sha256(b"x").hexdigest()]
    write_atomic(f"{uri}/{CARD}", json.dumps(card).encode())
    write_atomic(f"{uri}/{victim}", b"x")
    with pytest.raises(ValueError, match="which is not inside it"), local_copy(uri):
        pass
    assert not victim.exists()


@pytest.mark.parametrize("name", ["config.json", "processor_config.json"])
def test_other_content_of_the_same_size_is_noticed(export: str, name: str) -> None:
    path = Path(export, name)
    text = path.read_text()
    path.write_text(text.replace("16", "36", 1))
    assert path.stat().st_size == len(text.encode())
    with pytest.raises(ValueError, match=f"the digest of {name} is not the one"):
        read_card(export)


def test_the_description_may_be_written_anew(export: str) -> None:
    path = Path(export, "README.md")
    path.write_text(path.read_text().replace("a", "b"))
    assert read_card(export).name
