"""Mutation testing: break a line, run the tests that execute it, see one fail.

The mutants are Cosmic Ray's. Each is run in a fork of a process that has imported TensorFlow and
Keras but nothing of kerasnorm, with tests that execute the broken line, within some
seconds; a mutant survives if they all pass.

    pip install -e ".[mutation]"
    python tools/mutation_test.py measure                     # which test executes which line
    python tools/mutation_test.py run kerasnorm/math --share 0.2
    python tools/mutation_test.py show

Results are kept in `.mutation/`, one JSON line for each mutant, and are added to until the file
that was broken changes.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import hashlib
import importlib.machinery
import importlib.util
import itertools
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".mutation"
LINES, RESULTS = KEPT / "lines.json", KEPT / "results.jsonl"
ROOMS = ("kerasnorm/math", "kerasnorm/targets", "kerasnorm/clone", "kerasnorm/compare")
# How many times as long as when they were measured the tests of a mutant may take.
PATIENCE = 4.0
# These change nothing, or have to be told a variable.
LEFT_OUT = {"core/NoOp", "core/VariableInserter", "core/VariableReplacer"}
PRELOADED = ["tensorflow", "keras", "numpy", "pytest", "h5py", "onnx", "onnxruntime"]


def measure(tests: list[str]) -> None:
    """Run the tests once and keep which of them executes which line, and how long each takes."""
    import coverage
    import pytest

    measured = coverage.Coverage(
        data_file=None, source=[str(ROOT / "kerasnorm")], messages=False, concurrency="thread"
    )
    seconds: dict[str, float] = {}
    unfit: set[str] = set()  # what is skipped or fails tells nothing of a mutant

    class Watch:
        def pytest_runtest_logstart(self, nodeid: str) -> None:
            measured.switch_context(nodeid)

        def pytest_runtest_logfinish(self, nodeid: str) -> None:
            measured.switch_context("")

        def pytest_runtest_logreport(self, report: Any) -> None:
            seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
            if report.outcome != "passed":
                unfit.add(report.nodeid)

    measured.start()
    pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[Watch()])
    measured.stop()
    for test in unfit:
        del seconds[test]
    data = measured.get_data()
    lines = {
        str(Path(name).relative_to(ROOT)): {
            line: sorted(c for c in contexts if c in seconds)
            for line, contexts in data.contexts_by_lineno(name).items()
        }
        for name in data.measured_files()
    }
    KEPT.mkdir(exist_ok=True)
    LINES.write_text(json.dumps({"seconds": seconds, "lines": lines}))


def mutants(path: Path, share: float) -> Iterator[dict[str, Any]]:
    """The mutants of a file, without those of annotations, which nothing evaluates."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code

    source = path.read_text("utf-8")
    annotated = _annotations(source)
    name = str(path.relative_to(ROOT))
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    tree = get_ast(source)
    for operator_name in sorted(set(cosmic_ray.plugins.operator_names()) - LEFT_OUT):
        operator: Any = cosmic_ray.plugins.get_operator(operator_name)()
        places = [p for node in ast_nodes(tree) for p in operator.mutation_positions(node)]
        for number, place in enumerate(places):
            (start, column), _ = place[:2]
            chosen = random.Random(f"{name}{digest}{operator_name}{number}").random() < share
            if chosen and not any(a <= (start, column) < b for a, b in annotated):
                broken = mutate_code(source, operator, number)
                if broken not in (None, source):
                    yield {
                        "file": name,
                        "digest": digest,
                        "operator": operator_name,
                        "number": number,
                        "line": start,
                        "was": source.splitlines()[start - 1].strip(),
                        "source": broken,
                    }


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
    return [
        ((a.lineno, a.col_offset), (a.end_lineno or a.lineno, a.end_col_offset or 0))
        for a in found
        if a is not None
    ]


def known() -> dict[str, Any]:
    """What `measure` has kept, and how many lines each test executes."""
    measured = json.loads(LINES.read_text())
    widths: Counter[str] = Counter()
    for lines in measured["lines"].values():
        for tests in lines.values():
            widths.update(tests)
    return {**measured, "widths": widths}


def tests_for(mutant: dict[str, Any], measured: dict[str, Any], budget: float) -> list[str]:
    """Tests that execute the broken line; of the whole file where none does, or of all files.

    Half of the budget is for those that execute the fewest lines, which look at these the closest.
    For the other half, the quickest case of each test function comes first, then the second
    quickest: cases of one function see much the same.

    Args:
        mutant: What is broken.
        measured: What `known` gives.
        budget: Seconds that the tests may take, but for the first.
    """
    lines, seconds = measured["lines"].get(mutant["file"], {}), measured["seconds"]
    of_file = sorted(set(itertools.chain(*lines.values())))
    found = lines.get(str(mutant["line"])) or of_file or list(seconds)
    chosen: dict[str, None] = {}  # in order

    def choose(tests: Iterable[str], end: float) -> None:
        total = sum(seconds[test] for test in chosen)
        for test in tests:
            total += seconds[test]
            if chosen and total > end:
                break
            chosen[test] = None

    choose(sorted(found, key=lambda test: (measured["widths"][test], seconds[test])), budget / 2)
    seen: Counter[str] = Counter()
    ordered = []
    for test in sorted(found, key=seconds.__getitem__):
        function = test.partition("[")[0]
        ordered.append((seen[function], seconds[test], test))
        seen[function] += 1
    choose((test for *_, test in sorted(ordered) if test not in chosen), budget)
    return list(chosen)


