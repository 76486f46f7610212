"""The tool that compiles the layers for machines that are not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import compile_targets

TOOLS = Path(__file__).parents[1] / "tools"

MODULE = """module @m {
  func.func private @sum(%arg0: tensor<f32>, %arg1: tensor<f32>) -> tensor<f32> {
  }
  func.func public @main(%arg0: tensor<4x8xf32>, %arg1: tensor<8xbf16>) -> (tensor<4xf32>) {
"""
HLO = """HloModule m

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %c = f32[] constant(2)
  %fusion.1 = f32[4]{0} fusion(%p, %c), kind=kLoop, calls=%f
  %b = f32[4]{0} bitcast(%fusion.1)
  ROOT %custom = f32[4]{0} custom-call(%b), custom_call_target="library"
}
"""


def test_the_least_is_every_input_and_output_once():
    assert compile_targets.least_bytes(MODULE) == 4 * 8 * 4 + 8 * 2 + 4 * 4


def test_what_is_launched_is_what_does_something():
    assert compile_targets.launched(HLO) == 2


def test_what_lies_on_the_chip_does_not_count():
    on_chip = HLO.replace("%fusion.1 = f32[4]{0}", "%fusion.1 = f32[4]{0:T(128)S(1)}")
    # what the fusion writes is no longer written to memory
    assert compile_targets.bytes_off_chip(HLO) - compile_targets.bytes_off_chip(on_chip) == 4 * 4


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(compile_targets, "_installed", lambda name: name != "libtpu")
    assert compile_targets.missing_for(["cpu", "tpu", "h100"]) == ["libtpu"]


def table(*arguments):
    done = subprocess.run(
        [sys.executable, "compile_targets.py", *arguments],
        cwd=TOOLS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]
    ]


@pytest.mark.slow
def test_a_layer_for_this_machine_from_both_backends():
    rows = table("--targets", "cpu", "--layers", "Affine")
    assert len(rows) == 2 * len(compile_targets.POLICIES) * len(compile_targets.PASSES)
    assert {(row[1], row[5], *row[11:]) for row in rows} == {
        ("tensorflow", "yes", "0", "0"),
        ("jax", "yes", "0", "0"),
    }


@pytest.mark.slow
def test_every_layer_compiles_for_every_target_without_a_call_of_the_host():
    targets = [t for t in compile_targets.TARGETS if not compile_targets.missing_for([t])]
    if targets == ["cpu"]:
        pytest.skip("needs `pip install .[targets]`")
    rows = table("--targets", *targets)
    assert {(row[5], *row[11:]) for row in rows} == {("yes", "0", "0")}
