"""demo, verify, deploy, doctor: run a demo, compare with the authors' numbers, deploy flows, check this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands import experiments as running
from flows.commands.terms import AsJson, Sets, out, print_json
from flows.console import StageDisplay
from flows.doctor import examine
from flows.store_doctor import examine_store
from pipeline.errors import UserError
from pipeline.run.execute import Progress

DEMO_FILES = Path(__file__).parents[1]
DEMOS = {
    "experiment.toml": "demo.toml",
    "clouds.toml": "demo-clouds.toml",
}  # file made -> file of the package


def demo(
    folder: Annotated[
        Path, typer.Argument(help="The folder for the corpora, the store and the reports.")
    ] = Path("demo"),
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Make a small corpus of videos and one of point clouds, and run the whole pipeline on both, offline.

    The networks are small and have random weights: the metrics show that everything works, not how good a method is.
    """
    from pipeline.corpus.importers.demo.clouds import scan
    from pipeline.corpus.importers.demo.corpus import render

    with StageDisplay(quiet=as_json) as display:

        def drawn(done: int, total: int) -> None:
            display.progress(Progress("render", done, total))

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
        typer.Option("--method", help="Expect only cases of this method; a case of another is an error."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only failures and totals.")] = False,
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
    failed = quantities = cases = 0
    for case in run_cases(folder, method, device):
        cases += 1
        out.print(f"{case.path} ({case.method})", markup=False)
        for quantity in case.quantities:
            quantities += 1
            failed += not quantity.ok
            if not (quiet and quantity.ok):
                out.print(f"  {quantity}", markup=False)
        failed += not case.quantities
    out.print(f"{cases} cases, {quantities} quantities, {failed} failed")
    if failed:
        raise typer.Exit(1)


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
) -> None:
    """Register the flows as deployments on a Prefect server, and start a worker for them.

    A server of this machine is started in the background if none answers; `prefect server stop` ends it.

    Then: prefect deployment run extract-and-train -p experiment=experiment.toml
    """
    from flows.deployment import deploy as deploying  # Prefect: only this verb pays for it

    if stop:
        ended = deploying.stop(folder, pool)
        out.print("the worker has ended" if ended else f"no worker runs for {folder.absolute()}")
        return
    deployed = deploying.deploy(folder, serve=not foreground, pool=pool)
    extract, train, everything = deployed.names
    if deployed.server_started:
        page = deployed.url.removesuffix("/api")
        out.print(
            f"a Prefect server runs in the background: {page} (prefect server stop ends it)", markup=False
        )
    out.print(f"{extract}, {train} and {everything} are deployments of {deployed.url}", markup=False)
    if foreground:
        raise typer.Exit(deploying.serve_in_foreground(folder, pool, health))
    out.print(
        f"a worker runs them in the background (process {deployed.worker}, log: {deployed.log})", markup=False
    )
    out.print(f"prefect deployment run {everything} -p experiment=experiment.toml --watch", markup=False)


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
    findings, fault = (examine(experiment), "MISSING") if store is None else (examine_store(store), "WRONG")
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            out.print(f"{'ok' if finding.ok else fault:7}  {finding.name}: {finding.detail}", markup=False)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
