"""What `swap_norms` gives: the swapped model, its report, and how far it is from its source."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import keras

from kerasnorm.compare.agreement import agreement, fits
from kerasnorm.compare.differences import differences
from kerasnorm.compare.tensor_pairs import ModelPair
from kerasnorm.fit.data import input_batches
from kerasnorm.fit.parts import whole_part
from kerasnorm.fit.sample_limit import MAX_SAMPLES, SampleLimit
from kerasnorm.fit.split import LEAST, HeldOutSamples
from kerasnorm.swap.report import Report
from kerasnorm.targets.site_record import SiteRecord, Verdict


@dataclass(frozen=True)
class Swap:
    """The result of `swap_norms`.

    Attributes:
        model: The swapped model.
        report: What happened to each BatchNorm call.
        differences: How far each BatchNorm call and each output was off when the result was
            checked on seeded random inputs, as `compare()` has it; but in an exact swap each was
            given what the source has in front of it, so that rounding does not add up. Empty where
            the source cannot be run on such.
    """

    model: keras.Model
    report: Report
    differences: dict[str, float] = field(repr=False)
    _models: ModelPair = field(repr=False)

    def update_report(
        self,
        data: Any,
        *,
        batch_size: int = 32,
        max_samples: int | None = MAX_SAMPLES,
        seed: int = 0,
    ) -> None:
        """Measure again what the report says of the fit, after the model was trained further.

        Args:
            data: What it was calibrated or trained on, of which the samples held out are taken;
                in any form that `swap_norms` takes.
            batch_size: Of the batches that arrays are cut into.
            max_samples: How many samples are read at most, None for all; see `swap_norms`. Whatever
                it is, no sample is reported on that a swap or `distill` was given to train on.
            seed: Of which they are, where the data has more.

        Raises:
            DataError: If the data does not fit the model, or a number is not as above.

        Example:

        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> model.add(keras.layers.BatchNormalization())
        >>> x = np.random.normal(size=(200, 4))
        >>> swap = swap_norms(model, "layer", x)
        >>> swap.update_report(x)
        >>> swap.report.agreement.samples
        20
        """
        limit = SampleLimit(max_samples, seed)
        held_out = HeldOutSamples()
        batches = input_batches(self._models.source.root, data, batch_size, limit)
        for _ in held_out.collect(batches):
            pass
        measure(self.report, self._models, held_out, sites=True)

    def compare(self, inputs: Any = None) -> dict[str, float]:
        """How far each BatchNorm call's output is from what the swapped model has in its place.

        Both models are run at inference, without side effects. The sites inside a nested model
        are compared on what the source feeds that model.

        Args:
            inputs: A batch in the structure of the model's inputs; None for seeded random
                numbers. A model that takes batches of one size is run on as many as they fill, and
                the rest is left out.

        Returns:
            max|Δ| over the channel's standard deviation in the source's batch, of the worst
            channel, by site name, "backbone#2/bn" in the second call of a nested model; then for
            the model's outputs, "output 0", "output 1", …. Infinite where one model's answer is
            finite and the other's is not, NaN where nothing is finite in either.

        Raises:
            SwapError: If the source itself cannot be run on the inputs. DataError, which is one, if
                they do not fill one batch of the model's size.

        Example:

        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
        >>> sorted(swap_norms(model, "weight").compare())
        ['batch_normalization', 'output 0']
        """
        return differences(self._models, inputs)


def with_fit(
    record: SiteRecord, scores: dict[str, float], verdict: Verdict | None = None
) -> SiteRecord:
    if record.name not in scores:
        return record
    verdict = verdict or record.verdict
    return dataclasses.replace(record, verdict=verdict, fit=scores[record.name])


def measure(report: Report, models: ModelPair, held_out: HeldOutSamples, *, sites: bool) -> None:
    """Report how far the models agree on what was held out; on request at each site too."""
    arrays = held_out.arrays
    if arrays is None:
        return
    arrays = whole_part(arrays, models.source.root.batch_size)
    if len(arrays[0]) < LEAST:
        return
    report.agreement, report.on_random_inputs = agreement(models, arrays), None
    if sites:
        now = fits(models, arrays)
        fitted = {site.name for site in report.sites if site.fit is not None}
        scores = {name: score for name, score in now.items() if name in fitted}
        report.sites = [with_fit(record, scores) for record in report.sites]
