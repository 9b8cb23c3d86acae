"""The parameters of an address, checked: each raises UserError with a sentence for what is not possible."""

from __future__ import annotations

import math

from starlette.requests import Request

from pipeline.errors import UserError

MOST_LETTERS = 200
MOST_NAMES = 50
LONGEST_NUMBER = 7  # digits


def text(request: Request, name: str) -> str:
    """A short text, "" if it is not given."""
    value = request.query_params.get(name, "").strip()
    if len(value) > MOST_LETTERS:
        raise UserError(f"{name} has {len(value)} characters; at most {MOST_LETTERS} are possible")
    return value


def names(request: Request, name: str) -> tuple[str, ...]:
    """Names separated by commas, each once."""
    value = request.query_params.get(name, "")
    found = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if len(found) > MOST_NAMES or any(len(part) > MOST_LETTERS for part in found):
        raise UserError(f"{name} has too many names; at most {MOST_NAMES} are possible")
    return found


def number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number from `least` to `most`."""
    value = request.query_params.get(name) or str(default)
    plain = value.isascii() and value.isdigit() and len(value) <= LONGEST_NUMBER
    if not (plain and least <= int(value) <= most):
        raise UserError(f"{name}={value[:20]!r} is not possible; from {least} to {most} is")
    return int(value)


def flag(request: Request, name: str) -> bool:
    """Whether a parameter is 1."""
    return request.query_params.get(name, "") == "1"


def span(request: Request, name: str) -> tuple[float, float] | None:
    """The least and the greatest of "LEAST-GREATEST", of which one may be left out; None if it is not given."""
    value = request.query_params.get(name, "")
    if not value:
        return None
    least, dash, most = value.partition("-")
    try:
        ends = float(least or 0), float(most or math.inf) if dash else float(least)
    except ValueError:
        ends = math.nan, math.nan
    if not ends[0] <= ends[1]:
        raise UserError(f"{name}={value[:20]!r} is not a span; give for instance 5-12, 5- or -12")
    return ends
