"""The command `crossreel`: the table of verbs, and what an error becomes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import typer

from flows.commands import corpus, exchange, running, service, store
from pipeline.errors import TrainingError, UserError

OUR_ERROR, USERS_MISTAKE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="crossreel",
    help="From a raw corpus of videos with captions to trained, compared, searchable retrieval models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS: tuple[Callable[..., None], ...] = (
    running.run, running.plan, running.stage, running.status, running.why, running.report,
    service.demo, service.verify, service.deploy, service.doctor,
)  # fmt: skip
for verb in VERBS:
    app.command()(verb)
app.add_typer(corpus.app, name="corpus")
app.add_typer(exchange.importing, name="import")
app.add_typer(exchange.exporting, name="export")
app.add_typer(store.app, name="store")


def main() -> None:
    """Entry of the command. Exit status: 0 done, 1 our error, 2 the user's, 3 some items failed, 130 interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except UserError as error:
        print(f"crossreel: {error}", file=sys.stderr)
        sys.exit(USERS_MISTAKE)
    except TrainingError as error:
        print(f"crossreel: training stopped: {error}", file=sys.stderr)
        sys.exit(OUR_ERROR)
    except KeyboardInterrupt:
        print("crossreel: interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OUR_ERROR)


def _terminate(number: int, frame: object) -> None:
    """SIGTERM ends like any exit, so that children and locks are cleaned up."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
