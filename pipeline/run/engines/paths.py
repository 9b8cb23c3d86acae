"""Translation of the coordinator's paths for another machine that mounts a shared folder elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError

VARIABLE = "CROSSREEL_PATHS"
NO_PATHS = ("key", "name", "text")  # fields of a unit that are no paths, although a caption may look like one


class PathMap:
    """Prefixes of paths on the coordinator's machine, each with the prefix that replaces it on this machine."""

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self.pairs = sorted(pairs.items(), key=lambda pair: -len(pair[0]))  # the longest prefix is used

    @classmethod
    def from_environment(cls) -> PathMap:
        """The map in this machine's variable CROSSREEL_PATHS: `/there=/here`, several separated by colons."""
        pairs = {}
        for text in filter(None, os.environ.get(VARIABLE, "").split(":")):
            there, sign, here = text.partition("=")
            if not (sign and there.startswith("/") and here.startswith("/")):
                raise UserError(f"{VARIABLE} holds {text!r}, which is not of the form /there=/here")
            pairs[there.rstrip("/")] = here.rstrip("/")
        return cls(pairs)

    def applied(self, request: dict[str, Any]) -> dict[str, Any]:
        """A worker's request with every path translated, also those in the params of its stages."""
        if not self.pairs:
            return request
        stages = [
            stage | {"params": json.dumps(self._translated(json.loads(stage["params"])))}
            for stage in request["stages"]
        ]
        units = [
            {key: value if key in NO_PATHS else self._translated(value) for key, value in unit.items()}
            for unit in request["units"]
        ]
        return request | {"store": self._path(request["store"]), "units": units, "stages": stages}

    def _translated(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._path(value)
        if isinstance(value, list):
            return [self._translated(one) for one in value]
        if isinstance(value, dict):
            return {key: self._translated(one) for key, one in value.items()}
        return value

    def _path(self, text: str) -> str:
        for there, here in self.pairs:
            if text == there or text.startswith(there + "/"):
                return here + text[len(there) :]
        return text
