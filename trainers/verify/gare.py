"""Runs the recorded cases of GARE: whole model, head alone, preprocessing.

Sizes and options come from the case; a part that a case does not hold is left out, and a tensor or an option that
is not understood is a failure. Values agree to 1e-4 of the greatest and 1e-5, gradients and updates to 5e-4 of
the greatest, as the cases ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from extractors.backbones.pictures import squares
from pipeline.errors import UserError, nearest
from pipeline.media import sampling
from trainers.gare import losses, official
from trainers.gare.config import GareConfig
from trainers.gare.method import Gare, optimizer
from trainers.gare.model import GareNetwork, Pairs, PlainPairs
from trainers.layers import clip_input
from trainers.layers.clip_towers import ClipTowers
from trainers.layers.rand_augment import OPERATIONS
from trainers.loop.optim import BertAdam
from trainers.measure.metrics import text_ranks
from trainers.verify.cases import Quantity, Recorded, compare, failure, same
from trainers.verify.following import training_loop
from trainers.verify.tensors import array, read_tensors, tensor

VALUES, CHANGES = (
    1e-4,
    5e-4,
)  # tolerances as shares of the largest expected value: of values; of gradients and updated parameters
ABSOLUTE = 1e-5
PILLOW = 13  # the version that the recorded pictures come from; others differ by a few grey levels
GREY_LEVELS = 8
PREPROCESSING = {"transform_resolution", "augment", "compress_dims"}
ROUNDING = "k_proj.bias"  # a softmax ignores a constant, so the gradient of this is rounding noise
FREE = {"beta", "kl_reduction"}  # a case may pair any with any
SCALARS = ("train_nodrop", "train_drop", "eval_metrics_t2v", "eval_metrics_v2t")

Loss = Callable[[Gare], tuple[Pairs, Tensor]]
"""The pairs of a case's batch, and the whole loss."""


def understands(case: Mapping[str, Any]) -> bool:
    """Whether the content of a .json file is a case of GARE."""
    return _is_model_case(case) or _is_preprocessing(case)


def run(path: Path, case: Mapping[str, Any]) -> Iterator[Quantity]:
    """Every quantity of a case."""
    if _is_preprocessing(case):
        yield from Preprocessing(path, case).quantities()
    elif "vision_width" in case["spec"] or "text_width" in case["spec"]:
        yield from FullCase(path, case).quantities()
    else:
        yield from HeadCase(path, case).quantities()


def _is_model_case(case: Mapping[str, Any]) -> bool:
    spec = case.get("spec")
    settings = spec.get("cfg") if isinstance(spec, Mapping) else None
    return "tensors" in case and isinstance(settings, Mapping) and {"temp", "lambda_dir"} <= set(settings)


def _is_preprocessing(case: Mapping[str, Any]) -> bool:
    tokens = case.get("tokens")
    named = isinstance(tokens, Mapping) and any(name.startswith("max_words_") for name in tokens)
    return "spec" not in case and (named or bool(PREPROCESSING & set(case)))


