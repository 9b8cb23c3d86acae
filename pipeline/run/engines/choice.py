"""The engine that the run options choose."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.run.engines.local import LocalEngine
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.ray import RayEngine
from pipeline.run.engines.work import Engine


def engine_for(options: RunOptions, say: Callable[[str], None]) -> Engine:
    """Processes of this machine, or Ray actors. Raises UserError if Ray is chosen and not installed."""
    return RayEngine(options, say) if options.engine == "ray" else LocalEngine(options, say)
