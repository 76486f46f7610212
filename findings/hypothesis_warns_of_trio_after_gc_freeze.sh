#!/usr/bin/env bash
# An expert would guess: `gc.freeze()`, which pre-fork servers and test suites call after their imports,
#   changes no behaviour of what was imported: objects stay alive and reachable.
# What happens: `gc.get_referrers` no longer finds a frozen referrer, and Hypothesis asks it whether a
#   registered random generator is kept alive. Trio registers one when Hypothesis is first imported, so
#   a program that imports Trio, freezes, and imports Hypothesis is warned of a module's global variable.
#   Hypothesis's pytest plugin imports Hypothesis at the end of a run that did not; where warnings are
#   errors, pytest ends with a traceback and status 1 though every test passed. Trio need not be used:
#   AnyIO's pytest plugin imports it where it is installed.
# What helps: import Hypothesis before `gc.freeze()`.
# 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "hypothesis==6.170.17" "trio==0.35.0"
"$folder/venv/bin/python" - <<'END'
import subprocess
import sys
from importlib.metadata import version

print("Hypothesis", version("hypothesis"), "Trio", version("trio"))
ORDERS = {
    "import trio; import hypothesis": False,
    "import trio, gc; gc.freeze(); import hypothesis": True,
    "import trio, hypothesis, gc; gc.freeze()": False,
}
for program, expected in ORDERS.items():
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    warned = "could be garbage collected immediately" in " ".join(done.stderr.split())
    print(f"{program}: {'warned' if warned else 'silent'}")
    assert warned == expected, done.stderr
END
