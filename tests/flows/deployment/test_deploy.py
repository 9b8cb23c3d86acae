"""Deployments: what the files say, and the user's own command against a real server and worker."""

from __future__ import annotations

import importlib
import inspect
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prefect.utilities.callables import parameter_schema

from flows.deployment.deploy import SETTINGS, deploy
from flows.deployment.launch import FLOWS
from flows.deployment.server import answers
from flows.graph import METHODS
from pipeline.errors import UserError

if TYPE_CHECKING:
    from tests.flows.conftest import Place, PrefectServer

ROOT = Path(__file__).parents[3]
DEPLOY = "from pathlib import Path; from flows.deployment.deploy import deploy; print(deploy(Path()).worker)"
STOP = "from pathlib import Path; from flows.deployment.deploy import stop; print(stop(Path()))"


IMPORTS = "from pathlib import Path; from flows.deployment.deploy import deploy"


def said(place: Place, *command: str) -> str:
    """What a command that ends well prints."""
    return words_of(place.start(*command))


def said_forked(place: Place, code: str) -> str:
    """What code that ends well prints, in a fork of this process."""
    return words_of(place.start_forked(lambda: exec(code, {}), "-c", code))


def words_of(run: subprocess.Popen[str]) -> str:
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, out + err
    return out.strip()


def flow_of(name: str) -> Any:
    module, _, function = FLOWS[name].rpartition(".")
    return getattr(importlib.import_module(module), function)


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


def test_prefect_yaml_is_what_prefect_reads_without_a_key_it_does_not_know() -> None:
    from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel

    PrefectYamlModel.model_validate(yaml.safe_load((ROOT / "prefect.yaml").read_text()))
    for deployment in deployments():  # the model itself accepts any key
        assert set(deployment) <= set(DeploymentConfig.model_fields)


def test_prefect_yaml_deploys_every_flow_by_module_to_every_pool() -> None:
    pools = {name: "local" for name in FLOWS} | {"docker": "docker", "kubernetes": "kubernetes"}
    made = [(d["entrypoint"], d["name"]) for d in deployments()]
    wanted = [(where, n) for name, where in FLOWS.items() for n in (name, "docker", "kubernetes")]
    assert sorted(made) == sorted(wanted)
    for deployment in deployments():
        module, _, function = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), function)
        assert set(deployment["parameters"]) <= set(inspect.signature(flow.fn).parameters)
        assert deployment["work_pool"]["name"] == pools[deployment["name"]]


def test_the_flows_take_a_word_a_list_or_nothing() -> None:
    for name in FLOWS:
        flow = flow_of(name)
        assert list(flow.parameters.properties) == [
            "experiment", "methods", "set", "retry_failed", "redo", "retries", "recipes",
        ]  # fmt: skip
        for given in ("hlformer", ["hlformer", "lean"], None):
            assert (
                flow.validate_parameters({"methods": given, "set": given, "redo": given})["methods"] == given
            )
        assert all(each.get("description") for each in flow.parameters.properties.values())


def test_the_settings_that_are_deployed_are_those_of_the_repository() -> None:
    assert (ROOT / "prefect.toml").read_text() == SETTINGS.format(url="http://127.0.0.1:4200/api")


@pytest.mark.slow
def test_prefect_reads_every_setting_of_prefect_toml(place: Place) -> None:
    (place.folder / "prefect.toml").write_text((ROOT / "prefect.toml").read_text())
    view = "from prefect.settings import get_current_settings as s; print(s().model_dump_json(exclude_unset=True))"
    read = json.loads(said(place, sys.executable, "-c", view))
    assert read["api"]["url"] == "http://127.0.0.1:4200/api"
    assert (read["plugins"]["enabled"], read["plugins"]["allow"]) == (True, ["crossreel"])
    assert (read["server"]["analytics_enabled"], read["server"]["logging_level"]) == (False, "CRITICAL")
    assert read["server"]["ephemeral"]["startup_timeout_seconds"] == 120
    recorder = read["server"]["services"]["task_run_recorder"]
    assert recorder == {"read_batch_size": 200, "batch_size": 500, "flush_interval": 1}


def test_a_form_offers_methods_and_recipes_one_by_one() -> None:
    for name in FLOWS:
        schema = parameter_schema(flow_of(name)).properties
        assert {schema[field]["type"] for field in ("methods", "recipes", "set", "redo")} == {"array"}
        assert schema["methods"]["items"]["enum"] == METHODS.names() and schema["methods"]["default"] == []
        assert "gare/msrvtt" in schema["recipes"]["items"]["enum"]


