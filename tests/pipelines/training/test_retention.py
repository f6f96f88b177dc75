from pathlib import Path

import pytest

from pipelines.training.exports import RETIRED, is_complete, publish
from pipelines.training.plans import export_uris
from pipelines.training.retention import name_of, retire, still_there, surplus
from qmop.tiny.assemble import tiny_model, tiny_processor
from tests.pipelines.training.judged import export_of, run_in
from tests.pipelines.training.test_exports import FACTS


@pytest.mark.parametrize(
    ("keep", "step", "exempt", "gone"),
    [(0, 4, (), ""), (1, 4, (), "123"), (1, 4, (2,), "13"), (2, 3, (), "1"), (9, 4, (), ""), (1, 1, (), "")],
)
def test_what_is_older_than_the_latest_and_not_exempt_goes(
    tmp_path: Path, keep: int, step: int, exempt: tuple[int, ...], gone: str
) -> None:
    recipe = run_in(tmp_path, keep_exports=keep)
    names = {name_of(export_uris(recipe, "tune")[at]) for at in exempt}
    assert "".join(uri[-1] for uri in surplus(recipe, "tune", step, names)) == gone


def test_a_removed_export_counts_as_made_until_it_is_made_anew(tmp_path: Path) -> None:
    recipe = run_in(tmp_path)
    export_of(recipe, 1)
    uri = export_uris(recipe, "tune")[1]
    assert retire(uri)
    assert [path.name for path in Path(uri).iterdir()] == [RETIRED]
    assert is_complete(uri)
    assert still_there(recipe, "tune") == []
    assert not retire(uri)
    model = tiny_model("average_pool", 16)
    publish(model, tiny_processor(16), model.state_dict(), uri, FACTS)
    assert not Path(uri, RETIRED).exists()


def test_a_removal_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    recipe = run_in(tmp_path)
    export_of(recipe, 1)
    uri = export_uris(recipe, "tune")[1]
    retire(uri)
    Path(uri, "weights").write_bytes(b"left over")
    assert not retire(uri)
    assert [path.name for path in Path(uri).iterdir()] == [RETIRED]


def test_what_was_never_made_is_left_alone(tmp_path: Path) -> None:
    recipe = run_in(tmp_path)
    uri = export_uris(recipe, "tune")[1]
    Path(uri).mkdir(parents=True)
    Path(uri, "half").write_bytes(b"of an export")
    assert not retire(uri)
    assert not is_complete(uri)
    assert Path(uri, "half").exists()
