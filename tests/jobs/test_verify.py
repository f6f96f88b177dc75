"""`qmop prepare verify` on a corpus as it should be, and on one that somebody touched."""

from pathlib import Path

import pytest

from cluster.progress import Progress
from jobs import cli
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe


def test_a_corpus_is_proved_and_a_changed_byte_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "corpus")
    recipe = PrepareRecipe(source="rendered", output=output, count=20, samples_per_shard=8)
    manifest = prepare(recipe, Progress())
    assert cli.run(["prepare", "verify", "--corpus", output]) == 0
    assert f"20 samples, digest {manifest.digest[:12]}" in capsys.readouterr().err
    shard = Path(manifest.uri(1))
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(bytes(data))
    assert cli.run(["prepare", "verify", "--corpus", output]) == cli.MISTAKE
    assert "corpus-000001.tar has other bytes" in capsys.readouterr().err
