import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deepspeed import comm
from deepspeed.runtime.config import DeepSpeedConfig

from cluster.progress import Progress
from jobs.recipes_reader import parse_recipe
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.training.bases import base_config
from pipelines.training.dry_run import dry_run, groups_of, print_dry_run, require_accepted, stage_model
from pipelines.training.engine import deepspeed_config
from pipelines.training.memory_needs import GIB
from pipelines.training.recipe import TrainRecipe

STAGE_1: TrainRecipe = parse_recipe("qmop train", "", TrainRecipe, ["--config", "llava-7b-stage1"])
STAGE_2: TrainRecipe = replace(
    parse_recipe("qmop train", "", TrainRecipe, ["--config", "llava-7b-stage2"]),
    base="tiny",
    language=STAGE_1.language,
    vision=STAGE_1.vision,
)
LANGUAGE = 6_738_939_904
TOWER, TEXT = 303_507_456, 123_650_304 + 1024 * 768


def by_name(recipe: TrainRecipe, stage: str) -> dict[str, tuple[int, int]]:
    groups = groups_of(stage_model(recipe, stage, base_config(recipe)))  # type: ignore[arg-type]
    return {group.name: (group.parameters, group.trained) for group in groups}


def test_the_parts_of_7b_by_hand() -> None:
    groups = by_name(STAGE_2, "tune")
    assert groups["language model"] == (LANGUAGE, LANGUAGE)
    assert groups["vision tower"] == (TOWER, 0)
    assert groups["text tower"] == (TEXT, 0)
    connector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert groups["projector: connector"] == (connector, connector)
    assert groups["projector: router"][1] > 0
    assert "projector: prune" not in groups  # it has no parameters


def test_stage_1_trains_the_projector_alone_and_the_router_rests() -> None:
    groups = by_name(STAGE_1, "align")
    trained = {name for name, (_, trained) in groups.items() if trained}
    assert trained == {"projector: resampler", "projector: window_pool", "projector: connector"}
    assert groups["projector: router"][0] > 0


def test_steps_samples_and_tokens_of_the_published_schedule() -> None:
    [first], [second] = dry_run(STAGE_1).stages, dry_run(STAGE_2).stages
    assert (first.steps, first.samples) == (2180, 2180 * 256)
    assert (second.steps, second.samples) == (5197, 5197 * 128)
    assert 0 <= 558_128 - first.samples < 256
    assert 0 <= 665_298 - second.samples < 128
    assert (first.visual_tokens, second.visual_tokens) == (3 * 144, 144)
    assert second.visual_per_step == 144 * 128
    assert second.most_per_step == 2048 * 128


def test_the_7b_run_agrees_with_hand_arithmetic_on_every_stage() -> None:
    [stage] = dry_run(STAGE_2).stages
    states = {needs.zero: needs.states for needs in stage.needs if needs.offload == "none"}
    trained = stage.trained
    assert trained == pytest.approx(6.74e9 + 21e6, rel=0.02)
    assert states[0] == 20 * trained
    assert states[1] == 4 * trained + 16 * trained // 8
    assert states[2] == 2 * trained + 18 * trained // 8
    assert states[3] == pytest.approx(18 * trained / 8 + 4 * 32064 * 4096, rel=1e-9)
    assert stage.needs[0].frozen == 2 * (TOWER + TEXT)
    assert stage.export_bytes == 2 * stage.parameters
    assert stage.state_bytes == 12 * trained
    assert stage.start_bytes == 8 * 8 * stage.parameters
    assert stage.planned.zero == STAGE_2.zero


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    large = dry_run(STAGE_2, gpu_bytes=40 * GIB)
    with pytest.raises(
        ValueError, match=r"stage tune on ZeRO-2 needs \d+\.\d GiB on each of 8 GPUs, but one has 40\.0"
    ):
        large.require_fit()
    with pytest.raises(ValueError, match=r"ZeRO-\d( with optimizer offloaded)? would fit"):
        large.require_fit()
    hopeless = dry_run(replace(STAGE_2, gradient_checkpointing=False), gpu_bytes=79 * GIB)
    with pytest.raises(ValueError, match="lower micro_batch or max_length, set gradient_checkpointing"):
        hopeless.require_fit()
    dry_run(STAGE_2, gpu_bytes=79 * GIB).require_fit()


