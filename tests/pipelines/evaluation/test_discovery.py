import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage import put_file, sha256_of
from pipelines.evaluation.discovery import discover
from pipelines.training.exports import CARD, WEIGHTS, export_name, local_copy, publish
from qmop.loading import derive
from qmop.tiny.assemble import tiny_model
from qmop.tiny.base import base_path


def export(folder: Path, step: int, seed: int = 0) -> Path:
    model, processor = derive(base_path("tiny"), "average_pool", 16)
    with_seed = {name: value * (1 + seed / 100) for name, value in model.state_dict().items()}
    uri = folder / "checkpoints" / export_name("average_pool", 16, "tune", step)
    facts = dict.fromkeys(("recipe_digest", "corpus_digest"), "x") | {
        "stage": "tune",
        "step": step,
        "compressor": "average_pool",
        "tokens": 16,
        "seed": seed,
    }
    publish(model, processor, with_seed, str(uri), facts)
    return uri


def test_a_run_gives_its_finished_checkpoints_and_names_the_others(tmp_path: Path) -> None:
    export(tmp_path, 1)
    export(tmp_path, 2, seed=1)
    unfinished, damaged = export(tmp_path, 3), export(tmp_path, 4)
    (unfinished / CARD).unlink()
    (damaged / WEIGHTS).write_bytes(b"short")
    found = discover([str(tmp_path)])
    assert [candidate.label for candidate in found.candidates] == [
        "average_pool-16-tune-000001",
        "average_pool-16-tune-000002",
    ]
    assert {candidate.budget for candidate in found.candidates} == {16}
    assert "not finished" in found.skipped[str(unfinished)]
    assert "damaged" in found.skipped[str(damaged)]


def test_labels_can_be_given_and_must_not_clash(tmp_path: Path) -> None:
    first, second = export(tmp_path / "a", 1), export(tmp_path / "b", 1, seed=1)
    with pytest.raises(ValueError, match="LABEL=PATH"):
        discover([str(first), str(second)])
    assert [c.label for c in discover([f"one={first}", f"two={second}"]).candidates] == ["one", "two"]


def test_a_path_to_nothing_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        discover([str(tmp_path / "nothing-here")])


def theirs(folder: Path, name: str = "average_pool", tokens: int = 16) -> Path:
    """A model without a card."""
    model, processor = derive(base_path("tiny"), name, tokens)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_what_is_half_written_is_passed_over_by_name_as_long_as_something_is_whole(tmp_path: Path) -> None:
    whole, torn, bare = theirs(tmp_path / "whole"), theirs(tmp_path / "torn"), theirs(tmp_path / "bare")
    (torn / WEIGHTS).write_bytes((torn / WEIGHTS).read_bytes()[:100_000])
    for path in bare.iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    wordless, empty = theirs(tmp_path / "wordless"), theirs(tmp_path / "empty")
    shutil.rmtree(wordless / "query_tokenizer")
    (empty / "config.json").write_bytes(b"")
    found = discover([str(path) for path in (torn, whole, bare, wordless, empty)])
    assert [one.uri for one in found.candidates] == [str(whole)]
    assert list(found.skipped) == [str(path) for path in (torn, bare, wordless, empty)]
    told = list(found.skipped.values())
    assert "model.safetensors has 100,000 of the 13," in told[0]
    assert "has no model.safetensors" in told[1]
    assert "has no query_tokenizer/tokenizer_config.json" in told[2]
    assert "config.json cannot be read" in told[3]
    with pytest.raises(FileNotFoundError, match=r"torn is not whole: its model.safetensors has 100,000 of"):
        discover([str(torn), str(bare)])
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        discover([str(whole), str(tmp_path / "nothing-here")])


def test_pickled_weights_are_not_taken(tmp_path: Path) -> None:
    tiny_model("average_pool", 16).config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(FileNotFoundError, match="pickled and split weights are not read, save it again"):
        discover([str(tmp_path)])


def test_a_pattern_names_checkpoints_of_several_runs_apart(tmp_path: Path) -> None:
    for run in ("a", "b"):
        export(tmp_path / run, 1, seed=ord(run))
        export(tmp_path / run, 2, seed=ord(run) + 1)
    (export(tmp_path / "b", 3) / CARD).unlink()
    found = discover([f"{tmp_path}/*/checkpoints/*-00000[23]"])
    assert [c.label for c in found.candidates] == ["a/average_pool-16-tune-000002", "b/average_pool-16-tune-000002"]
    assert list(found.skipped.values()) == [f"has no {CARD}: not finished"]
    named = discover([f"all={tmp_path}/a/checkpoints/*-000001"])
    assert [c.label for c in named.candidates] == ["all/average_pool-16-tune-000001"]
    with pytest.raises(FileNotFoundError, match="no finished checkpoint matches it: name a folder"):
        discover([f"{tmp_path}/*/checkpoints/nothing-*"])


def test_who_watches_passes_over_what_is_not_there_yet(tmp_path: Path) -> None:
    export(tmp_path / "a", 1)
    found = discover([str(tmp_path / "a"), str(tmp_path / "later")], patient=True)
    assert len(found.candidates) == 1
    assert list(found.skipped) == [str(tmp_path / "later")]


