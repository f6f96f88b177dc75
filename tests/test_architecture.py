"""Rules checked over the sources: who may import whom, how long a file may be, what is never used.

`violations(root)` is the checker: one line `path:line: what` for each breach below a root that holds the packages.
"""

from __future__ import annotations

import ast
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]

ARROWS = {
    "jobs": {"pipelines", "qmop", "cluster"},
    "pipelines": {"qmop", "cluster"},
    "qmop": set(),
    "cluster": set(),
}
"""Each package and those of ours that it may import beside itself."""
OURS = {*ARROWS, "tests"}
NOT_IN_THE_LIBRARY = {"ray", "deepspeed"}
FOREIGN_READER = "qmop/foreign_files.py"
"""The only file that may read pickled weights, and only as tensors."""
NEVER_IMPORTED = {"pickle", "cloudpickle", "dill", "joblib"}
LONGEST = 500

WHOLE_ROOMS = {
    "tests/qmop/compressors/test_contract.py": "every method of the folder",
    "tests/qmop/test_import.py": "the package as a whole",
    "tests/qmop/test_lean_environment.py": "the package as a whole",
    "tests/qmop/test_readme.py": "the folder's README",
    "tests/qmop/vtcbench/test_bench_readme.py": "the folder's README",
    "tests/qmop/vtcbench/dimensions/test_families.py": "every family of the folder",
}
"""Tests of a folder instead of one file."""


def violations(root: Path) -> list[str]:
    """Every breach below a root, in the order of path and line."""
    found: list[tuple[str, int, str]] = []
    for path in sorted(path for room in ARROWS for path in (root / room).rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        lines = text.count("\n")
        if lines > LONGEST:
            found.append((name, lines, f"has {lines} lines, more than {LONGEST}"))
        found += [(name, line, what) for node in ast.walk(ast.parse(text)) for line, what in breaches(node, name)]
    return [f"{name}:{line}: {what}" for name, line, what in sorted(found)]


def breaches(node: ast.AST, name: str) -> Iterator[tuple[int, str]]:
    """What is wrong with one node of a file."""
    room = PurePosixPath(name).parts[0]
    yield from ((line, wrong) for module, line in imported(node) if (wrong := wrong_import(room, module)))
    match node:
        case ast.ImportFrom(level=level, lineno=line) if level:
            yield line, "imports by a relative path"
        case ast.FunctionDef(returns=None) | ast.AsyncFunctionDef(returns=None):
            yield node.lineno, f"{node.name} has no return annotation"
        case ast.Attribute(value=ast.Name(id="torch"), attr="load", lineno=line) if name != FOREIGN_READER:
            yield line, "uses torch.load"
        case ast.Call(func=called, lineno=line) if ast.unparse(called) == "torch.load" and name == FOREIGN_READER:
            if not safe(node):
                yield line, "uses torch.load without weights_only=True"
        case ast.keyword(arg="trust_remote_code", lineno=line):
            yield line, "uses trust_remote_code"
        case ast.Constant(value=str(value), lineno=line) if value.startswith(("./", "../")):
            yield line, f"holds the relative path {value!r}"
        case ast.Constant(value="trust_remote_code", lineno=line):
            yield line, "uses trust_remote_code"


def safe(call: ast.Call) -> bool:
    """Whether a call of torch.load says in so many words that it reads nothing but tensors."""
    return any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)


def wrong_import(room: str, module: str) -> str | None:
    """What is wrong with a module's import in a room, if anything."""
    top = module.partition(".")[0]
    if top in OURS - ARROWS[room] - {room}:
        return f"{room} imports {module} against the arrows"
    if room == "qmop" and top in NOT_IN_THE_LIBRARY:
        return f"qmop imports {module}"
    return f"imports {module}" if top in NEVER_IMPORTED else None


def imported(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules that a node imports, by statement or by a call with a literal name."""
    match node:
        case ast.Import(names=names, lineno=line):
            yield from ((alias.name, line) for alias in names)
        case ast.ImportFrom(module=str(module), level=0, lineno=line):
            yield module, line
        case ast.Call(func=called, args=[ast.Constant(value=str(module)), *_], lineno=line):
            if ast.unparse(called) in ("importlib.import_module", "import_module", "__import__"):
                yield module, line


def lonely_tests(root: Path) -> list[str]:
    """Test files whose name does not contain the name of a source file (or folder) at the mirrored place."""
    lost = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        name = path.relative_to(root).as_posix()
        folder = root / path.relative_to(root / "tests").parent
        if path.parent == root / "tests" or name in WHOLE_ROOMS:
            continue
        sources = {source.stem.strip("_") for source in folder.glob("*.py")} | {folder.name}
        if not any(f"_{source}_" in f"{path.stem}_" for source in sources):
            lost.append(name)
    return lost


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources by themselves, to be broken."""
    for room in ARROWS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=lambda _, names: [n for n in names if "weights" in n])
    return tmp_path


