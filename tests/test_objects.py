"""Clones of what hangs on layers: each thing once, all that may change anew, the rest as it is."""

from __future__ import annotations

import collections
import functools
import logging
import math
import types
import weakref

import keras
import numpy as np
import pytest

from kerasnorm.clone.objects import (
    Objects,
    copied,
    is_state,
    leads_to,
    module_of,
    reached,
)

Pair = collections.namedtuple("Pair", ["first", "second"])


class Plain:
    def __init__(self, **held):
        vars(self).update(held)

    def method(self):
        return self


class Slotted:
    __slots__ = ("__weakref__", "array", "missing")

    def __init__(self, array):
        self.array = array


class OneSlot(Slotted):
    __slots__ = "other"

    def __init__(self, array, other):
        super().__init__(array)
        self.other = other


class OwnList(list):
    pass


class RefusesCopies:
    def __init__(self):
        self.array = np.zeros(2)

    def __reduce_ex__(self, protocol):
        raise TypeError("not to be copied")


def cloned(value):
    """The clone of something, arrays copied."""
    return Objects(np.copy).clone(value)


ARRAY = np.arange(3.0)


@pytest.mark.parametrize(
    ("make", "inside"),
    [
        (lambda a: [a], lambda v: v[0]),
        (lambda a: [1, [a]], lambda v: v[1][0]),
        (lambda a: (1, a), lambda v: v[1]),
        (lambda a: Pair(1, a), lambda v: v.second),
        (lambda a: {"key": a}, lambda v: v["key"]),
        (lambda a: collections.OrderedDict(key=a), lambda v: v["key"]),
        (lambda a: collections.defaultdict(list, key=a), lambda v: v["key"]),
        (lambda a: collections.deque([a, 2]), lambda v: v[0]),
        (lambda a: OwnList([a]), lambda v: v[0]),
        (lambda a: Plain(array=a), lambda v: v.array),
        (lambda a: Slotted(a), lambda v: v.array),
        (lambda a: OneSlot(1, a), lambda v: v.other),
        (lambda a: OneSlot(a, 1), lambda v: v.array),
        (lambda a: Plain(array=a).method, lambda v: v().array),
        (lambda a: functools.partial(max, a), lambda v: v.args[0]),
        (lambda a: functools.partial(max, key=a), lambda v: v.keywords["key"]),
        (lambda a: functools.partial(lambda: a), lambda v: v.func()),
        (lambda a: lambda: a, lambda v: v()),
        (lambda a: [a].pop, lambda v: v.__self__[0]),
    ],
)
def test_what_holds_an_array_is_cloned_with_it(make, inside):
    array = ARRAY.copy()
    value = make(array)
    clone = cloned(value)
    assert clone is not value
    assert type(clone) is type(value)
    assert inside(value) is array
    assert inside(clone) is not array
    np.testing.assert_array_equal(inside(clone), array)


def test_sets_hold_clones_too():
    held = Plain(number=1)
    for value in ({held}, frozenset({held})):
        (clone,) = cloned(value)
        assert type(cloned(value)) is type(value)
        assert clone is not held
        assert clone.number == 1


def test_functions_have_defaults_attributes_and_names_of_their_own():
    array, kept = ARRAY.copy(), []

    def function(x, y=array, *, z=array):
        """What it does."""
        kept.append(x)
        return x, y, z

    function.mark = array
    clone = cloned(function)
    _, y, z = clone(1)
    for own in (y, z, clone.mark):
        assert own is not array
        np.testing.assert_array_equal(own, array)
    assert y is z is clone.mark  # each thing once
    assert kept == []
    assert (clone.__name__, clone.__doc__) == ("function", "What it does.")
    assert clone.__qualname__ == function.__qualname__
    assert clone.__module__ == __name__


def test_functions_that_share_a_variable_still_do():
    count = 0

    def add():
        nonlocal count
        count += 1

    def tell():
        return count

    own_add, own_tell = cloned([add, tell])
    own_add()
    assert (own_tell(), tell()) == (1, 0)


def test_a_variable_that_is_not_set_yet_stays_so():
    def make():
        def function():
            return later

        held = [cloned(function)]
        later = 1
        return held[0], later

    function, _ = make()
    with pytest.raises(NameError):
        function()


def test_a_function_that_calls_itself():
    def factorial(n):
        return n * factorial(n - 1) if n else 1

    clone = cloned(factorial)
    assert clone(5) == 120
    (cell,) = clone.__closure__
    assert cell.cell_contents is clone


def test_what_is_held_twice_or_by_itself_stays_one():
    array = ARRAY.copy()
    first, second = cloned([array, {"again": array}])
    assert first is second["again"]
    loop = Plain()
    loop.own = [loop]
    clone = cloned(loop)
    assert clone is not loop
    assert clone.own[0] is clone
    loop = [1]
    loop.append(loop)
    assert cloned(loop)[1] is not loop


