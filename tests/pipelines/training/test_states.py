"""Cards of states: visible last, refused by name when anything is wrong, signed where there is a key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage import StorageError
from pipelines.training import states
from pipelines.training.signing import KEY_VARIABLE
from pipelines.training.states import (
    CARD,
    Part,
    StateCard,
    forget,
    forget_unfinished,
    latest,
    pieces,
    publish_state,
    read_state,
)

STAGES = ("align", "tune")


def part(name: str, data: bytes, **fragments: tuple[int, int]) -> Part:
    return Part(name=name, size=len(data), sha256="0" * 64, fragments=fragments)


PARTS = (part("part-0", b"one", w=(0, 6), b=(0, 2)), part("part-1", b"four", w=(6, 4)))
STATE = StateCard(
    stage="tune",
    step=20,
    adam_step=19,
    position=640,
    zero=2,
    recipe={"tokens": 16},
    corpus_digest="c" * 64,
    versions={"qmop": "0"},
    parameters={"w": 10, "b": 2},
    parts=PARTS,
)


def write(folder: Path, card: StateCard = STATE) -> str:
    place = folder / card.name
    place.mkdir(parents=True)
    (place / "part-0").write_bytes(b"one")
    (place / "part-1").write_bytes(b"four")
    publish_state(str(place), card)
    return str(place)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_state(write(tmp_path)) == STATE
    assert STATE.name == "tune-00000020"


def test_a_card_cut_at_any_byte_is_refused_by_name(tmp_path: Path) -> None:
    uri = write(tmp_path)
    card = Path(uri, CARD)
    whole = card.read_bytes()
    for cut in range(len(whole) - 2):  # the last two bytes are a bracket's newline and the newline of the file
        card.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"tune-00000020 has a damaged state\.json"):
            read_state(uri)
    card.unlink()
    with pytest.raises(FileNotFoundError, match="no finished state"):
        read_state(uri)


@pytest.mark.parametrize("size", range(4))
def test_a_file_cut_at_any_byte_is_refused_by_name(tmp_path: Path, size: int) -> None:
    uri = write(tmp_path)
    Path(uri, "part-1").write_bytes(b"four"[:size])
    with pytest.raises(ValueError, match="part-1 missing or of another size"):
        read_state(uri)


def test_the_newest_state_that_is_whole_is_taken(tmp_path: Path) -> None:
    write(tmp_path, replace(STATE, stage="align", step=900))
    older = write(tmp_path, replace(STATE, step=20))
    newer = write(tmp_path, replace(STATE, step=30))
    assert latest(str(tmp_path), STAGES).uri == newer
    Path(newer, "part-0").unlink()
    found = latest(str(tmp_path), STAGES)
    assert (found.uri, found.card) == (older, replace(STATE, step=20))
    assert list(found.refused) == [newer]
    assert "part-0 missing" in found.refused[newer]
    assert latest(str(tmp_path / "none"), STAGES).uri is None


def test_a_state_that_is_known_to_be_unusable_is_passed_over(tmp_path: Path) -> None:
    older, newer = (write(tmp_path, replace(STATE, step=step)) for step in (20, 30))
    found = latest(str(tmp_path), STAGES, {newer: "the digest"})
    assert (found.uri, found.refused) == (older, {newer: "the digest"})


def test_a_store_out_of_reach_makes_no_state_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(uri: str) -> StateCard:
        raise StorageError(f"{uri} cannot be reached")

    monkeypatch.setattr(states, "newest_first", lambda *_: ["s3://b/states/tune-00000020"])
    monkeypatch.setattr(states, "read_state", away)
    with pytest.raises(StorageError, match="tune-00000020 cannot be reached"):
        latest("s3://b/states", STAGES)


def test_nothing_becomes_visible_that_is_not_whole(tmp_path: Path) -> None:
    place = tmp_path / STATE.name
    place.mkdir()
    (place / "part-0").write_bytes(b"one")
    with pytest.raises(ValueError, match="part-1 did not arrive whole"):
        publish_state(str(place), STATE)
    (place / "part-1").write_bytes(b"four")
    with pytest.raises(ValueError, match="no process gave all of w"):
        publish_state(str(place), replace(STATE, parameters={"w": 11, "b": 2}))
    assert not (place / CARD).exists()
    assert latest(str(tmp_path), STAGES).uri is None


def test_with_a_key_only_what_it_signed_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsigned = write(tmp_path / "a")
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    with pytest.raises(ValueError, match=f"not signed with the key in {KEY_VARIABLE}"):
        read_state(unsigned)
    signed = write(tmp_path / "b")
    assert read_state(signed) == STATE
    document = json.loads(Path(signed, CARD).read_text())
    document["state"]["step"] = 21
    Path(signed, CARD).write_text(json.dumps(document))
    with pytest.raises(ValueError, match="not signed"):
        read_state(signed)
    monkeypatch.setenv(KEY_VARIABLE, "another")
    with pytest.raises(ValueError, match="not signed"):
        read_state(write(tmp_path / "c") and signed)


def test_what_killed_processes_left_is_tidied_up_and_a_state_is_not(tmp_path: Path) -> None:
    uri = write(tmp_path)
    half = tmp_path / "tune-00000030"
    half.mkdir()
    (half / "part-0").write_bytes(b"o")
    forget_unfinished(str(tmp_path))
    assert not list(half.glob("*"))
    assert read_state(uri) == STATE
    forget(uri)
    assert latest(str(tmp_path), STAGES).uri is None
    assert not list(Path(uri).glob("*"))
    forget_unfinished(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [
        (0, 10, [("part-0", 0, 6), ("part-1", 6, 4)]),
        (2, 3, [("part-0", 2, 3)]),
        (5, 2, [("part-0", 5, 1), ("part-1", 6, 1)]),
        (6, 4, [("part-1", 6, 4)]),
    ],
)
def test_a_stretch_is_put_together_from_the_files_that_hold_it(
    start: int, count: int, expected: list[tuple[str, int, int]]
) -> None:
    assert [(one.name, at, number) for one, at, number in pieces(STATE, "w", start, count)] == expected


def test_a_parameter_that_every_process_holds_is_read_once() -> None:
    twice = replace(STATE, parts=(part("p", b"", w=(0, 10)), part("q", b"", w=(0, 10))), parameters={"w": 10})
    assert [(one.name, at, number) for one, at, number in pieces(twice, "w", 3, 4)] == [("p", 3, 4)]


def test_a_missing_stretch_is_said() -> None:
    with pytest.raises(ValueError, match="elements 10 to 12 of w are missing"):
        list(pieces(STATE, "w", 8, 4))
    with pytest.raises(ValueError, match="elements 0 to 1 of x are missing"):
        list(pieces(STATE, "x", 0, 1))
