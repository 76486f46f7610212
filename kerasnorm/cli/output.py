"""What the commands print."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

from kerasnorm.fit.split import LEAST, PERIOD
from kerasnorm.targets.site_record import SiteRecord
from kerasnorm.version import __version__


def show_fidelity(console: Any, swap: Any) -> None:
    """`swap_norms` has insisted on exactness where it is promised; say how exact it is."""
    if not swap.report.sites or not _is_exact(swap.report):
        return  # the report says how well the sites fit, or why nothing was compared
    show_differences(console, swap.differences)


def show_differences(console: Any, differences: dict[str, float]) -> None:
    """How exact an exact result is; nothing where it could not be compared."""
    if not differences:
        return
    worst = max(differences, key=lambda name: differences[name])
    console.print(
        "largest difference from the source, on random inputs: "
        f"{differences[worst]:.1e} standard deviations, at '{worst}'",
        markup=False,
    )


def _is_exact(report: Any) -> bool:
    return all(site.verdict in ("exact", "refused") for site in report.sites)


def console(arguments: argparse.Namespace):
    """A `rich.console.Console` for standard output, as wide as a terminal; 160 columns without."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(quiet=arguments.quiet, highlight=False, width=width)


def show_export(console: Any, export: Any) -> None:
    """What is in an ONNX file, and how far it is from Keras."""
    ops = ", ".join(f"{count} {op}" for op, count in sorted(export.op_counts.items()))
    console.print(f"ONNX opset {export.opset}: {ops}", markup=False, soft_wrap=True)
    console.print(
        f"largest difference between Keras and ONNX Runtime: {export.max_difference:.1e} of its "
        "output's scale"
    )


def show_warnings(console: Any, warnings: list[str]) -> None:
    """What loading the file gave doubts about."""
    for warning in warnings:
        console.print(f"- warning: {warning}", markup=False, soft_wrap=True)


def show_headline(console: Any, source: str, swap: Any, exported: Any) -> None:
    """One line to be pasted where the work is told."""
    report = swap.report
    replaced = [site for site in report.sites if site.verdict != "refused"]
    became = Counter(_norm_of(site) for site in replaced)
    asked = f"{report.target} norm"
    parts = [f"{became.pop(asked, 0)} of {len(report.sites)} BatchNorm calls to {asked}"]
    parts += [f"{count} to {norm}" for norm, count in became.items()]
    if report.agreement is not None:
        parts.append(str(report.agreement))
        if report.unlike_data is not None:
            parts.append("which are unlike those that the model was trained on")
    elif swap.differences and replaced and _is_exact(report):
        parts.append(f"within {max(swap.differences.values()):.0e} deviations of the source")
    elif replaced:
        parts.append(f"answers not measured (--data of {PERIOD * LEAST} samples measures them)")
    if exported is not None:
        parts.append(f"ONNX within {exported.max_difference:.0e} of Keras")
    if report.warnings:
        parts.append(f"{len(report.warnings)} warning{'s' if len(report.warnings) > 1 else ''}")
    console.print(
        f"kerasnorm {__version__}, {source}: {', '.join(parts)}",
        markup=False,
        soft_wrap=True,  # one line, for whoever copies it
    )


def _norm_of(site: SiteRecord) -> str:
    """What a site became, in words."""
    if site.becomes == "Affine":
        return "an affine map"
    return f"{site.rule.split()[0].removeprefix('to_')} norm"


def show_written(console: Any, arguments: argparse.Namespace, outputs: dict[str, str]) -> None:
    """Which files there are now."""
    for option in outputs:
        path = getattr(arguments, option.strip("-"))
        if path is not None:
            console.print(f"wrote {path}", markup=False)
