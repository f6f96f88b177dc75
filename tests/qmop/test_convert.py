from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from qmop import convert as module
from qmop.compressors import Projector, build_projector
from qmop.convert import convert, names_of, projector_state, projector_tensors
from qmop.features import Query, VisualFeatures
from qmop.loading import load
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.assemble import tiny_model, tiny_processor

GRID, WIDTH, LEVELS, LANGUAGE = 12, 128, 4, 160


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.GELU(), nn.Linear(widths[1], widths[2]))


def cells(states_BNC: Tensor, stride: int) -> Tensor:
    """Every region a row: `(B * M, s * s, C)`."""
    maps = states_BNC.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
    columns = F.unfold(maps, stride, stride=stride)  # B x (C * s * s) x M
    return columns.transpose(1, 2).unflatten(2, (-1, stride * stride)).transpose(2, 3).flatten(0, 1)


class OfficialLikePacker(nn.Module):
    """TokenPacker under its published names, written from the paper's description with torch's attention."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.q_proj_1 = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj_1, self.v_proj_1 = mlp(LEVELS * WIDTH, WIDTH, WIDTH), mlp(LEVELS * WIDTH, WIDTH, WIDTH)
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(3))
        self.clip_attn = nn.MultiheadAttention(WIDTH, 8, batch_first=True)
        self.mlp = mlp(WIDTH, LANGUAGE, LANGUAGE)
        randomise(self)

    def forward(self, patches_BNC: Tensor, levels_BNF: Tensor) -> Tensor:
        side = GRID // self.stride
        maps = patches_BNC.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        coarse = F.interpolate(maps, size=(side, side), mode="bilinear").flatten(2).transpose(1, 2)
        query = self.ln_q_1(self.q_proj_1(coarse)).flatten(0, 1).unsqueeze(1)
        key, value = self.ln_k_1(self.k_proj_1(levels_BNF)), self.ln_v_1(self.v_proj_1(levels_BNF))
        mixed = self.clip_attn(query, cells(key, self.stride), cells(value, self.stride))[0]
        return self.mlp(mixed.view(len(patches_BNC), side * side, WIDTH))


class OfficialLikeQueCC(nn.Module):
    """QueCC under its published names."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.q_proj = nn.Sequential(*mlp(WIDTH, WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=1e-6))
        self.k_proj, self.v_proj = (
            nn.Sequential(*mlp(LEVELS * WIDTH, WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=1e-6)) for _ in range(2)
        )
        self.q_downsample = nn.Conv2d(WIDTH, WIDTH, stride, stride, groups=WIDTH)
        self.text_projection = nn.Sequential(nn.Linear(LANGUAGE, WIDTH), nn.LayerNorm(WIDTH, eps=1e-6))
        self.clip_attn = nn.MultiheadAttention(WIDTH, 8, batch_first=True)

    def forward(self, patches_BNC: Tensor, levels_BNF: Tensor, text_BD: Tensor) -> Tensor:
        asking = self.q_proj(patches_BNC + self.text_projection(text_BD).unsqueeze(1))
        query = self.q_downsample(asking.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        key, value = cells(self.k_proj(levels_BNF), self.stride), cells(self.v_proj(levels_BNF), self.stride)
        return self.clip_attn(query.flatten(0, 1).unsqueeze(1), key, value)[0].view(query.shape)


def projector(method: str, tokens: int) -> Projector:
    return build_projector(method, grid=GRID, width=WIDTH, tokens=tokens, language_width=LANGUAGE)


def randomise(official: nn.Module) -> None:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in official.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def features(batch: int = 2) -> VisualFeatures:
    generator = torch.Generator().manual_seed(5)
    return VisualFeatures(
        patches_BNC=torch.randn(batch, GRID * GRID, WIDTH, generator=generator),
        levels_BNF=torch.randn(batch, GRID * GRID, LEVELS * WIDTH, generator=generator),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uncompressed checkpoint with random weights."""
    folder, model = tmp_path_factory.mktemp("base"), tiny_model()
    model.save_pretrained(folder)
    tiny_processor(model.model.multi_modal_projector.token_count()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(base: Path) -> dict[str, Tensor]:
    """The base's language model."""
    state = load(base)[0].state_dict()
    return {name: value for name, value in state.items() if name.startswith(("model.language_model.", "lm_head."))}


def prefixed(official: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in official.state_dict().items()}


def projected(folder: Path, read: VisualFeatures, query: Query | None = None) -> Tensor:
    with torch.no_grad():
        return load(folder)[0].model.multi_modal_projector(read, query).tokens_BMC


@pytest.mark.parametrize(
    ("stride", "prefix", "suffix"),
    [
        (2, "model.mm_projector.", ".bin"),
        (3, "model.mm_projector.", ".safetensors"),
        (4, "base_model.model.model.mm_projector.", ".bin"),
        (2, "", ".pth"),
    ],
)
def test_tokenpacker_gives_what_its_published_module_gives(
    base: Path, tmp_path: Path, stride: int, prefix: str, suffix: str
) -> None:
    official, read = OfficialLikePacker(stride), features()
    state, file = prefixed(official, prefix), tmp_path / f"mm_projector{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    tokens = (GRID // stride) ** 2
    folder = convert(file, base, tmp_path / "made", method="tokenpacker", tokens=tokens)
    assert read.levels_BNF is not None
    with torch.no_grad():
        wanted = official(read.patches_BNC, read.levels_BNF)
    assert wanted.std() > 0.1
    torch.testing.assert_close(projected(folder, read), wanted, rtol=0, atol=1e-5)
    model, processor = load(folder)
    assert (model.config.compressor, processor.visual_tokens) == ("tokenpacker", tokens)


def test_quecc_gives_what_its_published_module_gives(base: Path, tmp_path: Path) -> None:
    official = nn.Sequential(OfficialLikeQueCC(3), *mlp(WIDTH, LANGUAGE, LANGUAGE))
    randomise(official)
    torch.save(prefixed(official, "model.mm_projector."), tmp_path / "p.bin")
    folder = convert(tmp_path / "p.bin", base, tmp_path / "made", method="quecc", tokens=16)
    read, text = features(), torch.randn(2, LANGUAGE, generator=torch.Generator().manual_seed(6))
    assert read.levels_BNF is not None
    with torch.no_grad():
        wanted = official[1:](official[0](read.patches_BNC, read.levels_BNF, text))
    given = projected(folder, read, Query(text_BE=torch.zeros(2, 8), language_BD=text))
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["mlp", "prune"])
def test_llavas_projector_serves_every_training_free_method(base: Path, tmp_path: Path, method: str) -> None:
    official = mlp(WIDTH, LANGUAGE, LANGUAGE)
    torch.save(prefixed(official, "model.mm_projector."), tmp_path / "mm_projector.bin")
    folder = convert(tmp_path / "mm_projector.bin", base, tmp_path / "made", method=method)
    with torch.no_grad():
        wanted, tokens = official(torch.ones(1, 1, WIDTH)), torch.ones(1, 1, WIDTH)
        given = load(folder)[0].model.multi_modal_projector.connector(tokens)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-6)


