"""Runs the recorded cases of NeighborRetr: encoders, head, losses, gradients, bank, updates, inputs, metrics.

Sizes and options come from the case; a part that a case does not hold is left out, and a tensor or setting
that is not understood is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.media.sampling import neighborretr_candidates, select
from trainers.layers import clip_input
from trainers.layers.clip_towers import MAX_LOGIT_SCALE
from trainers.loop.optim import BertAdam, warmup_cosine
from trainers.measure.group_ranks import GroupRanks
from trainers.measure.metrics import metrics, text_ranks
from trainers.neighborretr import losses, objective, official
from trainers.neighborretr.bank import Bank, Pairs
from trainers.neighborretr.clustering import cluster_count
from trainers.neighborretr.config import NeighborRetrConfig
from trainers.neighborretr.method import BETAS, EPS, NeighborRetr, optimizer
from trainers.neighborretr.model import SIDES, Summary
from trainers.neighborretr.objective import Outputs
from trainers.relevance import Relevance
from trainers.verify.cases import Quantity, Recorded, compare, failure, same, worst
from trainers.verify.following import training_loop
from trainers.verify.tensors import array, read_tensors

SETTINGS = {
    "Nt": "max_words",
    "Nv": "max_frames",
    "B": "batch_size",
    "M": "bank_size",
    "temporal_layers": "temporal_layers",
    "cluster_block_heads": "cluster_heads",
    "knn_k": "knn",
    "centrality_scale": "centrality_scale",
    "beta": "beta",
    "num_neighbors": "num_neighbors",
    "temperature": "temperature",
    "sinkhorn_iters": "sinkhorn_iters",
}
"""A case's setting, ours."""
WEIGHTS = ("centrality", "uniform", "neighbor", "kl")
RECIPE = {
    "lr": "lr",
    "coef_lr": "coef_lr",
    "warmup": "warmup",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "global_clip": "clip_norm",
}
FIXED = {"b1": BETAS[0], "b2": BETAS[1], "eps": EPS, "logit_scale_max": MAX_LOGIT_SCALE}
"""Entries of a case that are no settings of ours."""
SHAPES = {"D", "steps", "image_resolution", "patch", "context_length", "vocab", "logit_scale_exp"} | {
    f"{tower}_{what}" for tower in ("vision", "text") for what in ("width", "layers", "heads")
}
"""Entries of a case that its weights decide."""

ATOL, RTOL = 2e-5, 1e-4  # tolerances of values for which a case gives none
LATER, GRADIENTS, DELTAS = 1e-3, 2e-3, 2e-2
EXACT = 1e-6  # tolerance of metrics and schedules, computed in float64


def understands(case: Mapping[str, Any]) -> bool:
    """Whether the content of a .json file is a case of NeighborRetr."""
    return _is_model_case(case) or _is_misc_case(case)


def run(path: Path, case: Mapping[str, Any]) -> Iterator[Quantity]:
    """Every quantity of a case."""
    if _is_misc_case(case):
        yield from misc(case)
    elif case["kind"] == "full":
        yield from FullCase(path, case).quantities()
    else:
        yield from HeadCase(path, case).quantities()


def _is_model_case(case: Mapping[str, Any]) -> bool:
    config = case.get("config")
    return (
        case.get("kind") in ("full", "head")
        and isinstance(config, Mapping)
        and {"num_neighbors", "centrality_scale"} <= set(config)
    )


def _is_misc_case(case: Mapping[str, Any]) -> bool:
    return "case" not in case and "config" not in case and bool(set(MISC) & set(case))


