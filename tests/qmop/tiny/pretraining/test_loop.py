from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon

from qmop.tiny.pretraining.loop import Schedule, optimizers, rate, train


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(8, 8)])
        self.inner = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 8)])})
        self.out = nn.Linear(8, 1)

    def losses(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 8, generator=generator)
        y = self.out(self.inner["layers"][0](x).tanh())
        return {"square": (y[:, 0] - x.sum(1)).square().mean()}


SCHEDULE = Schedule(steps=30, learning_rate=4e-2, warmup=5)


def test_the_rate_warms_up_and_falls_to_a_fiftieth() -> None:
    rates = [rate(step, Schedule(steps=105, warmup=5)) for step in range(106)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.51)
    assert rates[105] == pytest.approx(0.02)


def test_muon_takes_the_matrices_inside_layers_and_adamw_the_rest() -> None:
    net = Net()
    adam, muon = optimizers(net, SCHEDULE)
    assert (type(adam), type(muon)) == (AdamW, Muon)
    assert [p is net.inner["layers"][0].weight for p in muon.param_groups[0]["params"]] == [True]
    assert len(adam.param_groups[0]["params"]) == 5
    assert len(optimizers(nn.Linear(2, 2), SCHEDULE)) == 1


def test_training_learns_and_tells() -> None:
    net, said = Net(), []
    before = net.losses(1000)["square"].item()
    train(net, net.losses, SCHEDULE, said.append)
    assert net.losses(1000)["square"].item() < 0.7 * before
    assert [line.split()[0] for line in said] == ["1/30", "26/30", "30/30"]
    assert "square" in said[0]
    assert not net.training


def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole = Net()
    train(whole, whole.losses, SCHEDULE, lambda _: None)
    broken = Net()

    def stop(step: int) -> dict[str, Tensor]:
        if step == 17:
            raise KeyboardInterrupt
        return broken.losses(step)

    with pytest.raises(KeyboardInterrupt):
        train(broken, stop, SCHEDULE, lambda _: None, tmp_path, every=0)
    again, judged = Net(), []
    train(again, again.losses, SCHEDULE, judged.append, tmp_path, every=0, judge=lambda step, _: f"judged {step}")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert [line for line in judged if "judged" in line] == [f"judged {step}" for step in range(18, 31)]
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    net = Net()
    train(net, net.losses, SCHEDULE, lambda _: None, tmp_path)
    again = Net()
    train(again, lambda _: pytest.fail("trained again"), SCHEDULE, lambda _: None, tmp_path)
    assert torch.equal(again.out.weight, net.out.weight)
