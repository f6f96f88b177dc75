"""What `import qmop` costs, and that the library lives without the pipelines' packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

import qmop


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.timeout(300)
def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, qmop; print(qmop.__version__);"
        "print([m for m in ('torch', 'transformers', 'ray', 'deepspeed', 'numpy') if m in sys.modules])"
    )
    assert python(code).splitlines() == [qmop.__version__, "[]"]


@pytest.mark.timeout(300)
def test_methods_are_listed_where_ray_and_deepspeed_cannot_be_imported() -> None:
    code = """
import sys
sys.modules["ray"] = sys.modules["deepspeed"] = None
import qmop
print(sorted(qmop.list_compressors()))
import qmop.loading, qmop.answering, qmop.tiny.assemble
"""
    assert python(code) == str(sorted(qmop.list_compressors()))


def test_every_public_name_can_be_imported() -> None:
    for name in qmop.__all__:
        assert getattr(qmop, name) is not None
    assert dir(qmop) == qmop.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'qmop' has no attribute 'compres'"):
        _ = qmop.compres
