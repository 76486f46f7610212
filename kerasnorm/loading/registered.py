"""Classes that the running program has registered, for files to find."""

from __future__ import annotations

from typing import Any

import keras


def registered_class(stored: dict[str, Any]) -> Any:
    """The layer's class that is registered under a stored name, or None.

    Args:
        stored: Class and configuration, as `{"class_name": …, "config": …}`.
    """
    known = keras.saving.get_custom_objects()
    for key in ("registered_name", "class_name"):
        name = stored.get(key)
        if isinstance(name, str):
            found = known.get(name) or keras.saving.get_registered_object(name)
            if isinstance(found, type) and issubclass(found, keras.Layer):
                return found
    return None
