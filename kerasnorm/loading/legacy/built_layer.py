"""What the layers of an old file have become, in the file's order, for its weights to find."""

from __future__ import annotations

from dataclasses import dataclass, field

import keras


@dataclass
class BuiltLayer:
    """One layer of the file.

    Attributes:
        name: Its name in the file.
        class_name: Its class in the file.
        layer: What it has become; None for an operation without weights.
        children: The layers in it, where it is a model or a wrapper around others.
        replacement: What is called instead of the layer, which it may hold.
        output_shape: What the file says it gives, batch included, where it says so.
    """

    name: str
    class_name: str
    layer: keras.Layer | None
    children: list[BuiltLayer] = field(default_factory=list)
    replacement: keras.Layer | None = None
    output_shape: list[int | None] | None = None

    def leaves(self) -> list[BuiltLayer]:
        """The layers that hold weights themselves, in the order of the file."""
        if not self.children:
            return [self] if self.layer is not None and self.layer.weights else []
        return [leaf for child in self.children for leaf in child.leaves()]