def test_the_names_of_transformers_are_known_too() -> None:
    ours = projector("mlp", 144)
    state = {f"multi_modal_projector.{name}": value for name, value in ours.connector.state_dict().items()}
    found = projector_state(projector_tensors(state, "f"), "mlp", ours, "f")
    assert found.keys() == ours.state_dict().keys()


def test_everything_else_is_the_bases(base: Path, tmp_path: Path) -> None:
    torch.save(prefixed(OfficialLikePacker(2), "model.mm_projector."), tmp_path / "p.bin")
    made = load(convert(tmp_path / "p.bin", base, tmp_path / "made", method="tokenpacker", tokens=36))[0].state_dict()
    kept = {name: value for name, value in load(base)[0].state_dict().items() if "multi_modal_projector" not in name}
    assert len(kept) > 100
    assert all(torch.equal(made[name], value) for name, value in kept.items())


def test_weights_are_written_in_the_precision_asked_for(base: Path, tmp_path: Path) -> None:
    torch.save(prefixed(OfficialLikePacker(2).half(), "model.mm_projector."), tmp_path / "p.bin")
    folder = convert(tmp_path / "p.bin", base, tmp_path / "made", method="tokenpacker", tokens=36, dtype=torch.bfloat16)
    assert load(folder, dtype=None)[0].dtype == torch.bfloat16


