"""One stage of a trace: where each token went, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from lightkv_graphs.build import KEEPS, MERGES, stage_graph
from lightkv_graphs.certificate import Certificate
from lightkv_graphs.layout import TokenLayout
from lightkv_graphs.matching import Matching

TOLERANCE = 1e-3
"""By how much weights may miss a sum of one, and cosines the interval from -1 to 1."""

MOST_WINDOWS = 1000
"""Windows per side that a stage may have; the host counts the tokens of each."""


@dataclass(frozen=True, eq=False)
class StageTrace:
    """What one stage did.

    Attributes:
        layer: The decoder layer (0-based) the stage ran after.
        windows: Windows per side.
        window: Window of each token before the stage, `[token]`.
        kept: Tokens before the stage that stay, ascending, `[survivor]`.
        survivor: Row of the survivor each token before the stage ends in, `[token]`.
        weight: Share of each token before the stage in its survivor, `[token]`; 0 for a token that
            was dropped.
        similarity: Cosine of each token before the stage and the one it ends in, `[token]`; 1 for
            those that stay, NaN or minus infinity where a feature was NaN.
        guidance: Logarithm of the prompt's guidance of each token before the stage, `[token]`,
            minus infinity for none at all; None where the prompt was not heard.
        layout: The tokens after the stage.
        certificate: What it lost, where the matcher could tell; else None.
    """

    layer: int
    windows: int
    window: Tensor
    kept: Tensor
    survivor: Tensor
    weight: Tensor
    similarity: Tensor
    guidance: Tensor | None
    layout: TokenLayout
    certificate: Certificate | None = None

    @classmethod
    def from_graph(
        cls,
        graph: HeteroData,
        survivor: Tensor,
        layout: TokenLayout,
        *,
        layer: int,
        windows: int,
        guidance: Tensor | None = None,
        certificate: Certificate | None = None,
    ) -> StageTrace:
        """What the messages' graph of a stage, from ``merge_graph``, tells of it.

        Args:
            graph: The graph.
            survivor: Row of each token's survivor, `[token]`.
            layout: The tokens after the stage.
            layer: The decoder layer (0-based) the stage ran after.
            windows: Windows per side.
            guidance: Logarithm of the prompt's guidance, `[token]`.
            certificate: Of what was lost.
        """
        kept, source = graph[KEEPS].edge_index[0], graph[MERGES].edge_index[0]
        weight = torch.zeros_like(survivor, dtype=graph[KEEPS].weight.dtype)
        weight = weight.index_copy(0, kept, graph[KEEPS].weight)
        weight = weight.index_copy(0, source, graph[MERGES].weight)
        cosine = graph[MERGES].similarity
        similarity = torch.ones_like(survivor, dtype=cosine.dtype).index_copy(0, source, cosine)
        told = graph["vision"].window, kept, survivor, weight, similarity, guidance, layout
        return cls(layer, windows, *told, certificate)

    @classmethod
    def from_tokens(
        cls,
        before: TokenLayout,
        *,
        layer: int,
        windows: int,
        window: Tensor,
        kept: Tensor,
        survivor: Tensor,
        weight: Tensor,
        similarity: Tensor,
        guidance: Tensor | None = None,
        certificate: Certificate | None = None,
    ) -> StageTrace:
        """Checks what became of each token, and derives the layout after the stage.

        Args:
            before: The tokens before the stage, on the CPU.
            layer: The decoder layer (0-based) the stage ran after.
            windows: Windows per side.
            window: Window of each token, `[token]`; see
                :class:`~lightkv_graphs.WindowPartition`.
            kept: Tokens that stay, `[survivor]`.
            survivor: Row of the survivor each token ends in, `[token]`.
            weight: Share of each token in its survivor, `[token]`.
            similarity: Cosine of each token and the one it ends in, `[token]`.
            guidance: Logarithm of the prompt's guidance, `[token]`.
            certificate: Of what was lost, `[image]` each.

        Raises:
            ValueError: Tensors of another shape, tokens, survivors or windows that do not exist,
                survivors that are out of order or end elsewhere, merges that leave a window or
                involve a protected token, weights that are negative or do not sum to one, or
                numbers that are no cosine or no logarithm; the message names the token.
        """
        before = before.to("cpu")
        given = (window.long(), kept.long(), survivor.long(), weight, similarity)
        window, kept, survivor, weight, similarity = (value.detach().cpu() for value in given)
        guidance = None if guidance is None else guidance.detach().cpu()
        _check_shapes(len(before), kept=kept, window=window, survivor=survivor)
        _check_shapes(len(before), weight=weight, similarity=similarity, guidance=guidance)
        if layer < 0 or not 1 <= windows <= MOST_WINDOWS:
            raise ValueError(
                f"layer {layer} with {windows} windows per side: expected a layer from 0 and "
                f"1 to {MOST_WINDOWS} windows"
            )
        _check_lineage(before, kept, survivor)
        _check_windows(before, windows, window, kept[survivor])
        _check_weights(weight, survivor, len(kept))
        _check_similarity(similarity, kept)
        if guidance is not None:
            _require(guidance < torch.inf, "guidance", guidance, "a logarithm, not NaN or infinity")
        certificate = None if certificate is None else _checked(certificate, len(before.grids))
        told = window, kept, survivor, weight, similarity, guidance
        return cls(layer, windows, *told, _after(before, kept, survivor), certificate)

    @property
    def stays(self) -> Tensor:
        """True for the tokens before the stage that stay, `[token]`."""
        return torch.zeros_like(self.survivor, dtype=torch.bool).index_fill(0, self.kept, True)

    @property
    def divergence(self) -> Tensor:
        """Feature divergence of each token before the stage and the one it ends in, `[token]`."""
        return 1 - self.similarity

    def to_graph(self, before: TokenLayout) -> HeteroData:
        """The graph that the messages passed over, from the layout before the stage.

        That of ``merge_graph`` again, without the prompt's tokens.
        """
        source = (~self.stays).nonzero()[:, 0]
        edge_index = torch.stack([source, self.kept[self.survivor[source]]])
        matching = Matching(edge_index, self.similarity[source])
        return stage_graph(before, self.window, matching, self.kept, self.weight)

    def to(self, device: torch.device | str) -> StageTrace:
        """The same stage on another device."""
        names = ("window", "kept", "survivor", "weight", "similarity")
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in names}
        for name in ("guidance", "certificate"):
            value = getattr(self, name)
            moved[name] = None if value is None else value.to(device)
        return replace(self, **moved, layout=self.layout.to(device))


def _checked(certificate: Certificate, images: int) -> Certificate:
    certificate = Certificate(*(value.detach().cpu() for value in certificate))
    for name, value in zip(certificate._fields, certificate, strict=True):
        if value.shape != (images,):
            raise ValueError(
                f"certificate.{name} has shape {list(value.shape)}: expected [image] = [{images}]"
            )
    weight, lost, least = certificate
    most = weight * (1 + TOLERANCE)
    _require(weight.isfinite() & (weight >= 0), "certificate.weight", weight, "0 or more")
    _require((lost >= 0) & (lost <= most), "certificate.lost", lost, "0 to the weight")
    _require((least >= 0) & (least <= lost), "certificate.least", least, "0 to what is lost")
    return certificate


def _check_shapes(tokens: int, **values: Tensor | None) -> None:
    for name, value in values.items():
        if value is None or (value.ndim == 1 and name == "kept") or value.shape == (tokens,):
            continue
        expected = "[survivor]" if name == "kept" else f"[token] = [{tokens}]"
        raise ValueError(f"{name} has shape {list(value.shape)}: expected {expected}")


def _check_lineage(before: TokenLayout, kept: Tensor, survivor: Tensor) -> None:
    tokens, count = len(before), len(kept)
    _require((kept >= 0) & (kept < tokens), "kept", kept, f"a token from 0 to {tokens - 1}")
    ascending = torch.ones_like(kept, dtype=torch.bool)
    ascending[1:] = kept[1:] > kept[:-1]
    _require(ascending, "kept", kept, "tokens in ascending order, each once")
    _require((survivor >= 0) & (survivor < count), "survivor", survivor, f"a row of {count}")
    own = survivor[kept]
    _require(
        own == torch.arange(count, device="cpu"),
        "survivor[kept]",
        own,
        "the number of its own row, as it stays",
    )
    stays = torch.zeros(tokens, dtype=torch.bool, device="cpu").index_fill_(0, kept, True)
    _require(stays | ~before.protected, "survivor", survivor, "its own row, as it is protected")


def _check_windows(before: TokenLayout, windows: int, window: Tensor, into: Tensor) -> None:
    """Windows are numbered through the images, and that of protected tokens comes last."""
    image = before.image.masked_fill(before.protected, len(before.grids))
    own = torch.div(window, windows**2, rounding_mode="floor") == image
    outside = window == len(before.grids) * windows**2
    _require(own & (outside == before.protected), "window", window, "a window of the token's image")
    _require(window == window[into], "window", window, "that of the token it ends in")


def _check_weights(weight: Tensor, survivor: Tensor, count: int) -> None:
    _require(weight.isfinite() & (weight >= 0), "weight", weight, "a share of 0 or more")
    total = torch.zeros(count, dtype=torch.float64, device="cpu").index_add_(
        0, survivor, weight.double()
    )
    _require((total - 1).abs() <= TOLERANCE, "sum of weights", total, "1 for each survivor")


def _check_similarity(similarity: Tensor, kept: Tensor) -> None:
    unknown = similarity.isnan() | similarity.isneginf()
    cosine = unknown | (similarity.abs() <= 1 + TOLERANCE)
    _require(cosine, "similarity", similarity, "a cosine, NaN or minus infinity")
    own = similarity[kept]
    _require(own == 1, "similarity[kept]", own, "1, as the token stays")


def _require(good: Tensor, name: str, value: Tensor, expected: str) -> None:
    if not bool(good.all()):
        entry = int((~good).nonzero()[0])
        raise ValueError(f"{name}[{entry}] is {value[entry].item()}: expected {expected}")


def _after(before: TokenLayout, kept: Tensor, survivor: Tensor) -> TokenLayout:
    names = ("sample", "image", "row", "col", "protected")
    mass = before.mass.new_zeros(len(kept)).index_add_(0, survivor, before.mass)
    return TokenLayout.from_tokens(
        **{name: getattr(before, name)[kept] for name in names}, mass=mass, grids=before.grids
    )
