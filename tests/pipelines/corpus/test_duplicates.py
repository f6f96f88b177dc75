"""Repetitions: what counts as one, and that order alone decides which copy stays."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.progress import Progress
from pipelines.corpus import duplicates
from pipelines.corpus.duplicates import Fingerprint, verdicts
from pipelines.corpus.manifest import Manifest
from pipelines.corpus.parts import Job
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import Duplicates
from tests.pipelines.corpus.formats import Record, recipe, write
from tests.pipelines.corpus.test_images import encoded

BOTH = Duplicates(exact=True, near_distance=6)


def prints(*codes: int, first: int = 0) -> list[Fingerprint]:
    return [
        Fingerprint(position=first + number, exact=f"{first + number:064x}", near=f"{code:016x}")
        for number, code in enumerate(codes)
    ]


def softer(jpeg: bytes) -> bytes:
    """The same picture, smaller and encoded again."""
    return encoded(Image.open(io.BytesIO(jpeg)).resize((200, 150)), "JPEG", quality=60)


@pytest.fixture
def records(jpegs: list[bytes]) -> list[Record]:
    """Nine pictures; the first comes again with its words, the second with others, the third softened."""
    listed = [Record(f"{number:02d}", data, f"Words {number}.") for number, data in enumerate(jpegs[::2])]
    again = [("30", jpegs[0], "Words 0."), ("31", jpegs[2], "Other words."), ("32", softer(jpegs[4]), "Softer.")]
    return listed + [Record(*fields) for fields in again]


def make(folder: Path, records: list[Record], progress: Progress, **changes: Any) -> Manifest:
    fields = (
        write("folder", folder / "raw", records) if not (folder / "raw").exists() else {"images": str(folder / "raw")}
    )
    return prepare(recipe("folder", str(folder / changes.pop("output", "out")), fields, **changes), progress)


def test_nothing_is_put_aside_unasked(records: list[Record], tmp_path: Path, progress: Progress) -> None:
    assert make(tmp_path, records, progress).written == 12


def test_exact_copies_go_and_other_words_stay(records: list[Record], tmp_path: Path, progress: Progress) -> None:
    manifest = make(tmp_path, records, progress, duplicates=Duplicates(exact=True))
    assert (manifest.written, dict(manifest.quarantined)) == (11, {"duplicate": 1})
    assert "record 0 has the same images and texts" in (tmp_path / "out" / "quarantine.jsonl").read_text()


def test_pictures_that_look_the_same_go(records: list[Record], tmp_path: Path, progress: Progress) -> None:
    manifest = make(tmp_path, records, progress, duplicates=BOTH)
    assert (manifest.written, dict(manifest.quarantined)) == (9, {"duplicate": 1, "near_duplicate": 2})
    assert manifest.sizes == (5, 4)


def test_a_resumed_run_decides_the_same(
    records: list[Record], tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(tmp_path, records, progress, duplicates=BOTH)
    runs: list[int] = []
    real = Job.run

    def dying(job: Job, unit: Any, repeated: Any = None) -> Any:
        runs.append(unit.index)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return real(job, unit, repeated)

    monkeypatch.setattr(Job, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, records, progress, duplicates=BOTH, output="two")
    again = make(tmp_path, records, progress, duplicates=BOTH, output="two")
    assert again == replace(whole, folder=again.folder)
    assert runs == [0, 1, 2, 1, 1, 2]


def test_fingerprints_that_were_lost_are_taken_again(records: list[Record], tmp_path: Path, progress: Progress) -> None:
    whole = make(tmp_path, records, progress, duplicates=BOTH)
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "parts" / "000000.prints.json").unlink()
    assert make(tmp_path, records, progress, duplicates=BOTH) == whole


def test_the_first_in_order_stays_and_what_goes_hides_nothing() -> None:
    chain = prints(0b0, 0b1111, 0b11111111)
    (found,) = verdicts([chain], Duplicates(near_distance=4))
    assert found == {1: ("near_duplicate", "record 0 has a picture that differs in 4 of 64 bits")}


def test_text_only_samples_have_no_picture_to_compare() -> None:
    texts = [Fingerprint(position=number, exact="ab" * 32, near=None) for number in range(3)]
    assert verdicts([texts], Duplicates(near_distance=31)) == [{}]
    assert set(verdicts([texts], Duplicates(exact=True))[0]) == {1, 2}


def test_of_several_pictures_each_is_near_and_as_many_are_there() -> None:
    albums = [(0, 0), (0b11, 0b1), (0, 0b11111), (0b11111, 0), (0,), (0, 0, 0)]
    listed = [
        Fingerprint(position=number, exact=f"{number:064x}", near="".join(f"{code:016x}" for code in codes))
        for number, codes in enumerate(albums)
    ]
    assert verdicts([listed], Duplicates(near_distance=4)) == [
        {1: ("near_duplicate", "record 0 has pictures that differ in 2 of 64 bits")}
    ]


@pytest.mark.parametrize("distance", [0, 1, 3, 8, 31])
def test_bands_find_what_a_comparison_of_all_with_all_finds(distance: int) -> None:
    rng = np.random.default_rng(distance)
    codes = [int(code) for code in rng.integers(0, 2**63, 40)]
    for code in list(codes):
        flips = rng.choice(64, size=rng.integers(0, distance + 4), replace=False)
        codes.append(code ^ sum(1 << int(bit) for bit in flips))
    kept: list[int] = []
    expected = {}
    for position, code in enumerate(codes):
        near = [number for number in kept if (codes[number] ^ code).bit_count() <= distance]
        if near:
            expected[position] = near[0]
        else:
            kept.append(position)
    parts = [prints(*codes[:50]), prints(*codes[50:], first=50)]
    found = verdicts(parts, Duplicates(near_distance=distance))
    named = {position: int(detail.split()[1]) for aside in found for position, (_, detail) in aside.items()}
    assert named == expected
    assert expected


def test_fingerprints_of_another_plan_are_not_taken() -> None:
    listed = prints(1, 2)
    assert duplicates.from_json(duplicates.to_json("plan", listed), "plan") == listed
    assert duplicates.from_json(duplicates.to_json("plan", listed), "other") is None
    assert duplicates.from_json(b"{", "plan") is None
