"""The adapter that looks for everything itself: right, or refused, and never silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from families.geometry import ANYRES
from families.inputs import PICTURES, batch
from families.models import FAMILIES, IMAGE, TEXT, TOWER, VIDEO, Recipe, tiny
from families.more import FILMED, MORE, model_of
from families.more_inputs import film, samples, together
from marks import full
from models import left_untouched
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.adapters.generic import told
from lightkv_gnn.adapters.generic.squares import QUERIES
from lightkv_gnn.session.request import vision_tokens
from lightkv_graphs import Tile, TokenLayout

REFUSED = {
    **dict.fromkeys(ANYRES, "has image_grid_pinpoints, so tiles"),
    # Two convolutions halve the grid twice, which no configuration tells.
    "got_ocr2": r"of 16, 16, 16, 16, 16, 16 tokens from pixels of \[6, 3, 64, 64\]",
    "hunyuan_vl": r"of 30, 10, 17 tokens.*sizes in \['image_grid_thw'\].*nothing",  # newlines
    "molmo2": r"not known: \['image_grids', 'image_token_pooling'\]",
    "step3p7": r"not known: \['num_local_patches'\]",
    "emu3": r"of 104, 28, 50 tokens.*sizes in \['image_sizes'\].*Found: nothing",  # newlines
    "idefics2": "has perceiver_config, so its vision tokens are queries",
    "aria": "has projector_patch_to_query_dict, so its vision tokens are queries",
}
"""Families that do not tell enough, and what the error says was found."""

RIGHT = (
    *(family for family in FAMILIES if family not in ANYRES),
    *("qwen3_vl_moe", "glm4v", "paddleocr_vl", "exaone4_5", "mistral3", "lighton_ocr", "janus"),
    *("qwen2_5_omni_thinker", "cosmos3_edge", "video_llama_3", "fast_vlm", "perception_lm"),
    *("cohere2_vision", "aya_vision", "ovis2", "qianfan_ocr", "deepseek_vl", "deepseek_vl_hybrid"),
)
"""Families that tell enough; others may be refused."""

ALIKE = (
    "smolvlm",
    "shieldgemma2",
    "aya_vision",
    "pp_chart2table",
    "glm46v",
    "glmga",
    "glm_ocr",
    "muse_spark",
)
"""Families that tell the same as others."""

SHARED = [family for family in FILMED if FILMED[family] == IMAGE]
"""Families whose frames have the placeholder of images, which no configuration tells."""


def calls(family: str) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """A tiny model, and inputs of several pictures of each kind, in a padded batch."""
    if family in MORE:
        model = model_of(family)
        yield model, together(samples(family, model))
        if family in FILMED and family not in SHARED:
            yield model, film(family, model)
        return
    model = tiny(family)
    for kind in ("image", "video"):
        own = [picture for picture in PICTURES[family] if picture.kind == kind]
        yield from ((model, batch(family, model, (2, picture, 3))) for picture in own[1:-1])
        if own and (kind == "image" or family not in ANYRES):
            yield model, batch(family, model, (2, own[0], 1, own[-1], 3), (4, own[-1], 2))


def layout(adapter: lk.Adapter, inputs: dict[str, Tensor]) -> TokenLayout:
    return adapter.layout(vision_tokens(adapter, inputs))


@contextmanager
def said(*words: str) -> Iterator[None]:
    """Expects one warning of what was taken for granted, and that it has these words."""
    with pytest.warns(UserWarning, match="lightkv_gnn: ") as caught:
        yield
    assert len(caught) == 1
    assert not [word for word in words if word not in str(caught[0].message)]


# --- the families that have an adapter of their own -----------------------------------------------


@pytest.mark.filterwarnings("ignore:lightkv_gnn")
@pytest.mark.parametrize(
    "family",
    [name for name in (*FAMILIES, *MORE) if name not in ALIKE]
    + full(*(name for name in (*FAMILIES, *MORE) if name in ALIKE)),
)
@torch.no_grad()
def test_layouts_are_those_of_the_familys_own_adapter(family: str) -> None:
    for model, inputs in calls(family):
        own = lk.adapter_for(model)
        expected = layout(own, inputs)
        try:
            generic = lk.GenericAdapter(model)
            found = layout(generic, inputs)
        except lk.UnsupportedModelError:
            assert family not in RIGHT
            continue
        assert family not in REFUSED
        assert found.grids == expected.grids
        for name in ("sample", "image", "row", "col"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert list(generic.legal_layers) == list(own.legal_layers)


@pytest.mark.parametrize("family", [name for name in REFUSED if name in (*FAMILIES, *MORE)])
@torch.no_grad()
def test_families_that_do_not_tell_are_refused(family: str) -> None:
    model, inputs = next(calls(family))
    with pytest.raises(lk.UnsupportedModelError, match=REFUSED[family]):
        layout(lk.GenericAdapter(model), inputs)


@pytest.mark.parametrize("family", [SHARED[0], *full(*SHARED[1:])])
@torch.no_grad()
def test_frames_that_stand_at_other_tokens_are_refused(family: str) -> None:
    model = model_of(family)
    inputs = film(family, model)
    config = lk.LightKVConfig([lk.Stage(2, 1)])
    with (
        left_untouched(model, inputs),
        lk.attach(model, config, adapter=lk.GenericAdapter),
        pytest.raises(lk.UnsupportedInputError, match=f"has no token {VIDEO}, at which Generic"),
    ):
        model(**inputs)


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", *full("llava_pixtral", "gemma3")])
@torch.no_grad()
def test_answers_are_those_of_the_familys_own_adapter(family: str) -> None:
    model = tiny(family)
    picture = PICTURES[family][0]
    inputs = batch(family, model, (2, picture, 3), (5, picture, 4))
    config = lk.LightKVConfig.for_model(model)
    with lk.attach(model, config) as handle:
        expected, grids = model(**inputs).logits, handle.trace.layout.grids
    taken = f"stand at tokens {IMAGE}", "get_image_features", "grids are"
    with (
        left_untouched(model, inputs),
        said(*taken),  # once, of two calls
        lk.attach(model, config, adapter=lk.GenericAdapter) as handle,
    ):
        assert torch.equal(model(**inputs).logits, expected)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert handle.trace.layout.grids == grids


DOCLING = Recipe(
    "GraniteDocling",
    "GraniteDoclingText",
    "GraniteDoclingVision",
    vision_options={
        **TOWER,
        "image_size": 32,
        "patch_size": 4,
        "scale_factor": 2,
        "out_hidden_size": TEXT["hidden_size"],
        "deepstack_visual_indexes": [0, 1],
        "use_fine_route": False,
    },
    options={"tie_word_embeddings": False, "pad_token_id": 0},
)


@pytest.mark.skipif(not hasattr(transformers, "GraniteDoclingConfig"), reason="is too old for it")
@torch.no_grad()
def test_a_type_without_an_adapter() -> None:
    """Granite Docling: three tiles, and features added to the first two layers."""
    model = tiny("granite_docling", "eager", recipe=DOCLING)
    ids = torch.tensor([[5, 6, *[7, *[IMAGE] * 16] * 3, 8, 9]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "pixel_attention_mask": torch.ones(1, 3, dtype=torch.bool),
    }
    plain = model(**inputs).logits
    config = lk.LightKVConfig([lk.Stage(1, 2, 0), lk.Stage(3, 2, 0.5)])
    with pytest.raises(lk.ScheduleError, match="may run after layers 1 to 4"):
        lk.attach(model, lk.LightKVConfig([lk.Stage(0, 1)]), adapter=lk.GenericAdapter)
    with (
        left_untouched(model, inputs),
        said("squares of 4x4 tokens, from image_size / patch_size / 2", "after layer 1"),
        lk.attach(model, config, adapter=lk.GenericAdapter) as handle,
    ):
        assert not torch.equal(model(**inputs).logits, plain)
        assert handle.trace.layout.grids == ((4, 4),) * 3
    nothing = lk.LightKVConfig([lk.Stage(1, 2, 0), lk.Stage(3, 2, 0)])
    with left_untouched(model, inputs), lk.attach(model, nothing, adapter=lk.GenericAdapter):
        assert torch.equal(model(**inputs).logits, plain)


# --- what is read ---------------------------------------------------------------------------------


def encoded(
    lengths: tuple[int, ...], shape: tuple[int, ...] = (), kind: str = "image", **arguments: Any
) -> lk.Encoded:
    return lk.Encoded(kind, arguments, lengths, shape)


@pytest.mark.filterwarnings("ignore:lightkv_gnn")
def test_several_tiles_are_never_one_square() -> None:
    """64 tokens of a picture of four tiles, where both 4 x 4 and 8 x 8 could be meant."""
    four = encoded((64,), (4, 3, 32, 32))
    adapter = lk.GenericAdapter(tiny("internvl"))
    assert adapter.tiles(four) == [[Tile(4, 4)] * 4]
    for told_count in (64, 1024):
        model = tiny("internvl", image_seq_length=told_count, downsample_ratio=1.0)
        with pytest.raises(lk.UnsupportedModelError, match="Found: nothing"):
            lk.GenericAdapter(model).tiles(four)
        with pytest.raises(lk.UnsupportedModelError, match="Found: nothing"):
            lk.GenericAdapter(model).tiles(encoded((64,), (1, 4, 3, 32, 32)))


def test_two_ways_to_read_are_none() -> None:
    """64 tokens of five samples, some of them padding: a square of 8 x 8, or four of 4 x 4."""
    padded = encoded((64,), (5, 1, 3, 32, 32))
    both = "Found: squares of 4x4 tokens, from mm_tokens_per_image; squares of 8x8 tokens, from im"
    with pytest.raises(lk.UnsupportedModelError, match=both):
        lk.GenericAdapter(tiny("gemma3")).tiles(padded)


def test_frames_of_models_that_merge_twice_are_refused() -> None:
    """Each by two, of which the second may be over frames."""
    given = encoded((24,), video_grid_thw=torch.tensor([[4, 8, 12]]))
    assert told.readings(given, given.arguments, [2, 2], None) == []


SQUARES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "another size of pixels": ((64,), (1, 3, 64, 64)),
    "a class token": ((17,), (1, 3, 32, 32)),
    "no square of pixels": ((16,), (1, 3, 16, 64)),
    "pixels of nobody knows what": ((16,), ()),
    "patches": ((16,), (64, 48)),
    "more tokens than pixels": ((16, 16), (1, 3, 32, 32)),
    "as many tokens in other tiles": ((24, 8), (2, 3, 32, 32)),
}


def test_sizes_of_pictures_before_they_were_scaled_tell_nothing() -> None:
    """Which as numbers of patches would divide into as many tokens."""
    sizes = {"image_sizes": torch.tensor([[64, 16]])}
    for shape, found in (
        ((1, 3, 32, 32), []),
        ((16, 48), ["image_sizes over 8x8 patches a token"]),
    ):
        read = told.readings(lk.Encoded("image", sizes, (16,), shape), sizes, (), 8)
        assert [reading.how for reading in read] == found


@pytest.mark.parametrize("name", ["query_num", "num_queries", "query_length", "max_query_tokens"])
def test_a_number_of_queries_is_no_square(name: str) -> None:
    assert QUERIES.fullmatch(name)
    assert not QUERIES.fullmatch("query_pre_attn_scalar")


@pytest.mark.parametrize("case", SQUARES)
def test_squares_that_do_not_fit_are_refused(case: str) -> None:
    with pytest.raises(lk.UnsupportedModelError, match="the grid of its images is not certain"):
        lk.GenericAdapter(tiny("internvl")).tiles(encoded(*SQUARES[case]))


def positions(*grids: tuple[int, int], column: int) -> Tensor:
    """Of patches row by row, padded with -1, `[picture, patch, 2]`."""
    most = max(rows * cols for rows, cols in grids)
    found = torch.full((len(grids), most, 2), -1)
    for own, (rows, cols) in zip(found, grids, strict=True):
        places = torch.tensor([*product(range(rows), range(cols))])
        own[: rows * cols] = places if column == 1 else places.flip(1)
    return found


READ: dict[str, tuple[lk.Encoded, list[list[Tile]]]] = {
    "positions, column first": (
        encoded((6, 4), image_position_ids=positions((4, 6), (8, 2), column=0)),
        [[Tile(2, 3)], [Tile(4, 1)]],
    ),
    "positions, row first": (
        encoded((6, 4), image_position_ids=positions((4, 6), (8, 2), column=1)),
        [[Tile(2, 3)], [Tile(4, 1)]],
    ),
    "shapes of tiles": (
        encoded((6, 4), spatial_shapes=torch.tensor([[4, 6], [8, 2]])),
        [[Tile(2, 3)], [Tile(4, 1)]],
    ),
    "shapes of tiles of one picture": (
        encoded((10,), spatial_shapes=torch.tensor([[4, 6], [8, 2]])),
        [[Tile(2, 3), Tile(4, 1)]],
    ),
    "sizes in patches": (encoded((6,), target_sizes=torch.tensor([[4, 6]])), [[Tile(2, 3)]]),
    "pixels, with a rest": (
        encoded((6,), (1, 3, 19, 24), image_sizes=torch.tensor([[19, 24]])),
        [[Tile(2, 3)]],
    ),
    "merged as the call says": (
        encoded(
            (24, 6),
            image_grid_thw=torch.tensor([[1, 4, 6], [1, 4, 6]]),
            image_merge_sizes=torch.tensor([1, 2]),
        ),
        [[Tile(4, 6)], [Tile(2, 3)]],
    ),
    "frames": (
        encoded((12,), kind="video", video_grid_thw=torch.tensor([[2, 4, 6]])),
        [[Tile(2, 3)] * 2],
    ),
}


@pytest.mark.filterwarnings("ignore:lightkv_gnn")
@pytest.mark.parametrize("case", READ)
def test_what_an_encoder_is_given_tells(case: str) -> None:
    given, expected = READ[case]
    assert lk.GenericAdapter(tiny("qwen2_5_vl")).tiles(given) == expected


UNREAD: dict[str, lk.Encoded] = {
    "frames that were merged too": encoded(
        (6,), kind="video", video_grid_thw=torch.tensor([[4, 4, 6]])
    ),
    "newlines": encoded((8,), image_grid_thw=torch.tensor([[1, 4, 6]])),
    "as many patches as tokens": encoded((24,), image_grid_thw=torch.tensor([[1, 4, 6]])),
    "a rest of patches": encoded((6,), image_grid_thw=torch.tensor([[1, 3, 8]])),
    "shares of another kind": encoded((5, 5), spatial_shapes=torch.tensor([[4, 6], [8, 2]])),
    "a picture too many": encoded((6,), spatial_shapes=torch.tensor([[4, 6], [0, 8]])),
    "a picture of nothing": encoded((6,), spatial_shapes=torch.tensor([[0, 8], [4, 6]])),
    "sizes of other pixels": encoded((6,), (1, 3, 48, 48), image_sizes=torch.tensor([[16, 24]])),
    "positions in no order": encoded(
        (6,), image_position_ids=positions((4, 6), column=1)[:, torch.arange(23, -1, -1)]
    ),
    "pooled by a table, as Molmo 2": encoded(
        (8,),
        image_token_pooling=torch.zeros(8, 4),
        image_grids=torch.tensor([[2, 2, 2, 2]]),
    ),
    "a number of crops": encoded(
        (6,), image_grid_thw=torch.tensor([[1, 4, 6]]), num_local_patches=torch.tensor([0])
    ),
    "two that tell": encoded(
        (6,), image_grid_thw=torch.tensor([[1, 4, 6]]), image_sizes=torch.tensor([[16, 24]])
    ),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_not_certain_is_refused(case: str) -> None:
    given = UNREAD[case]
    named = [name for name in given.arguments if name != "video_grid_thw"] or ["video_grid_thw"]
    with pytest.raises(lk.UnsupportedModelError, match="(?s)not certain.*" + named[0]):
        lk.GenericAdapter(tiny("qwen2_5_vl")).tiles(given)


def test_the_count_tells_the_grid_of_any_pictures() -> None:
    """Patches merged evenly, or with frames, newlines or a class token that must not pass.

    Grids are no lines, of which two frames in one with newlines have as many tokens as both.
    """
    generator = torch.Generator().manual_seed(0)

    def number(most: int) -> int:
        return int(torch.randint(1, most + 1, (), generator=generator))

    right = 0
    for _ in range(400):
        merge, pictures = number(3), number(3)
        sides = [(1 + number(5)) * merge for _ in range(2 * pictures)]
        sizes = [(number(3), *pair) for pair in zip(sides[::2], sides[1::2], strict=True)]
        pooled, row_end, class_token = number(2) == 1, number(3) // 3, number(4) // 4
        tiles = [[Tile(h // merge, w // merge)] * (1 if pooled else t) for t, h, w in sizes]
        tiles = [[x._replace(row_end=row_end, before=class_token) for x in own] for own in tiles]
        lengths = tuple(sum(tile.tokens for tile in own) for own in tiles)
        given = encoded(lengths, image_grid_thw=torch.tensor(sizes))
        found = told.readings(given, given.arguments, [merge], None)
        assert [one.tiles for one in found] in ([], [tiles])
        if not (row_end or class_token) and (not pooled or all(t == 1 for t, _, _ in sizes)):
            assert found
            right += 1
    assert right > 50