def test_offload_options_of_the_recipe_are_what_is_planned() -> None:
    away = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    [stage] = dry_run(replace(STAGE_2, zero=3, zero_options=away)).stages
    assert stage.planned.offload == "optimizer and parameters"
    [stage] = dry_run(replace(STAGE_2, zero=2, zero_options={"offload_optimizer": {"device": "cpu"}})).stages
    assert stage.planned.offload == "optimizer"
    assert stage.planned.states == 2 * stage.trained


def test_it_is_printed_before_it_is_refused() -> None:
    out = io.StringIO()
    with pytest.raises(ValueError, match="needs"):
        print_dry_run(replace(STAGE_2, gpu_gib=24.0), Progress(out))
    said = out.getvalue()
    for line in ("5,197 steps", "18,432", "| language model | 6,738,939,904 | 6,738,939,904 |", "| **2** | none |"):
        assert line in said, line


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2], ids=["align", "tune"])
def test_deepspeed_accepts_the_configuration_of_every_stage_for_the_7b_graph(
    zero: int, stage: TrainRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(stage, zero=zero)  # type: ignore[arg-type]
    require_accepted(recipe)
    monkeypatch.setattr(comm, "get_rank", lambda: 0)
    monkeypatch.setattr(comm, "get_world_size", lambda *_: 8)
    read = DeepSpeedConfig(deepspeed_config(recipe, 8))
    assert read.zero_optimization_stage == zero
    assert read.bfloat16_config.enabled
    assert read.train_batch_size == recipe.global_batch
    assert read.gradient_clipping == 1.0
    model = stage_model(recipe, recipe.stages[0], base_config(recipe))
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_what_deepspeed_refuses_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"DeepSpeed refuses the recipe's configuration \(.*stage3_bucket") as caught:
        require_accepted(replace(STAGE_2, zero_options={"stage3_bucket": "large"}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("recipe", "visual"), [(STAGE_1, 3 * 144), (STAGE_2, 144)], ids=["align", "tune"])
def test_the_7b_graph_runs_there_and_back_on_the_meta_device(recipe: TrainRecipe, visual: int) -> None:
    """Pictures and questions to logits; gradients reach every trained parameter and no other."""
    model = stage_model(recipe, recipe.stages[0], base_config(recipe)).train()
    length = visual + 20
    with torch.device("meta"):
        asked = torch.ones(2, 9, dtype=torch.long)
        images = model.get_image_features(torch.empty(2, 3, 336, 336), query_input_ids=asked).compressed
        assert images is not None
        assert images.tokens_BMC is not None
        words = model.get_input_embeddings()(torch.ones(2, 20, dtype=torch.long))
        # A mask of one's own: transformers looks into the numbers of any other.
        states = model.model.language_model(
            inputs_embeds=torch.cat([images.tokens_BMC, words], dim=1),
            attention_mask=torch.zeros(2, 1, length, length),
            use_cache=False,
        ).last_hidden_state
        logits = model.lm_head(states)
        logits.sum().backward()
    assert images.tokens_BMC.shape == (2, visual, 4096)
    assert logits.shape == (2, length, 32064)
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_a_base_that_is_not_there_yet_can_be_named_by_its_parts() -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model: .*; before it exists, .* --base tiny --language"):
        dry_run(replace(STAGE_1, base="nowhere", language=None, vision=None))


def test_a_corpus_that_lacks_a_shard_is_refused_by_name_and_one_that_is_not_there_yet_is_told(tmp_path: Path) -> None:
    asked = TrainRecipe(corpus=str(tmp_path / "corpus"), output=str(tmp_path / "run"))
    out = io.StringIO()
    print_dry_run(asked, Progress(out))
    assert "was not looked at: there is no corpus manifest" in out.getvalue()
    made = {"output": asked.corpus, "count": 20, "samples_per_shard": 10, "seed": 5}
    prepare(PrepareRecipe(source="rendered", **made), Progress(stream=io.StringIO()))  # type: ignore[arg-type]
    print_dry_run(asked, Progress(out))
    assert "20 samples in 2 shards, all there" in out.getvalue()
    (tmp_path / "corpus" / "corpus-000001.tar").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"1 of 2 shards .*corpus-000001.tar has 3 bytes instead of \d+"):
        print_dry_run(asked, Progress(out))
