from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from qmop.vtcbench.natural.sources import READERS, Copy, Sources
from tests.qmop.vtcbench.natural.copies import mme_rows, mmstar_rows, parquet, samples


def test_every_reader_has_its_copy() -> None:
    assert [field.name for field in fields(Sources)] == list(READERS)
    assert {"mme", "textvqa", "gqa", "seed", "mmstar", "scienceqa"} == set(READERS)


def test_the_given_copies_are_read_one_after_another(tmp_path: Path) -> None:
    mme = parquet(tmp_path / "mme" / "test.parquet", mme_rows())
    mmstar = parquet(tmp_path / "mmstar.parquet", mmstar_rows())
    given = Sources(mmstar=Copy(path=str(mmstar)), mme=Copy(path=str(mme.parent)))

    assert list(given.given) == ["mme", "mmstar"]
    assert [one.source for one in samples(given.read())] == ["mme"] * 4 + ["mmstar"] * 3


def test_no_copy_and_two_of_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sources names no copy: give at least one of mme, textvqa"):
        list(Sources().read())
    parquet(tmp_path / "a.parquet", mmstar_rows())
    parquet(tmp_path / "b.parquet", mmstar_rows())
    with pytest.raises(ValueError, match="mmstar 0 comes twice: give one split"):
        list(Sources(mmstar=Copy(path=str(tmp_path))).read())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(Sources(gqa=Copy(path=str(tmp_path / "nowhere"))).read())
