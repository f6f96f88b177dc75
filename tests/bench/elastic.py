"""One elastic QMoP against one QMoP per budget, at tiny size: same corpus, same steps each, same items."""

import tempfile
from dataclasses import replace
from io import BytesIO

from PIL import Image

import qmop
from cluster.progress import Progress
from cluster.session import RaySettings, ray_session
from cluster.storage import join
from jobs.quickstart import QuickstartRecipe
from pipelines.corpus.prepare import prepare
from pipelines.corpus.recipe import PrepareRecipe
from pipelines.training.recipe import TrainRecipe
from pipelines.training.trainer import train
from qmop.answering import answer
from qmop.vtcbench.rendered import RenderedItem, suite
from qmop.vtcbench.scorers import score
from qmop.vtcbench.statistics import accuracy, mcnemar

BUDGETS = (36, 16, 9)
ITEMS, SAMPLES, BATCH = 750, 6000, 25


def _trained(
    plain: TrainRecipe, progress: Progress, *, folder: str, method: str, tokens: int, options: dict[str, object]
) -> str:
    output = join(folder, f"{method}-{tokens}")
    tune = replace(plain.tune, exports=1)
    recipe = replace(
        plain,
        corpus=join(folder, "corpus"),
        output=output,
        compressor=method,
        tokens=tokens,
        options=plain.options | options,
        tune=tune,
    )
    return train(recipe, progress).exports[-1]


def _right(checkpoint: str, items: list[RenderedItem], tokens: int) -> list[bool]:
    """Whether each item was answered rightly at a budget."""
    model, processor = qmop.load(checkpoint)
    budget = tokens if model.config.compressor == "qmop-elastic" else None
    found = []
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        images = [Image.open(BytesIO(one.image)).convert("RGB") for one in some]
        told = answer(model, processor, images, [one.item.question for one in some], visual_tokens=budget)
        assert {one.visual_tokens for one in told} == {tokens}
        found += [score(one.text, item.item).value >= 1.0 for one, item in zip(told, some, strict=True)]
    return found


def run() -> str:
    """A Markdown table: accuracy by budget, and whether the two differ (exact McNemar)."""
    progress, plain = Progress(), QuickstartRecipe().train
    items = list(suite(1, ITEMS))
    with tempfile.TemporaryDirectory() as folder, ray_session(RaySettings(), progress):
        wanted = PrepareRecipe(source="rendered", output=join(folder, "corpus"), count=SAMPLES, seed=2)
        prepare(wanted, progress)
        drawn: dict[str, object] = {"budgets": list(BUDGETS)}
        one_for_all = _trained(plain, progress, folder=folder, method="qmop-elastic", tokens=BUDGETS[0], options=drawn)
        singles = {
            tokens: _trained(plain, progress, folder=folder, method="qmop", tokens=tokens, options={})
            for tokens in BUDGETS
        }
        rows = {
            tokens: (_right(one_for_all, items, tokens), _right(singles[tokens], items, tokens)) for tokens in BUDGETS
        }
    lines = [
        f"Tiny base, {ITEMS} items, {plain.align.steps} + {plain.tune.steps} steps for each model (seed {plain.seed})",
        "",
        "| tokens | one qmop-elastic for all | one qmop per budget | McNemar p |",
        "|---|---|---|---|",
    ]
    for tokens, (elastic, single) in rows.items():
        shares = [f"{100 * accuracy(list(map(float, right))).value:.1f} %" for right in (elastic, single)]
        lines.append(f"| {tokens} | {shares[0]} | {shares[1]} | {mcnemar(single, elastic):.2g} |")
    return "\n".join(lines) + "\n"
