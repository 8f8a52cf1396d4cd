"""From a picture's tokens, as the projector leaves them, to those that the decoder gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.vllm.libraries import compressor_module
from lightkv_gnn.vllm.plan import PicturePlan, plan_picture
from lightkv_gnn.vllm.scout import Scout, scout_of, tensor_ranks
from lightkv_gnn.vllm.settings import Settings

SEED = 0
"""Of a random matcher's draws, which begin anew with each picture."""


class PictureMerger:
    """Merges pictures one by one, so that a picture is merged alike whatever is beside it.

    Args:
        settings: How much is kept, and how.
        ranks: The processes that have to merge alike; this one alone if not given.
        scout: Weighs tokens by the text that guides a picture; None if none does.
    """

    def __init__(self, settings: Settings, ranks: Any = None, scout: Scout | None = None) -> None:
        self.settings = settings
        self._ranks, self._scout = ranks, scout
        self._compressor: Any = None

    def __call__(
        self,
        features: Tensor,
        *tiles: Any,
        compared: int | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """The survivors of one picture.

        Args:
            features: `[token, channel]`.
            *tiles: As :func:`~lightkv_gnn.vllm.plan.plan_picture` takes them.
            compared: Leading channels, which the first layer gets, and by which tokens are
                compared; all if not given.
            text: Tokens that guide it, `[text]`; needed if there is a scout.

        Returns:
            `[survivor, channel]`, as many as were planned, in the order of the picture.

        Raises:
            ValueError: The features are not those of the tiles.
            RuntimeError: Not as many survived as were planned.
        """
        planned = plan_picture(self.settings, *tiles)
        if features.shape[0] != len(planned.layout):
            raise ValueError(
                f"a picture's features have shape {list(features.shape)}: expected [token, "
                f"channel] with {len(planned.layout)} tokens"
            )
        if planned.stage.total == 0:
            return features
        known = features[:, :compared]
        merged = self._merged(features, known, planned, self._guidance(known, text))
        if len(merged) != planned.kept:
            raise RuntimeError(
                f"{len(merged)} tokens of a picture are left, {planned.kept} were planned: "
                "expected as many"
            )
        return merged

    def _guidance(self, known: Tensor, text: Tensor | None) -> Tensor:
        if self._scout is None:
            return known.new_zeros(len(known), dtype=torch.float32)
        if text is None:
            raise ValueError("a picture came without the text that guides it: expected its tokens")
        return self._scout(known, text)

    def _merged(
        self, features: Tensor, known: Tensor, planned: PicturePlan, guidance: Tensor
    ) -> Tensor:
        if self._compressor is None:
            make = compressor_module().TokenCompressor
            self._compressor = make(self.settings.message, self.settings.matcher)
            if self._ranks is not None:
                self._compressor.ranks = self._ranks
        layout = planned.layout.to(features.device)
        with self._drawn(features.device):
            merges = self._compressor.merges(known, layout, planned.stage, guidance)
        merged: Tensor = self._compressor.means(features, merges)
        return merged

    @contextmanager
    def _drawn(self, device: torch.device) -> Iterator[None]:
        """Draws the same again: a part of the picture may be cached already, as it was merged."""
        if self.settings.matcher != "random_matching":
            yield
            return
        devices = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(devices, device_type=device.type):
            torch.manual_seed(SEED)
            yield


def merger_of(model: Any, settings: Settings) -> PictureMerger:
    """The merger of a model that vLLM has made.

    Raises:
        ValueError: A prompt is to guide, and the decoder is of a kind that is not known.
    """
    ranks = tensor_ranks()
    return PictureMerger(settings, ranks, scout_of(model, settings.guide, ranks))