class ModelCase:
    """Base of the cases of the head alone and of the whole model."""

    mode = "frozen"
    prefix = ""  # prefix of the names of the head's intermediates

    def __init__(self, path: Path, case: Mapping[str, Any]) -> None:
        self.case, files = case, case["files"]
        self.state: dict[str, Tensor] = {}
        for file in _listed(files["state"]):
            self.state |= {n: t.float() for n, t in read_tensors(path.parent / file).items()}
        self.inputs = read_tensors(path.parent / files["inputs"])
        self.expected = Recorded(read_tensors(path.parent / files["expected"]))
        self.config = self._config()

    def _config(self) -> NeighborRetrConfig:
        """Our settings for those of the case."""
        theirs = self.case["config"]
        ours: dict[str, Any] = {SETTINGS[name]: value for name, value in theirs.items() if name in SETTINGS}
        ours |= {f"{side}_ratios": ratios for side, ratios in theirs.get("ratios", {}).items()}
        ours |= {f"{name}_weight": value for name, value in theirs.get("weights", {}).items()}
        recipe = theirs.get("optimizer", {})
        ours |= {RECIPE[name]: value for name, value in recipe.items() if name in RECIPE}
        ours["ot_scale"] = ours.get("temperature", 3.0)  # one number in the release
        known = official.sizes(self.state)
        if self.mode == "frozen":
            known["temporal_layers"] = 0
        return NeighborRetrConfig(mode=self.mode, density_noise=False, **{**ours, **known})

    def settings(self) -> Iterator[Quantity]:
        """A failure for each setting that is not understood, and for each of the fixed ones that is another."""
        theirs = self.case["config"]
        known = set(SETTINGS) | SHAPES | {"ratios", "weights", "optimizer"}
        for name in sorted(set(theirs) - known):
            yield failure(f"config {name}", "this setting is not understood")
        for name, value in theirs.get("optimizer", {}).items():
            if name in FIXED:
                yield compare(f"config {name}", FIXED[name], value, 1e-9)
            elif name not in RECIPE and name != "t_total":
                yield failure(f"config optimizer.{name}", "this setting is not understood")

    def tolerance(self, names: Sequence[str], default: float, place: int = 0) -> float:
        """The number at a place in the sentence of the case's first tolerance that has one of the names."""
        for name in names:
            if name in self.case.get("tolerance", {}):
                computed = re.findall(r"\d+(?:\.\d+)?e-?\d+", str(self.case["tolerance"][name]))
                return float(computed[place]) if place < len(computed) else default
        return default

    def value(self, name: str, computed: Tensor, share: float = 0.0) -> Quantity:
        """Compare a computed tensor with the recorded one; infinities are equal where both have them."""
        expected = self.expected[name]
        a, b = _array(computed), _array(expected)
        if a.shape == b.shape:
            alike = np.isinf(b) & (a == b)
            a, b = np.where(alike, 0, a), np.where(alike, 0, b)
        atol = self.tolerance(("values", "features"), ATOL)
        return compare(name, a, b, atol + share * float(np.abs(b).max(initial=0)))

    def head(self, out: Outputs, terms: tuple[losses.Neighbors, losses.Neighbors]) -> Iterator[Quantity]:
        """Every recorded intermediate of the head."""
        computed = intermediates(self.config, out, terms)
        share = self.tolerance(("values",), RTOL, place=1)
        for name, value in computed.items():
            full = self.prefix + name
            if full in self.expected:
                yield self.value(full, value, share if name.startswith("global_") else 0.0)

    def losses(
        self, title: str, computed: Mapping[str, Tensor], expected: Sequence[float], share: float
    ) -> Iterator[Quantity]:
        """The total and each term against recorded ones."""
        recorded = dict(zip(self.case["loss_order"], expected, strict=True))
        values = (
            {name: value.item() for name, value in computed.items()}
            if self._weighted(recorded)
            else {
                name: value.item() / weight
                for name, value in computed.items()
                if (weight := self._weight(name))
            }
        )
        values["total"] = torch.stack(list(computed.values())).sum().item()
        for term, value in recorded.items():
            if term in values:
                yield compare(f"{title} {term}", values[term], value, share * abs(value))
            elif term not in WEIGHTS:
                yield failure(f"{title} {term}", "this loss is not understood")

    def _weight(self, term: str) -> float:
        return float(getattr(self.config, f"{term}_weight"))

    def _weighted(self, recorded: Mapping[str, float]) -> bool:
        """Whether recorded terms carry their weights: they then add up to the total as they are."""
        total = sum(value for term, value in recorded.items() if term != "total")
        return abs(total - recorded.get("total", total)) <= RTOL * abs(total)

    def rounding(self, name: str) -> bool:
        """Whether the exact gradient of a parameter is zero, so that what is recorded is rounding noise."""
        return any(fnmatch(name, pattern) for pattern in self.case.get("rounding_driven", ()))

    def gradients(
        self, computed: Mapping[str, Tensor | None], expected: Mapping[str, Tensor]
    ) -> Iterator[Quantity]:
        """grad.*: the greatest error against the norm of the tensor."""
        share = self.tolerance(("grads",), GRADIENTS)
        for name, value in expected.items():
            mine = computed.get(name)
            if mine is None:
                yield failure(f"grad.{name}", "there is no such gradient")
            elif not self.rounding(name):
                a, b = _without_keys(name, mine), _without_keys(name, value)
                yield compare(f"grad.{name}", a, b, share * float(np.linalg.norm(b)))

    def statistics(
        self, title: str, computed: Mapping[str, Tensor | None], expected: Mapping[str, Any]
    ) -> Iterator[Quantity]:
        """Norm and sum of each gradient; one without statistics has no gradient."""
        share, parts = self.tolerance(("grads",), GRADIENTS), []
        for name, stats in expected.items():
            mine = computed.get(name)
            if stats is None or mine is None:
                parts.append(same(f"{name} has a gradient", mine is not None, stats is not None))
            elif not self.rounding(name):
                norm = float(stats["norm"])
                parts.append(compare(f"{name} norm", mine.norm().item(), norm, share * norm))
                parts.append(compare(f"{name} sum", mine.double().sum().item(), stats["sum"], share * norm))
        yield from worst(title, parts)

    def bank_after(self, number: int, bank: Bank, count: int) -> Iterator[Quantity]:
        """bank_after<number>.*: the bank and the order of its entries after that number of updates."""
        for name, attribute in BANK_NAMES.items():
            key = f"bank_after{number}.{name}"
            if key in self.expected:
                yield self.value(key, getattr(bank, attribute).to(self.expected[key].dtype))
        keys = [f"bank_after{update}.ind" for update in range(1, number + 1)]
        if all(key in self.expected for key in keys):
            yield same(keys[-1], self._order(keys, count), self.expected[keys[-1]].tolist())

    def _order(self, keys: Sequence[str], count: int) -> list[int]:
        """Numbers of pairs in the order that a bank keeps them; each update brings those recorded for it."""
        size = self.config.bank_size
        bank, one = Bank(size, 1, 1, 1), torch.ones(1, 1, dtype=torch.bool)

        def push(numbers: Tensor) -> None:
            rows, mask = numbers.float().view(-1, 1, 1), one.expand(len(numbers), 1)
            bank.push(Pairs(rows, mask, rows, mask))

        push(torch.arange(size))
        for key in keys:
            push(self.expected[key][:count])
        kept = bank.content()
        return [] if kept is None else kept.words.flatten().long().tolist()


