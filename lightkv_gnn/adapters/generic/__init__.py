"""An adapter for models that have none: it looks for everything itself, and says what it took.

``told`` reads grids off the arguments of an encoder, ``squares`` off the configuration,
``decoders`` looks at the layers, and ``adapter`` puts all of it together.  Whatever it cannot tell
for certain is an error.
"""

from lightkv_gnn.adapters.generic.adapter import GenericAdapter

__all__ = ["GenericAdapter"]
