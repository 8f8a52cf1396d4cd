"""Tiles of pictures and videos, by this library's adapters, from what a processor made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from lightkv_gnn.vllm.libraries import adapters_module
from lightkv_gnn.vllm.settings import Settings

if TYPE_CHECKING:
    from lightkv_gnn.adapters import Encoded
    from lightkv_graphs import Tile

Tiles = tuple["Tile", ...]
"""Of a picture, or the frames of a video, in the order of their tokens."""

Told = Mapping[str, tuple[str, ...]]


class Geometry(ABC):
    """Of one model.

    Args:
        config: The model's configuration, of a type that has an adapter.

    Raises:
        UnsupportedModelError: It has none.
    """

    told: ClassVar[Told]
    """Of each kind, "image" or "video", what of a processor's output tells the tiles."""

    def __init__(self, config: Any) -> None:
        self.adapter = adapters_module().geometry_of(config)

    @property
    def edge(self) -> int:
        """Pixels per side of what is encoded, always the same square; 0 where it is not."""
        size = self.adapter.model.config.vision_config.image_size
        return int(size if isinstance(size, int) else size[0])

    def tiles(self, kind: str, made: Mapping[str, Any]) -> Tiles:
        """The tiles of one picture, or of one video.

        Args:
            kind: "image" or "video".
            made: What a processor made of it, by name.
        """
        (tiles,) = self.adapter.tiles(self.encoded(kind, made))
        return tuple(tiles)

    def each(self, made: Mapping[str, Any]) -> Iterator[Tiles]:
        """The tiles of several, in the order in which a model encodes them.

        Args:
            made: What the model is called with, by name; of each picture a row.
        """
        for name in made:
            for kind, names in self.told.items():
                if name == names[0]:
                    for number in range(len(made[name])):
                        yield self.tiles(kind, {other: made[other][number] for other in names})

    @abstractmethod
    def encoded(self, kind: str, made: Mapping[str, Any]) -> Encoded:
        """One picture as the adapter takes it."""

    def _encoded(self, *values: Any) -> Encoded:
        made: Encoded = adapters_module().Encoded(*values)
        return made


class GridGeometry(Geometry):
    """Qwen: frames, rows and columns of patches."""

    told: ClassVar[Told] = {"image": ("image_grid_thw",), "video": ("video_grid_thw",)}
    edge = 0

    def encoded(self, kind: str, made: Mapping[str, Any]) -> Encoded:
        """By its grid."""
        (name,) = self.told[kind]
        return self._encoded(kind, {name: [made[name]]}, ())


class SquareGeometry(Geometry):
    """InternVL: so many squares."""

    told: ClassVar[Told] = {"image": ("image_num_patches",), "video": ("video_num_patches",)}

    def encoded(self, kind: str, made: Mapping[str, Any]) -> Encoded:
        """By the number of its squares."""
        (name,) = self.told[kind]
        rows, cols = self.adapter.grid
        return self._encoded(kind, {}, (int(made[name]) * rows * cols,))


class ChatGeometry(SquareGeometry):
    """InternVL as OpenGVLab publishes it: the configuration does not count tokens."""

    def __init__(self, config: Any) -> None:
        vision = config.vision_config
        patches = (config.force_image_size or vision.image_size) // vision.patch_size
        tokens = int(patches**2 * config.downsample_ratio**2)
        known = SimpleNamespace(
            model_type="internvl",
            image_seq_length=tokens,
            vision_config=vision,
            get_text_config=config.get_text_config,
        )
        super().__init__(known)


class NextGeometry(Geometry):
    """LLaVA-NeXT and LLaVA-OneVision: the whole, and what was cut at high resolution."""

    told: ClassVar[Told] = {
        "image": ("pixel_values", "image_sizes"),
        "video": ("pixel_values_videos",),
    }

    def encoded(self, kind: str, made: Mapping[str, Any]) -> Encoded:
        """By its size, and whether it was cut; a video by its frames and their newline."""
        parts = len(made[self.told[kind][0]])
        if kind == "video":
            return self._encoded(kind, {}, (parts * self.adapter.frame.tokens + 1,))
        size = tuple(map(int, made["image_sizes"]))
        if parts == 1:
            return self._encoded(kind, {"image_sizes": [size]}, (self.adapter.side**2 + 1,))
        cut: Encoded = self.adapter.expected(size, 1, None)
        return cut

    def most(self, settings: Settings) -> int:
        """Tokens that a picture leaves at most: each window rounds up, and newlines stay."""
        config, side = self.adapter.model.config, self.adapter.side

        def left(tokens: int) -> int:
            return min(tokens, tokens - int(tokens * settings.ratio) + settings.windows**2)

        most = 0
        for height, width in config.image_grid_pinpoints:
            rows, cols = height // self.edge * side, width // self.edge * side
            for grid in [
                *((rows - cut, cols) for cut in range(0, rows, 2)),  # without padding
                *((rows, cols - cut) for cut in range(0, cols, 2)),
            ]:
                high, wide = self.adapter.shrunk(grid)
                most = max(most, left(high * wide) + high)
        return left(side**2) + most
