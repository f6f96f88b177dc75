import shutil
from pathlib import Path

import pytest

from cluster.storage import join, put_file
from pipelines.training.parts import Parts, digest_of, hub_name, local_part, named_parts
from tests.fixtures.s3_server import BUCKET


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.json").write_text("{}")
    (part / "model.safetensors").write_bytes(b"weights")
    (part / "pytorch_model.bin").write_bytes(b"pickle")
    return part


def test_a_recipe_without_parts_names_a_checkpoint() -> None:
    assert named_parts("some/checkpoint", None, None, None) is None


@pytest.mark.parametrize(
    ("language", "vision", "llava"), [("v", "c", None), (None, None, "l"), (None, "c", "l")], ids=str
)
def test_three_ways_to_name_parts(language: str | None, vision: str | None, llava: str | None) -> None:
    parts = named_parts("tiny", language, vision, llava)
    assert parts == Parts(language=language, vision=vision, llava=llava)
    assert parts is not None
    assert set(parts.named.values()) == {name for name in (language, vision, llava) if name}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((("tiny", "v", "c", "l")), "'v' and llava is 'l'.* name one of the two"),
        ((("tiny", "v", None, None)), "'v' without vision: name the CLIP"),
        ((("tiny", None, "c", None)), "'c' alone: name the language model"),
        ((("run/checkpoint", "v", "c", None)), "base is 'run/checkpoint' and language is 'v'.* not both"),
    ],
)
def test_anything_but_exactly_one_way_is_refused(
    fields: tuple[str, str | None, str | None, str | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        named_parts(*fields)


def test_names_of_the_hub_and_their_revisions(folder: Path) -> None:
    assert hub_name("lmsys/vicuna-7b-v1.5") == "lmsys/vicuna-7b-v1.5"
    assert hub_name("lmsys/vicuna-7b-v1.5@refs/pr/12") == "lmsys/vicuna-7b-v1.5"
    assert hub_name(str(folder)) is None
    assert hub_name("s3://bucket/vicuna") is None


def test_a_folder_is_taken_as_it_is(folder: Path) -> None:
    with local_part("language", str(folder)) as found:
        assert found == folder


def test_pickled_weights_alone_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (
        pytest.raises(ValueError, match=r"language is .* no weights in safetensors .* owner/name@refs"),
        local_part("language", str(folder)),
    ):
        pass
    with local_part("language", str(folder), only_config=True) as found:
        assert found == folder


def test_a_name_that_leads_nowhere_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught, local_part("vision", "nobody/nothing"):
        pass
    assert str(caught.value).startswith("vision is 'nobody/nothing', which is no folder here")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="holds no model"), local_part("vision", str(tmp_path / "absent")):
        pass


def test_the_digest_follows_contents_and_roles_and_ignores_places_and_pickles(folder: Path, tmp_path: Path) -> None:
    first = digest_of({"language": folder})
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    (moved / "pytorch_model.bin").write_bytes(b"other")
    assert digest_of({"language": moved}) == first
    assert digest_of({"vision": moved}) != first
    (moved / "model.safetensors").write_bytes(b"Weights")
    assert digest_of({"language": moved}) != first


def test_a_part_in_s3_is_copied_without_its_pickles(folder: Path, s3_server: str) -> None:  # noqa: ARG001 - its variables
    place = f"s3://{BUCKET}/part"
    for path in folder.iterdir():
        put_file(path, join(place, path.name))
    with local_part("llava", place) as found:
        assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
        assert (found / "model.safetensors").read_bytes() == b"weights"
