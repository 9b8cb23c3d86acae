"""crossreel as a library: experiments, features, trained runs, metrics. docs/python.md shows all of it.

Every name here is public and stays; everything else of the distribution is private and may change with any release.
Names are imported at first use, so that `import crossreel` costs nothing and imports neither torch nor Prefect.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossreel.comparing import Comparison, compare
    from crossreel.experiments import Experiment, Outcome, Plan, PlannedStage, StageInfo, open
    from crossreel.extraction import extract
    from crossreel.measures import Metrics, metrics
    from crossreel.runs import Applied, Run, Runs
    from crossreel.store import Store
    from crossreel.tables import Table
    from flows.reading import Features, Rows
    from pipeline.errors import Error, ItemError

__all__ = [
    "Applied",
    "Comparison",
    "Error",
    "Experiment",
    "Features",
    "ItemError",
    "Metrics",
    "Outcome",
    "Plan",
    "PlannedStage",
    "Rows",
    "Run",
    "Runs",
    "StageInfo",
    "Store",
    "Table",
    "__version__",
    "compare",
    "extract",
    "metrics",
    "open",
]

_MODULES = {
    "crossreel.comparing": ("Comparison", "compare"),
    "crossreel.experiments": ("Experiment", "Outcome", "Plan", "PlannedStage", "StageInfo", "open"),
    "crossreel.extraction": ("extract",),
    "crossreel.measures": ("Metrics", "metrics"),
    "crossreel.runs": ("Applied", "Run", "Runs"),
    "crossreel.store": ("Store",),
    "crossreel.tables": ("Table",),
    "flows.reading": ("Features", "Rows"),
    "pipeline.errors": ("Error", "ItemError"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """The public name, from the module that has it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("crossreel")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'crossreel' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
