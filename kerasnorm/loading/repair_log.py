"""What was repaired, in sentences: equal repairs of many layers are one line."""

from __future__ import annotations

_NAMED = 3


class RepairLog:
    """Collects repairs while a file is read."""

    def __init__(self) -> None:
        self._layers: dict[str, list[str]] = {}
        self._warnings: dict[str, list[str]] = {}

    def add(self, what: str, layer: str | None = None) -> None:
        """Remember a repair, of the whole file or of a layer."""
        layers = self._layers.setdefault(what, [])
        if layer is not None and layer not in layers:
            layers.append(layer)

    def warn(self, what: str, layer: str | None = None) -> None:
        """Remember what could not be repaired, and may answer otherwise."""
        layers = self._warnings.setdefault(what, [])
        if layer is not None and layer not in layers:
            layers.append(layer)

    def lines(self) -> list[str]:
        """One line for each kind of repair, with the layers that it was made in."""
        return _lines(self._layers)

    def warnings(self) -> list[str]:
        """The same for what could not be repaired."""
        return _lines(self._warnings)


def _lines(found: dict[str, list[str]]) -> list[str]:
    return [f"{what} ({_listed(layers)})" if layers else what for what, layers in found.items()]


def _listed(layers: list[str]) -> str:
    named = ", ".join(f"'{name}'" for name in layers[:_NAMED])
    more = len(layers) - _NAMED
    return f"{named} and {more} more" if more > 0 else named
