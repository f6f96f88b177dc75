from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs.recipes_reader import RecipeError, field_names, parse_recipe, shipped
from jobs.serve import RECIPE as SERVE
from jobs.train import RECIPE as TRAIN
from pipelines.training.recipe import TrainRecipe


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inside.

    Attributes:
        steps: how many.
    """

    steps: int = 3


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A recipe.

    Attributes:
        place: where.
        inner: inside.
        keep_going: a switch.
        extra: anything.
    """

    place: str
    inner: Inner = field(default_factory=Inner)
    keep_going: bool = False
    extra: dict[str, int] = field(default_factory=dict)
    many: list[str] = field(default_factory=list)


def read(*argv: str) -> Outer:
    return parse_recipe("qmop test", "A test.", Outer, list(argv))


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("place: here\ninner:\n  steps: 5\n")
    assert read("--config", str(file)) == Outer(place="here", inner=Inner(steps=5))
    assert read("--config", str(file), "--inner.steps", "9").inner.steps == 9


def test_dashes_and_bare_switches_are_understood() -> None:
    assert read("--place", "x", "--keep-going").keep_going
    assert not read("--place", "x", "--keep_going", "false").keep_going
    assert read("--place", "x", "--keep-going", "--inner.steps=4") == Outer(
        place="x", keep_going=True, inner=Inner(steps=4)
    )


def test_values_are_left_alone() -> None:
    assert read("--place", "a-b_c--d", "--extra", '{"a-b": 1}') == Outer(place="a-b_c--d", extra={"a-b": 1})


def test_a_list_is_written_as_words_or_as_yaml() -> None:
    for argv in (["--many", "a=b", "c*"], ["--many", '["a=b", "c*"]'], ["--many=['a=b', 'c*']"]):
        assert read("--place", "x", *argv, "--keep-going").many == ["a=b", "c*"]
    assert read("--place", "x", "--many=a").many == read("--many", "a", "--place", "x").many == ["a"]


def test_a_field_that_is_a_tuple_takes_words_as_well() -> None:
    for argv in (["--allow_changes", "corpus", "seed"], ["--allow_changes", '["corpus", "seed"]']):
        found: TrainRecipe = parse_recipe("qmop train", "", TRAIN, ["--corpus", "c", *argv, "--output", "o"])
        assert found.allow_changes == ("corpus", "seed")
    one: TrainRecipe = parse_recipe(
        "qmop train", "", TRAIN, ["--corpus", "c", "--output=o", "--lora.layers", "q_proj", "--trackers=mlflow"]
    )
    assert (one.lora.layers, one.trackers) == (("q_proj",), ("mlflow",))


def test_no_field_of_training_is_a_list_that_takes_no_words() -> None:
    several = [name for name, kind in field_names(TRAIN).items() if "tuple" in str(kind) or "list" in str(kind)]
    assert several == ["lora.layers", "trackers", "allow_changes"]
    for name in several:
        word = "tensorboard" if name == "trackers" else "word"
        parse_recipe("qmop train", "", TRAIN, ["--corpus", "c", "--output", "o", f"--{name}", word])


def test_a_field_is_not_guessed_from_its_beginning() -> None:
    with pytest.raises(RecipeError, match=r"'plac': did you mean place\?"):
        read("--plac", "x")


def test_a_recipe_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(
        RecipeError, match=r"config evaluate-tyni does not exist: give a file, or one of .*evaluate-tiny"
    ):
        read("--config", "evaluate-tyni")


def test_unknown_fields_are_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'inner.stepz': did you mean inner.steps\?"):
        read("--place", "x", "--inner.stepz", "4")


def test_field_names_are_dotted() -> None:
    assert set(field_names(Outer)) == {"place", "inner", "inner.steps", "keep_going", "extra", "many"}


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_are_valid(name: str) -> None:
    from jobs.evaluate import RECIPE as EVALUATE  # noqa: PLC0415
    from jobs.prepare import RECIPE as PREPARE  # noqa: PLC0415
    from jobs.quickstart import RECIPE as QUICKSTART  # noqa: PLC0415
    from jobs.report import RECIPE as REPORT  # noqa: PLC0415
    from jobs.reproduce import RECIPE as REPRODUCE  # noqa: PLC0415

    kinds = {"train": TRAIN, "serve": SERVE, "evaluate": EVALUATE, "quickstart": QUICKSTART}
    kinds |= {"prepare": PREPARE, "report": REPORT, "reproduce": REPRODUCE}
    rest = {
        "prepare": ["--output", "o"],
        "report": ["--results", "r"],
        "train": ["--corpus", "c", "--output", "o"],
        "evaluate": ["--checkpoints", "[tiny]", "--output", "o"],
    }
    job = name.partition("-")[0]
    assert parse_recipe(f"qmop {job}", "", kinds.get(job, TRAIN), ["--config", name, *rest.get(job, [])])
