"""What may guide: a name, a function, or where a function is found."""

from __future__ import annotations

import sys
from functools import reduce
from importlib import import_module
from typing import Any

GUIDANCE = ("none", "text_to_vision", "vision_to_text")


def named_guidance(value: object) -> Any:
    """A guidance by its name; a function by "module:function", if it can be imported there.

    Args:
        value: One of :data:`GUIDANCE`, a function, or "module:function".

    Returns:
        A string that says the same in every process; the function itself if it has none.

    Raises:
        ValueError: No such name, or nothing to call is found there.
        TypeError: Neither a string nor a function.
    """
    if isinstance(value, str):
        resolved_guidance(value)
        return value
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            f"guidance is {value!r}: expected one of {GUIDANCE}, a function, or where one is "
            "found, such as 'my_module:my_guidance'"
        )
    module, name = (getattr(value, part, "") for part in ("__module__", "__qualname__"))
    home: object = sys.modules.get(module)
    found = reduce(lambda at, part: getattr(at, part, None), name.split("."), home)
    return f"{module}:{name}" if found is value and module != "__main__" else value


def resolved_guidance(value: Any) -> Any:
    """The name, or the function that a guidance stands for.

    Raises:
        ValueError: As in :func:`named_guidance`.
    """
    if callable(value) or value in GUIDANCE:
        return value
    expected = f"expected one of {GUIDANCE}, or 'module:function' that can be imported"
    module, _, name = value.partition(":")
    if not (module and name):
        raise ValueError(f"guidance is {value!r}: {expected}")
    try:
        found = reduce(getattr, name.split("."), import_module(module))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"guidance is {value!r}, and {error}: {expected}") from error
    if not callable(found):
        raise ValueError(f"guidance is {value!r}, which cannot be called: {expected}")
    return found
