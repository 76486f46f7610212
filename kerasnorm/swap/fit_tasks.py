"""What targets ask to be fitted, with the layers that their edits made."""

from __future__ import annotations

from collections.abc import Mapping

from kerasnorm.clone.rebuild import Rebuilt
from kerasnorm.fit.fit_task import FitTask
from kerasnorm.targets.plan import FitRequest


def fit_tasks(requests: Mapping[str, FitRequest], rebuilt: Rebuilt) -> list[FitTask]:
    """The fits of a swapped model.

    Args:
        requests: What targets ask for, by site.
        rebuilt: The swapped model.
    """
    return [
        FitTask(
            site,
            rebuilt.copies[id(request.layer)],
            request.target,
            request.damping,
            request.source,
            None if request.plain is None else rebuilt.copies[id(request.plain)],
        )
        for site, request in requests.items()
    ]
