"""What `keras.layers.RNN` and `Bidirectional` ask of a layer, asked of a wrapped one."""

from __future__ import annotations


def _of_wrapped(name: str, settable: bool = False):
    def read(self):
        return getattr(self.layer, name)  # AttributeError where the wrapped layer has none

    def write(self, value):
        setattr(self.layer, name, value)

    return property(read, write if settable else None, doc=f"`{name}` of the wrapped layer.")


class RecurrentFace:
    """Lets a wrapper of a recurrent layer or cell stand where the bare one is expected.

    `Bidirectional` builds its second direction from the first one's config with `go_backwards`
    flipped, so a wrapper's config may hold that key, meant for the wrapped layer.
    """

    state_size = _of_wrapped("state_size")
    output_size = _of_wrapped("output_size")
    get_initial_state = _of_wrapped("get_initial_state")
    go_backwards = _of_wrapped("go_backwards")
    return_sequences = _of_wrapped("return_sequences")
    return_state = _of_wrapped("return_state")
    stateful = _of_wrapped("stateful")
    states = _of_wrapped("states")
    reset_state = _of_wrapped("reset_state")
    reset_states = _of_wrapped("reset_states")
    zero_output_for_mask = _of_wrapped("zero_output_for_mask", settable=True)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        backwards = config.pop("go_backwards", None)
        if backwards is not None:
            inner = config["layer"]
            inner_config = {**inner["config"], "go_backwards": backwards}
            config["layer"] = {**inner, "config": inner_config}
        return super().from_config(config, custom_objects)  # type: ignore[misc]