def test_the_sources_keep_the_rules() -> None:
    assert violations(ROOT) == []


def test_every_test_mirrors_a_source() -> None:
    assert lonely_tests(ROOT) == []
    assert all((ROOT / name).is_file() for name in WHOLE_ROOMS)


def test_no_two_test_files_have_one_name() -> None:
    """They are modules without packages, so the second would be taken for the first."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_an_import_of_ray_in_the_library_is_reported_with_file_and_line(copy: Path) -> None:
    path = copy / "qmop" / "compressors" / "prune.py"
    path.write_text(path.read_text() + "\nimport ray\n")
    line = path.read_text().count("\n")
    assert violations(copy) == [f"qmop/compressors/prune.py:{line}: qmop imports ray"]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("qmop/a.py", "import ray.data as rd", "1: qmop imports ray.data"),
        ("qmop/a.py", "def f() -> None:\n    from deepspeed import zero", "2: qmop imports deepspeed"),
        ("qmop/a.py", "import importlib\nimportlib.import_module('ray')", "2: qmop imports ray"),
        ("qmop/a.py", "from cluster.storage import copy", "1: qmop imports cluster.storage against the arrows"),
        ("qmop/a.py", "import jobs", "1: qmop imports jobs against the arrows"),
        ("cluster/a.py", "import qmop.features", "1: cluster imports qmop.features against the arrows"),
        ("pipelines/a.py", "if 1:\n    import jobs.cli", "2: pipelines imports jobs.cli against the arrows"),
        ("jobs/a.py", "from tests.qmop import x", "1: jobs imports tests.qmop against the arrows"),
        ("jobs/a.py", "from . import cli", "1: imports by a relative path"),
        ("jobs/a.py", "import pickle", "1: imports pickle"),
        ("jobs/a.py", "import torch\nx = torch.load('f')", "2: uses torch.load"),
        (FOREIGN_READER, "import torch\nx = torch.load('f')", "2: uses torch.load without weights_only=True"),
        (
            "qmop/foreign_files.py",
            "x = torch.load('f', weights_only=y)",
            "1: uses torch.load without weights_only=True",
        ),
        ("jobs/a.py", "f(trust_remote_code=True)", "1: uses trust_remote_code"),
        ("jobs/a.py", "f(**{'trust_remote_code': True})", "1: uses trust_remote_code"),
        ("jobs/a.py", "open('../data/x')", "1: holds the relative path '../data/x'"),
        ("jobs/a.py", "class A:\n    def f(self): ...", "2: f has no return annotation"),
        ("jobs/a.py", "async def f(): ...", "1: f has no return annotation"),
        ("jobs/a.py", "\n" * 501, "501: has 501 lines, more than 500"),
    ],
)
def test_each_breach_is_reported(tmp_path: Path, name: str, code: str, said: str) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text(code)
    assert violations(tmp_path) == [f"{name}:{said}"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("qmop/a.py", "import torch\nfrom qmop.features import Query"),
        (FOREIGN_READER, "import torch\nx = torch.load('f', weights_only=True)"),
        ("pipelines/a.py", "import ray\nimport deepspeed\nfrom qmop import load\nfrom cluster import ports"),
        ("jobs/a.py", "import pipelines.board\nimport qmop\nfrom cluster import ports"),
        ("cluster/a.py", "import ray\n" + "\n" * 499),
    ],
)
def test_what_follows_the_arrows_is_not(tmp_path: Path, name: str, code: str) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text(code)
    assert violations(tmp_path) == []


def test_a_test_of_nothing_is_found(tmp_path: Path) -> None:
    for name in ("qmop/features.py", "tests/qmop/test_features.py", "tests/qmop/test_featurs.py", "tests/test_x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert lonely_tests(tmp_path) == ["tests/qmop/test_featurs.py"]
