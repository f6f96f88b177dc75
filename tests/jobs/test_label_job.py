"""From copies over a judge to a suite, through the command's own doors."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from qmop.vtcbench.natural.labels import read_labels
from tests.fixtures.openai_judge import JudgeServer, Reply, judge_server, refusal, verdict
from tests.qmop.vtcbench.natural.copies import mme_rows, mmstar_rows, parquet

pytestmark = pytest.mark.pipeline


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as state:
        yield state


@pytest.fixture
def copies(tmp_path: Path) -> list[str]:
    """Arguments that name eight samples and a fault."""
    rows = mmstar_rows(5)
    rows[4]["answer"] = "Z"
    mme, mmstar = parquet(tmp_path / "mme.parquet", mme_rows()), parquet(tmp_path / "mmstar.parquet", rows)
    return ["--sources.mme.path", str(mme), "--sources.mmstar.path", str(mmstar)]


def labelling(server: JudgeServer, copies: list[str], file: Path, *more: str) -> list[str]:
    return [
        "label",
        *copies,
        "--labels",
        str(file),
        "--endpoint",
        server.url,
        "--model",
        "judge",
        "--retries",
        "0",
        *more,
    ]


def test_labels_are_asked_for_once_and_the_same_command_goes_on(
    server: JudgeServer, copies: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("JUDGE_KEY", "k1")
    file = tmp_path / "labels.jsonl"
    command = labelling(server, copies, file, "--key_env", "JUDGE_KEY", "--concurrency", "3")
    server.answer = lambda _, number: (
        refusal(500, "down") if number in (2, 5) else verdict("LD" if number % 2 else None)
    )

    assert cli.run(command) == 1
    said = capsys.readouterr().err
    first = read_labels(file)
    assert len(first) == 6
    assert "samples: 8 planned = " in said
    assert "+ 2 without a verdict" in said
    assert "no sample: 1 x mmstar: unknown_letter" in said
    assert set(server.keys) == {"Bearer k1"}

    server.answer = lambda *_: verdict("GU")
    assert cli.run(command) == 0
    assert "6 of them are labelled already" in capsys.readouterr().err
    final = read_labels(file)
    assert len(final) == 8
    assert {name: final[name] for name in first} == first
    assert len(server.requests) == 10
    assert cli.run(command) == 0
    assert len(server.requests) == 10
    assert server.most_under_way <= 3


def test_a_killed_labelling_keeps_every_verdict_and_asks_the_rest(
    server: JudgeServer, copies: list[str], tmp_path: Path
) -> None:
    file, reached, let_go = tmp_path / "labels.jsonl", threading.Event(), threading.Event()

    def stuck(_: dict[str, Any], number: int) -> Reply:
        if number == 4:
            reached.set()
            let_go.wait(60)
        return verdict("SE")

    server.answer = stuck
    command = labelling(server, copies, file, "--concurrency", "1")
    running = subprocess.Popen([sys.executable, "-m", "jobs.cli", *command], stderr=subprocess.DEVNULL)
    try:
        assert reached.wait(60)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
        let_go.set()
    kept = read_labels(file)
    with file.open("a") as stream:
        stream.write('{"source": "mme", "id": "exi')  # as if it had been killed while it wrote

    assert len(kept) == 4
    assert cli.run(command) == 0
    assert len(read_labels(file)) == 8
    assert max(Counter(server.asked()).values()) <= 4  # questions repeat over pictures
    assert len(server.requests) == 9


def test_a_draw_of_samples_grows_with_its_number(server: JudgeServer, copies: list[str], tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"

    assert cli.run(labelling(server, copies, file, "--per_source", "2")) == 0
    few = read_labels(file)
    assert Counter(source for source, _ in few) == {"mme": 2, "mmstar": 2}
    assert cli.run(labelling(server, copies, file, "--per_source", "3")) == 0
    assert Counter(source for source, _ in read_labels(file)) == {"mme": 3, "mmstar": 3}
    assert len(server.requests) == 6


def test_a_file_that_an_editor_left_without_its_last_end_is_whole(
    server: JudgeServer, copies: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"source": "mmstar", "id": "0", "decision": "accept", "dimension": "SC"}')

    assert cli.run(labelling(server, copies, file)) == 0
    assert read_labels(file)["mmstar", "0"].dimension == "SC"
    assert len(read_labels(file)) == 8
    assert len(server.requests) == 7


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--endpoint", "127.0.0.1:80"], "expected a URL"),
        (["--labels", "x.csv"], "name a .jsonl file"),
        (["--concurrency", "0"], "concurrency is 0"),
        (["--per_source", "0"], "per_source is 0"),
        (["--sources.gqa.path", "/nowhere"], "/nowhere holds no .parquet file"),
    ],
)
def test_mistakes_cost_one_sentence(
    copies: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    nobody = JudgeServer(url="http://127.0.0.1:9/v1")

    assert cli.run(labelling(nobody, copies, tmp_path / "l.jsonl", *more)) == cli.MISTAKE
    assert said in capsys.readouterr().err


def test_a_wrong_key_ends_it_with_the_variable(
    server: JudgeServer, copies: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda *_: refusal(401, "bad key")

    assert cli.run(labelling(server, copies, tmp_path / "l.jsonl", "--key_env", "SOME_KEY")) == cli.MISTAKE
    assert "put the right one into SOME_KEY" in capsys.readouterr().err