def test_a_server_of_another_machine_that_does_not_answer_is_not_started_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://203.0.113.7:9/api")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(
        "flows.deployment.deploy.answers", lambda url: False
    )  # which would wait for the network
    with pytest.raises(
        UserError, match=r"no Prefect server answers at .*; start it on its machine: prefect server start"
    ):
        deploy(tmp_path)
    assert 'url = "http://203.0.113.7:9/api"' in (tmp_path / "prefect.toml").read_text()


@pytest.mark.slow
@pytest.mark.long
def test_deploy_starts_a_server_where_none_answers_in_any_folder(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    place.env["PREFECT_API_URL"] = url
    started = f"{IMPORTS}; print(deploy(Path(), serve=False).server_started)"
    try:
        assert said(place, sys.executable, "-c", started) == "True"
        assert answers(url)
        assert said(place, sys.executable, "-c", started) == "False"
    finally:
        said(place, sys.executable, "-m", "prefect", "server", "stop")
    place.wait_until(lambda: place.alive() == [])


@pytest.mark.slow
def test_the_users_own_command_runs_in_the_folder_after_deploy(
    place: Place, prefect_server: PrefectServer, run_prefect: Callable[[Sequence[str]], None]
) -> None:
    place.env |= prefect_server.env  # its port, but no PREFECT_API_URL: deploy and prefect.toml find it
    worker = said(place, sys.executable, "-c", DEPLOY)
    assert said_forked(place, DEPLOY) == worker  # safe to repeat
    experiment = place.experiment()
    try:
        command = [
            "prefect",
            "deployment",
            "run",
            "extract-and-train",
            "-p",
            f"experiment={experiment}",
            "--watch",
        ]
        said(place, *command)
        again = [*command, "-p", 'set=["extractors.compress.crf=30"]', "-p", "retry_failed=true"]
        words_of(place.start_forked(lambda: run_prefect(again), *again))
        mistaken = [*command, "-p", "methods=hlfromer"]
        with_mistake = place.start_forked(lambda: run_prefect(mistaken), *mistaken)
        out, err = with_mistake.communicate(timeout=60)
        assert with_mistake.returncode == 1 and "'hlfromer' is not one of ['clip4clip'" in out + err
        first, second = prefect_server.flow_runs(experiment)  # the server refuses it before a run is made
        assert [run["state"]["message"] for run in (first, second)] == ["1 stages ran, 0 cached"] * 2
        assert [task["name"] for task in prefect_server.task_runs(first)] == ["compress"]
        log = (place.folder / ".prefect" / "worker.log").read_text()
        assert "compress: 2 made" in log
        assert "Downloading flow code" not in log  # which would copy the folder, media and all
    finally:
        assert said_forked(place, STOP) == "True"
    assert said_forked(place, STOP) == "False"
    assert place.alive() == []


@pytest.mark.long
@pytest.mark.usefixtures("long_clips")
def test_stopping_the_worker_ends_the_run_it_has_underway(
    place: Place, prefect_server: PrefectServer
) -> None:
    place.env |= prefect_server.env
    experiment = place.experiment()
    said(place, sys.executable, "-c", DEPLOY)
    slowly = [f"extractors.compress.{setting}" for setting in ('preset="medium"', "fps=60", "short_side=720")]
    run = ("prefect", "deployment", "run", "extract/extract", "-p", f"experiment={experiment}")
    said(place, *run, "-p", f"set={json.dumps(slowly)}")
    place.wait_until_at_work()
    assert said(place, sys.executable, "-c", STOP) == "True"
    place.wait_until(lambda: place.alive() == [])
    (ended,) = prefect_server.flow_runs(experiment)
    assert ended["state"]["type"] == "CRASHED"


@pytest.mark.long
def test_prefect_yaml_deploys_to_the_pools_there_are_with_the_folder_of_whoever_deploys(
    served: Place, prefect_server: PrefectServer
) -> None:
    (served.folder / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    said(served, "prefect", "work-pool", "create", "local", "--type", "process", "--overwrite")
    names = [part for name in FLOWS for part in ("-n", name)]
    said(served, "prefect", "--no-prompt", "deploy", *names)
    made = {deployment["name"]: deployment for deployment in prefect_server.deployments()}
    assert {name: made[name]["entrypoint"] for name in FLOWS} == FLOWS
    for name in FLOWS:
        (step,) = made[name]["pull_steps"]
        assert step == {"prefect.deployments.steps.set_working_directory": {"directory": str(served.folder)}}
