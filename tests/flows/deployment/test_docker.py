"""Images, compose file and pools: what can be said of them without a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")


def tool(name: str) -> str:
    """The path of a linter that `make docker-check` installs."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed; `make docker-check` installs it")
    return found


def pool(kind: str) -> dict[str, Any]:
    template: dict[str, Any] = json.loads((DOCKER / f"{kind}-pool.json").read_text())
    return template


def bundled(kind: str) -> dict[str, Any]:
    """The template that Prefect's own server offers for a kind of pool."""
    import prefect

    views = Path(prefect.__file__).parent / "server/api/collections_data/views"
    workers = json.loads((views / "aggregate-worker-metadata.json").read_text())
    template: dict[str, Any] = workers[f"prefect-{kind}"][kind]["default_base_job_configuration"]
    return template


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def test_the_dockerfile_passes_hadolint() -> None:
    ended = subprocess.run(
        [tool("hadolint"), str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout


def test_the_compose_file_is_what_its_specification_allows() -> None:
    command = [
        tool("check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        str(DOCKER / "compose.yaml"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_nothing_is_published_but_the_server_and_only_to_this_machine() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4200:4200"]


def test_every_service_runs_read_only_and_without_capabilities_that_nobody_asked_for() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name


def test_every_variable_of_the_compose_file_is_in_the_example_of_its_environment() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    told = set(re.findall(r"^(\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    assert asked == told


def test_the_settings_of_the_server_are_settings_that_prefect_knows() -> None:
    from prefect.settings import get_current_settings
    from prefect.settings.legacy import _get_valid_setting_names

    known = _get_valid_setting_names(type(get_current_settings()))
    for service in COMPOSE["services"].values():
        asked = {name for name in service.get("environment", {}) if name.startswith("PREFECT_")}
        assert asked <= known


def test_images_are_pinned() -> None:
    images = [service["image"] for service in COMPOSE["services"].values()]
    python = re.findall(r"^ARG PYTHON=(\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert set(images) - {"crossreel:cpu", "crossreel:cuda"} == {"postgres:17.6-bookworm"}
    assert len(python) == 1 and re.fullmatch(r"3\.12\.\d+-slim-\w+", python[0])


def test_both_targets_are_built_from_the_constraints_as_a_user_that_is_not_root() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    for target in ("cpu", "cuda"):
        stage = text.split(f"FROM base AS {target}\n")[1].split("\nFROM ")[0]
        assert stage.count("-c /opt/constraints.txt") == 2
        assert re.findall(r"^USER (.*)$", stage, re.MULTILINE) == ["10001:10001"]


def test_requirements_of_the_image_are_the_dependencies_of_the_package(tmp_path: Path) -> None:
    import tomllib

    command = [sys.executable, str(DOCKER / "requirements.py"), str(ROOT / "pyproject.toml"), "parquet"]
    subprocess.run(command, cwd=tmp_path, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    big, rest = ((tmp_path / f"{name}.txt").read_text().split() for name in ("torch", "rest"))
    assert [re.split(r"\W", line)[0] for line in big] == ["torch", "torchvision"]
    wanted = project["dependencies"] + project["optional-dependencies"]["parquet"]
    assert sorted(big + rest) == sorted("".join(line.split()) for line in wanted)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_every_placeholder_of_a_pool_is_one_of_its_variables_and_every_variable_is_used(kind: str) -> None:
    template = pool(kind)
    used = {name for leaf in leaves(template["job_configuration"]) for name in PLACEHOLDER.findall(str(leaf))}
    assert used == set(template["variables"]["properties"])


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_pool_keeps_every_variable_that_prefects_own_template_has(kind: str) -> None:
    ours, theirs = (t["variables"]["properties"] for t in (pool(kind), bundled(kind)))
    assert set(theirs) - {"container_wait_timeout"} <= set(
        ours
    )  # prefect-docker 0.7.4 does not know that one
    assert set(bundled(kind)["job_configuration"]) - {"container_wait_timeout"} <= set(
        pool(kind)["job_configuration"]
    )


@pytest.mark.parametrize(
    "deployment", DEPLOYMENTS, ids=lambda d: f"{d['entrypoint'].rpartition('.')[2]}-{d['name']}"
)
def test_what_a_deployment_sets_of_its_job_is_what_the_pool_allows(deployment: dict[str, Any]) -> None:
    kind = deployment["work_pool"]["name"]
    given = deployment["work_pool"].get("job_variables", {})
    if kind == "local":
        assert given == {}
        return
    variables = pool(kind)["variables"]
    jsonschema.validate(given, variables | {"additionalProperties": False})


def test_defaults_of_the_pools_are_what_their_own_schemas_allow() -> None:
    for kind in ("docker", "kubernetes"):
        variables = pool(kind)["variables"]
        for name, schema in variables["properties"].items():
            if "default" in schema:
                jsonschema.validate({name: schema["default"]}, variables)


def test_training_gets_a_gpu_and_extraction_for_itself_none() -> None:
    for deployment in DEPLOYMENTS:
        asked = json.dumps(deployment["work_pool"].get("job_variables", {}))
        has = '"gpus": 1' in asked or '"driver": "nvidia"' in asked
        assert has == (
            deployment["name"] in ("docker", "kubernetes") and "train" in deployment["entrypoint"]
        ), deployment
