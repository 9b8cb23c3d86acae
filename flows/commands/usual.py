"""The options that every verb has: --quiet, --log-file, and --store where settings of an experiment can be changed."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command_from_info
from typer.models import CommandInfo

from flows import terminal
from flows.commands.terms import store_setting
from pipeline.errors import UserError

SETS = "sets"  # the parameter of verbs that change settings of an experiment
OURS = ("crossreel", "flows", "trainers", "extractors", "pipeline")  # loggers that write into the file
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TIME = "%Y-%m-%dT%H:%M:%S"

log = logging.getLogger("crossreel.command")


class UsualCommand(TyperCommand):
    """A verb with the usual options. An option of the verb's own that has the name of a usual one keeps it."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        own = {name for one in self.params for name in one.opts}
        self.added = [
            one for one in usual_options()
            if not own & set(one.opts) and (one.name != "usual_store" or self._changes_an_experiment())
        ]  # fmt: skip
        self.params += self.added

    def invoke(self, ctx: Any) -> Any:
        """Call the verb under the usual options."""
        given = {one.name: ctx.params.pop(one.name) for one in self.added}
        if (store := given.get("usual_store")) is not None:
            ctx.params[SETS] = [*ctx.params[SETS], store_setting(store)]
        with terminal.quieted(bool(given.get("usual_quiet"))), logged(given.get("usual_log_file")):
            return super().invoke(ctx)

    def _changes_an_experiment(self) -> bool:
        return any(
            one.name == SETS and "experiment" in (getattr(one, "help", "") or "") for one in self.params
        )


def _usual(
    usual_quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results alone: no progress on standard error.")
    ] = False,
    usual_log_file: Annotated[
        Path | None,
        typer.Option(
            "--log-file", metavar="FILE", help="Append what happens to this file, each line with its time."
        ),
    ] = None,
    usual_store: Annotated[
        Path | None,
        typer.Option("--store", metavar="PATH", help="Use this store instead of the experiment's."),
    ] = None,
) -> None:
    """Carrier of the usual options, which typer makes from its signature."""


@cache
def usual_options() -> tuple[Any, ...]:
    """The usual options as typer makes them."""
    return tuple(get_command_from_info(CommandInfo(name="usual", callback=_usual), pretty_exceptions_short=True,
                                       rich_markup_mode=None).params)  # fmt: skip


@contextmanager
def logged(path: Path | None) -> Iterator[None]:
    """Append records of our loggers, and warnings of others, to a file meanwhile; without a path do nothing.

    Raises UserError for a file that cannot be written.
    """
    if path is None:
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--log-file {path} cannot be written: {error.strerror or error}") from None
    handler.setFormatter(logging.Formatter(LINE, TIME))
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in OURS}
    spoken = (
        None if root.handlers else logging.StreamHandler()
    )  # what logging does by itself without a handler
    if spoken is not None:
        spoken.setLevel(logging.WARNING)
        spoken.addFilter(lambda record: not record.name.startswith("crossreel."))  # these are said already
        root.addHandler(spoken)
    root.addHandler(handler)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    started = time.monotonic()
    log.info("crossreel %s", " ".join(sys.argv[1:]))
    try:
        yield
        log.info("ended after %.1f s", time.monotonic() - started)
    except BaseException as error:
        code = getattr(error, "exit_code", getattr(error, "code", None))
        words = f"exit status {code}" if code is not None else f"{type(error).__name__}: {error}"
        log.error("ended after %.1f s: %s", time.monotonic() - started, words)
        raise
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for one in (handler, spoken):
            if one is not None:
                root.removeHandler(one)
                one.close()
