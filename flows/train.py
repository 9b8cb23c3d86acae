"""The flow `train`: methods packed, trained, evaluated and reported, with whatever they still lack upstream."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.deployment.naming import run_name
from flows.deployment.parameters import ExperimentFile, Methods, Recipes, Retries, Settings, Stages
from flows.deployment.tasks import FlowRequest, run_request
from flows.project import Project
from pipeline.errors import UserError


@flow(name="train", flow_run_name=run_name, persist_result=False)
def train(
    experiment: ExperimentFile = "experiment.toml",
    methods: Methods = [],  # noqa: B006 -- the default that a form shows
    set: Settings = [],  # noqa: B006
    retry_failed: bool = False,
    redo: Stages = [],  # noqa: B006
    retries: Retries = 0,
    recipes: Recipes = [],  # noqa: B006
) -> State[Any]:
    """Bring the methods of an experiment up to date, from their features to the report.

    Args:
        experiment: The experiment file, relative to the folder of the deployment.
        methods: Methods instead of the file's.
        set: Settings instead of the file's, each `name.of.key=value`.
        retry_failed: Try again the items that failed.
        redo: Stages to make again.
        retries: How often a stage that stops with an error is tried again; training goes on where it was.
        recipes: Published settings, METHOD/RECIPE, instead of those that fit the corpus.
    """
    return run_request(
        FlowRequest(experiment, methods, set, retry_failed, redo, retries, recipes), training_stages
    )


def training_stages(project: Project) -> list[str]:
    """Names of the stages over the corpus. Raises UserError where there are none."""
    names = [name for name, stage in project.stages.items() if stage.over == "corpus"]
    if not names:
        raise UserError(f"{project.experiment.path}: methods names nothing to train")
    return names