def test_weak_references_are_to_clones():
    held = Plain(number=3)
    strong, weak = cloned([held, weakref.ref(held)])
    assert weak() is strong
    assert strong is not held


@pytest.mark.parametrize(
    "value",
    [
        1, "text", b"bytes", None, 1.5, 1j, int, math, math.sqrt, np.square, ARRAY.dtype, len,
        keras.activations.relu, (1, 2), frozenset({1}), Plain, Plain(), range(3),
        functools.partial(max, 1), logging.getLogger("a"), types.MappingProxyType({}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_nothing_can_change_stays_the_same_object(value):
    assert cloned(value) is value


def test_functions_without_a_closure_stay():
    def function(x, y=(1, 2)):
        return x

    assert cloned(function) is function


def test_registered_functions_stay():
    array = ARRAY.copy()

    @keras.saving.register_keras_serializable(package="test_objects", name="registered")
    def registered():
        return array

    assert cloned(registered) is registered
    assert not leads_to([registered], lambda value: value is array)


def test_what_refuses_to_be_copied_stays_one():
    held = RefusesCopies()
    assert cloned([held])[0] is held


def test_needs_decide_what_there_has_to_be_a_clone_of():
    old, new, beside = Plain(), Plain(), [1]
    objects = Objects(lambda value: new, needs=lambda value: value is old)
    assert objects.clone(beside) is beside
    assert objects.clone({"old": beside}) == {"old": beside}
    array = ARRAY.copy()
    objects = Objects(lambda value: "instead", needs=lambda value: value is array)
    found = objects.clone({"a": [array], "b": beside})
    assert found["a"] == ["instead"]
    assert found["b"] is beside


def test_remembered_clones_stand_for_their_objects():
    old = Plain()
    objects = Objects(np.copy)
    assert objects.remember(old, "new") == "new"
    assert objects.clone([old, (old,)]) == ["new", ("new",)]


def test_copies_have_arrays_of_their_own_and_share_layers_and_variables():
    layer, variable, array = keras.layers.ReLU(), keras.Variable(1.0), ARRAY.copy()
    copy = copied([layer, variable, array])
    assert copy[0] is layer
    assert copy[1] is variable
    assert copy[2] is not array


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (keras.layers.ReLU(), True),
        (keras.Variable(1.0), True),
        (keras.metrics.Mean(), True),
        (keras.optimizers.SGD(), True),
        (keras.random.SeedGenerator(1), True),
        (ARRAY, True),
        ([ARRAY], False),
        (keras.regularizers.L2(), False),
        (1.0, False),
    ],
)
def test_what_has_values_of_its_own(value, is_one):
    assert is_state(value) == is_one


@pytest.mark.parametrize(
    "make",
    [
        lambda a: [a], lambda a: {"a": a}, lambda a: {a: 1}, lambda a: {a}, lambda a: (a,),
        lambda a: frozenset({a}), lambda a: collections.deque([a]), lambda a: Plain(a=a),
        lambda a: Slotted(a), lambda a: OneSlot(1, a), lambda a: lambda: a,
        lambda a: lambda x=a: x, lambda a: a.method, lambda a: functools.partial(a.method),
        lambda a: functools.partial(max, a), lambda a: functools.partial(max, key=a),
        lambda a: [a].pop, lambda a: weakref.ref(a), lambda a: types.MappingProxyType({"a": a}),
        lambda a: OwnList([a]), lambda a: [[{"deep": (a,)}]],
    ],
)  # fmt: skip
def test_what_leads_to_an_object(make):
    held = Plain()
    assert leads_to([1, make(held)], lambda value: value is held)
    assert not leads_to([1, make(Plain())], lambda value: value is held)


def test_keyword_defaults_and_attributes_of_functions_lead_on():
    held = Plain()

    def with_default(*, x=held):
        return x

    def with_attribute():
        return 1

    with_attribute.held = held
    for function in (with_default, with_attribute):
        assert leads_to([function], lambda value: value is held)


def test_layers_are_reached_and_not_opened():
    layer = keras.layers.Dense(2)
    layer.held = Plain()
    found = list(reached([[layer]]))
    assert layer in found
    assert not any(value is layer.held for value in found)
    # what else an object leads to may be told, and what was seen is left out
    more = list(reached([[layer]], more=lambda value: [layer.held]))
    assert any(value is layer.held for value in more)
    assert list(reached([layer], seen={id(layer): layer})) == []


def test_services_of_the_standard_library_are_not_opened():
    logger = logging.getLogger("kerasnorm.test_objects")
    logger.held = Plain()
    assert not leads_to([logger], lambda value: value is logger.held)


def test_modules_of_things():
    assert module_of(np.square) in ("numpy", "")
    assert module_of(collections.OrderedDict) == "collections"
    assert module_of(keras.layers.Dense) == "keras"
    assert module_of(Plain) == __name__
    assert module_of(1) == ""
