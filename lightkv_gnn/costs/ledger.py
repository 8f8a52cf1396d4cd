"""The bill: tokens, cache bytes and operations of every layer, planned and observed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from lightkv_gnn.tables import html_table
from lightkv_gnn.units import BYTES, FLOPS, Unit, fitting
from lightkv_graphs import draw_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerCost:
    """What one decoder layer costs in a prefill.

    Attributes:
        tokens: Tokens it attends with, text and vision, summed over the batch, without padding.
        vision_tokens: Vision tokens among them.
        kv_bytes: Bytes of its keys and values after the prefill, padding included; without those
            that a sliding window has forgotten by then.
        flops: Floating-point operations: ``2 * parameters * tokens + 4 * tokens^2 * channels``
            per sample, two for a multiplication and an addition; attention to a cache from before
            the call is not counted, and sliding windows are not subtracted. Where vision tokens
            have experts of their own, they count with their parameters.
    """

    tokens: int
    vision_tokens: int
    kv_bytes: int
    flops: int


@dataclass(frozen=True)
class DecoderSize:
    """What a layer's cost depends on.

    Attributes:
        parameters: Weights of the layer that a token passes through: of experts, those that are
            chosen for it.
        attention_channels: Heads times head size.
        kv_channels: Key-value heads times head size; 0 for a layer that holds a state, as its
            attention channels are.
        bytes_per_value: Of the cache.
        value_channels: Of what is cached for values, where that differs from keys: multi-head
            latent attention caches one latent, and one rotated key, for all heads.
        vision_parameters: Weights that a vision token passes through, where those are others.
    """

    parameters: int
    attention_channels: int
    kv_channels: int
    bytes_per_value: int
    value_channels: int | None = None
    vision_parameters: int | None = None

    @property
    def entry_bytes(self) -> int:
        """Of a token's key and value."""
        values = self.kv_channels if self.value_channels is None else self.value_channels
        return (self.kv_channels + values) * self.bytes_per_value

    def cost(self, tokens: Sequence[int], vision: int, width: int) -> LayerCost:
        """Cost of a layer.

        Args:
            tokens: Tokens of each sample, without padding.
            vision: Vision tokens of the batch.
            width: Tokens of the longest sample, which the others are padded to.
        """
        seen = self.parameters if self.vision_parameters is None else self.vision_parameters
        weights = self.parameters * (sum(tokens) - vision) + seen * vision
        return LayerCost(
            tokens=sum(tokens),
            vision_tokens=vision,
            kv_bytes=len(tokens) * width * self.entry_bytes,
            flops=2 * weights + sum(4 * n * n * self.attention_channels for n in tokens),
        )


@dataclass(frozen=True)
class LayerRow:
    """One layer: as planned, as it would be without compression, and what was observed.

    Attributes:
        layer: Decoder layer, 0-based.
        planned: From the plan, made before the layer ran.
        full: Without compression.
        observed_tokens: Tokens the layer was given, of the whole batch, padding included; None
            if nothing has run.
        observed_flops: Operations on them, padding included; None if nothing has run.
        observed_kv_bytes: Size of its cached keys and values; None without a cache.  Of a static
            cache, the slots written; of a quantized one, what is stored, less than planned.  Under
            tensor parallelism, of all processes together, each of which holds an equal part.
    """

    layer: int
    planned: LayerCost
    full: LayerCost
    observed_tokens: int | None
    observed_flops: int | None
    observed_kv_bytes: int | None


@dataclass(frozen=True)
class Lost:
    """What one stage lost of what the prompt asks about; see ``lightkv_graphs.Certificate``.

    Attributes:
        layer: The stage ran after this decoder layer.
        share: Prompt-weighted divergence of what was merged away, of all tokens' weight; fraction.
        least: What any choice of as many tokens of each window would have lost at least.
        heard: Whether the prompt weighed the tokens.
    """

    layer: int
    share: float
    least: float
    heard: bool = True

    def __str__(self) -> str:
        of = "what the prompt asks about" if self.heard else "what the tokens say"
        return (
            f"lost after layer {self.layer}: {self.share:.1%} of {of}; {self.least:.1%} at least "
            "with any other choice of as many"
        )


