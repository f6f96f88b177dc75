"""The chain from downloads to Table 1, with stand-ins for what takes a network and GPUs."""

from __future__ import annotations

import io
import json
import re
import urllib.request
import zipfile
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from cluster.progress import Progress
from jobs import reproduce, reproduce_downloads
from jobs.reproduce import ReproduceRecipe
from jobs.reproduce_downloads import Archive, fetch_all
from jobs.reproduce_table import COLUMNS, PRINTED, VANILLA, printed, read_scores, table
from pipelines.training.trainer import TrainResult
from qmop.vtcbench.statistics import mean_retention


def results(folder: Path, row: dict[str, float]) -> None:
    """What lmms-eval leaves."""
    folder.mkdir(parents=True)
    found = {c.task: {f"{c.metrics[-1]},none": row[c.title] / c.scale, "alias": c.task} for c in COLUMNS}
    (folder / "20260101_results.json").write_text(json.dumps({"results": found}))


def test_averages_are_those_that_the_paper_prints() -> None:
    rows = {name: printed(name) for name in PRINTED}
    vanilla = rows[VANILLA]
    assert vanilla is not None
    for name, wanted in {VANILLA: 100.0, "tokenpacker-7b": 100.05, "llava-7b": 100.73}.items():
        row = rows[name]
        assert row is not None
        assert mean_retention(row, vanilla) == pytest.approx(wanted, abs=0.07)


def test_scores_come_from_the_harness_in_the_papers_units(tmp_path: Path) -> None:
    row = printed("llava-7b")
    assert row is not None
    results(tmp_path / "run", row)
    assert read_scores(tmp_path) == pytest.approx(row)
    damaged = json.loads((tmp_path / "run" / "20260101_results.json").read_text())
    del damaged["results"]["mmvet"]
    (tmp_path / "run" / "20260101_results.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match="no gpt_eval_score of mmvet"):
        read_scores(tmp_path)


def test_the_table_has_measured_and_printed_rows() -> None:
    vanilla, ours = printed(VANILLA), printed("llava-7b")
    assert vanilla is not None
    assert ours is not None
    text = table({VANILLA: vanilla, "llava-7b": ours})
    assert len(text.splitlines()) == 6
    assert re.search(r"\| llava-7b \| 57\.1 .* 1456 .* \| 100\.7\d \|", text)
    assert "| llava-7b, as printed |" in text


def packed(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"picture")


def test_downloads_are_laid_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, home = tmp_path / "there", tmp_path / "here"
    packed(source / "vg.zip", ["VG_100K/1.jpg", "VG_100K/2.jpg"])
    (source / "notes.json").write_text("[]")
    archive = Archive(url=(source / "vg.zip").as_uri(), into="tune/vg", gives="tune/vg/VG_100K")
    monkeypatch.setattr(reproduce_downloads, "ARCHIVES", (archive,))
    monkeypatch.setattr(reproduce_downloads, "FILES", {"notes.json": (source / "notes.json").as_uri()})
    with pytest.raises(FileNotFoundError, match="OCR-VQA has no archive"):
        fetch_all(home, Progress(io.StringIO()))
    (home / "tune/ocr_vqa/images").mkdir(parents=True)
    fetch_all(home, Progress(io.StringIO()))
    assert sorted(path.name for path in (home / "tune/vg/VG_100K").iterdir()) == ["1.jpg", "2.jpg"]
    assert sorted(path.name for path in home.iterdir()) == ["notes.json", "tune"]
    (source / "vg.zip").unlink()
    fetch_all(home, Progress(io.StringIO()))


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_an_archive_whose_unpacking_was_interrupted_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    names, home, done = ("00000", "00001", "00002"), tmp_path / "here", list[str]()
    packed(tmp_path / "all.zip", [f"{name}/{number}.jpg" for name in names for number in range(2)])
    (home / "tune/ocr_vqa/images").mkdir(parents=True)
    archive = Archive(url=(tmp_path / "all.zip").as_uri(), into="align", gives="align/00000")
    monkeypatch.setattr(reproduce_downloads, "ARCHIVES", (archive,))
    monkeypatch.setattr(reproduce_downloads, "FILES", {})
    real = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name in names:
            if len(done) == renamed:
                raise KeyboardInterrupt
            done.append(path.name)
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch_all(home, Progress(io.StringIO()))
    assert len(done) == renamed
    fetch_all(home, Progress(io.StringIO()))
    found = sorted(path.relative_to(home / "align").as_posix() for path in (home / "align").rglob("*.jpg"))
    assert found == [f"{name}/{number}.jpg" for name in names for number in range(2)]
    assert sorted(path.name for path in home.iterdir()) == ["align", "tune"]


class Torn(io.BytesIO):
    """A download that breaks off after ten bytes."""

    def __init__(self, error: Exception) -> None:
        super().__init__(b"x" * 10)
        self.error, self.headers = error, {"Content-Length": "100"}

    def read(self, size: int | None = -1, /) -> bytes:
        if piece := super().read(size):
            return piece
        raise self.error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), IncompleteRead(b"", 90)])