def outcome(mutant: dict[str, Any], tests: list[str], measured: dict[str, Any]) -> str:
    """ "killed" or "survived"."""
    context = multiprocessing.get_context("forkserver")
    limit = PATIENCE * sum(measured["seconds"][test] for test in tests) + 60
    process = context.Process(target=_run, args=(mutant, tests), daemon=True)
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return "killed"
    return "survived" if process.exitcode == 0 else "killed"


def _run(mutant: dict[str, Any], tests: list[str]) -> None:
    """In a fork: import the broken source in place of the file, and run the tests."""
    import pytest

    class Broken(importlib.machinery.SourceFileLoader):
        def get_code(self, fullname: str) -> Any:
            return compile(mutant["source"], self.path, "exec")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            if name != mutant["file"].removesuffix(".py").replace("/", "."):
                return None
            file = str(ROOT / mutant["file"])
            return importlib.util.spec_from_file_location(name, file, loader=Broken(name, file))

    sys.meta_path.insert(0, Finder)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "", *tests])))


def run(paths: list[str], share: float, minutes: float, workers: int, budget: float) -> None:
    """Run mutants that have no result yet, in random order, until the time is over."""
    measured = known()
    files = sorted(
        itertools.chain(*([p] if p.suffix else p.glob("*.py") for p in map(ROOT.joinpath, paths)))
    )
    done = {_key(result) for result in _results()}
    waiting = [m for file in files for m in mutants(file, share) if _key(m) not in done]
    random.Random(0).shuffle(waiting)
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    end = time.monotonic() + 60 * minutes
    print(f"{len(waiting)} mutants to run")

    def passes(name: str) -> bool:
        whole = {"file": name, "line": 0, "source": (ROOT / name).read_text("utf-8")}
        return outcome(whole, tests_for(whole, measured, budget), measured) != "killed"

    def one(mutant: dict[str, Any]) -> None:
        if time.monotonic() > end:
            return
        found = outcome(mutant, tests_for(mutant, measured, budget), measured)
        kept = {key: value for key, value in mutant.items() if key != "source"}
        with RESULTS.open("a") as file:
            file.write(json.dumps({**kept, "outcome": found}) + "\n")

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        names = sorted({mutant["file"] for mutant in waiting})
        sound = {
            name for name, passed in zip(names, pool.map(passes, names), strict=True) if passed
        }
        for name in sorted(set(names) - sound):
            print(f"{name} is left out: its tests must pass before it is broken, and some fail")
        list(pool.map(one, [mutant for mutant in waiting if mutant["file"] in sound]))
    show()


def show() -> None:
    """Print the share of mutants that were killed, by room, and those that were not."""
    results = [r for r in _results() if _is_current(r)]
    for room in sorted({str(Path(r["file"]).parent) for r in results}):
        own = [r for r in results if str(Path(r["file"]).parent) == room]
        killed = sum(r["outcome"] == "killed" for r in own)
        print(f"{room}: {killed} of {len(own)} killed ({killed / len(own):.1%})")
    for r in sorted(results, key=lambda r: (r["file"], r["line"])):
        if r["outcome"] != "killed":
            operator = r["operator"].removeprefix("core/")
            print(f"{r['file']}:{r['line']} {r['outcome']}: {operator} {r['number']}: {r['was']}")


def _results() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.open()] if RESULTS.exists() else []


def _key(mutant: dict[str, Any]) -> tuple:
    return mutant["file"], mutant["digest"], mutant["operator"], mutant["number"]


def _is_current(result: dict[str, Any]) -> bool:
    path = ROOT / result["file"]
    if not path.exists():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] == result["digest"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="keep which test executes which line")
    measuring.add_argument("tests", nargs="*", default=["tests"])
    running = commands.add_parser("run", help="run mutants that have no result yet")
    running.add_argument("paths", nargs="*", default=ROOMS)
    running.add_argument("--share", type=float, default=1.0, help="of the mutants, drawn by name")
    running.add_argument("--minutes", type=float, default=60.0)
    running.add_argument("--workers", type=int, default=2)
    running.add_argument("--seconds", type=float, default=60.0, help="of tests for each mutant")
    commands.add_parser("show", help="print what is known")
    asked = parser.parse_args()
    if asked.command == "measure":
        measure(asked.tests)
    elif asked.command == "run":
        run(list(asked.paths), asked.share, asked.minutes, asked.workers, asked.seconds)
    else:
        show()


if __name__ == "__main__":
    main()
