"""From a picture's tokens, as the projector leaves them, to those that the decoder gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.vllm.libraries import compressor_module
from lightkv_gnn.vllm.plan import PicturePlan, plan_picture
from lightkv_gnn.vllm.settings import Settings


class PictureMerger:
    """Merges pictures one by one, so that a picture is merged alike whatever is beside it.

    Args:
        settings: How much is kept, and how.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._compressor: Any = None

    def __call__(self, features: Tensor, *tiles: Any, compared: int | None = None) -> Tensor:
        """The survivors of one picture.

        Args:
            features: `[token, channel]`.
            *tiles: As :func:`~lightkv_gnn.vllm.plan.plan_picture` takes them.
            compared: Leading channels by which tokens are compared; all if not given.

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
        merged = features if planned.stage.total == 0 else self._merged(features, planned, compared)
        if len(merged) != planned.kept:
            raise RuntimeError(
                f"{len(merged)} tokens of a picture are left, {planned.kept} were planned: "
                "expected as many"
            )
        return merged

    def _merged(self, features: Tensor, planned: PicturePlan, compared: int | None) -> Tensor:
        if self._compressor is None:
            make = compressor_module().TokenCompressor
            self._compressor = make(self.settings.message, self.settings.matcher)
        known = features[:, :compared]
        layout = planned.layout.to(features.device)
        equal = features.new_zeros(len(features), dtype=torch.float32)
        merges = self._compressor.merges(known, layout, planned.stage, equal)
        merged: Tensor = self._compressor.means(features, merges)
        return merged