BANK_NAMES = {"text": "words", "text_mask": "word_mask", "video": "frames", "video_mask": "frame_mask"}


class HeadCase(ModelCase):
    """A case of the head alone: word and frame features come in."""

    def quantities(self) -> Iterator[Quantity]:
        """Intermediates, losses, gradients, two updates of the bank, the evaluation's scores."""
        yield from self.settings()
        method = self.method()
        batch = self.pairs("", "_feat")
        for features in (batch.words, batch.frames):
            features.requires_grad_()
        method.bank.push(self.pairs("bank0.", ""))
        gamma = method.network.scale
        if "logit_scale_exp" in self.case["config"]:
            stated = self.case["config"]["logit_scale_exp"]
            yield compare("config logit_scale_exp", gamma.item(), stated, RTOL * stated)
        head = method.network.head
        out = objective.outputs(head, batch, method.bank.content() or batch)
        terms = objective.terms(head, out, gamma)
        yield from self.head(out, objective.neighbor_terms(head, out))
        share = self.tolerance(("losses", "losses_step0"), RTOL)
        yield from self.losses("losses", terms, self.case["losses"], share)
        if "losses" in self.expected:
            yield from self.losses("tensor losses", terms, self.expected["losses"].tolist(), share)
        torch.stack(list(terms.values())).sum().backward()
        gradients = _gradients(method) | {"text_feat": batch.words.grad, "video_feat": batch.frames.grad}
        yield from self.gradients(gradients, self.expected.under("grad."))
        yield from self.statistics("grad_stats", gradients, self.case.get("grad_stats", {}))
        yield from self.updates(method.bank, batch)
        yield from self.evaluation(method, batch)
        yield from self.expected.left()

    def method(self) -> NeighborRetr:
        """A method without towers that carries the recorded head."""
        method = NeighborRetr(self.config, None, official.width(self.state))
        own = official.state_of(method)
        temporal = {n: t for n, t in own.items() if n.startswith(("transformerClip", "frame_position"))}
        official.load_state(method, {**temporal, **self.state})
        return method

    def pairs(self, prefix: str, suffix: str) -> Pairs:
        """Recorded pairs."""
        inputs = self.inputs
        masks = [inputs[f"{prefix}{side}_mask"].bool() for side in SIDES]
        words, frames = (inputs[f"{prefix}{side}{suffix}"].float().clone() for side in SIDES)
        return Pairs(words, masks[0], frames, masks[1])

    def updates(self, bank: Bank, batch: Pairs) -> Iterator[Quantity]:
        """bank_after1.* and bank_after2.*: after the batch, and after a second one."""
        count = len(batch.words)
        bank.push(Pairs(*(part.detach() for part in batch)))
        yield from self.bank_after(1, bank, count)
        if "second.text_feat" in self.inputs:
            bank.push(self.pairs("second.", "_feat"))
            yield from self.bank_after(2, bank, count)

    def evaluation(self, method: NeighborRetr, batch: Pairs) -> Iterator[Quantity]:
        """eval_sim: the scores as an evaluation computes them."""
        if "eval_sim" not in self.expected:
            return
        head = method.network.head
        with torch.inference_mode():
            texts = head.tokens("text", batch.words.detach(), batch.word_mask)
            videos = head.tokens("video", batch.frames.detach(), batch.frame_mask)
            encoded = [{"unit": t.unit, "weights": t.weights, "length": t.length} for t in (texts, videos)]
            yield self.value("eval_sim", method.scores(*encoded))


