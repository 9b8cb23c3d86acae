"""The engine that a run asks for."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.engines.local import LocalEngine
from pipeline.engines.options import RunOptions
from pipeline.engines.ray import RayEngine
from pipeline.engines.work import Engine


def engine_for(options: RunOptions, say: Callable[[str], None]) -> Engine:
    """Processes of this machine or Ray actors. Raises UserError where Ray is asked for and not installed."""
    return RayEngine(options, say) if options.engine == "ray" else LocalEngine(options, say)
