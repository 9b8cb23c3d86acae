"""Paths of the coordinator's machine as another machine knows them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError

VARIABLE = "CROSSREEL_PATHS"
WORDS = ("key", "name", "text")  # of a unit: what looks like a path there is none


class Elsewhere:
    """Replaces the beginnings of paths, for a machine that has a shared folder at another place."""

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self.pairs = sorted(pairs.items(), key=lambda pair: -len(pair[0]))  # the longest beginning decides

    @classmethod
    def from_environment(cls) -> Elsewhere:
        """As this machine's CROSSREEL_PATHS says: `/there=/here`, several between colons."""
        pairs = {}
        for text in filter(None, os.environ.get(VARIABLE, "").split(":")):
            there, sign, here = text.partition("=")
            if not (sign and there.startswith("/") and here.startswith("/")):
                raise UserError(f"{VARIABLE} holds {text!r}, which is not of the form /there=/here")
            pairs[there.rstrip("/")] = here.rstrip("/")
        return cls(pairs)

    def applied(self, request: dict[str, Any]) -> dict[str, Any]:
        """A worker's request with every path in it as this machine knows it, those in its params too."""
        if not self.pairs:
            return request
        stages = [
            stage | {"params": json.dumps(self._everywhere(json.loads(stage["params"])))}
            for stage in request["stages"]
        ]
        units = [
            {key: value if key in WORDS else self._everywhere(value) for key, value in unit.items()}
            for unit in request["units"]
        ]
        return request | {"store": self._path(request["store"]), "units": units, "stages": stages}

    def _everywhere(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._path(value)
        if isinstance(value, list):
            return [self._everywhere(one) for one in value]
        if isinstance(value, dict):
            return {key: self._everywhere(one) for key, one in value.items()}
        return value

    def _path(self, text: str) -> str:
        for there, here in self.pairs:
            if text == there or text.startswith(there + "/"):
                return here + text[len(there) :]
        return text
