"""What no file may ask for, whoever reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kerasnorm.errors import LoadError

# Classes that run code kept in the file, or load another file that has some.
CODE_CLASSES = frozenset({"FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper"})
# Arguments of metrics that say how many numbers they keep.
_COUNTS = frozenset({"num_classes", "num_thresholds", "thresholds"})
# Arguments of layers that are sizes, or are multiplied by sizes.
_SIZES = frozenset(
    {
        "batch_input_shape",
        "batch_shape",
        "cropping",
        "depth_multiplier",
        "dilation_rate",
        "filters",
        "groups",
        "height",
        "input_dim",
        "input_shape",
        "kernel_size",
        "n",
        "output_dim",
        "output_padding",
        "padding",
        "pool_size",
        "size",
        "strides",
        "target_shape",
        "units",
        "width",
    }
)


@dataclass(frozen=True)
class Limits:
    """How much a file may ask for: far more than any file that Keras wrote.

    Attributes:
        characters: Of a configuration or another text.
        content_floor: Bytes of content that a file of any size may say it holds.
        content_ratio: Beyond them, how many times larger than the file its content may be.
        groups: Of an HDF5 file, one in the other.
        models: One in the other.
        numbers: That a metric keeps.
        size: Of whatever in a layer has a size.
        weights_floor: Bytes of weights that any configuration may ask for.
        weights_ratio: Beyond them, how many times the file's weights. An optimizer, which a file
            need not hold, keeps up to five numbers for each.
    """

    characters: int = 2**27
    content_floor: int = 2**28
    content_ratio: float = 100
    groups: int = 64
    models: int = 50
    numbers: int = 2_000
    size: int = 2**31 - 1
    weights_floor: int = 2**26
    weights_ratio: float = 6

    def content(self, file_size: int) -> float:
        """How many bytes the content of a file of some bytes may have; weights hardly compress."""
        return max(self.content_floor, self.content_ratio * file_size)

    def weights(self, stored: int) -> float:
        """How many bytes of weights may be made for a file that stores some bytes of them."""
        return self.weights_ratio * stored + self.weights_floor


LIMITS = Limits()


def check_metrics(training: Any, limits: Limits) -> None:
    """Refuse a compile state whose metrics keep more numbers than they may.

    Raises:
        LoadError: If there is one.
    """
    for item in _dictionaries(training):
        for key in item.keys() & _COUNTS:
            numbers = _numbers(item[key])
            if len(numbers) > limits.numbers or any(n > limits.numbers for n in numbers):
                raise LoadError("a metric that keeps very many numbers")


def check_no_code(config: Any) -> None:
    """Refuse a configuration that has a class which runs what is kept in the file.

    Keras refuses the functions in its safe mode, each class by itself; this is for the whole.

    Raises:
        LoadError: If there is one.
    """
    for item in _dictionaries(config):
        class_name = item.get("class_name")
        if class_name in CODE_CLASSES or class_name == "__lambda__":
            inner = item.get("config")
            name = inner.get("name") if isinstance(inner, dict) else None
            raise LoadError(
                f"{class_name} would run code that is kept in the file.",
                layer=name if isinstance(name, str) else None,
                hint="If you trust its author, allow it (--allow-custom-code).",
            )


def check_sizes(config: Any, limits: Limits) -> None:
    """Refuse a configuration with a size that is out of all proportion.

    Raises:
        LoadError: If there is one.
    """
    for item in _dictionaries(config):
        for key in item.keys() & _SIZES:
            if any(abs(number) > limits.size for number in _numbers(item[key])):
                name = item.get("name")
                raise LoadError(
                    f"The configuration is damaged: {key}={item[key]}.",
                    layer=name if isinstance(name, str) else None,
                )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _dictionaries(config: Any) -> Iterator[dict[str, Any]]:
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