class FullCase(ModelCase):
    """A case of the whole model, with several updates."""

    mode = "finetune"
    prefix = "head."

    def quantities(self) -> Iterator[Quantity]:
        """Encoders, head, and then every recorded update."""
        yield from self.settings()
        method = official.method_from(self.state, self.config).train()
        method.bank.push(self.first_bank())
        yield from self.encoders(method)
        yield from self.scored(method, "eval_sim_before", 0.0)
        yield from self.forward(method)
        yield from self.steps(method)
        yield from self.parameters(method)
        yield from self.scored(method, "eval_sim_after", self.tolerance(("losses_later",), LATER))
        yield from self.round_trip()
        yield from self.expected.left()

    def first_bank(self) -> Pairs:
        """The bank before the first step."""
        parts = {name: self.inputs[f"bank0.{name}"] for name in BANK_NAMES}
        masks = parts["text_mask"].bool(), parts["video_mask"].bool()
        return Pairs(parts["text"].float(), masks[0], parts["video"].float(), masks[1])

    def batch(self, step: int) -> dict[str, Tensor]:
        """The recorded batch of a step under our names."""
        names = {"tokens": "text_ids", "word_mask": "text_mask", "frame_mask": "video_mask"}
        computed = {ours: self.inputs[f"step{step}.{theirs}"] for ours, theirs in names.items()}
        return computed | {"frames": self.inputs[f"step{step}.video_u8"].movedim(-3, -1)}

    @torch.no_grad()
    def encoders(self, method: NeighborRetr) -> Iterator[Quantity]:
        """Features of the first batch: frames by themselves and in their context, words."""
        batch, net = self.batch(0), method.network
        pixels = clip_input.pixels(batch["frames"], batch["frame_mask"])
        computed: dict[str, Callable[[], Tensor]] = {
            "frame_cls": lambda: net.frame_features(pixels),
            "text_feat": lambda: method.words(batch),
            "video_feat": lambda: method.frames(batch),
            "image_tokens_0": lambda: _image_tokens(method, pixels, self.expected["image_tokens_0"].shape),
        }
        for name, compute in computed.items():
            if name in self.expected:
                yield self.value(name, compute())

    @torch.no_grad()
    def scored(self, method: NeighborRetr, name: str, share: float) -> Iterator[Quantity]:
        """The scores of the first batch as an evaluation computes them."""
        if name in self.expected:
            method.eval()
            texts, items = (encode(self.batch(0)) for encode in (method.encode_texts, method.encode_items))
            method.train()
            yield self.value(name, method.scores(texts, items), share)

    @torch.no_grad()
    def forward(self, method: NeighborRetr) -> Iterator[Quantity]:
        """head.*: every intermediate of the first batch."""
        pairs, head = method.pairs(self.batch(0)), method.network.head
        out = objective.outputs(head, pairs, method.bank.content() or pairs)
        yield from self.head(out, objective.neighbor_terms(head, out))
        if "head.losses" in self.expected:
            terms = objective.terms(head, out, method.network.scale)
            share = self.tolerance(("losses_step0", "losses"), RTOL)
            yield from self.losses("head.losses", terms, self.expected["head.losses"].tolist(), share)

    def steps(self, method: NeighborRetr) -> Iterator[Quantity]:
        """Losses, gradient norm and bank of every update, the gradients of the first."""
        total = int(self.case["config"]["optimizer"]["t_total"])
        adam, parameters = optimizer(self.config, method, total), list(method.parameters())
        for step, expected in enumerate(self.case["losses"]):
            terms = method.losses(self.batch(step), 0)
            names = ("losses_later",) if step else ("losses_step0", "losses")
            share = self.tolerance(names, LATER if step else RTOL)
            yield from self.losses(f"step {step} losses", terms, expected, share)
            torch.stack(list(terms.values())).sum().backward()
            if step == 0:
                gradients = _gradients(method)
                yield from self.gradients(gradients, self.expected.under("grad."))
                yield from self.statistics(
                    "grad_stats_step0", gradients, self.case.get("grad_stats_step0", {})
                )
            yield from self.update(method, adam, parameters, step)
            yield from self.bank_after(step + 1, method.bank, len(self.batch(step)["tokens"]))
        yield from self.loop(method)

    def loop(self, updated: NeighborRetr) -> Iterator[Quantity]:
        """The training loop over the same updates."""
        method = official.method_from(self.state, self.config).train()
        method.bank.push(self.first_bank())

        def loss(step: int) -> Tensor:
            return torch.stack(list(method.losses(self.batch(step), 0).values())).sum()

        adam = optimizer(self.config, method, int(self.case["config"]["optimizer"]["t_total"]))
        place = self.case["loss_order"].index("total")
        losses = [float(terms[place]) for terms in self.case["losses"]]
        allowed = self.tolerance(("losses_later",), LATER) * max(losses)
        yield from training_loop(method, loss, self.config, adam, losses, allowed, updated)

    def update(
        self, method: NeighborRetr, adam: BertAdam, parameters: list[torch.nn.Parameter], step: int
    ) -> Iterator[Quantity]:
        """Clip, change the weights, clear the gradients."""
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm).item()
        if "grad_norm" in self.case:
            share = self.tolerance(("deltas",), DELTAS) if step else self.tolerance(("grads",), GRADIENTS)
            reference = self.case["grad_norm"][step]
            yield compare(f"step {step} grad_norm", norm, reference, share * reference)
        adam.step()
        adam.zero_grad()
        method.network.clamp_()

    def parameters(self, method: NeighborRetr) -> Iterator[Quantity]:
        """delta.* and param_stats_after: how far the updates moved each parameter."""
        after, share = official.state_of(method), self.tolerance(("deltas",), DELTAS)
        deltas = {name: after[name].float() - self.state[name] for name in after}
        for name, expected in self.expected.under("delta.").items():
            if not self.rounding(name):
                a, b = _without_keys(name, deltas[name]), _without_keys(name, expected)
                error, norm = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
                yield Quantity(f"delta.{name}", error / (norm or 1.0), share)
        yield from worst("param_stats_after", list(self._moved(after, deltas, share)))

    def _moved(
        self, after: Mapping[str, Tensor], deltas: Mapping[str, Tensor], share: float
    ) -> Iterator[Quantity]:
        untouched = {name for name, stats in self.case.get("grad_stats_step0", {}).items() if stats is None}
        for name, stats in self.case.get("param_stats_after", {}).items():
            moved, norm = stats.get("delta_norm", 0.0), stats["norm"]
            if name in untouched:
                yield same(f"{name} is untouched", bool(deltas[name].any()), False)
            if self.rounding(name) or _has_keys(name):
                continue
            yield compare(
                f"{name} norm", after[name].double().norm().item(), norm, share * moved + EXACT * norm
            )
            yield compare(f"{name} delta_norm", deltas[name].norm().item(), moved, share * moved)

    def round_trip(self) -> Iterator[Quantity]:
        """The authors' state dict, taken up and given back: names, shapes, values."""
        back = official.state_of(official.method_from(self.state, self.config))
        yield same("checkpoint names", sorted(back), sorted(self.state))
        alike = all(torch.equal(back[name], self.state[name]) for name in back if name in self.state)
        yield same("checkpoint values", alike, True)


