"""Names that options and configurations choose among; help and completion need them at once."""

from __future__ import annotations

from typing import Literal

GuidanceName = Literal["text_to_vision", "vision_to_text", "last_token", "none"]
GUIDANCE: tuple[GuidanceName, ...] = ("text_to_vision", "vision_to_text", "last_token", "none")