def test_methods_without_weights_of_their_own_are_told_apart(tmp_path: Path) -> None:
    for name in ("average_pool", "random_tokens"):
        theirs(tmp_path / name, name)
    shutil.copy(tmp_path / "average_pool" / WEIGHTS, tmp_path / "random_tokens" / WEIGHTS)
    one, other = discover([str(tmp_path / "average_pool"), str(tmp_path / "random_tokens")]).candidates
    assert one.digest != other.digest


@pytest.mark.pipeline
def test_checkpoints_in_s3_are_found_by_folder_and_pattern(s3_server: str, tmp_path: Path) -> None:
    assert s3_server
    local = export(tmp_path, 1)
    for path in (path for path in local.rglob("*") if path.is_file()):
        put_file(path, f"s3://test-bucket/run/checkpoints/{local.name}/{path.relative_to(local)}")
    put_file(local / "config.json", "s3://test-bucket/run/checkpoints/half/config.json")
    for name in ("s3://test-bucket/run", "s3://test-bucket/run/checkpoints/*"):
        found = discover([name])
        assert [c.digest for c in found.candidates] == [c.digest for c in discover([str(local)]).candidates]
        assert list(found.skipped) == ["s3://test-bucket/run/checkpoints/half"]


@pytest.mark.pipeline
def test_a_model_from_elsewhere_in_s3_has_the_identity_of_its_local_copy(s3_server: str, tmp_path: Path) -> None:
    assert s3_server
    home = theirs(tmp_path / "theirs")
    for path in (path for path in home.rglob("*") if path.is_file()):
        put_file(path, f"s3://test-bucket/elsewhere/theirs/{path.relative_to(home)}")
    (there,) = discover(["s3://test-bucket/elsewhere/theirs"]).candidates
    (here,) = discover([str(home)]).candidates
    assert replace(there, uri=here.uri) == here
    with local_copy(there.uri) as copy:
        assert (copy / WEIGHTS).read_bytes() == (home / WEIGHTS).read_bytes()
        assert not (copy / CARD).exists()


def test_why_nothing_is_found_is_told(tmp_path: Path) -> None:
    (export(tmp_path, 1) / CARD).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no finished checkpoint is there \(.*000001 has no checkpoint.json: not"
    ):
        discover([str(tmp_path)])


def test_a_stock_model_is_refused_with_the_way_to_make_it_ours(tmp_path: Path) -> None:
    tiny_model("mlp", 144).save_pretrained(tmp_path / "llava")
    config = tmp_path / "llava" / "config.json"
    config.write_text(config.read_text().replace('"model_type": "qmop"', '"model_type": "llava"'))
    with pytest.raises(
        ValueError, match=r"holds a llava model, not a qmop: build a model from it with qmop.from_llava"
    ):
        discover([str(tmp_path / "llava")])


def test_a_model_from_elsewhere_is_read_again_only_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs(tmp_path)
    read: list[str] = []
    monkeypatch.setattr("pipelines.evaluation.discovery.sha256_of", lambda name: read.append(name) or sha256_of(name))
    first = discover([str(tmp_path)]).candidates[0].digest
    assert len(read) > 1
    read.clear()
    assert discover([str(tmp_path)]).candidates[0].digest == first
    assert read == []
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"importance_layer": null', '"importance_layer": -2'))
    assert discover([str(tmp_path)]).candidates[0].digest != first


def test_half_a_configuration_is_named_and_waited_for(tmp_path: Path) -> None:
    folder = export(tmp_path, 1)
    (folder / "checkpoint.json").unlink()
    config = folder / "config.json"
    config.write_text(config.read_text()[:100])
    with pytest.raises(FileNotFoundError, match=r"config\.json cannot be read"):
        discover([str(folder)])
    assert "config.json cannot be read" in discover([str(folder)], patient=True).skipped[str(folder)]


def test_a_checkpoint_behind_a_link_is_found(tmp_path: Path) -> None:
    export(tmp_path / "far" / "runs", 1)
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "runs").symlink_to(tmp_path / "far" / "runs")
    assert len(discover([str(tmp_path / "near")]).candidates) == 1
    assert len(discover([str(tmp_path / "near" / "runs" / "*" / "*")]).candidates) == 1


def test_a_link_to_a_neighbour_is_no_second_checkpoint(tmp_path: Path) -> None:
    folder = export(tmp_path / "run", 1)
    (folder.parent / "latest").symlink_to(folder)
    for name in (str(tmp_path / "run"), str(tmp_path / "*" / "checkpoints" / "*"), f"A={tmp_path / 'run'}"):
        [found] = discover([name]).candidates
        assert found.uri == str(folder)
    [found] = discover([str(folder.parent / "latest")]).candidates
    assert found.uri == str(folder.parent / "latest")


def test_no_patience_makes_another_scheme_right() -> None:
    with pytest.raises(ValueError, match="scheme 'gs'"):
        discover(["gs://bucket/run"], patient=True)