def full_checkpoint(folder: Path, model: QMoPForConditionalGeneration, official: nn.Module, rows: int) -> Path:
    """A checkpoint as LLaVA's authors write it, in two shards, with other words than the base's."""
    state = prefixed(official, "model.mm_projector.")
    for name, value in model.model.language_model.state_dict().items():
        state[f"model.{name}"] = value[:rows] + 1 if name == "embed_tokens.weight" else value + 1
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    state["model.vision_tower.vision_tower.vision_model.post_layernorm.weight"] = torch.zeros(4)
    folder.mkdir()
    places = {}
    for shard in (1, 2):
        file = f"pytorch_model-0000{shard}-of-00002.bin"
        part = {name: value for place, (name, value) in enumerate(state.items()) if place % 2 == shard - 1}
        torch.save(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_a_full_checkpoint_brings_its_language_model(base: Path, tmp_path: Path) -> None:
    source, official = load(base)[0], OfficialLikePacker(2)
    rows = len(source.lm_head.weight) - 3
    checkpoint = full_checkpoint(tmp_path / "full", source, official, rows)
    model = load(convert(checkpoint, base, tmp_path / "made", method="tokenpacker", tokens=36))[0]
    inner, own = model.model.language_model.state_dict(), source.model.language_model.state_dict()
    words = inner.pop("embed_tokens.weight")
    assert torch.equal(words[:rows], own["embed_tokens.weight"][:rows] + 1)
    assert torch.equal(words[rows:], own["embed_tokens.weight"][rows:])
    assert all(torch.equal(value, own[name] + 1) for name, value in inner.items())
    assert torch.equal(model.model.multi_modal_projector.compressor.query.weight, official.q_proj_1.weight)
    assert torch.equal(model.model.vision_tower.post_layernorm.weight, source.model.vision_tower.post_layernorm.weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model.norm.weight": None},
            "does not fit the base's language model: it lacks model.language_model.norm.weight",
        ),
        ({"model.norm.bias": torch.zeros(160)}, "it has the unknown model.norm.bias:"),
        ({"model.norm.weight": torch.zeros(80)}, "it has model.norm.weight of shape 80 where 160 is needed"),
        ({"model.embed_tokens.weight": torch.zeros(10**5, 160)}, r"model.embed_tokens.weight of shape 100000 x 160"),
        ({"lm_head.weight": torch.zeros(9, 160)}, r"it has the unknown lm_head.weight \(the base's is one with"),
    ],
)
def test_another_language_model_than_the_bases_is_refused(
    words: dict[str, Tensor], change: dict[str, Tensor | None], said: str
) -> None:
    theirs = {name.replace("model.language_model", "model"): value for name, value in words.items()} | change
    given = {name: value for name, value in theirs.items() if value is not None}
    with pytest.raises(ValueError, match=said):
        module._language_state(given, words, "f")