def test_a_download_that_is_torn_off_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (tmp_path / "tune/ocr_vqa/images").mkdir(parents=True)
    monkeypatch.setattr(reproduce_downloads, "FILES", {"notes.json": "https://example.org/notes.json"})
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Torn(error))
    said = (
        r"^https://example\.org/notes\.json could not be fetched \(.+\): run again, or put the file at .*notes\.json$"
    )
    with pytest.raises(OSError, match=said):
        fetch_all(tmp_path, Progress(io.StringIO()))
    assert not (tmp_path / "notes.json").exists()


def test_an_archive_of_something_else_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tune/ocr_vqa/images").mkdir(parents=True)
    packed(tmp_path / "there.zip", ["pictures/1.jpg"])
    archive = Archive(url=(tmp_path / "there.zip").as_uri(), into="tune/vg", gives="tune/vg/VG_100K")
    monkeypatch.setattr(reproduce_downloads, "ARCHIVES", (archive,))
    monkeypatch.setattr(reproduce_downloads, "FILES", {})
    with pytest.raises(ValueError, match=r"tune-vg-VG_100K\.zip holds no VG_100K: .* unpack it by hand"):
        fetch_all(tmp_path, Progress(io.StringIO()))
    assert not (tmp_path / "tune/vg").exists()
    assert not (tmp_path / ".tune-vg-VG_100K").exists()


def test_a_damaged_archive_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tune/ocr_vqa/images").mkdir(parents=True)
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    archive = Archive(url=(tmp_path / "bad.zip").as_uri(), into="tune/vg", gives="tune/vg/VG_100K")
    monkeypatch.setattr(reproduce_downloads, "ARCHIVES", (archive,))
    monkeypatch.setattr(reproduce_downloads, "FILES", {})
    with pytest.raises(ValueError, match=r"tune-vg-VG_100K\.zip is damaged"):
        fetch_all(tmp_path, Progress(io.StringIO()))


class Chain:
    """Notes the calls of a run in their order, in place of the work."""

    def __init__(self, home: Path) -> None:
        self.home, self.calls = home, []  # type: ignore[var-annotated]

    def fetch(self, folder: Path, progress: Progress) -> None:
        del progress
        self.calls.append(f"fetch {folder.name}")

    def prepare(self, recipe: Any, progress: Progress) -> None:
        del progress
        self.calls.append(f"prepare {Path(recipe.annotations).stem} {Path(recipe.output).name}")

    def train(self, recipe: Any, progress: Progress) -> TrainResult:
        del progress
        self.calls.append(
            f"train {Path(recipe.output).name} on {Path(recipe.corpus).name} from {Path(recipe.base).name}"
        )
        return TrainResult(exports=(f"{recipe.output}/checkpoints/last",), trained=True)

    def judge(self, command: list[str], *, check: bool) -> Any:
        del check
        folder = Path(command[command.index("--output_path") + 1])
        self.calls.append(f"judge {folder.name} {Path(command[6]).parts[-3]}")
        results(folder, printed(folder.name) or {})
        return type("Done", (), {"returncode": 0})


def test_the_chain_runs_in_order_and_its_table_is_the_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(tmp_path)
    for name in ("prepare", "train"):
        monkeypatch.setattr(reproduce, name, getattr(chain, name))
    monkeypatch.setattr(reproduce, "fetch_all", chain.fetch)
    monkeypatch.setattr(reproduce, "make_base", lambda *_: f"{tmp_path}/vanilla/checkpoints/base")
    monkeypatch.setattr(reproduce, "ray_session", lambda *_: io.StringIO())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr("subprocess.run", chain.judge)
    out = io.StringIO()
    assert reproduce.run(ReproduceRecipe(output=str(tmp_path), methods=["llava-7b"]), Progress(out)) == 0
    assert chain.calls == [
        "fetch downloads",
        "prepare blip_laion_cc_sbu_558k align",
        "prepare llava_v1_5_mix665k tune",
        "train llava-7b-stage1 on align from tiny",
        "train llava-7b-stage2 on tune from qmop-144-align-002180",
        "judge vanilla vanilla",
        "judge llava-7b llava-7b-stage2",
    ]
    assert re.search(r"\| llava-7b \|.*\| 100\.7\d \|", (tmp_path / "table1.md").read_text())
    assert "| language model | 6,738,939,904 |" in out.getvalue()


def test_without_the_harness_it_stops_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "fetch_all", lambda *_: pytest.fail("fetched"))
    monkeypatch.setattr(reproduce, "print_dry_run", lambda *_: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="lmms-eval, which judges, is not installed"):
        reproduce.run(ReproduceRecipe(output=str(tmp_path)), Progress(io.StringIO()))


def test_an_unknown_method_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match="names llava-70b: choose of llava-13b, llava-7b, tokenpacker-7b"):
        ReproduceRecipe(methods=["llava-70b"])
