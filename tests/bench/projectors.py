"""Time of every projector at the size of LLaVA-1.5-7B, as a ratio to the uncompressed one."""

import statistics
import time

import torch

from qmop.compressors import list_compressors
from qmop.compressors.projector import Connector, Projector
from qmop.compressors.registry import build_compressor
from qmop.features import Query, VisualFeatures

GRID, WIDTH, TEXT, LANGUAGE = 24, 1024, 768, 4096
ROUNDS = 7


def _inputs(batch: int) -> tuple[VisualFeatures, Query]:
    torch.manual_seed(0)
    patches = torch.randn(batch, GRID * GRID, WIDTH)
    features = VisualFeatures(
        patches_BNC=patches,
        grid=(GRID, GRID),
        summary_BC=torch.randn(batch, WIDTH),
        cls_attention_BN=torch.rand(batch, GRID * GRID),
        text_space_BNE=torch.randn(batch, GRID * GRID, TEXT),
    )
    return features, Query(text_BE=torch.randn(batch, TEXT), eos_BC=torch.randn(batch, TEXT))


def _seconds(projector: Projector, features: VisualFeatures, query: Query) -> float:
    started = time.perf_counter()
    projector(features, query)
    return time.perf_counter() - started


@torch.inference_mode()
def run(tokens: int = 144, batch: int = 1) -> str:
    """A Markdown table; each ratio is the median over pairs timed one after the other."""
    features, query = _inputs(batch)
    connector = Connector(WIDTH, LANGUAGE)

    def build(name: str) -> Projector:
        budget = GRID * GRID if name == "mlp" else tokens
        return Projector(build_compressor(name, grid=GRID, width=WIDTH, tokens=budget), connector).eval()

    reference = build("mlp")
    size = f"{GRID * GRID} x {WIDTH} -> {LANGUAGE}"
    lines = [
        f"Projectors at {size}, {tokens} tokens, batch {batch}, {torch.get_num_threads()} threads",
        "",
        "| method | parameters | time / mlp |",
        "|---|---|---|",
    ]
    for name in list_compressors():
        projector = build(name)
        for one in (projector, reference):
            _seconds(one, features, query)
        pairs = [_seconds(projector, features, query) / _seconds(reference, features, query) for _ in range(ROUNDS)]
        parameters = sum(parameter.numel() for parameter in projector.parameters())
        lines.append(
            f"| {name} | {parameters:,} | {statistics.median(pairs):.2f} ({min(pairs):.2f}-{max(pairs):.2f}) |"
        )
    return "\n".join(lines) + "\n"
