"""demo, verify, deploy, doctor: run a demo, compare with the authors' numbers, deploy flows, check this machine."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import experiments as running
from flows.commands.terms import METHOD_OPTION, Answer, AsJson, Sets, method_names, out, print_json
from flows.console import StageDisplay
from flows.doctor import Finding, examine
from flows.store_doctor import examine_store
from pipeline.errors import UserError
from pipeline.run.execute import Progress

if TYPE_CHECKING:
    from trainers.verify.cases import Quantity

DEMO_FILES = Path(__file__).parents[1]
DEMOS = {
    "experiment.toml": "demo.toml",
    "clouds.toml": "demo-clouds.toml",
}  # file made -> file of the package


def demo(
    folder: Annotated[
        Path, typer.Argument(help="The folder for the corpora, the store and the reports.")
    ] = Path("demo"),
    media_only: Annotated[
        int,
        typer.Option(
            "--media-only",
            metavar="N",
            min=0,
            help="Only draw N media files with captions beside them, like a folder of your own, and run nothing.",
        ),
    ] = 0,
    kind: Annotated[
        str, typer.Option("--kind", help="With --media-only: video, pointcloud or both, N of each.")
    ] = "video",
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Make a small corpus of videos and one of point clouds, and run the whole pipeline on both, offline.

    The networks are small and have random weights: the metrics show that everything works, not how good a method is.
    """
    from pipeline.corpus.importers.demo.beside import draw_beside
    from pipeline.corpus.importers.demo.clouds import scan
    from pipeline.corpus.importers.demo.corpus import render

    with StageDisplay(quiet=as_json) as display:

        def drawn(done: int, total: int) -> None:
            display.progress(Progress("render", done, total))

        if media_only:
            written = draw_beside(folder, media_only, kind, drawn)
            with Answer(as_json) as answer:
                answer.add(folder=folder, files=[str(path) for path in written])
                answer.say(
                    f"{folder}: {len(written)} files with captions beside them, in train, val and test"
                )
            return
        render(folder, progress=drawn)
        scan(folder, progress=drawn)
        experiments = [_kept(folder / name, DEMO_FILES / text) for name, text in DEMOS.items()]
    running.run(experiments, sets=sets, methods=[], redo=[], retry_failed=False, as_json=as_json)
    if not as_json:
        for experiment in experiments:
            out.print(f"search and watch in the browser: crossreel serve {experiment}", markup=False)


def _kept(path: Path, text: Path) -> Path:
    """The path of an experiment file, which is written unless it exists: the user may have changed it."""
    if not path.exists():
        path.write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of recorded cases.")],
    method: Annotated[
        str | None,
        typer.Option(
            *METHOD_OPTION,
            help="Expect only cases of this method; a case of another is an error.",
            autocompletion=method_names,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only failures and totals.")] = False,
    as_json: AsJson = False,
    device: Annotated[
        str, typer.Option("--device", help="Where the cases are computed, in float32: cpu, cuda, cuda:1.")
    ] = "cpu",
) -> None:
    """Compare a method with the published one on recorded cases of the authors' code.

    Prints one line for each quantity: verdict, name, error relative to the largest value, and tolerance.
    """
    from trainers.verify.cases import verify as run_cases  # torch: only this verb pays for it
    from trainers.verify.tensors import require_device

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    require_device(device)
    failed = quantities = 0
    cases = []
    for case in run_cases(folder, method, device):
        cases.append({
            "path": str(case.path), "method": case.method,
            "quantities": [_plain(quantity) for quantity in case.quantities],
        })  # fmt: skip
        _say(f"{case.path} ({case.method})", as_json)
        for quantity in case.quantities:
            quantities += 1
            failed += not quantity.ok
            if not (quiet and quantity.ok):
                _say(f"  {quantity}", as_json)
        failed += not case.quantities
    if as_json:
        print_json({"cases": cases, "failed": failed})
    _say(f"{len(cases)} cases, {quantities} quantities, {failed} failed", as_json)
    if failed:
        raise typer.Exit(1)


def _plain(quantity: Quantity) -> dict[str, Any]:
    """A quantity as JSON can hold it: an error that is not finite is null."""
    found = asdict(quantity) | {"ok": quantity.ok}
    return found if math.isfinite(quantity.error) else found | {"error": None}


def _say(line: str, as_json: bool) -> None:
    """Print a line, unless JSON is printed instead."""
    if not as_json:
        out.print(line, markup=False)


def deploy(
    folder: Annotated[Path, typer.Argument(help="The project's folder, in which runs will start.")] = Path(),
    pool: Annotated[
        str,
        typer.Option(help="The work pool; the deployments of any pool but `local` are named after the pool."),
    ] = "local",
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Run the worker in this terminal.")
    ] = False,
    health: Annotated[
        bool, typer.Option("--health", help="With --foreground: answer /health on port 8080.")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="End the worker that was started for this folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Register the flows as deployments on a Prefect server, and start a worker for them.

    A server of this machine is started in the background if none answers; `prefect server stop` ends it.

    Then: prefect deployment run extract-and-train -p experiment=experiment.toml
    """
    from flows.deployment import deploy as deploying  # Prefect: only this verb pays for it

    if stop:
        ended = deploying.stop(folder, pool)
        if as_json:
            print_json({"ended": bool(ended), "folder": str(folder.absolute())})
        _say("the worker has ended" if ended else f"no worker runs for {folder.absolute()}", as_json)
        return
    deployed = deploying.deploy(folder, serve=not foreground, pool=pool)
    extract, train, everything = deployed.names
    if as_json:
        background = {} if foreground else {"worker": deployed.worker, "log": str(deployed.log)}
        started = {"server_started": deployed.server_started}
        print_json({"deployments": list(deployed.names), "url": deployed.url, **started, **background})
    if deployed.server_started:
        page = deployed.url.removesuffix("/api")
        _say(f"a Prefect server runs in the background: {page} (prefect server stop ends it)", as_json)
    _say(f"{extract}, {train} and {everything} are deployments of {deployed.url}", as_json)
    if foreground:
        raise typer.Exit(deploying.serve_in_foreground(folder, pool, health))
    _say(f"a worker runs them in the background (process {deployed.worker}, log: {deployed.log})", as_json)
    _say(f"prefect deployment run {everything} -p experiment=experiment.toml --watch", as_json)


def doctor(
    experiment: Annotated[
        Path | None,
        typer.Argument(metavar="EXPERIMENT", help="Also check the requirements of this experiment."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Check this store instead: what can be checked in seconds."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine for everything that crossreel needs: ffmpeg, decoders, torch, GPUs, weights, disk.

    With --store the state of a store: whether it can be read, written and locked here, its index, the sizes of its
    segments, what dead runs left. `crossreel store verify` reads all of it.
    """
    if store is not None and experiment is not None:
        raise UserError(f"{store} and {experiment} are checked one at a time; name one of them")
    findings = examine(experiment) if store is None else of_store(store)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            out.print(f"{_verdict(finding):7}  {finding.name}: {finding.detail}", markup=False)
            for line in finding.advice:
                out.print(f"{'':9}{line}", markup=False)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def of_store(store: Path) -> list[Finding]:
    """The findings on a store, of which none is about something missing."""
    return [replace(finding, fault="WRONG") for finding in examine_store(store)]


def _verdict(finding: Finding) -> str:
    """The word in front of a finding; a file that no experiment asked for yet is neither right nor wrong."""
    if not finding.ok:
        return finding.fault
    return "absent" if finding.advice else "ok"