def _tensors(path: Path, case: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors beside a case, floats as float32."""
    computed: dict[str, Tensor] = {}
    for file in sorted({*path.parent.glob(f"{path.stem}.*safetensors")} or _named(path, case)):
        if not file.name.endswith((".weights.safetensors", ".state.safetensors")):
            computed |= {name: _float(value) for name, value in read_tensors(file).items()}
    return computed


def _named(path: Path, case: Mapping[str, Any]) -> set[Path]:
    """The tensor files of a case whose .json was renamed."""
    return {*path.parent.glob(f"{case.get('case', path.stem)}.*safetensors")}


class ModelCase:
    """Base of the cases of the whole model and of the head alone."""

    def __init__(self, path: Path, case: Mapping[str, Any]) -> None:
        self.path, self.case, self.spec = path, case, case["spec"]
        self.recorded = Recorded(_tensors(path, case))
        stems = [s for s in (path.stem, str(case.get("case"))) if _weights(path, s).is_file()]
        if not stems:
            raise UserError(f"there is no {_weights(path, path.stem)}")
        self.state = official.read(_weights(path, stems[0]))
        self.unused = {name: value.float() for name, value in official.dead(self.state).items()}
        self.config = self.settings()

    def settings(self) -> GareConfig:
        """Our settings for the case's."""
        computed = {**self.spec["cfg"], **self.spec.get("opt", {})}
        for name in ("t_total", "steps", "save"):
            computed.pop(name, None)
        if "agg_module" in computed:
            computed["agg_module"] = str(computed["agg_module"])
        for name in computed:
            if name not in GareConfig.model_fields:
                raise UserError(f"the case has an option {name!r}; {nearest(name, GareConfig.model_fields)}")
        free = {name: value for name, value in computed.items() if name not in FREE}
        size = {"batch_size": max(2, int(self.spec.get("B", self.spec.get("A", 2))))}
        config = GareConfig(**{**official.sizes(self.state), **size, **free})
        reduced = computed.get("kl_reduction", config.kl_reduction)
        return config.model_copy(update={"kl_reduction": reduced, "beta": computed.get("beta", config.beta)})

    def fresh(self, **changes: Any) -> Gare:
        """The method with the recorded weights."""
        config = self.config.model_copy(update=changes)
        return Gare(config, official.network_from(self.state, config))

    def close(self, name: str, computed: Tensor, share: float = VALUES, note: str = "") -> Quantity:
        """Compare a computed tensor with the recorded one."""
        return near(f"{name}{note}", computed, self.recorded[name], share)

    def intermediates(self, computed: PlainPairs) -> Iterator[Quantity]:
        """eval/: everything the plain form of the head goes through, and the unused head."""
        for name, value in computed._asdict().items():
            if f"eval/{name}" in self.recorded:
                yield self.close(f"eval/{name}", value)
        if "eval/dead_log_std" in self.recorded:
            weight, bias = (self.unused[f"{official.PSI}log_std_proj.{part}"] for part in ("weight", "bias"))
            yield self.close("eval/dead_log_std", F.linear(computed.psi_ln3, weight, bias))

    def forms(
        self, method: Gare, text: Tensor, frames: Tensor, mask: Tensor, prefix: str
    ) -> Iterator[Quantity]:
        """The factorised forms of the head against the recorded values of the plain one."""
        head = method.network.head
        scores, pairs = head.score(text, head.prepare(frames, mask)), head(text, frames, mask)
        if f"{prefix}/sim" in self.recorded:
            yield self.close(f"{prefix}/sim", scores, note=" (evaluation form)")
            yield self.close(f"{prefix}/sim", pairs.similarity, note=" (training form)")
        if f"{prefix}/delta" in self.recorded:
            yield self.close(f"{prefix}/delta", pairs.delta, note=" (training form)")

    def scalars(self, part: str, method: Gare, pairs: Pairs, total: Tensor) -> Iterator[Quantity]:
        """scalars.<part>: each term raw and weighted, and their sums."""
        expected, computed = self.case["scalars"][part], terms(method, pairs, total)
        for name, value in expected.items():
            if name == "grad_total_norm":
                grads = [p.grad for p in method.parameters() if p.grad is not None]
                yield near(f"{part}/{name}", torch.nn.utils.get_total_norm(grads), value, CHANGES)
            elif name in computed:
                yield near(f"{part}/{name}", computed[name], value)
            else:
                yield failure(f"{part}/{name}", "this quantity is not understood")

    def gradients(self, part: str, network: GareNetwork) -> Iterator[Quantity]:
        """<part>/grad/ and <part>_grad_norms."""
        grads = {official.official_name(name): p.grad for name, p in network.named_parameters()}
        for name in self.recorded.names(f"{part}/grad/"):
            computed = grads.get(name)
            if computed is None:
                yield failure(f"{part}/grad/{name}", "there is no gradient")
            else:
                yield self.close(f"{part}/grad/{name}", computed, CHANGES)
        norms = self.case.get(f"{part}_grad_norms", {})
        greatest = max((norm for norm in norms.values() if norm), default=1.0)
        for name, norm in norms.items():
            computed = grads.get(name)
            if norm is None or computed is None:
                yield same(f"{part} gradient of {name}", computed is not None, norm is not None)
            else:
                allowed = ABSOLUTE * greatest if name.endswith(ROUNDING) else CHANGES * norm + ABSOLUTE
                yield compare(f"{part} norm of {name}", array(computed.norm()), norm, allowed)

    def groups(self) -> Iterator[Quantity]:
        """param_groups: decay and rate of every parameter that is used."""
        expected = self.case.get("param_groups")
        if not expected:
            return
        method = self.fresh()
        names: dict[str, str] = {}
        by_id = {id(p): official.official_name(n) for n, p in method.network.named_parameters()}
        tower = self.config.lr * self.config.coef_lr
        for group in optimizer(self.config, method, 1).param_groups:
            kind = (
                f"{'' if group['weight_decay'] else 'no_'}decay_{'clip' if group['lr'] == tower else 'new'}"
            )
            names |= {by_id[id(p)]: kind for p in group["params"]}
        used = {name: kind for name, kind in expected.items() if name not in self.unused}
        yield same("param_groups", names, used)

    def updates(self, method: Gare, loss: Loss) -> Iterator[Quantity]:
        """opt_trajectory and opt/after<N>/: the recorded number of updates on the same batch."""
        trajectory = self.case.get("opt_trajectory")
        if not trajectory:
            return
        adam = optimizer(self.config, method, int(self.spec["opt"]["t_total"]))
        for number, expected in enumerate(trajectory, 1):
            share = VALUES if number <= 2 else CHANGES
            yield from self.one_update(method, adam, loss, expected, share)
            own = official.state_of(method.network, self.unused)
            for name in self.recorded.names(f"opt/after{number}/"):
                yield self.close(f"opt/after{number}/{name}", own[name], share)
        other = self.fresh().train()
        adam = optimizer(self.config, other, int(self.spec["opt"]["t_total"]))
        losses = [float(expected["loss"]) for expected in trajectory]
        yield from training_loop(
            other, lambda _: _clamped(loss, other), self.config, adam, losses, CHANGES * max(losses), method
        )

    def one_update(
        self, method: Gare, adam: BertAdam, loss: Loss, expected: Mapping[str, Any], share: float
    ) -> Iterator[Quantity]:
        """One update as the engine makes it, with the recorded quantities."""
        pairs, total = loss(method)
        total.backward()
        parameters = [p for p in method.parameters() if p.grad is not None]
        computed = terms(method, pairs, total)
        computed["loss"] = total
        computed["grad_norm_before_clip"] = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        computed["lr_per_group"] = torch.tensor(adam.learning_rates())
        adam.step()
        adam.zero_grad()
        method.network.towers.clamp_scale_()
        computed["logit_scale"] = method.network.towers.clip.logit_scale
        for name, value in expected.items():
            if name in computed:
                yield near(f"update {expected['step']} {name}", computed[name], value, share)
            elif name != "step":
                yield failure(f"update {expected['step']} {name}", "this quantity is not understood")

    def left(self) -> Iterator[Quantity]:
        """A failure for each tensor and each group of scalars that no check has read."""
        for name in self.case.get("scalars", {}):
            if name not in SCALARS:
                yield failure(f"scalars {name}", "this quantity is not understood")
        yield from self.recorded.left()

    def checkpoint(self, method: Gare) -> Iterator[Quantity]:
        """The authors' state dict written from the network it was read into, all entries."""
        written = official.state_of(method.network, self.unused)
        theirs = {name: value.float() for name, value in self.state.items()}
        yield same("checkpoint names", sorted(written), sorted(theirs))
        errors = [float((written[n] - v).abs().max()) for n, v in theirs.items() if n in written]
        yield compare("checkpoint values", max(errors), 0.0, 0.0)


def _clamped(loss: Loss, method: Gare) -> Tensor:
    """The whole loss after the logit scale was kept in its range, as in training."""
    method.network.towers.clamp_scale_()
    return loss(method)[1]


class FullCase(ModelCase):
    """Tiny towers, temporal stage, head, losses, gradients of one and of several processes, updates."""

    def __init__(self, path: Path, case: Mapping[str, Any]) -> None:
        super().__init__(path, case)
        self.tokens = self.recorded["in/text_ids"].long()
        self.token_mask = self.recorded["in/text_mask"].bool()
        self.pixels, self.mask = self.recorded["in/video"], self.recorded["in/video_mask"]
        self.keep = self.recorded.get("in/dropout_keep_mask")
        if "in/idx" in self.recorded:
            self.recorded.read.add("in/idx")  # numbers of videos, which change nothing

    def quantities(self) -> Iterator[Quantity]:
        """Every quantity, in the order in which a mistake would show first."""
        yield from self.groups()
        with torch.no_grad():
            yield from self.forward(self.fresh().eval())
        yield from self.training("train_nodrop", None)
        yield from self.training("train_drop", self.keep)
        yield from self.processes()
        yield from self.updates(self.fresh().train(), self.loss)
        yield from self.checkpoint(self.fresh())
        yield from self.left()

    def encoded(self, method: Gare) -> tuple[Tensor, Tensor]:
        """Captions (A, D) and frames in their context (B, F, D)."""
        return method.network.texts(self.tokens), method.network.videos(self.features(method), self.mask)

    def features(self, method: Gare) -> Tensor:
        """CLIP's features (B, F, D) of the recorded pixels."""
        towers = method.network.towers
        if not isinstance(towers, ClipTowers):
            raise UserError("the case's weights hold no CLIP")
        shown, real = self.pixels.flatten(0, 1), self.mask.bool().flatten()
        return method.network.pixel_features(towers, shown, real).unflatten(0, self.mask.shape)

    def forward(self, method: Gare) -> Iterator[Quantity]:
        """eval/: towers, temporal stage, head, and the metrics of its scores."""
        towers, features = method.network.towers, self.features(method)
        hidden = towers.text(self.tokens, self.token_mask) if isinstance(towers, ClipTowers) else features
        text, frames = self.encoded(method)
        computed = {"text_hidden": hidden, "text_cls": text, "frame_feat": features, "video_feat": frames}
        for name, value in computed.items():
            if f"eval/{name}" in self.recorded:
                yield self.close(f"eval/{name}", value)
        yield from self.intermediates(method.network.head.plain(text, frames, self.mask))
        yield from self.forms(method, text, frames, self.mask, "eval")
        scores = array(method.scores({"text": text}, method.network.head.prepare(frames, self.mask)))
        for direction, matrix in (("t2v", scores), ("v2t", scores.T)):
            if expected := self.case.get("scalars", {}).get(f"eval_metrics_{direction}"):
                yield from compare_metrics(f"eval_metrics_{direction}", matrix, expected)

    def loss(self, method: Gare, keep: Tensor | None = None) -> tuple[Pairs, Tensor]:
        """The pairs of the batch, and the whole loss."""
        text, frames = self.encoded(method)
        pairs = method.network.head(text, frames, self.mask, keep)
        return pairs, _total(method.pair_terms(pairs))

    def training(self, part: str, keep: Tensor | None) -> Iterator[Quantity]:
        """train_*/: similarities, increments, terms and gradients without and with dropout."""
        if part not in self.case.get("scalars", {}):
            return
        method = self.fresh().train()
        pairs, total = self.loss(method, keep)
        total.backward()
        for name, value in (("sim", pairs.similarity), ("delta", pairs.delta)):
            if f"{part}/{name}" in self.recorded:
                yield self.close(f"{part}/{name}", value)
        yield from self.scalars(part, method, pairs, total)
        yield from self.gradients(part, method.network)

    def processes(self) -> Iterator[Quantity]:
        """ddp_w<W>/: the release's gradients over W processes, which are those of one with a share for the towers."""
        for part in sorted(
            {name.split("/")[0] for name in self.recorded.names("") if name.startswith("ddp_w")}
        ):
            method = self.fresh(
                encoder_grad_scale=1 / int(part.removeprefix("ddp_w")), psi_dropout=0.0
            ).train()
            text, frames = method.shared(*self.encoded(method))
            total = _total(method.terms(text, frames, self.mask))
            total.backward()
            if f"{part}_loss" in self.case:
                yield near(f"{part}_loss", total, self.case[f"{part}_loss"])
            yield from self.gradients(part, method.network)


class HeadCase(ModelCase):
    """The head on given features, each regulariser alone, updates of the head."""

    def __init__(self, path: Path, case: Mapping[str, Any]) -> None:
        super().__init__(path, case)
        self.text, self.frames = self.recorded["in/text_cls"], self.recorded["in/video_feat"]
        self.mask = self.recorded["in/video_mask"]
        self.keep = self.recorded.get("in/dropout_keep_mask")

    def quantities(self) -> Iterator[Quantity]:
        """Every quantity, in the order in which a mistake would show first."""
        yield from self.groups()
        with torch.no_grad():
            method = self.fresh().eval()
            yield from self.intermediates(method.network.head.plain(self.text, self.frames, self.mask))
            yield from self.forms(method, self.text, self.frames, self.mask, "eval")
            yield from self.rectangle(method)
        yield from self.training("train_nodrop", None)
        yield from self.training("train_drop", self.keep)
        yield from self.isolated()
        yield from self.updates(self.fresh().train(), self.loss)
        yield from self.left()

    def rectangle(self, method: Gare) -> Iterator[Quantity]:
        """eval_rect/: the first captions against the last videos."""
        if "rect" in self.spec:
            texts, videos = self.spec["rect"]
            block = self.text[:texts], self.frames[-videos:], self.mask[-videos:]
            yield from self.forms(method, *block, "eval_rect")

    def loss(self, method: Gare) -> tuple[Pairs, Tensor]:
        """The pairs of the batch without dropout, and the whole loss."""
        pairs = method.network.head(self.text, self.frames, self.mask)
        return pairs, _total(method.pair_terms(pairs))

    def training(self, part: str, keep: Tensor | None) -> Iterator[Quantity]:
        """train_*/: similarities, increments, terms, gradients of inputs, increments and parameters."""
        if part not in self.case.get("scalars", {}):
            return
        method = self.fresh().train()
        text, frames = self.text.clone().requires_grad_(), self.frames.clone().requires_grad_()
        pairs = method.network.head(text, frames, self.mask, keep)
        pairs.delta.retain_grad()
        total = _total(method.pair_terms(pairs))
        total.backward()
        computed = {"sim": pairs.similarity, "delta": pairs.delta}
        grads = {"grad_text_cls": text.grad, "grad_video_feat": frames.grad, "grad_delta": pairs.delta.grad}
        for name, value in {**computed, **grads}.items():
            if f"{part}/{name}" in self.recorded and value is not None:
                yield self.close(f"{part}/{name}", value, CHANGES if name in grads else VALUES)
        yield from self.scalars(part, method, pairs, total)
        yield from self.gradients(part, method.network)

    def isolated(self) -> Iterator[Quantity]:
        """isolated and iso/grad_delta/: each regulariser alone, at the increments without dropout."""
        expected = self.case.get("isolated")
        if not expected:
            return
        start = self.recorded["train_nodrop/delta"]
        for name, value in expected.items():
            if name == "dir_by_alpha":
                for alpha, one in value.items():
                    yield near(f"{name} {alpha}", losses.direction(start, float(alpha)), one)
            elif name == "norm_by_lambda_lower":
                for lower, one in value.items():
                    yield near(f"{name} {lower}", losses.norm(start, float(lower)), one)
            elif name in REGULARISERS:
                delta = start.clone().requires_grad_()
                computed = REGULARISERS[name](delta, self.config)
                computed.backward()
                yield near(f"isolated {name}", computed, value)
                if f"iso/grad_delta/{name}" in self.recorded and delta.grad is not None:
                    yield self.close(f"iso/grad_delta/{name}", delta.grad, CHANGES)
            else:
                yield failure(f"isolated {name}", "this quantity is not understood")


REGULARISERS = {
    "kl_event_mean": lambda delta, _config: losses.divergence(delta, "event"),
    "kl_dim_mean": lambda delta, _config: losses.divergence(delta, "dim"),
    "dir_raw": lambda delta, config: losses.direction(delta, config.alpha),
    "norm_raw": lambda delta, _config: -losses.norm_variance(delta),
}
"""The regularisers without their weights, as cases name them; the norm term before its gate."""


class Preprocessing:
    """Tokens, frame positions, pictures, augmentation, rank metrics, sizes of compressed videos."""

    def __init__(self, path: Path, case: Mapping[str, Any]) -> None:
        self.case, self.recorded = case, Recorded(_tensors(path, case))

    def quantities(self) -> Iterator[Quantity]:
        """Every quantity."""
        yield from self.tokens()
        for number, one in enumerate(self.case.get("frame_positions", ())):
            yield from frame_positions(f"frame_positions {number}", one)
        yield from self.transforms()
        yield from self.augmentations()
        for name, expected in self.case.get("metrics", {}).items():
            scores = array(self.recorded[f"metrics/{name}"])
            for direction, one in expected.items():
                matrix = scores if direction == "t2v" else scores.T
                yield from compare_metrics(f"metrics {name} {direction}", matrix, one)
        for one in self.case.get("compress_dims", ()):
            yield same(f"compress_dims {one['src']}", released_size(*one["src"]), one["dst"])
        yield from self.recorded.left()

    def tokens(self) -> Iterator[Quantity]:
        """tokens.max_words_<L>: ids and masks of captions."""
        for name, rows in self.case.get("tokens", {}).items():
            ids, mask = clip_input.tokenise([row["caption"] for row in rows], int(name.split("_")[-1]))
            yield same(f"tokens {name}", ids.tolist(), [row["ids"] for row in rows])
            yield same(f"token masks {name}", mask.astype(int).tolist(), [row["mask"] for row in rows])

    def transforms(self) -> Iterator[Quantity]:
        """transform/<n>/: pictures resized, cropped and normalised."""
        for name in sorted({name.split("/")[0] for name in self.recorded.names("transform/")}):
            picture = array(self.recorded[f"transform/{name}/in"]).astype(np.uint8)
            cropped = squares(picture[None], int(self.case["transform_resolution"]))
            computed = clip_input.pixels(tensor(cropped), torch.ones(1))[0]
            yield near(f"transform {name}", computed, self.recorded[f"transform/{name}/out"])

    def augmentations(self) -> Iterator[Quantity]:
        """augment/: every operation at the level of a magnitude, of either sign."""
        described = self.case.get("augment")
        if not described:
            return
        image = Image.fromarray(array(self.recorded["augment/in"]).astype(np.uint8))
        grey = 0.5 if PIL.__version__.split(".")[0] == str(PILLOW) else GREY_LEVELS
        for name, levels in described["ops"].items():
            if name not in OPERATIONS:
                yield failure(f"augment {name}", "this operation is not understood")
                continue
            for side, sign in (("pos", 1), ("neg", -1)):
                level = OPERATIONS[name].level(float(described["magnitude"]), sign)
                if levels[side]:
                    yield compare(f"augment {side} {name} level", level, levels[side][0], 1e-9)
                computed = np.asarray(OPERATIONS[name].apply(image, level))
                yield compare(
                    f"augment {side} {name}", computed, self.recorded[f"augment/{side}/{name}"], grey
                )


def terms(method: Gare, pairs: Pairs, total: Tensor) -> dict[str, Tensor]:
    """Every loss term under the names of the cases, raw and weighted."""
    c = method.config
    t2v, v2t = losses.directions(pairs.similarity, method.network.towers.scale)
    raw = {name: regulariser(pairs.delta, c) for name, regulariser in REGULARISERS.items()}
    computed = {"loss_t2v": t2v, "loss_v2t": v2t, "contrastive": (t2v + v2t) / 2, **raw, "total": total}
    computed["norm_truncated"] = losses.norm(pairs.delta, c.lambda_lower)
    computed["vib"] = c.beta * losses.divergence(pairs.delta, c.kl_reduction)
    computed["dir"], computed["norm"] = (
        c.lambda_dir * raw["dir_raw"],
        c.lambda_epsilon * computed["norm_truncated"],
    )
    computed["reg"] = computed["vib"] + computed["dir"] + computed["norm"]
    return computed


def frame_positions(name: str, one: Mapping[str, Any]) -> Iterator[Quantity]:
    """The frames that are read of a video, and which slots they fill.

    Where the release fails there is nothing to agree with: of an empty stretch no frame is taken, and a
    stride under one is one.
    """
    computed = _positions(one)
    if one["positions"] is None:
        yield Quantity(
            name, 0.0, 0.0, f"the release fails here with {one['mask']}; {len(computed)} frames are taken"
        )
        return
    yield same(name, computed, one["positions"])
    yield same(f"{name} mask", [int(slot < len(computed)) for slot in range(one["max_frames"])], one["mask"])


def _positions(one: Mapping[str, Any]) -> list[int]:
    """Positions between a start and an end in whole seconds, put in order and at least a second apart."""
    fps, first, last = float(one["fps"]), 0, int(one["n"]) - 1
    if one.get("start") is not None and one.get("end") is not None:
        start, end = sorted(max(0, int(one[side])) for side in ("start", "end"))
        first, last = int(start * fps), min(last, int((end + (end == start)) * fps))
    if last < first:
        return []
    candidates = first + sampling.gare_candidates(last - first + 1, fps, one["framerate"])
    return [int(p) for p in sampling.select(candidates, one["max_frames"], "uniform")]


def compare_metrics(name: str, scores: NDArray[Any], expected: Mapping[str, float]) -> Iterator[Quantity]:
    """Rank metrics of a square score matrix, pairs on the diagonal, counted as the release does.

    There every position that scores like the right answer is a rank of its own, so ties add ranks; without
    ties these are our strict ranks.
    """
    ranks = text_ranks(scores, np.arange(len(scores)))
    ties = np.rint(2 * (ranks.mean - ranks.strict)).astype(int)
    places = np.concatenate([rank + np.arange(t + 1) for rank, t in zip(ranks.strict, ties, strict=True)])
    median = float(np.median(places))
    computed = {"MR": median, "MedianR": median, "MeanR": float(places.mean())}
    for key, value in expected.items():
        if cutoff := re.fullmatch(r"R(\d+)", key):
            yield compare(f"{name} {key}", 100 * (places <= int(cutoff[1])).mean(), value, 1e-9)
        elif key in computed:
            yield compare(f"{name} {key}", computed[key], value, 1e-9)
        else:
            yield failure(f"{name} {key}", "this figure is not understood")


def released_size(width: int, height: int) -> list[int]:
    """Width and height after the release's scaling, which squashes portraits; ours keeps their shape."""
    shape = width / height
    even = 2 * int(224 * shape / 2)
    return [even, 224] if shape > 1 else [224, even]


def near(name: str, computed: Tensor, expected: Tensor | float, share: float = VALUES) -> Quantity:
    """A value against an expected one, within a share of the greatest value and 1e-5."""
    reference = array(expected) if isinstance(expected, Tensor) else np.asarray(expected)
    return compare(
        name, array(computed), reference, share * float(np.abs(reference).max(initial=0)) + ABSOLUTE
    )


def _total(computed: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(computed.values())).sum()


def _weights(path: Path, stem: str) -> Path:
    return path.parent / f"{stem}.weights.safetensors"


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() or value.dtype is torch.uint8 else value