@dataclass(frozen=True, repr=False)
class Ledger:
    """What one prefill cost, layer by layer.

    Attributes:
        rows: One per decoder layer.
        compressor_seconds: Time the stages took themselves, guidance included.
        fused: Whether messages were summed as they were read, as weighted means are, and not
            written down one by one; None if no stage ran.
        attention: Which attention ran after the first stage, "mass" or "plain", and where only one
            can, why; None if no stage ran.
        lost: What each stage lost, where its matcher can tell.
    """

    rows: tuple[LayerRow, ...]
    compressor_seconds: float
    fused: bool | None = None
    attention: str | None = None
    lost: tuple[Lost, ...] = ()

    @property
    def retention(self) -> float:
        """Vision tokens held, averaged over the layers; fraction."""
        return self._share("vision_tokens")

    def totals(self) -> dict[str, Any]:
        """Sums over the layers, planned, full and observed, and their ratios."""
        return {
            "layers": len(self.rows),
            "retention": self.retention,
            "kv_bytes": self._sum("planned", "kv_bytes"),
            "kv_bytes_full": self._sum("full", "kv_bytes"),
            "kv_bytes_observed": _total([row.observed_kv_bytes for row in self.rows]),
            "kv_ratio": self._share("kv_bytes"),
            "flops": self._sum("planned", "flops"),
            "flops_full": self._sum("full", "flops"),
            "flops_observed": _total([row.observed_flops for row in self.rows]),
            "flops_ratio": self._share("flops"),
            "compressor_seconds": self.compressor_seconds,
            "fused": self.fused,
            "attention": self.attention,
        }

    def to_dict(self) -> dict[str, Any]:
        """Rows, losses and totals as plain values."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "lost": [asdict(lost) for lost in self.lost],
            "totals": self.totals(),
        }

    def draw(self) -> Figure:
        """Vision tokens and cache of every layer as bars, as planned (needs matplotlib)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        cache, _ = self._units()
        for ax, (field, label, size) in zip(
            figure.subplots(2),
            (
                ("vision_tokens", "vision tokens", 1),
                ("kv_bytes", f"KV cache, {cache.name}", cache.size),
            ),
            strict=True,
        ):
            planned, full = (
                [getattr(getattr(row, which), field) / size for row in self.rows]
                for which in ("planned", "full")
            )
            draw_layers(planned, full, label=label, ax=ax)
        return figure

    def _sum(self, which: str, field: str) -> int:
        return sum(getattr(getattr(row, which), field) for row in self.rows)

    def _share(self, field: str) -> float:
        full = self._sum("full", field)
        return self._sum("planned", field) / full if full else 1.0

    def __str__(self) -> str:
        columns, rows = self._table()
        return "\n".join([*_lines(columns, rows), self._note()])

    def __repr__(self) -> str:
        return f"Ledger({len(self.rows)} layers, {self._shares()})"

    def _repr_html_(self) -> str:
        """Itself in a notebook: a table with a row for each layer."""
        columns, rows = self._table()
        head = [", ".join(filter(None, names)) for names in columns]
        return html_table(head, rows, self._note())

    def _units(self) -> tuple[Unit, Unit]:
        """Of the cache, and of the work."""
        costs = [cost for row in self.rows for cost in (row.planned, row.full)]
        cache = [cost.kv_bytes for cost in costs], [row.observed_kv_bytes for row in self.rows]
        work = [cost.flops for cost in costs], [row.observed_flops for row in self.rows]
        return fitting(chain(*cache), BYTES), fitting(chain(*work), FLOPS)

    def _table(self) -> tuple[list[tuple[str, str]], list[tuple[object, ...]]]:
        """What each column is of, and what of it, and the rows; shares are of the uncompressed."""
        cache, work = self._units()
        columns = [("", "layer"), *(("tokens", name) for name in ("vision", "all", "observed"))]
        for name in (f"KV {cache.name}", work.name):
            columns += [(name, what) for what in ("planned", "observed", "share")]
        return columns, [_cells(row, cache, work) for row in self.rows]

    def _shares(self) -> str:
        totals = self.totals()
        return (
            f"retention {self.retention:.1%}, KV bytes {totals['kv_ratio']:.1%}, prefill FLOPs "
            f"{totals['flops_ratio']:.1%}"
        )

    def _note(self) -> str:
        """The lines below the table."""
        line = (
            f"{self._shares()} of full; compressor {self.compressor_seconds * 1e3:.1f} ms"
            f"{_MESSAGES[self.fused]}"
        )
        if self.attention is not None:
            line += f", attention {self.attention}"
        return "\n".join([line, *map(str, self.lost)])


def _total(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


_MESSAGES = {True: ", messages fused", False: ", messages one by one", None: ""}


def _cells(row: LayerRow, cache: Unit, work: Unit) -> tuple[object, ...]:
    planned, full = row.planned, row.full
    return (
        row.layer,
        planned.vision_tokens,
        planned.tokens,
        "-" if row.observed_tokens is None else row.observed_tokens,
        cache.text(planned.kv_bytes),
        cache.text(row.observed_kv_bytes),
        f"{planned.kv_bytes / full.kv_bytes:.0%}" if full.kv_bytes else "-",
        work.text(planned.flops),
        work.text(row.observed_flops),
        f"{planned.flops / full.flops:.0%}",
    )


def _lines(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The table as text, with a heading over the columns of each quantity."""
    groups = [(name, len(list(of))) for name, of in groupby(columns, lambda column: column[0])]
    yield " ".join(f"{name:^{9 * width - 1}}" for name, width in groups).rstrip()
    for cells in ([column for _, column in columns], *rows):
        yield " ".join(f"{cell!s:>8}" for cell in cells)
