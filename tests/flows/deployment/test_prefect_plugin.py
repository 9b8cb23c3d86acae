from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from flows.deployment.launch import FLOWS
from flows.deployment.plugin import NAMES, completed


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("prefect deployment run extract-and-train", "prefect deployment run extract-and-train/extract-and-train"),
        ("/bin/prefect deployment run train --watch", "/bin/prefect deployment run train/train --watch"),
        ("-m deployment run extract", "-m deployment run extract/extract"),
        ("prefect deployment run --watch extract -p n=1", "prefect deployment run --watch extract/extract -p n=1"),
        ("prefect --profile x deployment run train", "prefect --profile x deployment run train/train"),
        ("prefect deployment run --tag train train", "prefect deployment run --tag train train/train"),
        ("prefect deployment run --tag=a train", "prefect deployment run --tag=a train/train"),
    ],
)  # fmt: skip
def test_a_bare_name_of_ours_is_completed(given: str, meant: str) -> None:
    assert completed(given.split()) == meant.split()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("methods=hlformer", 'methods=["hlformer"]'),
        ("methods=hlformer,gare", 'methods=["hlformer", "gare"]'),
        ("set=a.b=[1, 2]", 'set=["a.b=[1, 2]"]'),
        ("recipes=gare/msrvtt", 'recipes=["gare/msrvtt"]'),
        ('redo=["clip"]', 'redo=["clip"]'),
        ("methods=null", "methods=null"),
        ("experiment=a,b.toml", "experiment=a,b.toml"),
    ],
)
@pytest.mark.parametrize("name", ["train", "train/gpu"])
def test_words_of_a_list_become_json_which_is_all_that_the_server_takes(
    given: str, meant: str, name: str
) -> None:
    before = ["prefect", "deployment", "run"]
    full = {"train": "train/train"}.get(name, name)
    assert completed([*before, name, "-p", given]) == [*before, full, "-p", meant]
    assert completed([*before, "--param", given, name]) == [*before, "--param", meant, full]
    assert completed([*before, "others/flow", "-p", given]) == [*before, "others/flow", "-p", given]


@pytest.mark.parametrize(
    "given",
    [
        "prefect deployment run train/train",
        "prefect deployment run other --tag train",
        "prefect deployment run mine/nightly -p train",
        "prefect deployment inspect train",
        "prefect work-pool create train",
        "prefect run train",
        "prefect",
        "pytest deployment run train",
        "run train",
        "",
    ],
)
def test_anything_else_is_left_alone(given: str) -> None:
    assert completed(given.split()) == given.split()


def test_the_plugin_completes_the_names_of_the_flows_and_no_others() -> None:
    assert set(FLOWS) == NAMES


def test_prefect_finds_the_hook_where_the_entry_point_says() -> None:
    import logging

    from prefect._internal.plugins.manager import build_manager, load_entry_point_plugins
    from prefect._internal.plugins.spec import HookSpec

    (ours,) = entry_points(group="prefect.plugins", name="crossreel")
    assert ours.value == "flows.deployment.plugin"
    manager = build_manager(HookSpec)
    load_entry_point_plugins(manager, allow={"crossreel"}, deny=None, logger=logging.getLogger())
    hooks = manager.hook.setup_environment.get_hookimpls()
    assert [hook.plugin_name for hook in hooks] == ["crossreel"]
