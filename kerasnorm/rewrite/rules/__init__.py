"""The rules by target: each a module with `check`, `rewrite`, `fit` and `lost`."""

from typing import Any

from kerasnorm.rewrite.rules import to_cosine, to_layer, to_weight

RULES: dict[str, Any] = {"weight": to_weight, "layer": to_layer, "cosine": to_cosine}