def intermediates(
    config: NeighborRetrConfig, out: Outputs, terms: tuple[losses.Neighbors, losses.Neighbors]
) -> dict[str, Tensor]:
    """Every intermediate of the head under the names of the cases."""
    computed = {
        "local_t2v": out.local,
        "global_t2v": out.overall,
        "bank_t2v": out.bank_videos,
        "bank_v2t": out.bank_texts.T,
        "centrality_text": out.text_centrality,
        "centrality_video": out.video_centrality,
        "nbr_centrality_t2v": out.video_hubness,
        "nbr_centrality_v2t": out.text_hubness,
    }
    for way, near, overall in (("t2v", terms[0], out.overall), ("v2t", terms[1], out.overall.T)):
        computed |= {
            f"plan_{way}": losses.uniform_targets(overall, config.beta, config.sinkhorn_iters),
            f"nbr_mask_{way}": near.mask,
            f"nbr_normsim_{way}": near.scaled_scores,
            f"nbr_normcen_{way}": near.scaled_centrality,
            f"nbr_posw_{way}": near.weights,
        }
    return computed | _summary("text", out.text) | _summary("video", out.video)


def _summary(side: str, summary: Summary) -> dict[str, Tensor]:
    computed = {f"global_{side}": summary.vectors[:, None], f"{side}_block1.out": summary.vectors[:, None]}
    computed[f"{side}_block0.out"] = summary.first_out
    for stage, clusters in enumerate((summary.first, summary.second)):
        computed |= {
            f"{side}_ctm{stage}.tokens": clusters.tokens,
            f"{side}_ctm{stage}.score": clusters.score[..., None],
            f"{side}_ctm{stage}.assign": clusters.assign,
            f"{side}_ctm{stage}.merged": clusters.merged,
        }
    return computed


