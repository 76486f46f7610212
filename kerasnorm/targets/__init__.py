"""The rules by target: each a module with `check`, `rewrite`, `fit` and `lost`."""

from typing import Any

from kerasnorm.targets import cosine, layer, weight

RULES: dict[str, Any] = {"weight": weight, "layer": layer, "cosine": cosine}
