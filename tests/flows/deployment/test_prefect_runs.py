"""Flows against real servers: the one that is configured, and the one a run brings along."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows.deployment.server import EmbeddedServer, answers, api_url, configured_url
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.errors import UserError

if TYPE_CHECKING:
    from tests.flows.conftest import Place, PrefectServer

pytestmark = pytest.mark.slow


def test_a_run_has_a_task_a_stage_and_artifacts_and_the_next_one_is_cached(
    served: Place, prefect_server: PrefectServer
) -> None:
    experiment = served.experiment(name="Twice Over")
    assert served.flow(experiment)["stages_ran"] == 1
    assert served.flow(experiment)["stages_ran"] == 0
    first, second = prefect_server.flow_runs(experiment)
    assert first["state"]["type"] == second["state"]["type"] == "COMPLETED"
    assert first["name"] == second["name"] == "Twice Over: features"
    assert first["tags"] == ["experiment:Twice Over"]
    assert first["state"]["message"] == "1 stages ran, 0 cached"
    assert second["state"]["message"] == "0 stages ran, 1 cached"
    (made,), (cached,) = prefect_server.task_runs(first), prefect_server.task_runs(second)
    assert (made["name"], made["state_name"], made["tags"]) == ("compress", "Completed", ["extract"])
    assert made["state"]["message"].startswith("compress: 2 made")
    assert (cached["name"], cached["state_name"], cached["state_type"]) == ("compress", "Cached", "COMPLETED")
    shown = prefect_server.artifacts(first)
    assert set(shown) == {"coverage-twice-over", "progress-twice-over-compress"}
    assert shown["progress-twice-over-compress"]["task_run_id"] == made["id"]
    assert shown["progress-twice-over-compress"]["data"] == 100
    (row,) = json.loads(shown["coverage-twice-over"]["data"])
    assert (row["stage"], row["total"], row["made"], row["failed"]) == ("compress", 2, 2, 0)
    assert set(prefect_server.artifacts(second)) == {"coverage-twice-over"}


def test_tasks_have_edges_and_each_stage_logs_once_on_its_own_task(
    served: Place, prefect_server: PrefectServer
) -> None:
    experiment = served.folder / "edges.toml"
    experiment.write_text('corpus = "corpus.jsonl"\nextract = ["keyframes"]\n')
    assert served.flow(str(experiment))["stages_ran"] == 2
    (run,) = prefect_server.flow_runs(str(experiment))
    tasks = {task["name"]: task for task in prefect_server.task_runs(run)}
    assert [each["id"] for each in tasks["keyframes"]["task_inputs"]["wait_for"]] == [tasks["compress"]["id"]]
    for name, task in tasks.items():
        lines = [line for line in prefect_server.logs(run) if f"{name}: 2 made" in line["message"]]
        assert [line["task_run_id"] for line in lines] == [task["id"]]


def test_a_stage_with_failed_items_completes_and_says_how_many(
    served: Place, prefect_server: PrefectServer
) -> None:
    (served.folder / "broken.mp4").write_bytes(b"not a video" * 100)
    served.corpus("one", "broken")
    experiment = served.experiment()
    result = served.flow(experiment, flow="extract")
    assert [report["failed"] for report in result["stages"]] == [1]
    (run,) = prefect_server.flow_runs(experiment)
    assert run["state"]["message"] == "1 stages ran, 0 cached; 1 items failed"
    (task,) = prefect_server.task_runs(run)
    assert (task["state_type"], task["state_name"]) == ("COMPLETED", "Completed")
    assert task["state"]["message"].startswith("compress: 1 made, 1 failed")


def test_a_mistake_in_the_parameters_fails_the_flow_with_its_sentence_alone(
    served: Place, prefect_server: PrefectServer
) -> None:
    experiment = served.experiment()
    run = served.start_flow(experiment, sets=["extractors.compress.crv=30"], deployed=True)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    ended = json.loads(out)
    assert ended["type"] == "FAILED"
    assert ended["message"].startswith("unknown setting extractors.compress.crv; did you mean")
    assert "Traceback" not in err
    (record,) = prefect_server.flow_runs(experiment)
    assert record["state"]["message"] == ended["message"]


def test_a_flow_that_is_called_with_its_parameters_alone_opens_the_experiment_itself(
    served: Place, prefect_server: PrefectServer
) -> None:
    experiment = served.experiment()
    run = served.start_flow(experiment, deployed=True)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert json.loads(out) == {"type": "COMPLETED", "message": "1 stages ran, 0 cached"}
    (record,) = prefect_server.flow_runs(experiment)
    assert [task["name"] for task in prefect_server.task_runs(record)] == ["compress"]


@pytest.mark.long
def test_a_mistake_that_a_stage_finds_fails_the_run_of_an_opened_experiment_with_its_sentence_alone(
    served: Place, prefect_server: PrefectServer
) -> None:
    write_manifest(
        served.folder / "corpus.jsonl", [Item("a", "train", (Caption("c", "x"),), digest="d" * 32)]
    )
    experiment = served.experiment()
    run = served.start_flow(experiment)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 2
    assert out.startswith("UserError: a of ") and "has no media to make compress of" in out
    assert "Traceback" not in err
    (record,) = prefect_server.flow_runs(experiment)
    assert record["state"]["type"] == "FAILED"
    assert f"UserError: {record['state']['message']}" == out.strip()


def test_an_error_of_ours_fails_task_and_flow_and_reaches_the_caller(
    served: Place, prefect_server: PrefectServer
) -> None:
    """The store's folder for segments cannot be made: the worker's code raises."""
    experiment = served.experiment()
    assert served.flow(experiment)["stages_ran"] == 1
    segments = served.folder / "store" / "segments"
    target = next(path for path in segments.rglob("*") if path.is_dir() and not list(path.glob("*/")))
    moved = target.with_name("aside")
    target.rename(moved)
    target.write_text("in the way")
    run = served.start_flow(experiment, redo=["compress"])
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1, out + err
    record = prefect_server.flow_runs(experiment)[-1]
    (task,) = prefect_server.task_runs(record)
    assert record["state"]["type"] == task["state_type"] == "FAILED"
    assert target.name in record["state"]["message"] or "Error" in record["state"]["message"]


@pytest.mark.slow
@pytest.mark.usefixtures("long_clips")
def test_an_interrupted_run_and_its_task_are_cancelled_and_did_not_crash(
    served: Place, prefect_server: PrefectServer
) -> None:
    experiment = served.experiment()
    run = served.start_flow(experiment)
    served.wait_until_at_work()
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    (record,) = prefect_server.flow_runs(experiment)
    (task,) = prefect_server.task_runs(record)
    assert record["state"]["type"] == task["state_type"] == "CANCELLED"
    assert "goes on where it was" in record["state"]["message"]


def test_a_run_without_a_server_brings_its_own_and_records_every_task(place: Place) -> None:
    experiment = place.experiment(name="embedded")
    run = place.start_flow(experiment)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    waited = "  starting Prefect: 0 of 1"  # which the display says where that takes seconds
    said = [line for line in err.splitlines() if line != waited]
    assert not any("server" in line or "Prefect" in line for line in said), err  # the display speaks alone
    assert "compress: 2 made" in err
    assert place.flow(experiment)["stages_ran"] == 0
    assert place.alive() == []
    database = Path(place.env["PREFECT_HOME"]) / "prefect.db"
    with closing(sqlite3.connect(database)) as open_database:
        rows = open_database.execute(
            "select t.name, t.state_name from task_run t join flow_run f on t.flow_run_id = f.id "
            "where f.parameters like ? order by t.start_time",
            (f"%{experiment}%",),
        ).fetchall()
    assert rows == [("compress", "Completed"), ("compress", "Cached")]


@pytest.mark.long
def test_two_runs_at_once_bring_two_servers_and_make_everything_once(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On a new PREFECT_HOME, so that both want to make its database."""
    home = tmp_path_factory.mktemp("new-home")
    place.env["PREFECT_HOME"] = str(home)
    experiment = place.experiment()
    runs = [place.start_flow(experiment), place.start_flow(experiment)]
    ends = [run.communicate(timeout=180) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], ends
    made = [json.loads(out)["stages"][0]["ran"] for out, _ in ends]
    assert sorted(made) == [0, 2]


