"""Who joins whom: bipartite matching inside every window of a batch at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightkv_graphs.certificate import Certificate
from lightkv_graphs.host import plain, to_device
from lightkv_graphs.partition import WindowPartition

SHORTEST = 1e-12
"""Features shorter than this have no direction: their cosine with others is about zero."""

FARTHEST = 3.0
"""Distance of what has no direction, or is no token: more than that of any two directions."""

MANY_PRODUCTS = 2**24
"""Multiplications from which it pays to leave out half of them."""

COLUMNS = 32
"""Columns of a window's products that the host computes at once."""


@dataclass(frozen=True, eq=False)
class Matching:
    """The taken merge edges of a batch.

    Attributes:
        edge_index: Source and destination token of each edge, `[2, edge]`, sorted by source.
        similarity: Cosine of the two tokens' features, `[edge]`.
        dropped: True for edges whose source is dropped: its survivor counts it, but hears nothing
            of it; `[edge]`, or None where every source sends its message.
        certificate: What the choice loses, where the matcher can tell; else None.
    """

    edge_index: Tensor
    similarity: Tensor
    dropped: Tensor | None = None
    certificate: Certificate | None = None

    def check(self, partition: WindowPartition) -> None:
        """Verifies what every matcher owes; reads the device, so only user matchers pass here.

        Raises:
            ValueError: Not as many edges per image or window as planned, tokens that do not exist,
                a source taken twice, a source that is also a destination, an edge that leaves
                its window, or a similarity that is no cosine.
            TypeError: Edges or similarities that are no tensors.
        """
        for name in ("edge_index", "similarity"):
            if not isinstance(getattr(self, name), Tensor):
                raise TypeError(
                    f"the matcher returned a {type(getattr(self, name)).__name__} as {name}: "
                    "expected a tensor"
                )
        planned = list(partition.plan.merges)
        if self.edge_index.shape != (2, sum(planned)) or self.similarity.shape != (sum(planned),):
            raise ValueError(
                f"the matcher returned edge_index {list(self.edge_index.shape)} and similarity "
                f"{list(self.similarity.shape)}: expected [2, {sum(planned)}] and "
                f"[{sum(planned)}], one edge per token merged away"
            )
        cosine = self.similarity.isnan() | self.similarity.isneginf()
        if not bool((cosine | (self.similarity.abs() <= 1 + 1e-3)).all()):
            raise ValueError(
                "the matcher returned a similarity outside -1 to 1: expected the cosine of the two "
                "ends of each edge; lightkv_graphs.edge_cosine computes it"
            )
        if self.dropped is not None and self.dropped.shape != self.similarity.shape:
            raise ValueError(
                f"the matcher returned dropped {list(self.dropped.shape)}: expected one bool per "
                f"edge, {list(self.similarity.shape)}"
            )
        source, destination = self.edge_index
        window = partition.window
        tokens = window.shape[0]
        inside = (self.edge_index >= 0) & (self.edge_index < tokens)
        if self.edge_index.dtype != torch.int64 or not bool(inside.all()):
            raise ValueError(f"the matcher named a token that is no int64 in 0..{tokens - 1}")
        if source.unique().numel() != source.numel():
            raise ValueError("the matcher merged one source twice: a token leaves at most once")
        if bool(torch.isin(destination, source).any()):
            raise ValueError("the matcher merged into a token that leaves: destinations must stay")
        if bool((window[source] != window[destination]).any()):
            raise ValueError("the matcher drew an edge between windows: merges stay inside one")
        per_image = torch.bincount(window[source] // partition.per_image, minlength=len(planned))
        if per_image.tolist() != planned:
            raise ValueError(
                f"the matcher took {per_image.tolist()} edges per image: expected {planned}, "
                "partition.plan.merges"
            )
        taken = torch.bincount(window[source], minlength=partition.total + 1)[:-1]
        left = (partition.sizes() - taken).reshape(partition.images, partition.per_image).cpu()
        for image, occupancy in enumerate(partition.plan.occupancy):
            expected = occupancy.counts.flatten()
            if len(expected) == partition.per_image and not torch.equal(left[image], expected):
                raise ValueError(
                    f"the matcher left {left[image].tolist()} tokens in the windows of image "
                    f"{image}: expected {expected.tolist()}, as planned for the next stage"
                )


Matcher = Callable[..., Matching]
"""``matcher(x, partition)`` with features `[token, channel]`; see :class:`Matching`.  One with a
parameter ``guidance`` is given the logarithm of the prompt's guidance `[token]` too, one with a
parameter ``layout`` the tokens' :class:`~lightkv_graphs.TokenLayout`, and one with a parameter
``nearest`` or ``greedy`` what its device is good at: the search for the most similar destinations,
as :func:`nearest_destinations`, or the choice of who stays, as
:func:`~lightkv_graphs.greedy_ranks`."""


Nearest = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""See :func:`nearest_destinations`."""


def nearest_destinations(x: Tensor, sources: Tensor, destinations: Tensor) -> tuple[Tensor, Tensor]:
    """Each source's most similar destination in its window; ties go to the first.

    Args:
        x: Features, `[token, channel]`.
        sources: `[window, slot]`, the number of tokens standing for none.
        destinations: `[window, slot]`, likewise.

    Returns:
        Cosine, in float32, and slot of the destination, each `[window, source slot]`; minus
        infinity and 0 where there is no destination or all cosines are NaN.
    """
    best = source_cosines(x, sources, destinations).max(dim=2)
    return best.values, best.indices


def cosine_matching(
    x: Tensor, partition: WindowPartition, nearest: Nearest = nearest_destinations
) -> Matching:
    """Each source's most similar destination; the least divergent of these edges are taken.

    In a window, tokens in raster order alternate between sources and destinations.  The feature
    divergence of an edge is ``1 - cos``, in float32.  Ties go to the lowest index.  A token with a
    NaN is merged last.  Source: Chen et al. 2026, section 3.2, with a stable order.

    Args:
        x: Features, `[token, channel]`.
        partition: The windows, with the number of edges to take.
        nearest: Finds the destinations.
    """
    sources, destinations = bipartition(partition.slots())
    cosine, slot = nearest(x, sources, destinations)
    edge_index, divergence = take_edges(
        partition, sources, destinations.gather(1, slot), 1 - cosine
    )
    return Matching(edge_index, 1 - divergence)


def source_cosines(x: Tensor, sources: Tensor, destinations: Tensor) -> Tensor:
    """Cosine of every source and every destination of its window, in float32.

    Args:
        x: Features, `[token, channel]`.
        sources: `[window, slot]`, the number of tokens standing for none.
        destinations: `[window, slot]`, likewise.

    Returns:
        `[window, source slot, destination slot]`; minus infinity where there is no destination or
        a feature is NaN.
    """
    if x.shape[0] == 0:
        return x.new_full((*sources.shape, destinations.shape[1]), -torch.inf).float()
    widths = [sources.shape[1], destinations.shape[1]]
    both = _gathered(x, torch.cat([sources, destinations], dim=1))
    rows, columns = zip(*(part.split(widths, dim=1) for part in both), strict=True)
    return _without_padding(_cosines(*rows, *columns), destinations == x.shape[0])


def window_distances(x: Tensor, slots: Tensor) -> Tensor:
    """``1 - cos`` of every two tokens of each window, 0 or more, in float32.

    Args:
        x: Features, `[token, channel]`.
        slots: `[window, slot]`, the number of tokens standing for none.

    Returns:
        `[window, slot, slot]`; :data:`FARTHEST` where there is no token or a feature is NaN, also
        of such a token and itself.
    """
    tokens = x.shape[0]
    if tokens == 0:
        return x.new_full((*slots.shape, slots.shape[1]), FARTHEST).float()
    features = _of_slots(x, slots)
    rows = slots.shape[1]
    large = features.numel() * rows >= MANY_PRODUCTS and plain(features)
    columns = COLUMNS if large else max(rows, 1)
    none = features.new_zeros(slots.shape).masked_fill(slots == tokens, torch.nan)
    share = torch.empty_like(none)
    distance = features.new_empty(len(slots), rows, rows)
    for first in reversed(range(0, rows, columns)):
        last = min(first + columns, rows)
        # The rest is above the diagonal: tall blocks cost a matrix product hardly more than wide.
        block = (features[:, first:] @ features[:, first:last].transpose(1, 2)).float()
        own = block.diagonal(dim1=1, dim2=2).clamp(min=SHORTEST**2).rsqrt() + none[:, first:last]
        share[:, first:last] = own
        # Both shares first: their product is the same for both directions, to the bit.
        block.mul_(share[:, first:, None] * -own[:, None, :]).add_(1)
        block.clamp_(min=0).nan_to_num_(nan=FARTHEST)
        distance[:, first:, first:last] = block
        distance[:, first:last, last:] = block[:, last - first :].transpose(1, 2)
    return distance


def _gathered(x: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Features of tokens by slots and their lengths, both `[window, slot, channel or 1]`."""
    features = _of_slots(x, slots)
    length = torch.linalg.vector_norm(features, dim=2, keepdim=True)
    return features, length.clamp(min=SHORTEST)


def _of_slots(x: Tensor, slots: Tensor) -> Tensor:
    """Features of tokens by slots, `[window, slot, channel]`, float32; of padding, some token's."""
    rows = slots.clamp(max=x.shape[0] - 1).reshape(-1)
    return x.detach().float().index_select(0, rows).unflatten(0, slots.shape)


def _cosines(rows: Tensor, row_length: Tensor, columns: Tensor, column_length: Tensor) -> Tensor:
    cosine = (rows @ columns.transpose(1, 2)).float()  # autocast may make it less
    cosine = cosine.div_(row_length).div_(column_length.transpose(1, 2))
    return cosine.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _without_padding(cosine: Tensor, padding: Tensor) -> Tensor:
    """Minus infinity in the columns of padding, `[window, column]` bool."""
    # A minimum with the row instead of masked_fill, which is slow for masks that are broadcast.
    most = torch.full_like(padding, torch.inf, dtype=cosine.dtype)
    return torch.minimum(cosine, most.masked_fill(padding, -torch.inf)[:, None, :])


def random_matching(x: Tensor, partition: WindowPartition) -> Matching:
    """Random sources and random destinations, drawn from torch's generator of the device."""
    slots = partition.slots()
    key = torch.rand(slots.shape, device=slots.device).masked_fill(slots == x.shape[0], torch.inf)
    slots = slots.gather(1, key.argsort(dim=1, stable=True))
    sources, destinations = bipartition(slots)
    divergence = torch.rand(sources.shape, device=x.device)
    edge_index, _ = take_edges(partition, sources, _beside(destinations, x.shape[0]), divergence)
    return Matching(edge_index, edge_cosine(x, edge_index))


def stride_matching(x: Tensor, partition: WindowPartition) -> Matching:
    """Every other token, in raster order, joins the one after it; blind to the features."""
    sources, destinations = bipartition(partition.slots())
    order = torch.arange(sources.shape[1], device=x.device).expand_as(sources)
    edge_index, _ = take_edges(partition, sources, _beside(destinations, x.shape[0]), order.float())
    return Matching(edge_index, edge_cosine(x, edge_index))


def bipartition(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Sources and destinations `[window, slot]`: the tokens of even and of odd rank."""
    return slots[:, 0::2], slots[:, 1::2]


def take_edges(
    partition: WindowPartition, sources: Tensor, destinations: Tensor, divergence: Tensor
) -> tuple[Tensor, Tensor]:
    """Takes the planned number of candidate edges, the least divergent of each window first.

    A window of n tokens takes ``count(n, ratio)`` of its candidates.  Where the plan could not
    know the windows' sizes, what its total for the image leaves over goes to the image's least
    divergent candidates, beyond half of a window only where the ratio is above one half, and never
    to all of it.  A divergence of NaN counts as infinity.

    Args:
        partition: The windows.
        sources: Source token of each candidate edge, `[window, slot]`, padding last; each token
            once.
        destinations: Its destination token, `[window, slot]`.
        divergence: What the edge costs, `[window, slot]`.

    Returns:
        The taken edges `[2, edge]`, sorted by source, and the divergence of each, `[edge]`.
    """
    plan, padding = partition.plan, sources == partition.window.shape[0]
    divergence = divergence.nan_to_num(torch.inf, torch.inf, -torch.inf)
    divergence = divergence.masked_fill(padding, torch.inf)
    if plan.leaving is None:
        order, number = _order_in_images(partition, divergence), plan.merges
    else:
        order, number = divergence.argsort(dim=1, stable=True), plan.leaving
    most = min(max(number, default=0), order.shape[1])
    starts = torch.arange(0, order.numel(), order.shape[1], device=order.device)[:, None]
    place = (order[:, :most] + starts).reshape(-1)
    if min(number, default=0) < most:
        beyond = torch.arange(most, device=order.device) >= to_device(number, order.device)[:, None]
        place = place[beyond.reshape(-1).to(torch.uint8).argsort(stable=True)[: plan.total]]
    source, by_source = sources.reshape(-1).index_select(0, place).sort()
    place = place.index_select(0, by_source)
    destination = destinations.reshape(-1).index_select(0, place)
    return torch.stack([source, destination]), divergence.reshape(-1).index_select(0, place)


def _order_in_images(partition: WindowPartition, divergence: Tensor) -> Tensor:
    """Candidates of each image, the first to leave first, `[image, candidate]`.

    What the ratio takes of every window comes before what may make up the image's total.
    """
    plan = partition.plan
    rank = divergence.argsort(dim=1, stable=True).argsort(dim=1)
    size = partition.sizes()[:, None]
    tier = (rank >= plan.count(size, plan.ratio)).long() + (rank >= size // 2)
    tier = tier + (rank >= size - 1)  # where all tokens are candidates, one stays
    by_image = (partition.images, partition.per_image * divergence.shape[1])
    order = divergence.reshape(by_image).argsort(dim=1, stable=True)
    return order.gather(1, tier.reshape(by_image).gather(1, order).argsort(dim=1, stable=True))


def edge_cosine(x: Tensor, edge_index: Tensor) -> Tensor:
    """Cosine between the two ends of each edge, `[edge]`, in float32."""
    ends = x.detach().float()[edge_index]
    return torch.nn.functional.cosine_similarity(ends[0], ends[1], dim=1)


def padded(values: Tensor, padding: bool | float) -> Tensor:
    """Values of tokens, `[token]`, with an entry at the end for slots that hold none."""
    return torch.cat([values, values.new_full((1,), padding)])


def staying(leaving: Tensor, tokens: int) -> Tensor:
    """Which tokens stay, `[token + 1]` bool, the last entry, of the padding, being False.

    Args:
        leaving: Tokens that do not, `[edge]`.
        tokens: How many there are.
    """
    stays = torch.ones(tokens + 1, dtype=torch.bool, device=leaving.device)
    stays = stays.index_fill(0, leaving, False)
    stays[tokens] = False
    return stays


def _beside(destinations: Tensor, padding: int) -> Tensor:
    """The destination next to each source: the one after it, or before it at a window's end."""
    before = torch.cat([destinations[:, :1], destinations[:, :-1]], dim=1)
    return torch.where(destinations == padding, before, destinations)
