"""Makes the API reference, a folder of web pages, from the docstrings.

    python tools/api_reference.py FOLDER

Ends with 1 where a docstring cannot be rendered. Needs pdoc, of the docs extra.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import kerasnorm
import kerasnorm.callbacks
import kerasnorm.layers

PUBLIC = (kerasnorm, kerasnorm.layers, kerasnorm.callbacks)


def main() -> int:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    import pdoc

    pdoc.render.configure(docformat="google", math=False, show_source=False)
    for module in PUBLIC:
        # What is imported to be public is documented where the user finds it.
        module.__all__ = names(module)  # type: ignore[attr-defined]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        inner = "!kerasnorm[.](?!layers$|callbacks$)"
        pdoc.pdoc(*(module.__name__ for module in PUBLIC), inner, output_directory=folder)
    problems = [str(warning.message) for warning in said if "pdoc" in warning.filename]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{sum(len(names(module)) for module in PUBLIC)} names: {folder / 'index.html'}")
    return int(bool(problems))


def names(module: ModuleType) -> list[str]:
    """The classes and functions that a module offers."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("kerasnorm")
    )


if __name__ == "__main__":
    sys.exit(main())
