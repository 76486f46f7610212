"""A report as a picture: a bar for each BatchNorm call."""

from __future__ import annotations

import os
import textwrap
from typing import Any, Protocol

from kerasnorm.compare.agreement import Agreement
from kerasnorm.errors import KerasNormError
from kerasnorm.plotting import figure as figures
from kerasnorm.targets.site_record import SiteRecord

# Of Okabe and Ito, whom the colour-blind can tell apart.
COLOURS = {
    "exact": "#009E73",
    "matched": "#56B4E9",
    "calibrated": "#0072B2",
    "refused": "#D55E00",
}
_SOURCE = "#999999"
_LONGEST_NAME, _TITLE = 44, 90
# In inches: a bar, what stands around the bars, and the whole at most.
_BAR, _AROUND, _HIGHEST = 0.24, 1.5, 60.0


class Report(Protocol):
    """What is drawn of a report (`kerasnorm.swap.report.Report`)."""

    model: str
    target: str
    sites: list[SiteRecord]
    agreement: Agreement | None

    def by_target(self) -> dict[str, list[SiteRecord]]: ...

    def summary(self) -> str: ...


def draw_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Draw a report, as `Report.plot` says."""
    if not report.sites:
        raise KerasNormError("A plot needs a BatchNorm. Received a report of none.")
    targets = _panels_of(report)
    most = max(map(len, targets.values()))
    height = min(_HIGHEST, _AROUND + _BAR * most + (0.9 if report.agreement else 0))
    columns = len(targets)
    figure = figures.figure(figsize=(4.2 + 4.2 * columns, height), layout="constrained")
    bars, ends = _panels(figure, report, columns, most)
    for axes, (target, sites) in zip(bars, targets.items(), strict=True):
        _draw_sites(axes, sites, named=axes is bars[0])
        axes.set_title(f"to {target}" if columns > 1 else "", fontsize="medium")
    if ends is not None:
        _draw_agreement(ends, report)
    lines = [textwrap.fill(line, _TITLE) for line in report.summary().splitlines()]
    figure.suptitle(report.model if columns > 1 else "\n".join(lines), fontsize="medium")
    figure.legend(handles=_legend(report), loc="outside lower center", ncols=5, frameon=False)
    figures.save(figure, path)


def _panels_of(report: Report) -> dict[str, list[SiteRecord]]:
    """A panel for each target of an inspection; one for a swap, where each site has its own."""
    targets = report.by_target()
    names = [site.name for site in report.sites]
    return targets if len(set(names)) < len(names) else {report.target: report.sites}


def _panels(figure: Any, report: Report, columns: int, most: int) -> tuple[list[Any], Any]:
    """A panel for each target, and one below them for the agreement, where it is known."""
    if report.agreement is None:
        return list(figure.subplots(1, columns, squeeze=False)[0]), None
    grid = figure.add_gridspec(2, columns, height_ratios=[most + 1, 3])
    bars = [figure.add_subplot(grid[0, column]) for column in range(columns)]
    return bars, figure.add_subplot(grid[1, :])


def _draw_sites(axes: Any, sites: list[SiteRecord], named: bool) -> None:
    """A site's bar is as long as what it keeps: R² where data tells, all of it where exact."""
    places = range(len(sites))
    for place, site in zip(places, sites, strict=True):
        colour, length = COLOURS[site.verdict], _length(site)
        axes.barh(place, length, color=colour, height=0.72)
        left = site.target == "none"
        said = "left as it is" if left else site.becomes
        said += "" if site.fit is None else f", {site.fit:.3f}"
        inside = length > 0.5
        axes.text(
            0.01 if inside else length + 0.01,
            place,
            said,
            va="center",
            fontsize="x-small",
            color="white" if inside else "black",
        )
    axes.set(xlim=(0, 1), ylim=(len(sites) - 0.4, -0.6))
    axes.set_yticks(
        places, [_shortened(site.name) for site in sites] if named else [""] * len(sites)
    )
    axes.tick_params(axis="y", labelsize="x-small", length=0)
    fitted = any(site.fit is not None for site in sites)
    axes.set_xlabel("R² on samples held out" if fitted else "", fontsize="small")
    if not fitted:
        axes.set_xticks([])
    axes.spines[["top", "right"]].set_visible(False)


def _draw_agreement(axes: Any, report: Report) -> None:
    agreement = report.agreement
    assert agreement is not None  # or there is no panel
    same = agreement.same_answers
    kept = agreement.fit if same is None else same
    axes.barh([0, 1], [1.0, max(0.0, kept)], color=[_SOURCE, COLOURS["calibrated"]], height=0.72)
    axes.set_yticks([0, 1], ["before", "after"], fontsize="x-small")
    axes.text(0.01, 0, "the source", va="center", fontsize="x-small", color="white")
    inside = kept > 0.7
    place, colour = (0.01, "white") if inside else (max(0.0, kept) + 0.01, "black")
    axes.text(place, 1, str(agreement), va="center", fontsize="x-small", color=colour)
    axes.set(xlim=(0, 1), ylim=(1.6, -0.6))
    what = "R² of the outputs" if same is None else "share of answers that are the source's"
    axes.set_xlabel(what, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)


def _length(site: SiteRecord) -> float:
    if site.fit is not None:
        return min(1.0, max(0.0, site.fit))
    return 0.0 if site.verdict == "refused" else 1.0


def _legend(report: Report) -> list[Any]:
    from matplotlib.patches import Patch

    seen = {site.verdict for site in report.sites}
    return [Patch(color=COLOURS[name], label=name) for name in COLOURS if name in seen]


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
