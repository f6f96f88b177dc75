import errno
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.capacity import ClusterBusyError
from cluster.failures import JobFailedError, RefusedError, StorageError
from cluster.ports import free_port
from jobs import cli


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a mistake prints."""
    assert cli.run(list(argv)) == cli.MISTAKE
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.endswith(": starting")]
    assert len(lines) == 1, lines
    return lines[0]


def test_no_job_prints_the_usage_and_counts_as_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == cli.MISTAKE
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {job}" in shown for job in cli.JOBS)


def test_an_unknown_job_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'trian'" in complaint(capsys, "trian")


def test_what_the_library_alone_does_not_bring_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "jobs.recipes_reader", raising=False)
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    said = complaint(capsys, "report", "--results", "x")
    assert said == "qmop: qmop report needs jsonargparse, which is not installed: pip install 'qmop[pipeline]'"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["train", "--corpus", "c", "--output", "o", "--align.stepz", "3"],
            ["align.stepz", "did you mean align.steps"],
        ),
        (["train", "--corpus", "c", "--output", "o", "--align.steps", "many"], ["align.steps", "int", "many"]),
        (["train"], ["corpus", "output", "required"]),
        (["train", "--config", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["train", "--corpus", "c", "--output", "o", "--global_batch", "40"], ["global_batch", "multiple of 16"]),
        (["evaluate", "--checkpoints", "[]", "--output", "o"], ["checkpoints is empty"]),
        (["report", "--results", "/nowhere"], ["/nowhere", "qmop evaluate"]),
        (["prepare", "verify", "--corpus", "/nowhere"], ["/nowhere/manifest.json", "qmop prepare"]),
        (["prepare", "audit", "--ledger", "/nowhere"], ["no ledger in /nowhere"]),
    ],
)
def test_a_mistake_costs_one_sentence(capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]) -> None:
    said = complaint(capsys, *argv)
    assert all(word in said for word in words), said


def test_a_wrong_budget_names_the_fitting_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = complaint(capsys, "train", "--corpus", str(tmp_path), "--output", str(tmp_path), "--tokens", "17")
    assert "144, 36, 16, 9, 4, 1" in said


def test_a_key_of_a_yaml_file_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("corpus: c\noutput: o\ntune:\n  step: 5\n")
    assert "tune.step" in complaint(capsys, "train", "--config", str(recipe))


def test_a_taken_port_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    import socket  # noqa: PLC0415

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in complaint(capsys, "serve", "--checkpoint", "tiny", "--port", str(port))
        assert str(port) in complaint(capsys, "quickstart", "--port", str(port))


def test_help_is_quick_and_imports_no_framework() -> None:
    heavy = "any(name in sys.modules for name in ('torch', 'ray'))"
    code = f"import sys; from jobs import cli; cli.run(['--help']); sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60).returncode == 0


def test_a_job_that_fails_says_why_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, rest: list[str]) -> int:
        raise JobFailedError(f"{' '.join([name, *rest])} stopped: rank 2 ran out of memory")

    monkeypatch.setattr(cli, "_run_job", fail)
    assert cli.run(["train"]) == 1
    assert capsys.readouterr().err == "qmop: train stopped: rank 2 ran out of memory (--traceback shows where)\n"
    with pytest.raises(JobFailedError):
        cli.run(["train", "--traceback"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StorageError("s3://b/run cannot be reached at http://x."), cli.FAILED),
        (RefusedError("s3://b/run refuses us (403): check the AWS credentials."), cli.MISTAKE),
        (ClusterBusyError("training found no room in 25 s."), cli.FAILED),
        (TimeoutError("The model did not answer its warm-up question."), cli.FAILED),
        (ConnectionResetError(104, "Connection reset by peer"), cli.FAILED),
        (OSError(errno.ENOSPC, "No space left on device"), cli.FAILED),
        (OSError(errno.EIO, "We encountered an internal error"), cli.FAILED),
        (FileNotFoundError("corpora/mine/manifest.json does not exist."), cli.MISTAKE),
        (PermissionError(errno.EACCES, "Permission denied"), cli.MISTAKE),
        (OSError(errno.ENAMETOOLONG, "File name too long"), cli.MISTAKE),
        (OSError("x is no model identifier"), cli.MISTAKE),
        (ValueError("tokens is 17: choose 16"), cli.MISTAKE),
    ],
)
def test_the_exit_code_says_whether_to_try_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_run_job", fail)
    assert cli.run(["train"]) == code
    assert capsys.readouterr().err == f"qmop: {error}\n"


def test_a_store_that_does_not_answer_is_no_mistake_and_one_that_refuses_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert cli.run(["prepare", "verify", "--corpus", "s3://bucket/corpus"]) == cli.FAILED
    assert "does not answer" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.run(["prepare", "verify", "--corpus", str(tmp_path / "file")]) == cli.MISTAKE


def test_a_module_that_a_worker_lacks_is_not_told_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = type("RayTaskError", (ModuleNotFoundError,), {"__module__": "ray.exceptions"})

    def fail(*_: object) -> int:
        raise remote("No module named 'foo'")

    monkeypatch.setattr(cli, "_run_job", fail)
    with pytest.raises(ModuleNotFoundError, match="foo"):
        cli.run(["report"])
