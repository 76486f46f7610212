"""What no configuration may hold, whoever reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kerasnorm.errors import LoadError
from kerasnorm.loading.legacy.legacy_config import CODE_CLASSES

# Keras never writes a configuration of so many characters.
LONGEST_TEXT = 2**27
# What claims to be so many times larger than its file is made to fill the memory of whoever opens
# it: weights hardly compress. Small models of zeros stay below the floor.
_LARGEST_RATIO, _FLOOR = 100, 2**28
# Metrics keep a count, or the square of it, for each of these.
_COUNTS = frozenset({"num_classes", "num_thresholds", "thresholds"})
_LARGEST_COUNT = 2_000
# Arguments that TensorFlow holds in 32 bits; it ends the process where one is larger.
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
_LARGEST = 2**31 - 1


def is_bomb(file_size: int, claimed: int) -> bool:
    """Whether a file of some bytes cannot mean it when it claims to hold so many."""
    return claimed > max(_FLOOR, _LARGEST_RATIO * file_size)


def is_modest(training: Any) -> bool:
    """Whether the metrics of a compile state keep no more than some thousand numbers."""
    for item in _dictionaries(training):
        for key in item.keys() & _COUNTS:
            numbers = _numbers(item[key])
            if len(numbers) > _LARGEST_COUNT or any(n > _LARGEST_COUNT for n in numbers):
                return False
    return True


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


def check_sizes(config: Any) -> None:
    """Refuse a configuration with a size that is out of all proportion.

    Raises:
        LoadError: If there is one.
    """
    for item in _dictionaries(config):
        for key in item.keys() & _SIZES:
            if any(abs(number) > _LARGEST for number in _numbers(item[key])):
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
