from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmop.vtcbench.natural.build import build_suite
from qmop.vtcbench.natural.sources import Copy, Sources
from qmop.vtcbench.rendered import suite_digest
from qmop.vtcbench.suite import load_suite, read_shard
from tests.qmop.vtcbench.natural.copies import mme_rows, mmstar_rows, parquet, picture

CHOSEN = {
    ("mme", "existence/0001/1"): "GU",
    ("mme", "existence/0000/2"): "LD",
    ("mmstar", "2"): "SC",
    ("gqa", "1"): "RC",
}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    mme = parquet(tmp_path / "mme" / "test.parquet", mme_rows())
    rows = mmstar_rows(4)
    rows[3]["answer"] = "Z"
    return Sources(mme=Copy(path=str(mme)), mmstar=Copy(path=str(parquet(tmp_path / "mmstar.parquet", rows))))


@pytest.fixture
def build(sources: Sources, tmp_path: Path) -> Callable[..., Any]:
    home = tmp_path / "suite"
    home.mkdir()

    def run(chosen: dict[tuple[str, str], str], **more: Any) -> Any:
        return build_suite(
            sources.read(), sources.given, chosen, lambda name, data: (home / name).write_bytes(data) and None,
            folder=str(home), items_per_shard=2, **more,
        )  # fmt: skip

    return run


def test_a_suite_is_one_that_the_rest_of_the_benchmark_reads(build: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []
    built = build(CHOSEN, progress=lambda done, total: seen.append((done, total)), origin={"seed": 3})
    suite = load_suite(built.suite.folder)
    items = [rendered for shard in suite.shards for rendered in read_shard(suite.folder, shard)]

    assert suite == built.suite
    assert json.loads((Path(suite.folder) / "manifest.json").read_text())["name"] == "vtcbench-natural"
    assert [rendered.item.key for rendered in items] == ["mme-existence_0000_2", "mme-existence_0001_1", "mmstar-2"]
    assert [rendered.item.dimension for rendered in items] == ["LD", "GU", "SC"]
    assert items[1].image == picture(1)
    assert items[2].image == picture(2, "JPEG")
    assert suite.digest == suite_digest(items)
    assert dict(suite.dimensions) == {"GU": 1, "SC": 1, "LD": 1}
    assert seen == [(2, 3), (3, 3)]
    origin = json.loads((Path(suite.folder) / "natural.json").read_text())
    assert origin == {"seed": 3, "items": {"mme": 2, "mmstar": 1}, "left_out": {"gqa": 1}}


def test_every_row_is_counted(build: Callable[..., Any]) -> None:
    built = build(CHOSEN)

    assert (dict(built.taken), built.other, dict(built.left_out)) == ({"mme": 2, "mmstar": 1}, 4, {"gqa": 1})
    assert dict(built.faults) == {"mmstar: unknown_letter": 1}
    assert built.seen == 8


def test_the_digest_does_not_depend_on_how_shards_are_cut(sources: Sources, build: Callable[..., Any]) -> None:
    files: dict[str, bytes] = {}
    other = build_suite(sources.read(), sources.given, CHOSEN, files.__setitem__, folder="elsewhere", items_per_shard=9)

    assert other.suite.digest == build(CHOSEN).suite.digest
    assert list(files) == ["suite-000000.tar", "natural.json", "manifest.json"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (("mme", "existence/0009/1"), "do not have: mme existence/0009/1; give the split and format"),
        (("mmstar", "3"), "mmstar 3: its answer is 'Z', expected one of A, B, C, D; it is labelled LD"),
    ],
)
def test_labels_that_no_sample_bears_out_are_refused(
    build: Callable[..., Any], name: tuple[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        build({**CHOSEN, name: "LD"})


def test_many_unknown_ids_are_counted(build: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"mmstar 14 and 3 more; give the split"):
        build({("mmstar", str(number)): "GU" for number in range(10, 18)})


def test_a_labelled_sample_must_have_its_picture(tmp_path: Path) -> None:
    rows = mmstar_rows(2)
    rows[1]["image"] = {"bytes": b"broken", "path": "1.jpg"}
    given = Sources(mmstar=Copy(path=str(parquet(tmp_path / "m.parquet", rows))))
    written: dict[str, bytes] = {}

    with pytest.raises(ValueError, match=r"mmstar 1: its picture cannot be decoded .*; it is labelled GU: repair"):
        build_suite(given.read(), given.given, {("mmstar", "1"): "GU"}, written.__setitem__, folder="f")
    assert "manifest.json" not in written


def test_nothing_to_take_is_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="accept no sample of the sources that were given"):
        build({("gqa", "1"): "GU"})
