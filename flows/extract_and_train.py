"""The flow `extract-and-train`: everything an experiment asks for, from raw media to the report."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.deployment.parameters import ExperimentFile, Methods, Retries, Settings, Stages
from flows.deployment.tasks import FlowRequest, run_request


@flow(name="extract-and-train", persist_result=False)
def extract_and_train(
    experiment: ExperimentFile = "experiment.toml",
    methods: Methods = None,
    set: Settings = None,
    retry_failed: bool = False,
    redo: Stages = None,
    retries: Retries = 0,
) -> State[Any]:
    """Bring every stage of an experiment up to date: whatever is missing, and nothing else.

    Args:
        experiment: The experiment file, relative to the folder of the deployment.
        methods: Methods instead of the file's.
        set: Settings instead of the file's, each `name.of.key=value`.
        retry_failed: Try again the items that failed.
        redo: Stages to make again.
        retries: How often a stage that stops with an error is tried again; training goes on where it was.
    """
    return run_request(
        FlowRequest(experiment, methods, set, retry_failed, redo, retries),
        lambda project: list(project.stages),
    )
