"""The `qmop` command: finds the job, reads its recipe, runs it, and turns mistakes into one sentence."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from cluster.failures import JobFailedError, RefusedError, StorageError

JOBS = {
    "prepare": "turn pictures and texts into validated shards",
    "prepare verify": "prove a corpus against its manifest",
    "prepare audit": "prove what a run was trained on against corpus and order",
    "convert": "put a published projector into a checkpoint",
    "train": "train a compressor in two stages on Ray Train with DeepSpeed",
    "reproduce": "from downloads to the paper's Table 1, on a machine with GPUs; never run so far",
    "evaluate": "judge checkpoints on VTCBench, in parallel",
    "report": "write the report of an evaluation",
    "report hard": "tell accuracy on items that down-sampling loses",
    "label": "ask a judge which samples belong to VTCBench's natural suite",
    "suite": "make the natural suite from your copies of its sources",
    "suite shrink": "copy a suite with its pictures down-sampled",
    "suite lmms": "write a suite as tasks of lmms-eval, for any model of its own",
    "serve": "host a checkpoint behind the OpenAI chat protocol",
    "quickstart": "all of it at tiny size, from nothing to a served model",
}
FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
_PASSING = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EBUSY, errno.EAGAIN),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENETUNREACH, errno.EHOSTUNREACH),
}
"""What a machine says of its state and not of what it was asked for."""
OURS = ("cluster", "jobs", "pipelines", "qmop")


def usage() -> str:
    """What `qmop --help` prints."""
    lines = [f"  {name:<16}{text}" for name, text in JOBS.items()]
    return "\n".join(
        [
            "usage: qmop JOB [--config RECIPE.yaml] [--field value ...]",
            "",
            "Query-guided compression of visual tokens, from corpus to service.",
            "",
            "jobs:",
            *lines,
            "",
            "`qmop JOB --help` lists the fields of a job's recipe; dotted names such as --align.steps 100",
            "override single fields, and --print_config shows the whole recipe.",
            "--traceback shows where an error came from.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0, 1 (failed), 2 (a mistake), 3 (below what was asked for) or 130 (interrupted).

    A scheduler may try again after 1, and not after 2. A storage or service that is out of reach counts as 1 even where
    its address is wrong, which looks the same from here; credentials that are missing or refused, places that do not
    exist and a Ray cluster at whose address nobody answers count as 2.
    """
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run a job and return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())  # noqa: T201 - help goes to standard output
        return 0 if argv else MISTAKE
    words = 2 if " ".join(argv[:2]) in JOBS else 1
    name, rest = " ".join(argv[:words]), argv[words:]
    if name not in JOBS:
        return _complain(f"there is no job {name!r}: choose one of {', '.join(JOBS)}")
    traceback = "--traceback" in rest
    rest = [word for word in rest if word != "--traceback"]
    try:
        return _run_job(name, rest)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on after the last part that was finished", INTERRUPTED)
    except JobFailedError as error:
        if traceback:
            raise
        return _complain(f"{error} (--traceback shows where)", FAILED)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if traceback or _not_the_users(error):
            raise
        sentence = _missing(name, error) if isinstance(error, ModuleNotFoundError) else str(error)
        return _complain(sentence, FAILED if _may_pass(error) else MISTAKE)


def _run_job(name: str, rest: list[str]) -> int:
    print(f"qmop {name}: starting", file=sys.stderr)  # noqa: T201 - importing the frameworks takes some seconds
    from jobs.recipes_reader import parse_recipe  # noqa: PLC0415 - the library may be installed without what it needs

    job: ModuleType = importlib.import_module(f"jobs.{name.rsplit(maxsplit=1)[-1]}")
    recipe = parse_recipe(f"qmop {name}", job.__doc__ or "", job.RECIPE, rest)
    from cluster.progress import Progress  # noqa: PLC0415 - `qmop --help` needs none of it

    return int(job.run(recipe, Progress()))


def _not_the_users(error: Exception) -> bool:
    """Errors of remote processes, which Ray makes look like the original's type, and a missing file of our own."""
    if type(error).__module__.startswith("ray."):
        return True
    return isinstance(error, ModuleNotFoundError) and (not error.name or error.name.partition(".")[0] in OURS)


def _may_pass(error: Exception) -> bool:
    """Whether the same command may get through later, with nothing changed."""
    if isinstance(error, StorageError):
        return not isinstance(error, RefusedError)
    return isinstance(error, TimeoutError | ConnectionError) or getattr(error, "errno", None) in _PASSING


def _missing(name: str, error: ModuleNotFoundError) -> str:
    return f"qmop {name} needs {error.name}, which is not installed: pip install 'qmop[pipeline]'"


def _complain(sentence: str, code: int = MISTAKE) -> int:
    print(f"qmop: {' '.join(sentence.split())}", file=sys.stderr)  # noqa: T201 - the one line that a mistake costs
    return code


if __name__ == "__main__":
    main()
