"""From a picture's tokens, as the projector leaves them, to those that the decoder gets."""

from __future__ import annotations

from typing import Any

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

    def __call__(self, features: Tensor, *tiles: Any) -> Tensor:
        """The survivors of one picture.

        Args:
            features: `[token, channel]`.
            *tiles: As :func:`~lightkv_gnn.vllm.plan.plan_picture` takes them.

        Returns:
            `[survivor, channel]`, as many as were planned, in the order of the picture.

        Raises:
            ValueError: The features are not those of the tiles.
            RuntimeError: Not as many survived as were planned.
        """
        planned = plan_picture(self.settings, *tiles)
        merged = features if planned.stage.total == 0 else self._merged(features, planned)
        if len(merged) != planned.kept:
            raise RuntimeError(
                f"{len(merged)} tokens of a picture are left, {planned.kept} were planned: "
                "expected as many"
            )
        return merged

    def _merged(self, features: Tensor, planned: PicturePlan) -> Tensor:
        if self._compressor is None:
            make = compressor_module().TokenCompressor
            self._compressor = make(self.settings.message, self.settings.matcher)
        layout = planned.layout.to(features.device)
        merged: Tensor = self._compressor(features, layout, planned.stage).hidden_states
        return merged
