"""Deployments of prefect.yaml on a real server: made, run by a real worker, stopped; what a form offers."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from flows.deployment.launch import FLOWS
from flows.graph import METHODS

if TYPE_CHECKING:
    from tests.flows.conftest import Place, PrefectServer

ROOT = Path(__file__).parents[3]
SERVE = "import sys; from flows.cli import main; sys.argv[0] = 'crossreel'; main()"


def said(place: Place, *command: str) -> str:
    """What a command that ends well prints."""
    run = place.start(*command)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, out + err
    return out.strip()


@pytest.fixture
def deployed(served: Place, prefect_server: PrefectServer) -> Place:
    """A place whose server has all pools and deployments of prefect.yaml."""
    (served.folder / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    said(served, "prefect", "work-pool", "create", "local", "--type", "process", "--overwrite")
    for kind in ("docker", "kubernetes"):
        template = ROOT / f"docker/{kind}-pool.json"
        said(
            served, "prefect", "work-pool", "create", kind, "--type", kind, "--overwrite",
            "--base-job-template", str(template),
        )  # fmt: skip
    said(served, "prefect", "--no-prompt", "deploy", "--all")
    return served


@pytest.fixture
def worker(served: Place) -> Iterator[Any]:
    """A worker in the foreground, as a container has it, which is ended as `docker stop` does."""
    command = [sys.executable, "-c", SERVE, "deploy", str(served.folder), "--foreground"]
    running = served.start(*command)
    yield running
    running.kill()
    running.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.long
def test_prefect_makes_every_deployment_of_prefect_yaml_with_schedules_that_are_off(
    deployed: Place, prefect_server: PrefectServer
) -> None:
    wanted = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    made = {(d["entrypoint"], d["name"]): d for d in prefect_server.deployments()}
    assert {(d["entrypoint"], d["name"]) for d in wanted} <= set(made)
    schedules = [s for d in made.values() for s in d["schedules"]]
    assert sorted(s["slug"] for s in schedules) == ["every-six-hours", "nightly"]
    assert not any(s["active"] for s in schedules)
    training = made[FLOWS["train"], "docker"]
    assert training["global_concurrency_limit"]["limit"] == 1
    assert training["job_variables"]["volumes"][0] == f"{deployed.folder}:/project:ro"
    assert training["pull_steps"] == [
        {"prefect.deployments.steps.set_working_directory": {"directory": "/project"}}
    ]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("long_clips")
def test_a_worker_that_is_stopped_ends_its_run_first_so_that_no_record_says_running_for_ever(
    served: Place, prefect_server: PrefectServer, worker: Any
) -> None:
    experiment = served.experiment()
    slowly = [f"extractors.compress.{setting}" for setting in ('preset="medium"', "fps=60", "short_side=720")]
    served.wait_until(lambda: "extract" in {d["name"] for d in prefect_server.deployments()})
    run = ("prefect", "deployment", "run", "extract/extract", "-p", f"experiment={experiment}")
    said(served, *run, "-p", f"set={json.dumps(slowly)}")
    served.wait_until_at_work()
    worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=60)
    served.wait_until(lambda: served.alive() == [])
    (ended,) = prefect_server.flow_runs(experiment)
    assert ended["state"]["type"] == "CRASHED"  # and not "Running" for ever


@pytest.mark.slow
@pytest.mark.long
def test_the_server_refuses_a_method_that_does_not_exist_before_a_run_is_made(
    deployed: Place, prefect_server: PrefectServer
) -> None:
    run = deployed.start(
        "prefect",
        "deployment",
        "run",
        "train/docker",
        "-p",
        'methods=["hlfromer"]',
        "-p",
        "experiment=no.toml",
    )
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "hlfromer" in re.sub(r"\s+", "", out + err)
    assert prefect_server.flow_runs("no.toml") == []


@pytest.mark.parametrize("name", FLOWS)
def test_a_form_has_titles_descriptions_choices_and_limits(name: str) -> None:
    import importlib

    module, _, function = FLOWS[name].rpartition(".")
    schema = getattr(importlib.import_module(module), function).parameters.model_dump_for_openapi()
    for parameter in schema["properties"].values():
        assert parameter["title"] and parameter["description"]
    assert schema["properties"]["methods"]["items"]["enum"] == METHODS.names()
    assert (schema["properties"]["retries"]["minimum"], schema["properties"]["retries"]["maximum"]) == (0, 10)
    assert schema["properties"]["experiment"]["type"] == "string"
    assert schema["properties"]["retry_failed"]["type"] == "boolean"
