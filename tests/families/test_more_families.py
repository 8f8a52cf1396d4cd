"""Further families, attached: unmerged to the bit, pruned as if masked, planned as they run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from marks import full
from models import CACHE, check_ledger, left_untouched, near
from torch import Tensor

import lightkv_gnn as lk
from families import loop_families, models
from families.decoders import HYBRID
from families.geometry import TileTruth
from families.loop import FamilyLoop
from families.loop_dropping import answered, dropping
from families.loop_families import Traits
from families.loop_own import own_layers
from families.loop_stock import hidden_from_layers, stock_steps
from families.models import IMAGE, LAYERS
from families.more import FILMED, MORE, RECIPES, model_of
from families.more_inputs import as_in_batch, film, samples, together
from families.processors import skipped_without_needs, square
from lightkv_gnn.adapters.base import families
from lightkv_gnn.planning import model as planning

STEPS = 3
TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
CLOSE = {"eager": 1e-5, "sdpa": 2e-5}
"""Backends differ, uncompressed too."""

LOOSE = {"deepseek_ocr2": 4, "minicpmv4_6": 2, "muse_spark": 4}
"""Uncompressed, too, its padded batch is not as near to each sample alone."""

LIKE_LLAMA = ("mistral3", "lighton_ocr", "ovis2", "got_ocr2", "deepseek_vl", "janus", "vipllava")
"""Those whose layers the explicit loop knows."""

SLIDING = (
    "exaone4_5",
    "cohere2_vision",
    "aya_vision",
    "cohere_compass",
    "step3p7",
    "shieldgemma2",
    "muse_glimmer",
    "muse_spark",
    "llama4",
    "gemma4",
    "gemma4_unified",
    *HYBRID,
)
DEEPSTACK = (
    "qwen3_vl_moe",
    "qwen3_omni_moe_thinker",
    "cosmos3_omni",
    "granite_docling",
    "granite4_vision",
)
LEGAL = {**dict.fromkeys(SLIDING, (1, 3)), **dict.fromkeys(DEEPSTACK, (1, 2, 3, 4))}
"""Layers that a stage may run after, where not after all but the last."""

LIKE_OTHERS = ("glm46v", "glmga", "pp_chart2table", "shieldgemma2", "muse_spark", "gemma4_unified")
HEAVY = ("deepseek_ocr2",)
further = pytest.mark.parametrize(
    "family",
    [name for name in MORE if name not in (*LIKE_OTHERS, *HEAVY)]
    + full(*(name for name in (*LIKE_OTHERS, *HEAVY) if name in MORE)),
)


QUICK_FILMS = ("qwen3_5", "ernie4_5_vl_moe", "kimi_k25", "gemma4")
"""Of each way in which frames become tokens, one family."""

MIXED = ("cohere2_vision", "molmo2", "hunyuan_vl")
"""Layers side by side; tiles that see each other; tokens beside a grid."""

OWN_DECODERS = ("lfm2_vl", "qwen3_5", "ernie4_5_vl_moe", "llama4", "gemma4")
"""Convolutions; linear attention; kinds of tokens; complex tables; inputs of each layer."""

OTHERWISE = {*MIXED, *OWN_DECODERS, *LIKE_LLAMA}
"""Those whose case always runs, or that another loop shows."""


def known(*families: str) -> list[str]:
    return [family for family in families if family in MORE]


@cache
def given(family: str, attention: str = "eager") -> tuple[Any, list[dict[str, Tensor]]]:
    """A model, and inputs of two samples."""
    model = model_of(family, attention)
    return model, samples(family, model)


def stages_of(model: Any, *ratios: float) -> list[tuple[int, int, float]]:
    adapter = lk.adapter_for(model)
    legal, windows = adapter.legal_layers, 2 if adapter.placed else 1
    return list(zip((legal[0], legal[-1]), (windows, 1), ratios, strict=True))


def config_of(model: Any, *ratios: float, **options: Any) -> lk.LightKVConfig:
    return lk.LightKVConfig([lk.Stage(*one) for one in stages_of(model, *ratios)], **options)


def generate(model: Any, inputs: dict[str, Tensor]) -> Any:
    options = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    return model.generate(**inputs, max_new_tokens=STEPS, **options)


def caching(model: Any) -> dict[str, Any]:
    """A cache, for models whose forward makes none when it is given none."""
    makes_one = model.config.model_type != "granite4_vision"
    return {} if makes_one else {CACHE: hf.DynamicCache(config=model.config)}


def gone_from(
    trace: lk.graphs.MergeTrace, ids: Tensor, placeholder: int = IMAGE
) -> list[list[set[int]]]:
    """Of each sample, the tokens that each layer does not see, counted without padding."""
    places = (ids == placeholder).nonzero()  # in the order of the layout
    padding = (ids == 0).sum(1)
    gone: list[list[set[int]]] = [[set() for _ in range(LAYERS)] for _ in ids]
    for number, stage in enumerate(trace):
        left = set(range(len(places))) - set(trace.kept(number).tolist())
        for token in left:
            sample, place = places[token].tolist()
            for layer in range(stage.layer + 1, LAYERS):
                gone[sample][layer].add(place - int(padding[sample]))
    return gone


def test_every_type_that_is_served_is_in_a_table() -> None:
    """And so has its plan compared with what its cache holds, to the byte."""
    recipes = [*models.RECIPES.values(), *(recipe for recipe, _ in RECIPES.values())]
    configs = [getattr(hf, f"{recipe.name}Config", None) for recipe in recipes]
    tested = {config.model_type for config in configs if config is not None}
    assert tested == {name for name in families() if name in hf.CONFIG_MAPPING}


@pytest.mark.parametrize("attention", ["eager", pytest.param("sdpa", marks=pytest.mark.full)])
@further
@torch.no_grad()
def test_pruned_equals_masked_and_unmerged_equals_plain(family: str, attention: str) -> None:
    """A padded batch against each sample alone, in an uncompressed model with what went hidden."""
    model, singles = given(family, attention)
    legal = LEGAL.get(family, tuple(range(LAYERS - 1)))
    assert tuple(lk.adapter_for(model).legal_layers) == legal
    both = together(singles)
    plain = generate(model, both)
    with left_untouched(model, both):
        with lk.attach(model, config_of(model, 0, 0)):
            idle = generate(model, both)
        with lk.attach(model, config_of(model, 0.5, 0.25, message="destination_only")) as handle:
            prefill = model(**both, **caching(model))
            check_ledger(handle.ledger, prefill[CACHE])
            trace = handle.trace
            steps = generate(model, both)
    assert torch.equal(torch.stack(idle.logits), torch.stack(plain.logits))
    kind = RECIPES[family][1]
    grids = [grid for number in range(3) for grid in kind.grids[number]]
    assert list(trace.layout.grids) == grids
    assert len(trace) == 2
    truth, _ = given(family, "eager")
    close = CLOSE[attention] * LOOSE.get(family, 1)
    alone = as_in_batch(family, truth, both, singles)
    for sample, (single, gone) in enumerate(
        zip(alone, gone_from(trace, both["input_ids"]), strict=True)
    ):
        tokens = steps.sequences[sample, -STEPS:].tolist()
        length = single["input_ids"].shape[1]
        kept = torch.tensor([n for n in range(length) if n not in gone[-1]])
        if family in HYBRID:
            rows = dropping(truth, answered(single, tokens[:-1]), gone)
            expected = torch.stack([rows.get(n, rows[0]) for n in range(length)])
            later = torch.stack([rows[length - 1 + n] for n in range(STEPS)])
        else:
            with hidden_from_layers(truth, gone):
                out = truth(**single, **caching(truth))
                expected = out.logits[0]
                later = stock_steps(truth, out, tokens)
        real = both["attention_mask"][sample].bool()
        near(prefill.logits[sample, real][kept], expected[kept], close)
        near(torch.stack(steps.logits)[:, sample], later, close)
        assert tokens == later.argmax(1).tolist()


@pytest.mark.parametrize(
    "family",
    known(*QUICK_FILMS) + full(*(n for n in FILMED if n in MORE and n not in QUICK_FILMS)),
)
@torch.no_grad()
def test_frames_are_tiles_and_pruned_equal_masked(family: str) -> None:
    model, _ = given(family)
    inputs = film(family, model)
    plain = model(**inputs).logits
    with left_untouched(model, inputs):
        with lk.attach(model, config_of(model, 0, 0)):
            idle = model(**inputs).logits
        with lk.attach(model, config_of(model, 0.5, 0.25, message="destination_only")) as handle:
            prefill = model(**inputs)
            check_ledger(handle.ledger, prefill[CACHE])
            steps, trace = generate(model, inputs), handle.trace
    assert torch.equal(idle, plain)
    assert trace.layout.grids == ((4, 4) if family == "video_llava" else (2, 3),) * 3
    (gone,) = gone_from(trace, inputs["input_ids"], FILMED[family])
    tokens, length = steps.sequences[0, -STEPS:].tolist(), inputs["input_ids"].shape[1]
    kept = torch.tensor([n for n in range(length) if n not in gone[-1]])
    assert len(kept) < length
    if family in HYBRID:
        rows = dropping(model, answered(inputs, tokens[:-1]), gone)
        expected = torch.stack([rows.get(n, rows[0]) for n in range(length)])
        later = torch.stack([rows[length - 1 + n] for n in range(STEPS)])
    else:
        with hidden_from_layers(model, gone):
            out = model(**inputs)
            expected, later = out.logits[0], stock_steps(model, out, tokens)
    close = 1e-5 * LOOSE.get(family, 1)
    near(prefill.logits[0, kept], expected[kept], close)
    near(torch.cat(steps.logits), later, close)


@pytest.mark.full
@pytest.mark.parametrize("family", [name for name in LIKE_LLAMA if name in MORE])
@torch.no_grad()
def test_merged_equals_the_layer_loop(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, singles = given(family)
    kind = RECIPES[family][1]
    named = tuple(name for name in ("pixel_values", kind.argument) if name)
    monkeypatch.setitem(loop_families.TRAITS, family, Traits(images=named))
    both = together(singles)
    with lk.attach(model, config_of(model, 0.5, 0.25)):
        logits = model(**both).logits
    for sample, (single, pictures) in enumerate(zip(singles, ((0,), (1, 2)), strict=True)):
        grids = [grid for picture in pictures for grid in kind.grids[picture]]
        loop = FamilyLoop(model, family, stages_of(model, 0.5, 0.25))
        expected = loop.run(single, [TileTruth(*grid) for grid in grids])
        near(logits[sample, both["attention_mask"][sample].bool()], expected)


@pytest.mark.parametrize(
    "family",
    known(*MIXED, *OWN_DECODERS) + full(*(name for name in MORE if name not in OTHERWISE)),
)
@torch.no_grad()
def test_merged_equals_its_own_layers_called_one_by_one(family: str) -> None:
    model, (_, single) = given(family)
    kind = RECIPES[family][1]
    tiles = [tile for picture in (1, 2) for tile in kind.tiles(picture)]
    stages = stages_of(model, 0.5, 0.25)
    vision = (single["input_ids"][0] == IMAGE).tolist()
    expected = own_layers(model, single, vision, tiles, stages)
    found: list[Any] = []
    last = loop_families.decoder_of(model).layers[-1]
    hook = last.register_forward_hook(lambda *call: found.append(call[-1]))
    with lk.attach(model, config_of(model, 0.5, 0.25)):
        model(**single)
    hook.remove()
    near(found[0][0], expected, 2e-5)
    assert len(expected) < len(vision)


@further
@torch.no_grad()
def test_a_plan_from_the_configuration_is_what_a_run_costs(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (single, _) = given(family)
    kind = RECIPES[family][1]
    asked: list[dict[str, Any]] = []

    def process(source: str, size: tuple[int, int], **options: Any) -> dict[str, Any]:
        asked.append(options)
        return {name: value for name, value in single.items() if name not in TEXT}

    monkeypatch.setattr(planning, "_process", process)
    model.config.save_pretrained(tmp_path)
    placeholders = int((single["input_ids"] == IMAGE).sum())
    text = single["input_ids"].shape[1] - placeholders
    size = (64, 96) if kind.last is None else kind.sizes[0]  # told the model, too
    planned = planning.forecast(str(tmp_path), [size], text=text, dtype=torch.float32)
    assert planned.pictures == (placeholders,)
    with lk.attach(model, planned.config) as handle:
        model(**single, **caching(model))
    for row, real in zip(planned.ledger.rows, handle.ledger.rows, strict=True):
        assert (row.planned, row.full) == (real.planned, real.full)
        assert row.planned.kv_bytes == real.observed_kv_bytes
    assert 0 < planned.ledger.retention < 1
    # What the whole processor asks of its image processor.
    cut = {"crop_to_patches": True}
    cell = {"patch_size": 8}
    options = {"mistral3": cell, "ministral3": cell, "aya_vision": cut, "qianfan_ocr": cut}
    assert asked == [options.get(family, {})] * kind.told


PROCESSORS = {
    "mistral3": ("Pixtral", {"size": {"longest_edge": 64}, "patch_size": square(4)}, 7 * 8),
    "aya_vision": ("GotOcr2", {"size": square(32), "max_patches": 4}, 5 * 4 * 4),
}
"""Image processors of a picture of 50 x 64 pixels, and the tokens that the whole processor counts.

Alone, they would scale it to 52 x 64, and cut nothing.
"""


@pytest.mark.parametrize("family", PROCESSORS)
def test_image_processors_do_what_the_whole_processor_asks(family: str, tmp_path: Path) -> None:
    name, options, tokens = PROCESSORS[family]
    with skipped_without_needs():
        getattr(hf, f"{name}ImageProcessorPil")(**options).save_pretrained(tmp_path)
        model_of(family).config.save_pretrained(tmp_path)
        assert planning.forecast(str(tmp_path), [(50, 64)]).pictures == (tokens,)
