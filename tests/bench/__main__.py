"""`python -m tests.bench [name] ...`: run the named measurements; by default those that suit any machine."""

import importlib
import sys

BENCHES = ("projectors", "prefill", "corpus", "training", "evaluation", "quickstart")
ON_REQUEST = ("elastic", "router", "gpu_proof")

if __name__ == "__main__":
    if unknown := sorted(set(sys.argv[1:]) - {*BENCHES, *ON_REQUEST}):
        raise SystemExit(f"no such measurement: {', '.join(unknown)}; choose from {', '.join((*BENCHES, *ON_REQUEST))}")
    for name in sys.argv[1:] or BENCHES:
        print(importlib.import_module(f"tests.bench.{name}").run())  # noqa: T201 - the table is the result
