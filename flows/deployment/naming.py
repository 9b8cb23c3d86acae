"""Names and tags of flow runs, by which a person finds them: the experiment, and the methods it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import get_client, runtime
from prefect.context import FlowRunContext

from flows.deployment.parameters import one_or_more
from flows.experiment import load
from flows.project import Project
from pipeline.errors import UserError

MOST_NAMED = 4  # methods in a name


def run_name() -> str:
    """The name of the flow run that begins: "demo: hlformer, gare"; of a file that cannot be read, its own name."""
    given = runtime.flow_run.parameters or {}
    path = Path(str(given.get("experiment", "experiment.toml")))
    methods = one_or_more(given.get("methods"))
    try:
        experiment = load(path, (), methods)
    except (UserError, OSError):
        return named(path.stem, methods)
    return named(experiment.name, experiment.methods)


def named(experiment: str, methods: Sequence[str]) -> str:
    """An experiment with its methods, of which at most MOST_NAMED are named."""
    words = ", ".join(methods[:MOST_NAMED]) or "features"
    more = f" and {len(methods) - MOST_NAMED} more" if len(methods) > MOST_NAMED else ""
    return f"{experiment}: {words}{more}"


def tag_run(project: Project) -> None:
    """Tag the flow run under way with its experiment and methods. Raises where no server answers."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    own = [
        f"experiment:{project.experiment.name}",
        *(f"method:{name}" for name in project.experiment.methods),
    ]
    tags = list(dict.fromkeys([*context.flow_run.tags, *own]))
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, tags=tags)
