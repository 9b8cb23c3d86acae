"""The command `crossreel`: the table of verbs, and what an error becomes."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from typing import Annotated

import typer

from flows.commands.lazy import LazyGroup, Verb
from flows.terminal import escaped
from flows.troubles import disk_trouble
from pipeline.child import ChildDied
from pipeline.errors import ItemError, TrainingError, UserError

OUR_ERROR, USERS_MISTAKE, INTERRUPTED = 1, 2, 130
EXIT_CODES = {
    0: "done",
    1: "a fault of ours, a training that diverged, or a check that did not pass (doctor, verify, store verify, "
    "board --lint)",
    2: "a mistake that you can mend, in one sentence that names the value and what is possible",
    3: "done, but some items failed or were left out, or a stage stopped; they are listed",
    130: "interrupted by Ctrl-C (143: by SIGTERM); the same command goes on where it stopped",
}
"""Every exit status and its meaning, as `crossreel --help` and the documents list them."""

HELP = "From a raw corpus of videos or point clouds with captions to trained, compared, searchable retrieval models."

VERBS = {
    "init": Verb(
        "flows.commands.init:init",
        "Write a complete, commented experiment file: of a published experiment, or for your own corpus.",
    ),
    "run": Verb(
        "flows.commands.experiments:run",
        "Bring an experiment up to date: make all artifacts that are missing, and no others.",
    ),
    "batch": Verb(
        "flows.commands.batch:batch", "Run an experiment under every setting of a sweep, and compare them."
    ),
    "plan": Verb(
        "flows.commands.experiments:plan",
        "Show what a run would do: cached and missing artifacts, expected disk space and time.",
    ),
    "stage": Verb(
        "flows.commands.experiments:stage",
        "Bring one stage and the stages it needs up to date, in this process and without Prefect.",
    ),
    "status": Verb(
        "flows.commands.experiments:status",
        "Show the progress of each stage, the failed items with their reasons, and the latest runs.",
    ),
    "why": Verb(
        "flows.commands.experiments:why",
        "Explain why a stage's artifact of an item exists or is missing: which component of its fingerprint differs.",
        dashed=True,
    ),
    "report": Verb(
        "flows.commands.experiments:report",
        "Draw the report of what is finished of an experiment, and print its path.",
    ),
    "runs": Verb(
        "flows.commands.apply:runs",
        "The trained runs in an experiment's store, by the names that search, serve, compare and apply take.",
    ),
    "apply": Verb(
        "flows.commands.apply:apply",
        "Rank another corpus with a trained run: extract, encode, index, and measure where there are captions.",
    ),
    "search": Verb(
        "flows.commands.search:search",
        "List the items that match a sentence best; with --media, the captions that match a file best.",
        dashed=True,
    ),
    "serve": Verb(
        "flows.commands.serve:serve",
        "Search, watch and compare in the browser, on this machine only. Ctrl-C ends it.",
    ),
    "board": Verb(
        "flows.commands.board:board",
        "Published figures and ours side by side: paper, repository, ours, with the protocol of each.",
    ),
    "triples": Verb(
        "flows.commands.triples:triples",
        "Print the triples of sentences, or with --golden the precision and recall of a parser on known sentences.",
        dashed=True,
    ),
    "demo": Verb(
        "flows.commands.service:demo",
        "Make a small corpus of videos and one of point clouds, and run the whole pipeline on both, offline.",
    ),
    "verify": Verb(
        "flows.commands.service:verify",
        "Compare a method with the published one on recorded cases of the authors' code.",
    ),
    "deploy": Verb(
        "flows.commands.service:deploy",
        "Register the flows as deployments on a Prefect server, and start a worker for them.",
    ),
    "doctor": Verb(
        "flows.commands.service:doctor",
        "Check this machine for everything that crossreel needs: ffmpeg, decoders, torch, GPUs, weights, disk.",
    ),
    "corpus": Verb(
        "flows.commands.corpus:app", "Make a corpus manifest, and check one before hours are spent."
    ),
    "import": Verb(
        "flows.commands.exchange:importing", "Import published features or an authors' checkpoint."
    ),
    "export": Verb(
        "flows.commands.exchange:exporting",
        "Write features, scores, results, a model card or a checkpoint for other programs.",
    ),
    "compare": Verb(
        "flows.commands.compare:app",
        "Compare evaluated runs on the same queries: `crossreel compare A B` is `compare runs A B`. "
        "`compare features A B` says whether two sets of features are the same.",
    ),
    "store": Verb("flows.commands.store:app", "List, measure, check, clean and copy a store."),
}
"""Every verb by name, in the order of `crossreel --help`. A new verb is one entry here."""


class Verbs(LazyGroup):
    """The verbs of the command."""

    verbs = VERBS


app = typer.Typer(
    name="crossreel",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def exit_codes() -> str:
    """The exit statuses as the end of `crossreel --help`."""
    return "Exit status:\n\n" + "\n\n".join(f"{code}: {words}" for code, words in EXIT_CODES.items())


@app.callback(help=HELP, epilog=exit_codes(), invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and the commit if it is known.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --version: also all that a bug report should say.")
    ] = False,
) -> None:
    """Options of the command itself, which stand before the verb."""
    if version:
        _print_version(verbose)
        raise typer.Exit
    if verbose:
        raise UserError("--verbose is for --version")
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def _print_version(verbose: bool) -> None:
    """Print the version, or all that a bug report should say; only this answer pays for these imports."""
    if verbose:
        from flows.commands.version import described

        typer.echo("\n".join(described()))
    else:
        from flows.program import version_line

        typer.echo(version_line())


def main() -> None:
    """Entry of the command. Exit status: 0 done, 1 our error, 2 the user's, 3 some items failed, 130 interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except UserError as error:
        _say(f"{error}")
        sys.exit(USERS_MISTAKE)
    except ItemError as error:  # outside of the stages that record it: in the packed inputs of a method
        _say(f"{error.item}: {error.reason}")
        sys.exit(USERS_MISTAKE)
    except TrainingError as error:
        _say(f"training stopped: {error}")
        sys.exit(OUR_ERROR)
    except ChildDied as error:
        _say(f"{error}; what was finished is kept, the same command goes on")
        sys.exit(OUR_ERROR)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OUR_ERROR)
    except (OSError, sqlite3.Error) as error:
        if not (trouble := disk_trouble(error)):
            raise
        _say(trouble)
        sys.exit(USERS_MISTAKE)
    except SystemExit as end:  # raised by Typer for Ctrl-C
        if end.code == INTERRUPTED:
            print(
                "crossreel: interrupted; what was finished is kept, the same command goes on", file=sys.stderr
            )
        raise


def _say(sentence: str) -> None:
    """Print an error on standard error; names in it may come from other people's files, so they are escaped."""
    print(f"crossreel: {escaped(sentence)}", file=sys.stderr)


def _terminate(number: int, frame: object) -> None:
    """SIGTERM ends like any exit, so that children and locks are cleaned up."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
