"""Where models come from: folders and the hub."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]*\w)?")


def check_source(source: str) -> None:
    """Raises FileNotFoundError for what is neither there nor an id that the hub could have."""
    if not Path(source).exists() and not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f"{source}: there is no such folder, and it is no id on the hub, such as "
            "llava-hf/llava-1.5-7b-hf"
        )