@pytest.mark.usefixtures("long_clips")
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long),
        (signal.SIGINT, 130),
        (signal.SIGKILL, -9),
    ],
)
def test_a_run_that_is_ended_leaves_no_process_behind(place: Place, number: int, code: int) -> None:
    run = place.start_flow(place.experiment())
    place.wait_until_at_work()
    run.send_signal(number)
    run.communicate(timeout=30)
    assert run.returncode == code
    place.wait_until(lambda: place.alive() == [])


def test_a_server_that_cannot_start_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file"))
    with (
        EmbeddedServer() as server,
        pytest.raises(UserError, match=r"did not start .*FileExistsError.*PREFECT_HOME"),
    ):
        server.wait_ready()


def test_the_server_is_chosen_by_variable_then_file_then_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: PrefectServer
) -> None:
    nobody = "http://127.0.0.1:9/api"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_PROFILE", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert api_url() is None
    profile = f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{prefect_server.url}"\n'
    (tmp_path / "profiles.toml").write_text(profile)
    assert api_url() == prefect_server.url
    (tmp_path / "prefect.toml").write_text(f'[api]\nurl = "{nobody}"\n')
    assert configured_url() == nobody
    assert not answers(nobody)
    assert api_url() is None  # configured, and does not answer: the run brings its own
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url)
    assert api_url() == prefect_server.url
    monkeypatch.setenv("PREFECT_API_URL", nobody)
    with pytest.raises(
        UserError, match=r"no Prefect server answers at PREFECT_API_URL=http://127\.0\.0\.1:9/api"
    ):
        api_url()


def test_other_programs_are_no_prefect_server(tmp_path: Path) -> None:
    import http.server
    import threading

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        assert not answers(f"http://127.0.0.1:{other.server_port}/api")
        other.shutdown()
