"""What the layers of an old file have become, in the file's order, for its weights to find."""

from __future__ import annotations

from dataclasses import dataclass, field

import keras


@dataclass
class Made:
    """One layer of the file.

    Attributes:
        name: Its name in the file.
        class_name: Its class in the file.
        layer: What it has become; None for an operation without weights.
        children: The layers in it, where it is a model or a wrapper around one layer.
    """

    name: str
    class_name: str
    layer: keras.Layer | None
    children: list[Made] = field(default_factory=list)

    def leaves(self) -> list[Made]:
        """The layers that hold weights themselves, in the order of the file."""
        if not self.children:
            return [self] if self.layer is not None and self.layer.weights else []
        return [leaf for child in self.children for leaf in child.leaves()]
