#!/usr/bin/env bash
# An expert would guess: `ndarray.tofile(path)` on a disk that is full raises an OSError, however
#   little is written.
# What happens: the bytes stay in the buffer of the C library, the file is closed, and the error of
#   closing it is not looked at. Arrays of fewer bytes than that buffer (4,096), and the end of larger
#   ones whose other blocks went through, are lost without an error. Writing the same bytes through
#   Python's own `open` raises. /dev/full stands for the full disk (Linux).
# What helps: compare the file's size with `array.nbytes`, or write through `open`.
# 2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "numpy==2.4.6"
"$folder/venv/bin/python" - <<'END'
import numpy as np

print("NumPy", np.__version__)


def outcome(write):
    try:
        write()
    except OSError as error:
        return f"OSError: {error}"
    return "no error"


def through_open(array):
    with open("/dev/full", "wb") as file:
        file.write(array.tobytes())


small, large = np.zeros(100, "uint8"), np.zeros(100_000, "uint8")
found = {
    "tofile, 100 bytes": outcome(lambda: small.tofile("/dev/full")),
    "tofile, 100,000 bytes": outcome(lambda: large.tofile("/dev/full")),
    "open, 100 bytes": outcome(lambda: through_open(small)),
}
for name, said in found.items():
    print(f"{name}: {said}")
assert found["tofile, 100 bytes"] == "no error"
assert found["tofile, 100,000 bytes"].startswith("OSError")
assert found["open, 100 bytes"].startswith("OSError")
END
