"""Runs the recorded cases of LEAN: every pair of a batch, its losses, its gradients, one pair in detail.

The cases are of a slow float64 reference of docs/methods/lean.md. Each is run in float64, and again in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from trainers.lean import losses
from trainers.lean.config import LeanConfig
from trainers.lean.method import Lean, by_count
from trainers.method import Encoded
from trainers.verify.cases import Quantity, compare, failure
from trainers.verify.tensors import array, read_tensors

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}  # tolerances as shares of a quantity's largest value
SIZES = ("hidden", "latent", "attention_hidden", "frames", "max_triples", "layers")
WEIGHTS = {"v2t": "v2t_weight", "t2v": "t2v_weight", "kl": "kl_weight"}
ROUNDING = (
    1e-6  # share of the largest gradient below which a float32 gradient is the rounding of a sum near zero
)
DIMENSIONS = ("text_dim", "visual_dim")
INPUTS = {"in.triples", "in.triple_counts", "in.frames", "in.top_frames", "in.eps"}
UNUSED = (
    "edge_refine.weight",
    "gamma",
)  # parameters of the last layer, recorded although no layer follows that reads them


def understands(case: Mapping[str, Any]) -> bool:
    """Whether the content of a .json file is a case of LEAN."""
    return case.get("method") == "lean" and isinstance(case.get("config"), Mapping)


def run(path: Path, case: Mapping[str, Any]) -> Iterator[Quantity]:
    """Every quantity of a case, in both precisions."""
    tensors = read_tensors(path.parent / case.get("tensors_file", f"{path.stem}.safetensors"))
    for dtype, tolerance in TOLERANCES.items():
        suffix = "" if dtype is torch.float64 else " (float32)"
        yield from Case(case, tensors, dtype, tolerance, suffix).quantities()


class Case:
    """A case in one precision; it remembers what was compared, so that nothing is passed over."""

    def __init__(
        self, case: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype, tolerance: float,
        suffix: str,
    ) -> None:  # fmt: skip
        self.tolerance, self.suffix = tolerance, suffix
        self.recorded = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()
        }
        self.seen: set[str] = set()
        self.config, dims = _config(case)
        self.method = Lean(self.config, dims["visual_dim"], dims["text_dim"]).to(dtype)
        self.load()

    def load(self) -> None:
        """Take the recorded weights over, all of them."""
        state = {
            name.removeprefix("param."): v for name, v in self.recorded.items() if name.startswith("param.")
        }
        last = self.config.layers - 1
        for name in UNUSED:
            state.pop(f"layers.{last}.{name}", None)
        self.method.network.load_state_dict(state)
        self.seen.update(name for name in self.recorded if name.startswith("param.") or name in INPUTS)

    def texts(self) -> Encoded:
        """The recorded captions, encoded."""
        triples, count = self.recorded["in.triples"], self.recorded["in.triple_counts"]
        kept = torch.arange(triples.shape[1]) < count[:, None]
        return {"triples": self.method.network.texts(triples) * kept[..., None], "count": count}

    def items(self) -> Encoded:
        """The recorded videos, encoded."""
        nodes = self.method.network.videos(self.recorded["in.frames"])
        return {"nodes": nodes, "top": self.recorded["in.top_frames"]}

    def quantities(self) -> Iterator[Quantity]:
        """Every quantity, and a failure for each that is not understood."""
        with torch.inference_mode():
            computed = self.evaluated() | self.pair()
        computed |= self.trained()
        for name, value in computed.items():
            if name in self.recorded:
                yield self.compared(name, value)
        for name in sorted(set(self.recorded) - self.seen):
            yield failure(name + self.suffix, "this quantity is not understood")

    def compared(self, name: str, computed: Tensor) -> Quantity:
        """Compare a computed value with the recorded one; recorded padding has to be zero."""
        self.seen.add(name)
        expected = self.recorded[name]
        if computed.ndim == expected.ndim and computed.ndim and len(computed) < len(expected):
            computed = torch.cat(
                [computed, computed.new_zeros(len(expected) - len(computed), *computed.shape[1:])]
            )
        return compare(name + self.suffix, array(computed), array(expected), self.allowed(name))

    def allowed(self, name: str) -> float:
        """The absolute error that a quantity may have."""
        allowed = self.tolerance * _greatest(self.recorded[name])
        if name.startswith("grad.") and self.recorded[name].dtype is torch.float32:
            gradients = (value for other, value in self.recorded.items() if other.startswith("grad."))
            allowed += ROUNDING * max(map(_greatest, gradients))
        return allowed

    def evaluated(self) -> dict[str, Tensor]:
        """Scores with z = mu, as a ranking computes them."""
        return {"out.eval_scores": self.method.eval().scores(self.texts(), self.items())}

    def pair(self) -> dict[str, Tensor]:
        """The first caption with the first video, step by step."""
        net, items = self.method.network, {name: rows[:1] for name, rows in self.items().items()}
        texts = {name: rows[:1] for name, rows in self.texts().items()}
        ((_, textual),) = by_count(texts)
        graphs = net.graphs(items["top"], items["nodes"], textual)
        refined = net.refine(items["nodes"], textual, graphs)
        latent = net.encode(refined, graphs)
        computed = {
            "alpha": refined.alpha, "nodes": refined.nodes, "mu": latent.spread(net.mean(latent)),
            "logsigma": latent.spread(net.log_sigma(latent)),
        }  # fmt: skip
        return {f"out.pair00.{name}": value[0, 0] for name, value in computed.items()}

    def trained(self) -> dict[str, Tensor]:
        """Scores with the recorded noise, losses, and the gradient of their sum."""
        method = self.method.train()
        scores, divergence = method.pairs(self.texts(), self.items(), self.recorded["in.eps"])
        video = torch.arange(len(scores))
        total = torch.stack(list(method.terms(scores, divergence, video).values())).sum()
        total.backward()
        computed = {
            "train_scores": scores, "loss": total, "kl": divergence.mean(), "kl_eval": divergence.mean(),
            "loss_t2v": losses.contrastive(scores, video), "loss_v2t": losses.contrastive(scores.T, video),
        }  # fmt: skip
        named = method.network.named_parameters()
        outputs = {f"out.{name}": value for name, value in computed.items()}
        return outputs | {f"grad.{name}": p.grad for name, p in named if p.grad is not None}


def _greatest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _config(case: Mapping[str, Any]) -> tuple[LeanConfig, dict[str, int]]:
    """The settings of a case and the dimensions of its features. Raises UserError for a setting it cannot mean."""
    settings = dict(case["config"])
    dims = {name: int(settings.pop(name)) for name in DIMENSIONS}
    weights = {
        WEIGHTS[name]: value for name, value in case.get("weights_of_losses", {}).items() if name in WEIGHTS
    }
    unknown = [name for name in settings if name not in LeanConfig.model_fields]
    unknown += [name for name in case.get("weights_of_losses", {}) if name not in WEIGHTS]
    if unknown:
        raise UserError(
            f"the case has the settings {unknown}, which are not understood; known: {list(SIZES)}"
        )
    return LeanConfig(**settings, **weights), dims
