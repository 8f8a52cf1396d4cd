"""Pictures are shared out over samples by their placeholders, or it is said why not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import lightkv_gnn as lk
from lightkv_gnn.adapters.encoded import tiles_of_samples
from lightkv_graphs import Tile

SMALL, ROW, NEWLINE, FRAME = Tile(2, 2), Tile(1, 3), Tile(1, 2, after=1), Tile(1, 1)
IMAGES = [[SMALL], [SMALL, NEWLINE], [ROW]]
VIDEOS = [[FRAME, FRAME]]


def shared(
    samples: Sequence[str],
    images: Sequence[Sequence[Tile]] = IMAGES,
    videos: Sequence[Sequence[Tile]] = (),
) -> list[list[Tile]]:
    """Of prompts of text "." and placeholders "i" and "v", in capitals where they are masked."""
    tiles = {"i": images, "v": videos}
    kinds = {kind: own for kind, own in tiles.items() if own}
    lower = [sample.lower() for sample in samples]
    tokens = lk.VisionTokens(
        {kind: torch.tensor([[x == kind for x in row] for row in lower]) for kind in kinds},
        torch.tensor([[x not in "IV_" for x in row] for row in samples]),
        {
            kind: lk.Encoded(kind, {}, tuple(sum(t.tokens for t in tiles) for tiles in own))
            for kind, own in kinds.items()
        },
    )
    return tiles_of_samples(tokens, kinds)


SHARED: dict[str, tuple[list[str], list[list[Tile]]]] = {
    "one sample": (["iiii.iiiiiii.iii"], [[SMALL, SMALL, NEWLINE, ROW]]),
    "adjacent": (["..iiiiiiiiiiiiii"], [[SMALL, SMALL, NEWLINE, ROW]]),
    "split up by text": (["i.i.ii..iiiiiiiiii"], [[SMALL, SMALL, NEWLINE, ROW]]),
    "a sample without": (
        ["__iiii....", "..........", "iiiiiiiiii"],
        [[SMALL], [], [SMALL, NEWLINE, ROW]],
    ),
    "repeated": (
        ["iiii", "iiii", "....", "...."],
        [[SMALL], [SMALL], [], []],
    ),
    "masked out": (["IIII.iiiiiii.iii"], [[SMALL, NEWLINE, ROW]]),
    "all masked out": (["IIIIIIIIIIIIII.."], [[]]),
    "a tile masked out": (["iiii.IIIIiii.iii"], [[SMALL, NEWLINE, ROW]]),
}


@pytest.mark.parametrize("case", SHARED)
def test_tiles_of_each_sample(case: str) -> None:
    samples, expected = SHARED[case]
    assert shared(samples, IMAGES[:1] if case == "repeated" else IMAGES) == expected


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_kinds_keep_the_order_of_the_prompt(repeats: int) -> None:
    first, second = "v.iiii.v", ".vviii.."
    samples = [row for row in (first, second) for _ in range(repeats)]
    found = shared(samples, [[SMALL], [ROW]], [[FRAME, FRAME], [FRAME, FRAME]])
    of_each = [[FRAME, SMALL, FRAME], [FRAME, FRAME, ROW]]
    assert found == [own for own in of_each for _ in range(repeats)]


def test_entries_without_tokens_are_no_pictures() -> None:
    assert shared(["....", "iiii", "....", "iii."], [[], [SMALL], [], [ROW]]) == [
        [],
        [SMALL],
        [],
        [ROW],
    ]


REFUSED: dict[str, tuple[list[str], str]] = {
    "cut off": (["iiii.iiiiiii.ii"], "hold 13 i placeholders, .* encoded to 14 tokens"),
    "too many": (["iiii.iiiiiii.iiii"], "hold 15 i placeholders"),
    "none": (["......"], "hold 0 i placeholders"),
    "half a batch": (["iiiiiiiiiiiiii", "iiiiiiiiiiiiii", ".............."], "hold 28 i"),
    "no repeats": (["iiiiiiiiiiiiiiii", "iiiiiiiiiiii...."], "hold 28 i"),
    "across samples": (["iiii.iiii", "iiiiii..."], "sample 0 holds 8 .* 11 tokens"),
    "partly masked": (["IIii.iiiiiii.iii"], "sample 0 .* some of a tile's 4 follow .* padding"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    samples, message = REFUSED[case]
    with pytest.raises(lk.ImageTokensError, match=message):
        shared(samples)


def test_one_kind_within_another() -> None:
    with pytest.raises(lk.ImageTokensError, match="sample 0 holds i placeholders"):
        shared(["iivviiii"], [[SMALL], [FRAME, FRAME]], VIDEOS)