def _image_tokens(method: NeighborRetr, pixels: Tensor, shape: torch.Size) -> Tensor:
    """All projected tokens of the first frames; the method itself reads the class token's alone."""
    if method.network.towers is None:
        raise ValueError("a case of the whole model has towers")
    visual = method.network.towers.clip.visual
    kept: list[Tensor] = []
    handle = visual.ln_post.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        visual(pixels.flatten(0, 1)[: shape[0]])
    finally:
        handle.remove()
    return kept[0] @ visual.proj


def _gradients(method: NeighborRetr) -> dict[str, Tensor | None]:
    """Every gradient under the authors' name of its parameter."""
    named = method.network.named_parameters(prefix="network")
    return {
        official.official_name(name): None if p.grad is None else p.grad.detach().float() for name, p in named
    }


def _has_keys(name: str) -> bool:
    """Whether a bias holds that of attention's keys, whose exact gradient is zero."""
    return name.endswith(("attn.kv.bias", "attn.in_proj_bias"))


def _without_keys(name: str, value: Tensor) -> NDArray[np.float64]:
    """A parameter without the bias of keys."""
    array = _array(value)
    if name.endswith("attn.kv.bias"):
        return array[len(array) // 2 :]
    if name.endswith("attn.in_proj_bias"):
        query, _, values = np.split(array, 3)
        return np.concatenate([query, values])
    return array


def misc(case: Mapping[str, Any]) -> Iterator[Quantity]:
    """Quantities that need no weights: token ids, frame positions, schedule, cluster counts, metrics."""
    for name, content in case.items():
        if name in MISC:
            yield from MISC[name](content)
        else:
            yield failure(name, "this quantity is not understood")


def _tokenizer(cases: list[dict[str, Any]]) -> Iterator[Quantity]:
    for number, case in enumerate(cases):
        ids, mask = clip_input.tokenise([case["text"]], case["max_words"])
        yield same(f"tokenizer {number} ids", ids[0].tolist(), case["ids"])
        yield same(f"tokenizer {number} mask", mask[0].astype(int).tolist(), case["mask"])


def _frame_sampling(cases: list[dict[str, Any]]) -> Iterator[Quantity]:
    for number, case in enumerate(cases):
        positions = _window(
            case, neighborretr_candidates(case["total_frames"], case["fps"], case["framerate"])
        )
        if "candidates" in case:
            yield same(f"frame_sampling {number} candidates", positions.tolist(), case["candidates"])
        for how in ("head", "uniform"):
            if how in case:
                computed = select(positions, case["max_frames"], how).tolist()
                yield same(f"frame_sampling {number} {how}", computed, case[how])


def _window(case: Mapping[str, Any], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions in the seconds from `start` to `end`, both included and cut to the video's."""
    each = int(case["fps"]) or 30
    last = max(1, -(-case["total_frames"] // each)) - 1
    first = 0 if case.get("start") is None else min(int(case["start"]), last)
    until = last if case.get("end") is None else min(int(case["end"]), last)
    seconds = positions // each
    return positions[(first <= seconds) & (seconds <= until)]


def _schedule(cases: list[dict[str, Any]]) -> Iterator[Quantity]:
    computed = [warmup_cosine(case["step"] / case["t_total"], case["warmup"]) for case in cases]
    yield compare("schedule", computed, [case["multiplier"] for case in cases], EXACT)


def _cluster_counts(cases: list[dict[str, Any]]) -> Iterator[Quantity]:
    ratios = {"text": NeighborRetrConfig().text_ratios, "video": NeighborRetrConfig().video_ratios}
    for case in cases:
        first, second = ratios[case["modality"]]
        computed = cluster_count(case["n"], first)
        name = f"cluster_counts {case['modality']} {case['n']}"
        yield same(name, (computed, cluster_count(computed, second)), (case["level0"], case["level1"]))


def _metrics_single(case: Mapping[str, Any]) -> Iterator[Quantity]:
    scores = np.asarray(case["sim"])
    truth = np.arange(len(scores))
    ranks = {"t2v": text_ranks(scores, truth).strict, "v2t": text_ranks(scores.T, truth).strict}
    for way, computed in ranks.items():
        if way in case:
            yield from _figures(f"metrics_single {way}", computed, case[way], float(np.median(computed)))
        if f"{way}_ranks" in case:
            yield same(f"metrics_single {way}_ranks", (computed - 1).tolist(), case[f"{way}_ranks"])


def _metrics_multi(case: Mapping[str, Any]) -> Iterator[Quantity]:
    """Several captions a video: captions look for videos, videos for the best caption of each group."""
    scores, ends = np.asarray(case["sim"]), np.asarray(case["cut_off_points"])
    starts = np.concatenate([[0], ends[:-1]])
    videos = Relevance.one_each(np.repeat(np.arange(len(ends)), ends - starts), len(ends))
    texts, groups = text_ranks(scores, videos).strict, GroupRanks(videos)
    groups.find(scores, videos)
    groups.count(scores, videos)
    ranks = groups.ranks().strict
    lower = float(np.sort(texts)[(len(texts) - 1) // 2])  # for captions the release takes the lower median
    yield from _figures("metrics_multi t2v", texts, case["t2v"], lower)
    yield from _figures("metrics_multi v2t", ranks, case["v2t"], float(np.median(ranks)))


def _figures(
    name: str, ranks: NDArray[np.int64], expected: Mapping[str, float], median: float
) -> Iterator[Quantity]:
    """Recalls, median and mean of ranks against recorded ones."""
    ours = metrics(ranks)
    computed = {f"R{cut}": ours[f"R@{cut}"] for cut in (1, 5, 10)}
    computed |= {
        "R50": 100 * float((ranks <= 50).mean()),
        "MR": median,
        "MedianR": median,
        "MeanR": ours["MnR"],
    }
    computed["Std_Rank"] = float(np.std(ranks))
    for figure, value in expected.items():
        if figure in computed:
            yield compare(f"{name} {figure}", computed[figure], value, EXACT * max(1.0, abs(value)))
        else:
            yield failure(f"{name} {figure}", "this figure is not understood")


MISC: dict[str, Callable[[Any], Iterator[Quantity]]] = {
    "tokenizer": _tokenizer,
    "frame_sampling": _frame_sampling,
    "schedule": _schedule,
    "cluster_counts": _cluster_counts,
    "metrics_single": _metrics_single,
    "metrics_multi": _metrics_multi,
}


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _array(value: Tensor) -> NDArray[np.float64]:
    computed: NDArray[np.float64] = array(value.double())
    return computed
