"""`qmop-elastic`: one QMoP for all budgets, a variant of ours; the paper trains one model per budget.

A budget is drawn per training step. The grid queries of the pooling branch are interpolated to the drawn grid, the
resampler uses its first queries (nested, as MQT), pruning keeps the drawn number; router and connector are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qmop.compressors.base import Compressor, fitting_budgets, stride_of
from qmop.compressors.mixture import ALIGN, Mixture
from qmop.compressors.registry import register
from qmop.vtcbench.draws import Draws


@register
class ElasticMixture(Mixture):
    """QMoP whose budget is chosen per call, from the built one (the largest) down.

    Args:
        width: C.
        grid: side of the patch grid.
        tokens: the largest M; also the default one.
        budgets: what training draws from; every even stride's count from the largest down to four when absent.
        options: as for `qmop`.
    """

    declaration = replace(Mixture.declaration, name="qmop-elastic", source="ours, after QMoP and MQT", elastic=True)

    def __init__(
        self, *, width: int, grid: int, tokens: int, budgets: Sequence[int] | None = None, **options: Any
    ) -> None:
        super().__init__(width=width, grid=grid, tokens=tokens, **options)
        drawn = fitting_budgets(grid, tokens) if budgets is None else budgets
        if not isinstance(drawn, list | tuple) or not drawn:
            raise ValueError(f"budgets is {drawn!r}: list budgets of at most {tokens} tokens, or leave it out")
        self.budgets = tuple(drawn)
        for one in self.budgets:
            self.budget(one)

    def branch_defaults(self, name: str) -> dict[str, Any]:
        """Branches that take any budget."""
        return {"resampler": {"nested": True}, "window_pool": {"elastic": True}}.get(name, {})

    def budget(self, tokens: int | None) -> int:
        """Any count of a stride that divides the grid, up to the built one.

        Raises:
            ValueError: if the budget does not fit.
        """
        count = self.tokens if tokens is None else tokens
        stride_of(self.grid, count)
        if count > self.tokens:
            raise ValueError(f"tokens is {count}, but this qmop-elastic was built for at most {self.tokens}")
        return count

    def training_budgets(self) -> tuple[int, ...]:
        """The drawn ones while tuning; alignment shows all branches at the largest."""
        return (self.tokens,) if self.stage == ALIGN else self.budgets


def draw_budget(method: Compressor, seed: int, step: int) -> int:
    """The budget of a training step, the same on every process."""
    return Draws(seed, "budget", step).choice(list(method.training_budgets()))
