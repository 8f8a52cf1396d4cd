"""The adapter that is made of what a model tells of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lightkv_gnn.adapters.base import Adapter, Process
from lightkv_gnn.adapters.encoded import Encoded
from lightkv_gnn.adapters.generic import squares, told
from lightkv_gnn.adapters.generic.decoders import check_features, check_layers, decoder_of
from lightkv_gnn.adapters.notices import say_once
from lightkv_gnn.adapters.refusals import HOW_TO, why_not
from lightkv_gnn.errors import UnsupportedModelError
from lightkv_graphs import Grid, Tile


class GenericAdapter(Adapter):
    """Any model that tells enough: what it takes is said in a warning, once, with the first call.

    Placeholders and encoders are those of :class:`Adapter`.  The grid of a picture comes from what
    its encoder was called with, such as ``image_grid_thw``, ``spatial_shapes``, ``image_sizes`` or
    the positions of its patches, over as many patches a token as the count tells; or it is a
    square, where the configuration tells its side.  Both must make up the number of tokens that
    was encoded, and in one way only.

    Args:
        model: The model, as loaded by transformers.

    Raises:
        UnsupportedModelError: Its decoder has layers that nobody has tested, its vision tokens have
            no place in a picture, or it has no placeholders and encoders by known names.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        if reason := self._unfit():
            raise self._refused(reason)
        try:
            check_layers(self.decoder)
            check_features(self.decoder, model.config)
        except UnsupportedModelError as error:
            raise self._refused(str(error)) from error
        if not self.legal_layers:
            raise self._refused(f"there is no layer of {self.layers} that a stage may run after")

    def _unfit(self) -> str | None:
        """Why nothing can be found in the model, if it is so."""
        config = self.model.config
        if reason := why_not(config):
            return f"no adapter alone could: {reason}"
        if name := squares.unplaced(config):
            return (
                f"its configuration has {name}, so its vision tokens are queries, which have no "
                "place in a picture"
            )
        if name := next((name for name in squares.CUTS if getattr(config, name, None)), None):
            return (
                f"its configuration has {name}, so tiles of a picture are put together and "
                "newlines put between their rows, in a way of its own"
            )
        if self.base is self.model.get_decoder():
            return f"{type(self.base).__name__} is at once what encodes pictures and the decoder"
        if not self.placeholders:
            return (
                f"of the kinds of pictures, {type(self.base).__name__} has the encoders "
                f"{sorted(self.encoders.values())}, and the configuration the tokens "
                f"{self._tokens()}: expected get_image_features and image_token_id"
            )
        return None

    @cached_property
    def decoder(self) -> Any:
        """The module with the decoder's layers."""
        return decoder_of(self.model)

    @property
    def placeholders(self) -> Mapping[str, int]:
        """Of each kind with an encoder, its ``token_id``, or by the older name ``token_index``."""
        tokens = self._tokens()
        return {kind: tokens[kind] for kind in self.encoders if kind in tokens}

    def _tokens(self) -> dict[str, int]:
        config = self.model.config
        named = {
            kind: getattr(config, f"{kind}_token_id", getattr(config, f"{kind}_token_index", None))
            for kind in self.pixels
        }
        return {kind: token for kind, token in named.items() if isinstance(token, int)}

    def lengths(self, kind: str, output: Any) -> tuple[int, ...]:
        """Vision tokens of each picture; of the last hidden state where nothing is pooled.

        Raises:
            UnsupportedModelError: The output holds no tokens by either name.
        """
        names = ("pooler_output", "last_hidden_state")
        for value in (getattr(output, name, None) for name in names):
            if isinstance(value, Tensor) and value.ndim < 3:  # one vector of each picture
                continue
            if value is not None:
                return tuple(picture.shape[:-1].numel() for picture in value)
        raise self._refused(
            f"{self.encoders[kind]} returns a {type(output).__name__}: expected one that has each "
            f"picture's tokens as {' or '.join(names)}"
        )

    def tiles(self, encoded: Encoded) -> Sequence[Sequence[Tile]]:
        """The only grids that fit what the encoder was given and how many tokens it made.

        Raises:
            UnsupportedModelError: There are none, or more than one.
        """
        found = self._readings(encoded)
        if len({str(one.tiles) for one in found}) != 1:
            raise self._ungridded(encoded, found)
        self._say(encoded.kind, found[0].how)
        return found[0].tiles

    def _readings(self, encoded: Encoded) -> list[told.Reading]:
        telling, others = told.arguments_in(encoded)
        if others:
            return []
        config = self.model.config
        if not telling:
            return squares.square_readings(encoded, config)
        patch = squares.number_in(config, "patch_size")
        return told.readings(encoded, telling, squares.merges_in(config), patch)

    def expected(self, size: Grid, images: int, process: Process) -> Encoded:
        """What the image processor alone tells of a picture, merged as the configuration says.

        Raises:
            UnsupportedModelError: They do not tell, or not for certain.
        """
        processed, config = process(), self.model.config
        shape = tuple(processed["pixel_values"].shape)
        rest = {name: value for name, value in processed.items() if "pixel_" not in name}
        blank = Encoded("image", rest, (), shape)
        telling, _ = told.arguments_in(blank)
        if telling:
            patch = squares.number_in(config, "patch_size")
            counts = told.counts(telling, squares.merges_in(config), patch, shape)
        else:
            counts = squares.counts(shape, config)
        pictures = [Encoded("image", rest, (count,), shape) for count in sorted(counts)]
        found = {picture: self._readings(picture) for picture in pictures}
        fitting = [picture for picture in pictures if found[picture]]
        if len(fitting) != 1:
            raise self._ungridded(blank, [one for own in found.values() for one in own])
        self.tiles(fitting[0])
        return fitting[0]

    def _say(self, kind: str, how: str) -> None:
        model = self.model
        say_once(
            model,
            f"{type(model).__name__}, of model type {model.config.model_type!r}, is served by the "
            f"generic adapter, which took from the model itself: {kind}s are encoded by "
            f"{self.encoders[kind]}, and stand at tokens {self.placeholders[kind]}; grids are "
            f"{how}; stages may run after layer {self.legal_layers[0]} and later ones",
        )

    def _ungridded(self, encoded: Encoded, found: Sequence[told.Reading]) -> UnsupportedModelError:
        """The error for pictures whose grid is not certain: what was looked at, what was found."""
        kind = encoded.kind
        telling, others = told.arguments_in(encoded)
        counts = ", ".join(map(str, encoded.lengths[:8])) + ", …" * (len(encoded.lengths) > 8)
        fits = "; ".join(one.how for one in found) or "nothing that makes up just these tokens"
        return self._refused(
            f"the grid of its {kind}s is not certain, of {counts or 'an unknown number of'} tokens "
            f"from pixels of {list(encoded.shape)}. Looked at the arguments of "
            f"{self.encoders[kind]}: sizes in {sorted(telling) or 'none'}, and others that are not "
            f"known: {sorted(others) or 'none'}; and at the configuration: "
            f"{', '.join(squares.seen_in(self.model.config)) or 'nothing known'}. Found: {fits}"
        )

    def _refused(self, why: str) -> UnsupportedModelError:
        model = self.model
        return UnsupportedModelError(
            f"the generic adapter does not serve {type(model).__name__} with model type "
            f"{model.config.model_type!r}: {why}. An adapter of your own may know better: {HOW_TO}"
        )
