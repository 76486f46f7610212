"""What happened to each BatchNorm call, for people and for machines."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kerasnorm.compare.agreement import Agreement
from kerasnorm.plotting.report import draw_report
from kerasnorm.targets.site_record import SiteRecord

# R² below which a site is warned of: less than half of its activation's variance is kept.
_POOR = 0.5
# Samples below which shares of them say little.
_FEW = 40
_STYLES = {"exact": "green", "matched": "cyan", "calibrated": "blue", "refused": "bold red"}


@dataclass
class Report:
    """The records of a swap, or of what a swap would do.

    `str(report)` is a table for people, `to_dict()` is ready for JSON.

    Attributes:
        model: Name of the source model.
        target: What was asked for: "weight", "layer", "cosine", "mixed", or "fold".
        sites: One record for each BatchNorm call.
        layers: The name in the result of each layer of the source; paths for nested models.
        notes: What could not be kept, and what was done, in plain sentences.
        doubts: What speaks against the result beside what `agreement` and the sites' `fit` say:
            models that could not be compared.
        repairs: What was mended while loading the source.
        agreement: With the source, where data was given.
        on_random_inputs: The same on seeded random inputs, where the swap is not exact and no data
            was given. It tells whether anything is kept at all, not how the model does on data.
        trained: Whether the model was trained on that data after the closed-form fits; large
            models are not.
        unlike_data: Where the data is unlike that of the training, in what; `agreement` then does
            not say how the model does on its own kind of data.
    """

    model: str
    target: str
    sites: list[SiteRecord]
    layers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    agreement: Agreement | None = None
    on_random_inputs: Agreement | None = None
    trained: bool = False
    unlike_data: str | None = None

    @property
    def refused(self) -> list[SiteRecord]:
        """The sites that were asked for and stay BatchNorm."""
        return [s for s in self.sites if s.verdict == "refused" and s.target != "none"]

    @property
    def poor(self) -> list[SiteRecord]:
        """The sites that fit badly: more of the source's activation is lost than kept."""
        return [site for site in self.sites if site.fit is not None and site.fit < _POOR]

    @property
    def warnings(self) -> list[str]:
        """Why the swapped model may answer otherwise than its source, in plain sentences.

        `swap_norms` gives each as a `FidelityWarning`.
        """
        found = []
        if self.unlike_data is not None:
            found.append(
                f"these are {self.unlike_data}. Scale them as for training: how far the models "
                "agree on them does not say how they do on others"
            )
        if self.poor:
            found.append(
                f"{_sites(len(self.poor))} less than half of their activation (R² below {_POOR}): "
                f"{', '.join(site.name for site in self.poor)}. More data, `distill` or `damping` "
                "may help"
            )
        if self.agreement is not None and self.agreement.fit < _POOR:
            found.append(
                f"the outputs keep less than half of the source's (R² below {_POOR}): is the data "
                "scaled as for training?"
            )
        if self.on_random_inputs is not None and self.on_random_inputs.fit < _POOR:
            found.append(
                f"on random inputs the outputs keep less than half of the source's (R² below "
                f"{_POOR}): give `data`, unlabeled samples (--data X.npy), to fit to"
            )
        return [*found, *self.doubts]

    def counts(self) -> dict[str, int]:
        """How many sites became what, most frequent first."""
        return dict(Counter(site.becomes for site in self.sites).most_common())

    def summary(self) -> str:
        """One line that says it all, or one for each target."""
        if not self.sites:
            return f"{self.model}: no BatchNorm found."
        return "\n".join(
            f"{self.model}: {_calls(len(sites))} left as they are"
            if target == "none"
            else f"{self.model} → {target}: {_calls(len(sites))}: {_tally(sites)}"
            for target, sites in self.by_target().items()
        )

    def by_target(self) -> dict[str, list[SiteRecord]]:
        """The records by what was asked for, in their order."""
        targets: dict[str, list[SiteRecord]] = {}
        for site in self.sites:
            targets.setdefault(site.target, []).append(site)
        return targets

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return {
            "model": self.model,
            "target": self.target,
            "sites": [dataclasses.asdict(site) for site in self.sites],
            "layers": dict(self.layers),
            "notes": list(self.notes),
            "warnings": self.warnings,
            "repairs": list(self.repairs),
            **{
                name: None if (found := getattr(self, name)) is None else dataclasses.asdict(found)
                for name in ("agreement", "on_random_inputs")
            },
            "trained": self.trained,
            "unlike_data": self.unlike_data,
            "counts": {
                target: dict(Counter(site.becomes for site in sites).most_common())
                for target, sites in self.by_target().items()
            },
        }

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw a bar for each BatchNorm call: its verdict, and how much of it is kept.

        The bar is as long as the site's R² where data was given, and the whole width where the
        swap is exact or matched from statistics; below, how far the models agree.

        Args:
            path: The picture, written whole or not at all; the suffix is the format (`.png`,
                `.svg`, `.pdf`).

        Raises:
            KerasNormError: If there is no BatchNorm, matplotlib is not installed, or the file
                cannot be written.

        Example:

        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
        >>> swap_norms(model, "weight").report.plot("swap.png")
        """
        draw_report(self, path)

    def table(self):
        """The records as a `rich.table.Table`, coloured where a terminal shows colours."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        rows = self._rows()
        for column in rows[0]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(
                *(Text(cell, _STYLES.get(cell.split(":")[0], "")) for cell in row.values())
            )
        return table

    def _rows(self) -> list[dict[str, str]]:
        """The cells of each line of the table, by column; one line a site, whatever the targets."""
        calls: dict[str, dict[str, SiteRecord]] = {}
        for site in self.sites:
            calls.setdefault(site.name, {})[site.target] = site
        if all(len(targets) == 1 for targets in calls.values()):
            return [self._row(site) for site in self.sites]
        return [
            {
                "BatchNorm": name,
                **{t: f"{site.verdict}: {site.becomes}" for t, site in targets.items()},
                "why": "; ".join(dict.fromkeys(site.reason for site in targets.values())),
            }
            for name, targets in calls.items()
        ]

    def _row(self, site: SiteRecord) -> dict[str, str]:
        row = {"BatchNorm": site.name}
        if len(self.by_target()) > 1:
            row["target"] = site.target
        row |= {"verdict": site.verdict, "becomes": site.becomes}
        if any(other.fit is not None for other in self.sites):
            row["R²"] = "" if site.fit is None else f"{site.fit:.4f}"
        return {**row, "why": site.reason}

    def remarks(self) -> list[str]:
        """What there is to say beside the table: how good the fit is, notes, repairs."""
        found = self.agreement
        lines = [] if found is None else [str(found), found.of_others()]
        if self.agreement is not None and self.agreement.samples < _FEW:
            lines.append(f"{self.agreement.samples} samples tell little: more data tells more")
        if self.on_random_inputs is not None:
            lines.append(
                f"{self.on_random_inputs.on('random inputs')}, which does not say how the model "
                "does on what it is for"
            )
        lines += [f"warning: {warning}" for warning in self.warnings]
        return [*lines, *self.notes, *(f"repaired: {repair}" for repair in self.repairs)]

    def show(self, console: Any) -> None:
        """Print it on a `rich.console.Console`."""
        console.print(self.summary(), markup=False, soft_wrap=True)
        if self.sites:
            console.print(self.table())
        for line in self.remarks():
            console.print(f"- {line}", markup=False, soft_wrap=True)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, no_color=True, highlight=False)
        with console.capture() as capture:
            self.show(console)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _sites(count: int) -> str:
    return "1 site keeps" if count == 1 else f"{count} sites keep"


def _calls(count: int) -> str:
    return f"{count} BatchNorm call{'' if count == 1 else 's'}"


def _tally(sites: list[SiteRecord]) -> str:
    """'7 exact: 5 WeightNorm(Conv2D), 2 WeightNorm(Affine)', one such for each verdict."""
    kinds: dict[str, Counter[str]] = {}
    for site in sites:
        kinds.setdefault(site.verdict, Counter())[site.becomes] += 1
    return "; ".join(
        f"{counts.total()} {verdict} ("
        + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        + ")"
        for verdict, counts in kinds.items()
    )
