"""What to do with single calls while a model is cloned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras

from kerasnorm.graph.graph import Call


@dataclass(frozen=True, eq=False)
class Skip:
    """Let a call's only input through in its place.

    Attributes:
        into: Name of the layer that does the work of the call now.
    """

    into: str


@dataclass(frozen=True, eq=False)
class Replace:
    """Call another layer in place of the source's. Calls that share one `Replace` share the layer.

    Attributes:
        make: Gives the new, unbuilt layer.
        fill: Sets the weights of the new layer once it is built.
        keywords: The keyword arguments of the call that the new layer gets; None for those that
            it has parameters for.
        first: Another layer that is called before it; not where code makes the call.
    """

    make: Callable[[], keras.Layer]
    fill: Callable[[keras.Layer], None]
    keywords: frozenset[str] | None = None
    first: Replace | None = None


Edits = Mapping[Call, Skip | Replace]
