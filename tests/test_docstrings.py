"""The examples in docstrings run as they stand, and everything public has a docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import warnings

import keras
import numpy as np
import pytest

import kerasnorm
import kerasnorm.callbacks

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(kerasnorm.__path__, "kerasnorm.")
    if not name.endswith("__main__")
]
# What the examples may use without importing it: what a reader has imported by then.
NAMES = {"keras": keras, "np": np, "kerasnorm": kerasnorm, **vars(kerasnorm)}
PUBLIC = [
    (name, value)
    for space in (kerasnorm, kerasnorm.layers, kerasnorm.callbacks)
    for name, value in vars(space).items()
    if not name.startswith("_")
    and (inspect.isclass(value) or inspect.isfunction(value))
    and name in getattr(space, "__all__", [name])
]


def examples_of(name):
    module = importlib.import_module(name)
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    return module, [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    module, tests = examples_of(name)
    monkeypatch.chdir(tmp_path)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, about what an example leaves out
        for test in tests:
            keras.utils.clear_session(
                free_memory=False
            )  # names count from the start, as for a reader
            test.globs = {**NAMES, **vars(module)}
            said: list[str] = []
            runner.run(test, out=said.append)
            assert runner.failures == 0, "".join(said)


def test_most_modules_with_public_functions_have_examples():
    assert sum(bool(examples_of(name)[1]) for name in MODULES) >= 20


@pytest.mark.parametrize(
    ("name", "value"), PUBLIC, ids=lambda value: value if isinstance(value, str) else ""
)
def test_everything_public_is_documented(name, value):
    text = inspect.getdoc(value) or ""
    first = text.split("\n\n")[0]
    assert first.endswith((".", ":")), f"{name}: {first}"
    if not (inspect.isclass(value) and issubclass(value, Exception)) or name == "KerasNormError":
        assert ">>>" in text, f"{name} has no example"


def test_modules_named_in_docstrings_exist():
    rooms = {name.split(".")[1] for name in MODULES}
    named = {
        word
        for name in MODULES
        for word in re.findall(r"`(\w+\.\w+)\b", importlib.import_module(name).__doc__ or "")
        if word.split(".")[0] in rooms
    }
    assert {f"kerasnorm.{word}" for word in named} <= set(MODULES)