class Runs:
    """Unpickles into a call."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_unread(base: Path, tmp_path: Path, zipped: bool) -> None:
    trace, file = tmp_path / "trace", tmp_path / "mm_projector.bin"
    state = {**prefixed(OfficialLikePacker(2), "model.mm_projector."), "model.mm_projector.x": Runs(trace)}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"mm_projector\.bin asks for posix\.mkdir, which is no tensor") as refused:
        convert(file, base, tmp_path / "made", method="tokenpacker", tokens=36)
    assert "weights_only" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # what was refused does what it says
    assert trace.is_dir()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ln_k_1.bias": None}, "it lacks compressor.key.norm.bias: check the method, its tokens and the base"),
        ({"extra.weight": torch.zeros(2)}, "it has the unknown extra.weight"),
        ({"mlp.0.weight": torch.zeros(4096, 128)}, "it has mlp.0.weight of shape 4096 x 128 where 160 x 128 is needed"),
        (
            {"mlp.0.bias": None, "ln_q_1.weight": torch.zeros(3), "spare": torch.zeros(1)},
            "it lacks connector.linear_1.bias; it has the unknown spare; it has ln_q_1.weight of shape 3 where 128",
        ),
    ],
)
def test_a_projector_that_does_not_fit_is_refused_by_name(change: dict[str, Tensor | None], said: str) -> None:
    state = {**OfficialLikePacker(2).state_dict(), **change}
    given = {f"model.mm_projector.{name}": value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=f"p.bin does not fit tokenpacker: {said}"):
        projector_state(projector_tensors(given, "p.bin"), "tokenpacker", projector("tokenpacker", 36), "p.bin")


def test_a_wrong_stride_shows_where_the_shapes_know_it(base: Path, tmp_path: Path) -> None:
    official = nn.Sequential(OfficialLikeQueCC(3), *mlp(WIDTH, LANGUAGE, LANGUAGE))
    torch.save(prefixed(official, "model.mm_projector."), tmp_path / "p.bin")
    with pytest.raises(ValueError, match=r"0\.q_downsample\.weight of shape 9 x 128 where 4 x 128 is needed"):
        convert(tmp_path / "p.bin", base, tmp_path / "made", method="quecc", tokens=36)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.bin"]


def test_a_long_list_of_names_is_cut() -> None:
    with pytest.raises(ValueError, match=r"it has the unknown q_proj_1\.weight, [^;]* and 19 more: check") as refused:
        projector_state(OfficialLikePacker(2).state_dict(), "mlp", projector("mlp", 144), "p.bin")
    assert "\n" not in str(refused.value)


def test_an_existing_output_is_left_alone(base: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(FileExistsError, match=r"made exists: choose another output"):
        convert(tmp_path / "p.bin", base, tmp_path / "made", method="tokenpacker", tokens=36)
    assert list((tmp_path / "made").iterdir()) == []


def test_a_write_that_fails_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(prefixed(OfficialLikePacker(2), "model.mm_projector."), tmp_path / "p.bin")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("qmop.processing_qmop.QMoPProcessor.save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        convert(tmp_path / "p.bin", base, tmp_path / "made", method="tokenpacker", tokens=36)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.bin"]


def test_states_without_a_projector_are_refused() -> None:
    with pytest.raises(ValueError, match="f holds no projector: none of its 1 names has mm_projector in it"):
        projector_tensors({"model.norm.weight": torch.zeros(2)}, "f")


@pytest.mark.parametrize("method", ["qmop", "window_pool", "resampler", "blind"])
def test_trained_methods_without_published_weights_are_named(tmp_path: Path, method: str) -> None:
    with pytest.raises(
        ValueError, match=f"method is '{method}', of which no published weights.*mlp, tokenpacker, quecc"
    ):
        convert(tmp_path / "p.bin", tmp_path, tmp_path / "made", method=method)


def test_every_published_name_is_used() -> None:
    for method, names in module.PUBLISHED.items():
        if method == "mlp":
            continue
        state = projector(method, 36).state_dict()
        own = {name.rpartition(".")[0] for name in state} | state.keys()
        assert names_of(method) is names
        assert {ours for ours in names.values() if ours not in own} == set()
