import pytest
import torch

from pipelines.training.batches import Collator
from pipelines.training.objective import Objective, freeze, router_of
from qmop.tiny.assemble import tiny_model, tiny_processor
from tests.pipelines.training.test_batches import micro, picture


def changed(stage: str, compressor: str) -> set[str]:
    """Names of the top parts whose parameters a step with gradient descent changes."""
    torch.manual_seed(0)
    model = tiny_model(compressor, 16, **({"stage": 1 if stage == "align" else 2} if compressor == "qmop" else {}))
    processor = tiny_processor(model.model.multi_modal_projector.token_count())
    batch = Collator(processor, seed=0, max_length=96)(micro(picture(), picture()))
    groups = freeze(model, stage)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for group in groups.values() for p in group], lr=0.5)
    loss, _ = Objective(model).train()(batch.inputs, batch.labels, dummy=False)
    loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = {"router" if ".router." in name else name.removeprefix("model.").split(".")[0] for name in moved}
    return parts - {"lm_head"}


def test_aligning_moves_the_projector_alone() -> None:
    assert changed("align", "qmop") == {"multi_modal_projector"}


def test_tuning_moves_projector_router_and_language_model_and_no_tower() -> None:
    assert changed("tune", "qmop") == {"multi_modal_projector", "router", "language_model"}


def test_the_sum_of_parts_is_the_loss_of_the_whole() -> None:
    torch.manual_seed(0)
    model, collate = tiny_model("average_pool", 16), Collator(tiny_processor(16), seed=0, max_length=96)
    objective = Objective(model)
    whole = collate(micro(picture(), None))
    both, _ = objective(whole.inputs, whole.labels, dummy=False)
    alone = [collate(micro(picture())), collate(micro(None))]
    alone[1] = type(whole)(  # the second row's turn is drawn by its position
        inputs={**alone[1].inputs, **_second_row(whole)},
        labels=whole.labels[1:],
        dummy=True,
        positions=(1,),
        keys=("b",),
    )
    parts = [objective(batch.inputs, batch.labels, dummy=batch.dummy)[0] for batch in alone]
    assert both.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)


def _second_row(batch: object) -> dict[str, torch.Tensor]:
    inputs = batch.inputs  # type: ignore[attr-defined]
    return {
        name: inputs[name][1:] for name in ("input_ids", "attention_mask", "query_input_ids", "query_attention_mask")
    }


def test_a_blank_counts_for_nothing_but_carries_gradients_to_the_projector() -> None:
    torch.manual_seed(0)
    model, collate = tiny_model("qmop", 16), Collator(tiny_processor(16), seed=0, max_length=96)
    freeze(model, "tune")
    batch = collate(micro(None, None))
    loss, _ = Objective(model).train()(batch.inputs, batch.labels, dummy=True)
    loss.backward()
    router = router_of(model)
    assert router is not None
    gradients = [p.grad for p in model.model.multi_modal_projector.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert loss.item() > 0
