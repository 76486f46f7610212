"""One layer as an older Keras wrote it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from kerasnorm.errors import LoadError


@dataclass
class LegacyConfig:
    """A layer's class and arguments, changed in place by the repairs.

    Attributes:
        class_name: Name of the class, or of the one of Keras that it is derived from.
        config: The arguments it was made with.
        major: The major version of the Keras that wrote it: 1 or 2.
        registered: The user's class, where it is one.
        before_half_pixels: Whether that Keras may have resized images by other sample points.
        log_repair: Tells the log of a repair to this layer.
        log_warning: Tells it what in this layer could not be repaired.
    """

    class_name: str
    config: dict[str, Any]
    major: int
    log_repair: Callable[[str], None]
    log_warning: Callable[[str], None]
    before_half_pixels: bool
    registered: type[keras.Layer] | None = None

    @property
    def name(self) -> str:
        """The layer's own name, empty where the file has none."""
        return str(self.config.get("name") or "")

    def refused(self, why: str, hint: str | None = None) -> LoadError:
        """An error about this layer."""
        return LoadError(f"{self.class_name} {why}", layer=self.name or None, hint=hint)

    def layer_class(self) -> type[keras.Layer] | None:
        """The user's class, or the one of `keras.layers` of that name, if this Keras has one."""
        if self.registered is not None:
            return self.registered
        found = getattr(keras.layers, self.class_name, None)
        is_layer = isinstance(found, type) and issubclass(found, keras.Layer)
        return found if is_layer else None
