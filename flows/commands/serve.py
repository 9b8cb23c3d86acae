"""serve: the web application over an experiment's store."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from flows.commands.experiments import opened
from flows.commands.terms import (
    DEFAULT_EXPERIMENT,
    AsJson,
    ExperimentFile,
    GalleryCorpus,
    Sets,
    out,
    print_json,
)
from flows.console import StageDisplay

PORT = 8600


def serve(
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for any free one.")] = PORT,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; any other one lets other machines connect.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str], typer.Option("--allow-host", metavar="NAME", help="A host name under which others may connect.")
    ] = [],  # noqa: B006
    splits: Annotated[
        list[str], typer.Option("--split", help="A further split to search, besides the evaluated one.")
    ] = [],  # noqa: B006
    runs: Annotated[
        list[str],
        typer.Option("--run", metavar="RUN", help="METHOD@DIGEST, the run that answers for its method."),
    ] = [],  # noqa: B006
    corpus: GalleryCorpus = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Search, watch and compare in the browser, on this machine only. Ctrl-C ends it.

    The first start encodes the splits that can be searched; later starts use the stored vectors. Where the experiment
    or its corpus has changed since, its last runs answer, and one line says so.
    """
    from flows.serve.lifecycle import Address, prepare  # uvicorn: only this verb pays for it
    from flows.serve.lifecycle import serve as serving

    address = Address(host, port, tuple(allow_host))
    address.require_names()
    address.listen().close()  # a port in use is reported before any work is done
    with StageDisplay(quiet=as_json) as display:
        project = opened(experiment, sets, [], display)
        prepared = prepare(project, splits, display.say, runs, corpus, display.progress)
        display.idle()
        for method in prepared.catalogue.methods:
            display.say(f"{method.name}: {method.missing or 'searches ' + ', '.join(method.splits)}")
            if method.note:
                display.say(method.note)
        if not address.is_loopback:
            display.say(
                f"WARNING: everybody who can reach {host} can see every item of this corpus; there is no password"
            )

    def ready(url: str) -> None:
        if as_json:
            print_json({"url": url, "methods": [vars(method) for method in prepared.catalogue.methods]})
        else:
            out.print(f"{url} (Ctrl-C ends it)", markup=False)
        if open_browser:
            webbrowser.open(url)

    try:
        serving(project, prepared, address, ready)
    except KeyboardInterrupt:  # the usual end of a server, so no error
        if not as_json:
            out.print("ended")
