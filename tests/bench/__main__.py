"""`python -m tests.bench [projectors] [quickstart]`: run the named measurements, all of them by default."""

import sys

from tests.bench import projectors, quickstart

BENCHES = {"projectors": projectors.run, "quickstart": quickstart.run}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHES:
        print(BENCHES[name]())  # noqa: T201 - the table is the result
