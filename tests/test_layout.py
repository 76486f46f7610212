"""The rooms of the package, what each may import, and what no file may hold."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import kerasnorm

PACKAGE = Path(kerasnorm.__file__).parent
FILES = {
    ".".join(("kerasnorm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# What every room may import: modules at the top that import no room.
COMMON = {"errors", "version", "progress", "keras_private", "atomic_files"}
# What each room imports of the others; and what those may, it may too.
MAY_IMPORT = {
    "math": set(),
    "layers": {"math"},
    "graph": {"layers"},
    "clone": {"graph"},
    "targets": {"clone", "graph"},
    "fit": {"graph", "clone"},
    "distillation": {"graph", "fit"},
    "compare": {"graph", "clone"},
    "plotting": {"targets", "compare"},
    "swap": {"targets", "clone", "fit", "distillation", "compare", "plotting"},
    "loading": {"graph", "layers"},
    "onnx": {"graph", "clone", "compare", "swap"},
    "callbacks": {"layers", "plotting"},
    "cli": {"swap", "loading", "onnx", "distillation", "plotting", "callbacks"},
}
LONGEST = 350


def reachable(room: str) -> set[str]:
    found, waiting = {room}, [room]
    while waiting:
        for other in MAY_IMPORT[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported_by(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in inner}
    return {name for name in found if name.split(".")[0] == "kerasnorm"}


IMPORTS = {module: imported_by(path) for module, path in FILES.items()}


def test_every_folder_is_a_room_of_the_table():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert rooms == set(MAY_IMPORT)
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == COMMON | {"__init__", "__main__"}


def test_imports_run_with_the_table():
    against = {}
    for module, others in IMPORTS.items():
        room = room_of(module)
        if room in MAY_IMPORT:
            allowed = reachable(room) | COMMON | ({""} if room == "cli" else set())
            against[module] = {other for other in others if room_of(other) not in allowed}
    assert not {module: others for module, others in against.items() if others}


def test_what_every_room_may_import_imports_none():
    for name in COMMON:
        assert not {o for o in IMPORTS[f"kerasnorm.{name}"] if room_of(o) in MAY_IMPORT}


def test_no_room_and_no_file_imports_itself_in_a_circle():
    rooms = {room: reachable(room) for room in MAY_IMPORT}
    pairs = itertools.combinations(rooms, 2)
    assert not [(a, b) for a, b in pairs if a in rooms[b] and b in rooms[a]]
    left = {name: others - {name, "kerasnorm"} for name, others in IMPORTS.items()}
    while ready := [name for name, others in left.items() if not others & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


def test_files_are_short():
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in FILES.items()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_private_keras_is_in_one_file():
    private = re.compile(
        r"\bkeras\.src\b|\b(_keras_history|_inbound_nodes|_outbound_nodes|_keras_mask|_tracker"
        r"|_flatten_layers|_trainable_variables|_non_trainable_variables)\b"
    )
    found = {name for name, path in FILES.items() if private.search(path.read_text("utf-8"))}
    assert found == {"kerasnorm.keras_private"}


def test_names_are_the_words_of_the_field():
    """No name that a stranger would have to learn (comments and texts are not looked at)."""
    replaced = re.compile(
        r"forest|\btwins?\b|crossing|acquaintance|lesson|pupil|\bjudges?\b|blank|replica\b|\bmade\b"
        r"|call_with|insist|\bbaked?\b|\bhidden\b|\bmanner",
        re.IGNORECASE,
    )
    found = set()
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for field in ("id", "attr", "name", "arg"):
                word = getattr(node, field, None)
                if isinstance(word, str) and replaced.search(word):
                    found.add(f"{name}: {word}")
    assert not found
