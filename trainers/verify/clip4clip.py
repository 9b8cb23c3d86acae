"""Runs the recorded cases of CLIP4Clip: similarity and loss of given text and frame features, with gradients.

Sizes, header and tolerances come from the case; a tensor, a loss or a kind of case that is not understood is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from trainers.clip4clip import losses, official
from trainers.clip4clip.config import Clip4ClipConfig
from trainers.clip4clip.method import Clip4Clip
from trainers.verify.cases import Quantity, Recorded, compare, failure
from trainers.verify.tensors import array, read_tensors

HEAD = "head"
ALLOWED = {"values": "atol 2e-5", "losses": "rtol 1e-5", "grads": "rtol 1e-4 of the tensor norm"}
FLOOR = 1e-8  # lower bound of a tolerance: a share of the norm of a gradient of exactly 0 would be 0


def understands(case: Mapping[str, Any]) -> bool:
    """Whether the content of a .json file is a case of CLIP4Clip."""
    return case.get("method") == "clip4clip" or {"sim_header", "D", "A", "V", "F"} <= set(case)


def run(path: Path, case: Mapping[str, Any]) -> Iterator[Quantity]:
    """Every quantity of a case."""
    if case.get("kind", HEAD) != HEAD:
        yield failure("kind", f"a case of the kind {case['kind']!r} is not understood")
        return
    yield from HeadCase(path, case).quantities()


class HeadCase:
    """The header, the cosines and the loss on given features."""

    def __init__(self, path: Path, case: Mapping[str, Any]) -> None:
        self.case, self.recorded = case, Recorded(_tensors(path, case))
        self.state = self.recorded.under("weight/")
        header = official.sizes(self.state)
        if header["sim_header"] != case["sim_header"]:
            raise UserError(
                f"the case is of {case['sim_header']!r}, and its weights of {header['sim_header']!r}"
            )
        self.config = Clip4ClipConfig(mode="frozen", **header)
        self.mask = self.recorded["in/frame_mask"].bool()

    def fresh(self) -> Clip4Clip:
        """The method with the recorded weights."""
        heads = int(self.case.get("heads", 0)) or None
        return Clip4Clip(
            self.config, official.network_from(self.state, self.config, int(self.case["D"]), heads)
        )

    def quantities(self) -> Iterator[Quantity]:
        """Logits of the training and the evaluation form, losses, gradients of inputs and weights."""
        method = self.fresh().train()
        text, frames = (self.recorded[f"in/{name}"].clone().requires_grad_() for name in ("text", "frames"))
        batch = {"words": text[:, None], "frames": frames, "frame_mask": self.mask}
        logits = method.batch_logits(batch)
        yield self.value("logits", logits)
        yield from self.evaluation()
        found: dict[str, Tensor | None] = {}
        if expected := self.case.get("losses"):
            yield from self.losses(logits, expected)
            torch.stack(list(method.terms(logits).values())).sum().backward()
            named = {official.official_name(name): p.grad for name, p in method.network.named_parameters()}
            found = {"text": text.grad, "frames": frames.grad, **named}
        for name in self.recorded.names("expected/grad."):
            yield self.gradient(name, found.get(name))
        yield from self.recorded.left()

    def evaluation(self) -> Iterator[Quantity]:
        """expected/logits_eval: what an evaluation ranks by, times the factor that the release leaves on it."""
        method = self.fresh().eval()
        with torch.no_grad():
            texts = method.encode_texts({"words": self.recorded["in/text"][:, None]})
            items = method.encode_items({"frames": self.recorded["in/frames"], "frame_mask": self.mask})
            yield self.value("logits_eval", method.network.towers.scale * method.scores(texts, items))

    def losses(self, logits: Tensor, expected: Mapping[str, float]) -> Iterator[Quantity]:
        """losses: both directions and their mean."""
        t2v, v2t = losses.directions(logits.detach())
        found = {"loss_t2v": t2v, "loss_v2t": v2t, "loss": (t2v + v2t) / 2}
        for name, value in expected.items():
            if name in found:
                yield compare(name, array(found[name]), value, self.allowed("losses", abs(value)))
            else:
                yield failure(name, "this loss is not understood")

    def value(self, name: str, found: Tensor) -> Quantity:
        """A tensor against the recorded one."""
        expected = self.recorded[f"expected/{name}"]
        allowed = self.allowed("values", float(expected.abs().max()))
        return compare(name, array(found), array(expected), allowed)

    def gradient(self, name: str, found: Tensor | None) -> Quantity:
        """A gradient against the recorded one."""
        expected = self.recorded[f"expected/grad.{name}"]
        if found is None:
            return failure(f"grad.{name}", "there is no gradient")
        allowed = self.allowed("grads", float(expected.norm()))
        return compare(f"grad.{name}", array(found), array(expected), allowed)

    def allowed(self, what: str, scale: float) -> float:
        """The absolute error that the case allows: "atol x", or "rtol x" of a scale."""
        words = str(self.case.get("tolerance", {}).get(what, ALLOWED[what]))
        match = re.match(r"(atol|rtol) ([\d.]+(?:e[+-]?\d+)?)", words)
        if match is None:
            raise UserError(f"the tolerance {words!r} of {what} is not understood")
        return float(match[2]) * (scale if match[1] == "rtol" else 1.0) + FLOOR


def _tensors(path: Path, case: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a case: in the file it names, or in one of its own name. Raises UserError if there is none."""
    names = [str(case.get("files", "")), f"{path.stem}.safetensors", f"{case.get('case', '')}.safetensors"]
    files = [path.parent / Path(name).name for name in names if name]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"there is no {files[0]}")
    return read_tensors(found)
