from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings
from prefect.states import Failed, State, StateType

from flows.console import StageDisplay
from flows.deployment.artifacts import ProgressBar, coverage, leaderboard_text, publish, report_text, slug
from flows.deployment.naming import named
from flows.deployment.parameters import FlowRequest, Words, one_or_more
from flows.deployment.tasks import _worth_another_try, run_opened, run_sentence
from flows.results.verdict import Verdict
from flows.run import RunResult
from pipeline.errors import TrainingError, UserError
from pipeline.run.execute import Progress, Report


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, []),
        ("", []),
        ("hlformer", ["hlformer"]),
        ("hlformer, lean", ["hlformer", "lean"]),
        ([], []),
        (["hlformer", "lean"], ["hlformer", "lean"]),
    ],
)
def test_methods_are_a_word_several_or_a_list(given: Words, words: list[str]) -> None:
    assert one_or_more(given) == words


def test_a_bare_setting_keeps_its_commas_and_spaces() -> None:
    assert one_or_more("a.b=[1, 2]", split=False) == ["a.b=[1, 2]"]
    assert one_or_more("  ", split=False) == []


def test_only_an_error_that_is_nobodys_fault_is_worth_another_try() -> None:
    for error, again in ((OSError("disk"), True), (UserError("x"), False), (TrainingError("x"), False)):
        assert _worth_another_try(None, None, Failed(data=error)) is again  # type: ignore[arg-type]


class Unrecorded:
    """Stands for a flow whose server is gone when its body has ended."""

    name = "unrecorded"

    def fn(self) -> None:
        """The body of a deployment, which is not called here."""

    def __call__(self, **parameters: Any) -> None:
        self.parameters = parameters
        self.fn(**parameters)
        raise OSError("no server answers")


REQUEST = FlowRequest("experiment.toml", ["hlformer"], ["a.b=1"])


RESULT = RunResult(
    "run", [Report("compress", "f", 3, ran=2, failed=1, seconds=1.26), Report("clip", "f", 3, cached=2, blocked=1)], 2.0
)  # fmt: skip


def test_the_sentence_of_a_run_counts_stages_and_failed_items() -> None:
    assert run_sentence(RESULT) == "1 stages ran, 1 cached; 1 items failed"


def test_coverage_accounts_for_every_unit() -> None:
    rows = coverage(RESULT)
    assert [row["stage"] for row in rows] == ["compress", "clip"]
    assert all(row["total"] == row["cached"] + row["made"] + row["failed"] + row["left out"] for row in rows)
    assert rows[0]["seconds"] == 1.3


def test_the_leaderboard_begins_with_the_verdict_and_shows_in_bold_what_is_shown_to_be_better() -> None:
    figure = {"value": 23.14, "low": 20.0, "high": 26.26}
    rows = [
        {"method": method, "split": "test", "direction": "t2v", "metrics": {"R@1": figure, "MRR": figure}}
        for method in ("hlformer", "gare")
    ]
    verdict = Verdict(
        figure="R@1", direction="t2v", order=["hlformer", "gare"], sentences=["hlformer is ahead of gare."],
        basis=["Tested on 9 captions."], better=[("t2v", "R@1", "hlformer")],
    )  # fmt: skip
    text = leaderboard_text(replace(RESULT, leaderboard=rows, verdict=verdict))
    assert text.startswith(
        "## Verdict\n\nhlformer is ahead of gare.\n\n- Tested on 9 captions.\n\n## Text to video, test"
    )
    assert "| hlformer | **23.1 [20.0, 26.3]** | 23.140 [20.000, 26.260] |" in text
    assert "| gare | 23.1 [20.0, 26.3] | 23.140 [20.000, 26.260] |" in text


def test_the_link_to_the_report_is_one_that_a_browser_follows() -> None:
    text = report_text(Path("/store/report.html"), "demo")
    assert (
        "(http://127.0.0.1:8600/report)" in text and "file://" not in text and "`/store/report.html`" in text
    )


def test_an_interrupt_ends_task_and_flow_as_cancelled_and_reaches_the_caller() -> None:
    def interrupted() -> RunResult:
        raise KeyboardInterrupt

    seen: list[State[Any]] = []

    class Watched(Unrecorded):
        def __call__(self, **parameters: Any) -> None:
            seen.append(self.fn(**parameters))  # type: ignore[func-returns-value]

    with pytest.raises(KeyboardInterrupt):
        run_opened(Watched(), REQUEST, interrupted, StageDisplay(quiet=True))  # type: ignore[arg-type]
    assert seen[0].type == StateType.CANCELLED and "goes on where it was" in str(seen[0].message)


def test_recipes_become_settings_before_those_that_are_given() -> None:
    request = FlowRequest("e.toml", set=["trainers.gare.lr=1e-5"], recipes="gare/msrvtt")
    assert request.sets == ['trainers.gare.recipe="msrvtt"', "trainers.gare.lr=1e-5"]
    with pytest.raises(UserError, match=r"recipes: 'msrvtt' is not METHOD/RECIPE, for instance gare/msrvtt"):
        _ = FlowRequest("e.toml", recipes=["msrvtt"]).sets


def test_a_run_is_named_after_its_experiment_and_its_first_methods() -> None:
    assert named("demo", ["hlformer", "gare"]) == "demo: hlformer, gare"
    assert named("demo", []) == "demo: features"
    assert named("demo", list("abcdef")) == "demo: a, b, c, d and 2 more"


@pytest.mark.parametrize("name", ["My Corpus (v2)", "ünïcode", "***", "a"])
def test_a_key_holds_what_prefect_allows(name: str) -> None:
    assert slug(name) and set(slug(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_without_a_server_there_is_no_artifact_and_no_error() -> None:
    with temporary_settings({PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}, restore_defaults={PREFECT_API_URL}):
        publish(RESULT, "nothing to talk to")
        bar = ProgressBar("nothing to talk to", "compress")
        bar.show(Progress("compress", 0, 2))
        bar.finish()


def test_a_run_whose_end_no_server_recorded_still_has_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_opened(Unrecorded(), REQUEST, lambda: RESULT, StageDisplay())  # type: ignore[arg-type]
    assert result is RESULT
    assert (
        "the Prefect server could not record how the run ended: no server answers" in capsys.readouterr().err
    )


def test_a_mistake_of_the_user_is_raised_even_if_no_server_recorded_it() -> None:
    def mistaken() -> RunResult:
        raise UserError("no such thing")

    with pytest.raises(UserError, match="no such thing"):
        run_opened(Unrecorded(), REQUEST, mistaken, StageDisplay(quiet=True))  # type: ignore[arg-type]


def test_an_error_of_ours_comes_out_of_the_flow_as_it_is() -> None:
    def broken() -> RunResult:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        run_opened(Unrecorded(), REQUEST, broken, StageDisplay(quiet=True))  # type: ignore[arg-type]
