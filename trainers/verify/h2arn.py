"""Runs the recorded cases of H2ARN: the retrieval model, its geometry alone, the evaluation, and what is before them.

Float32 values are compared with what the authors' modules gave, float64 ones with the same modules in float64, to the
tolerances that the cases state. Points of the cases carry their time last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pipeline.errors import UserError
from trainers.geometry import lorentz
from trainers.geometry.cone import RADIUS
from trainers.h2arn import hashed, losses, official
from trainers.h2arn.config import H2arnConfig
from trainers.h2arn.method import BETAS, H2arn, optimizer
from trainers.h2arn.model import Aggregator, Pooled, encode
from trainers.loop.optim import WarmupAdamW
from trainers.measure.metrics import link_ranks, metrics, rsum, units_of
from trainers.relevance import Relevance
from trainers.verify import h2arn_encoders as verify_encoders
from trainers.verify import h2arn_pipeline as verify_pipeline
from trainers.verify.cases import Quantity, Recorded, as_numbers, compare, failure, same
from trainers.verify.following import training_loop
from trainers.verify.tensors import array, read_tensors

Case = Mapping[str, Any]

SIDES = ("txt", "pcd")
SETTINGS = {
    "d_model": "d_model", "n_head": "nhead", "num_layers": "num_layers", "dropout": "dropout",
    "loss_temp": "loss_temp", "loss_lambda": "loss_lambda", "hyperbolic_c_init": "hyperbolic_c", "K": "K",
}  # fmt: skip
"""A case's setting, ours."""
SHAPES = {"d_txt", "d_pcd"}
"""Entries of a case that its weights decide."""
ADAM = {"betas": list(BETAS), "eps": 1e-8}
"""Entries of a case on the optimizer that are no settings of ours."""
RECIPE = {"lr": "lr", "weight_decay": "weight_decay", "clip_grad_norm": "clip_norm"}
SCALARS = re.compile(r"log_c|log_alpha_\w+|\w+\.temperature")
DOUBLE = (1e-9, 1e-7)  # absolute and relative, of everything in float64
CONSTANT = 2**53  # updates of a schedule whose first has the full rate
AFTER_STEPS = 1e-8  # tolerance of parameters in float64 after updates
NOISE, LEAST_NOISE = (
    20,
    1e-5,
)  # tolerance of the geometry: multiple of the recorded difference between precisions, and lower bound
CLAMPED_DISTANCES = ("same_tokens", "one_token")  # cases whose distances a clamp decides
CLAMPED_PAIR = "coincident_pair"
CLAMPED_DISTANCE = 2e-3  # largest value of a clamped distance in float32
SCALAR_SLOPE = 1e-3  # relative, of the gradient of a scalar, a sum that cancels
DIRECTIONS = {"t2c": 0, "c2t": 1}


def understands(case: Case) -> bool:
    """Whether the content of a .json file is a case of H2ARN, or a list of its cases."""
    return case.get("kind") in KINDS or (case.get("method") == "h2arn" and "cases" in case)


def run(path: Path, case: Case) -> Iterator[Quantity]:
    """Every quantity of a case; of a list, whether its cases are there."""
    yield from (KINDS[case["kind"]] if "kind" in case else listed)(path, case)


def data(path: Path, case: Case) -> Collection[Path]:
    """The folders whose files a case reads."""
    return [path.parent / name for name in FOLDERS.get(case.get("kind", ""), ())]


def listed(path: Path, case: Case) -> Iterator[Quantity]:
    """index.json: every case that it names is there with its tensors."""
    for row in case["cases"]:
        for name in (row["json"], row["tensors"]):
            file = path.parent / name
            yield same(f"{row['case']}: {name}", file.is_file(), True)
        yield same(f"{row['case']}: kind {row['kind']}", row["kind"] in KINDS, True)


def near(name: str, computed: ArrayLike, expected: ArrayLike, absolute: float, relative: float) -> Quantity:
    """Values each of which may be off by `absolute` and by `relative` of itself."""
    a, b = as_numbers(computed), as_numbers(expected)
    if a.shape != b.shape or not a.size:
        return compare(name, a, b, absolute)
    off = np.abs(a - b) / (absolute + relative * np.abs(b))
    if not np.isfinite(off).all():
        return failure(name, "it is not finite")
    scale = float(np.abs(b).max()) or 1.0
    worst = np.unravel_index(int(off.argmax()), off.shape)
    allowed = absolute + relative * float(np.abs(b[worst]))
    return Quantity(name, float(np.abs(a - b)[worst]) / scale, allowed / scale)


def tensors_of(path: Path, case: Case) -> Recorded[Tensor]:
    """The tensors beside a case, which may have been renamed."""
    names = [path.with_suffix(".safetensors"), path.parent / f"{case.get('case')}.safetensors"]
    computed = next((name for name in names if name.is_file()), None)
    if computed is None:
        raise UserError(f"there is no {names[0]}")
    return Recorded(read_tensors(computed))


def settings_of(case: Case) -> H2arnConfig:
    """Our settings for a case's. Raises UserError for one that it cannot mean."""
    settings = {**case["config"], **case.get("optimizer", {})}
    if settings.pop("name", "AdamW") != "AdamW":
        raise UserError(f"the case has the optimizer {case['optimizer']['name']!r}; possible: AdamW")
    unknown = [name for name in settings if name not in {*SETTINGS, *RECIPE, *ADAM, *SHAPES}]
    if unknown:
        raise UserError(f"the case has the settings {unknown}, which are not understood")
    ours = {**SETTINGS, **RECIPE}
    steps = case.get("trajectory", {})
    ratio = (steps["warmup_steps"] + 0.5) / steps["steps"] if steps else 0.1
    computed = {ours[name]: value for name, value in settings.items() if name in ours}
    return H2arnConfig(**{"dropout": 0.0, "warmup_ratio": ratio, **computed})


def official_order(points: Tensor) -> Tensor:
    """Points with their time last."""
    return torch.cat([points[..., 1:], points[..., :1]], -1)


class RetrievalCase:
    """A small model: encodings, scores, losses, gradients, one step, a trajectory, in both precisions."""

    def __init__(self, path: Path, case: Case) -> None:
        self.case, self.recorded = case, tensors_of(path, case)
        self.config, self.state = settings_of(case), self.recorded.under("state.")

    def fresh(self, dtype: torch.dtype) -> H2arn:
        """The method with the recorded weights."""
        return official.method_from(self.state, self.config).to(dtype)

    def quantities(self) -> Iterator[Quantity]:
        """Every quantity, and a failure for each that is not understood."""
        yield from self.checkpoint()
        for dtype in (torch.float32, torch.float64):
            method = self.fresh(dtype)
            yield from self.expected(dtype, "out.", self.evaluated(method))
            yield from self.expected(dtype, "out.", self.trained(method))
            yield from self.expected(dtype, "grad.", gradients(method))
        yield from self.steps()
        yield from self.recorded.left()

    def checkpoint(self) -> Iterator[Quantity]:
        """The state dict that is written from the network it was read into."""
        written = official.state_of(self.fresh(torch.float32))
        yield same("checkpoint names", sorted(written), sorted(self.state))
        errors = [float((written[name] - v).abs().max()) for name, v in self.state.items() if name in written]
        yield compare("checkpoint values", max(errors), 0.0, 0.0)

    def input(self, name: str, method: H2arn) -> Tensor:
        """An input in the method's precision."""
        return self.recorded[f"in.{name}"].to(method.network.log_c.dtype)

    def evaluated(self, method: H2arn) -> dict[str, Tensor]:
        """The quantities of an evaluation, and the encoders' outputs of the first caption and cloud."""
        method.eval()
        net = method.network
        with torch.inference_mode():
            text, cloud = (self.input(f"eval_{side}", method) for side in SIDES)
            pooled = dict(zip(SIDES, (net.texts(text), net.clouds(cloud)), strict=True))
            encoded = method.encode_texts({"text": text}), method.encode_items({"cloud": cloud})
            computed = {"sim": method.scores(*encoded)}
            for side, tokens, stack in zip(
                SIDES, (text, cloud), (net.text_encoder, net.pcd_encoder), strict=True
            ):
                computed[f"{side}_enc0"] = encode(stack, tokens[:1])
        for side, values in pooled.items():
            computed |= {
                f"{side}_dist": values.distances,
                f"{side}_weights": values.weights,
                f"{side}_h": official_order(values.point),
            }
        return computed

    def trained(self, method: H2arn) -> dict[str, Tensor]:
        """The losses of the training batch; their gradients are left at the parameters."""
        computed = self.terms(method.train())
        method.zero_grad()
        computed["loss_total"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in method.parameters() if p.grad is not None])
        return computed | {"grad_norm": norm}

    def terms(self, method: H2arn) -> dict[str, Tensor]:
        """Each term as the cases name and weigh it, and their sum as it is trained on."""
        text, cloud = (self.input(f"train_{side}", method) for side in SIDES)
        rows = self.recorded["in.train_pc_indices"]
        points = method.network.texts(text).point, method.network.clouds(cloud).point
        terms = method.terms(*points, rows[:, None] == rows)
        t2p, p2t = 2 * terms["t2c"], 2 * terms["c2t"]
        weight = self.config.loss_lambda
        entail = terms["entailment"] / weight if weight else _entailment(method, *points, rows)
        total = torch.stack(list(terms.values())).sum()
        return {
            "loss_t2p": t2p, "loss_p2t": p2t, "loss_contrastive": (t2p + p2t) / 2,
            "loss_entail": entail, "loss_total": total,
        }  # fmt: skip

    def expected(self, dtype: torch.dtype, prefix: str, computed: Mapping[str, Tensor]) -> Iterator[Quantity]:
        """Compare computed values with the recorded ones, in one precision."""
        prefix = prefix if dtype is torch.float32 else f"f64.{prefix}".replace("f64.out.", "f64.")
        for name, value in computed.items():
            if prefix + name in self.recorded:
                reference = self.recorded[prefix + name]
                yield near(prefix + name, value.detach(), reference, *self.allowed(dtype, name, reference))

    def allowed(self, dtype: torch.dtype, name: str, expected: Tensor) -> tuple[float, float]:
        """Absolute and relative tolerance of a quantity."""
        if dtype is torch.float64:
            return DOUBLE
        if name.startswith("loss_"):
            return 1e-7, 1e-4  # a loss of 0 has no relative error
        if name in self.state or name == "grad_norm":
            if SCALARS.fullmatch(name):
                return 1e-7, 1e-2
            return 1e-3 * float(expected.abs().max()) + 1e-7, 0.0
        return 2e-4, 1e-4

    def steps(self) -> Iterator[Quantity]:
        """f64.step1: one step at a constant rate; f64.traj: a whole schedule on one batch."""
        method = self.fresh(torch.float64)
        self.update(method, self.adam(method, CONSTANT, warmup_ratio=0.0))
        yield from self.parameters("f64.step1.", method)
        if "trajectory" not in self.case:
            return
        method = self.fresh(torch.float64)
        count = int(self.case["trajectory"]["steps"])
        adam = self.adam(method, count)
        rows = [self.update(method, adam) for _ in range(count)]
        for name, values in zip(("losses", "lrs", "grad_norms"), zip(*rows, strict=True), strict=True):
            if f"f64.traj.{name}" in self.recorded:
                yield near(f"f64.traj.{name}", values, self.recorded[f"f64.traj.{name}"], *DOUBLE)
        yield from self.parameters("f64.traj.final.", method)
        yield from self.loop(method, count)
        if "f64.traj.final_sim" in self.recorded:
            computed = self.evaluated(method)["sim"]
            yield near("f64.traj.final_sim", computed, self.recorded["f64.traj.final_sim"], *DOUBLE)

    def loop(self, updated: H2arn, count: int) -> Iterator[Quantity]:
        """The training loop over the whole schedule."""
        losses = self.recorded.get("f64.traj.losses")
        if losses is not None:
            method = self.fresh(torch.float64).train()
            adam, allowed = self.adam(method, count), DOUBLE[0] + DOUBLE[1] * float(losses.abs().max())
            yield from training_loop(
                method,
                lambda _: self.terms(method)["loss_total"],
                self.config,
                adam,
                losses.tolist(),
                allowed,
                updated,
            )

    def adam(self, method: H2arn, total_steps: int, **changes: Any) -> WarmupAdamW:
        """The optimizer that is trained with, with what the case says of it."""
        made = optimizer(self.config.model_copy(update=changes), method, total_steps)
        settings = {**ADAM, **self.case.get("optimizer", {})}
        for group in made.param_groups:
            group |= {"betas": tuple(settings["betas"]), "eps": settings["eps"]}
        return made

    def update(self, method: H2arn, adam: WarmupAdamW) -> tuple[float, float, float]:
        """One update as the engine makes it: the loss, the rate, the norm of the gradients before clipping."""
        (rate,) = adam.learning_rates()
        computed = self.trained(method)
        clip = self.config.clip_norm
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(method.parameters(), clip, computed["grad_norm"])
        adam.step()
        return float(computed["loss_total"].detach()), rate, float(computed["grad_norm"])

    def parameters(self, prefix: str, method: H2arn) -> Iterator[Quantity]:
        """Parameters after updates."""
        state = official.state_of(method)
        for name in self.recorded.names(prefix):
            if name in state:
                reference = self.recorded[prefix + name]
                yield near(prefix + name, state[name], reference, AFTER_STEPS, DOUBLE[1])


def _entailment(method: H2arn, texts: Tensor, clouds: Tensor, rows: Tensor) -> Tensor:
    """The ordering term of a case that does not weigh it."""
    net = method.network
    return losses.entailment(
        texts, clouds, net.inner(texts, clouds), rows[:, None] == rows, net.c, method.config.K
    )


def gradients(method: H2arn) -> dict[str, Tensor]:
    """The gradients by the authors' names; of a parameter without one, zeros."""
    named = method.network.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}


def retrieval(path: Path, case: Case) -> Iterator[Quantity]:
    """Every quantity of a small model."""
    yield from RetrievalCase(path, case).quantities()


def published_size(path: Path, case: Case) -> Iterator[Quantity]:
    """The published sizes, whose weights and inputs are numbers of a hash."""
    recorded, config = tensors_of(path, case), settings_of(case)
    settings = case["config"]
    method = H2arn(config, settings["d_txt"], settings["d_pcd"]).eval()
    own = official.state_of(method)
    state = hashed.state({name: tuple(value.shape) for name, value in own.items()}, case["base_stream"])
    method = official.method_from({**own, **state}, config).eval()
    text, cloud = (
        hashed.tensor(row["stream"], tuple(row["shape"]), row["bound"])
        for row in (case["inputs"][side] for side in SIDES)
    )
    rows = torch.tensor(case["train_loss"]["pc_indices"])
    for dtype in (torch.float32, torch.float64):
        if dtype is torch.float64 and not recorded.names("f64."):
            continue
        with torch.inference_mode():
            computed = _published(method.to(dtype), text.to(dtype), cloud.to(dtype), rows)
        for name, value in computed.items():
            full = f"f64.{name}" if dtype is torch.float64 else f"out.{name}"
            if full in recorded:
                allowed = (1e-8, 0.0) if dtype is torch.float64 else _published_tolerance(name)
                yield near(full, value, recorded[full], *allowed)
    yield from recorded.left()


def _published(method: H2arn, text: Tensor, cloud: Tensor, rows: Tensor) -> dict[str, Tensor]:
    net = method.network
    encoded = encode(net.text_encoder, text), encode(net.pcd_encoder, cloud)
    texts, clouds = net.pool_texts(encoded[0]), net.pool_clouds(encoded[1])
    terms = method.terms(texts.point[: len(rows)], clouds.point[rows], rows[:, None] == rows)
    return {
        "txt_enc_first_token": encoded[0][:, 0],
        "pcd_enc_last_token": encoded[1][:, -1],
        "txt_h": official_order(texts.point),
        "pcd_h": official_order(clouds.point),
        "sim": net.similarity(net.inner(texts.point, clouds.point)),
        "train_loss": torch.stack(list(terms.values())).sum(),
    }


def _published_tolerance(name: str) -> tuple[float, float]:
    return (0.0, 1e-3) if name == "train_loss" else (1e-3, 1e-3)


def geometry(path: Path, case: Case) -> Iterator[Quantity]:
    """Aggregator and losses alone, in both precisions."""
    recorded = tensors_of(path, case)
    for row in case.get("aggregator", ()):
        yield from _both(recorded, row, "agg", _aggregated)
    for row in case.get("loss", ()):
        yield from _both(recorded, row, "loss", _lost)
    yield from recorded.left()


Compute = Callable[[Recorded[Tensor], Case, str, torch.dtype], dict[str, Tensor]]
"""The quantities of a part of a case in one precision, by their recorded names."""


def _both(recorded: Recorded[Tensor], row: Case, part: str, compute: Compute) -> Iterator[Quantity]:
    """The quantities of one row of a case compared with the recorded ones, in both precisions."""
    name = f"{part}.{row['tag']}"
    for dtype in (torch.float32, torch.float64):
        prefix = f"{name}." if dtype is torch.float32 else f"f64.{name}."
        for key, value in compute(recorded, row, name, dtype).items():
            if prefix + key in recorded:
                reference = recorded[prefix + key]
                exact = recorded.get(f"f64.{name}.{key}")
                noise = 0.0 if exact is None else float((reference.double() - exact).abs().max())
                noise = row.get("max_f32_f64_diff", {}).get(key, noise)
                yield _geometric(prefix + key, row["tag"], value.detach(), reference, noise)


def _geometric(name: str, tag: str, computed: Tensor, expected: Tensor, noise: float) -> Quantity:
    """One quantity of the geometry with its tolerance, or with the clamp's if a clamp decides it.

    noise: what float32 made of it in the authors' modules; of one number it can be near 0 by luck.
    """
    key = name.rpartition(".")[2]
    clamped_distance = key == "dist" and tag in CLAMPED_DISTANCES
    clamped_slope = key.startswith("grad_") and tag == CLAMPED_PAIR
    if expected.dtype is torch.float64:
        absolute = 1e-6 if clamped_distance else DOUBLE[0]
        return near(name, computed, expected, absolute, 1e-4 if clamped_slope else DOUBLE[1])
    if clamped_distance:
        greatest = max(CLAMPED_DISTANCE, float(expected.max()))
        return compare(name, computed.abs().max(), 0.0, greatest, "a clamp decides: near 0 is all")
    if clamped_slope:
        return same(f"{name} is finite (ill-conditioned)", bool(computed.isfinite().all()), True)
    cancels = SCALAR_SLOPE if key in ("grad_c", "grad_temperature") else 0.0
    return near(name, computed, expected, max(NOISE * noise, LEAST_NOISE), cancels)


def _aggregated(recorded: Recorded[Tensor], row: Case, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    x, c, temperature = (_leaf(recorded[f"{name}.{key}"], dtype) for key in ("x", "c", "temperature"))
    aggregator = Aggregator(H2arnConfig(d_model=x.shape[-1], nhead=1)).to(dtype)
    del aggregator.temperature
    aggregator.temperature = temperature  # type: ignore[assignment]  # a leaf of its own instead of the parameter
    pooled: Pooled = aggregator(x, c)
    h = official_order(pooled.point)
    v = torch.linspace(-1, 1, h.numel(), dtype=dtype).reshape(h.shape)
    (h * v).sum().backward()
    grads = {f"grad_{key}": leaf.grad for key, leaf in (("x", x), ("c", c), ("temperature", temperature))}
    computed = {"dist": pooled.distances, "weights": pooled.weights, "h": h}
    return computed | {key: value for key, value in grads.items() if value is not None}


def _lost(recorded: Recorded[Tensor], row: Case, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    txt, pcd, c = (_leaf(recorded[f"{name}.{key}"], dtype) for key in ("txt", "pcd", "c"))
    rows = recorded[f"{name}.pc_indices"]
    positive = rows[:, None] == rows
    texts, clouds = lorentz.lift(txt, c), lorentz.lift(pcd, c)
    inner = lorentz.pairwise_inner(texts, clouds)
    sides = (
        losses.contrastive(s, p, row["temperature"]) for s, p in ((inner, positive), (inner.T, positive.T))
    )
    contrastive = sum(sides, torch.zeros((), dtype=dtype)) / 2
    entail = losses.entailment(texts, clouds, inner, positive, c, row.get("K", RADIUS))
    total = contrastive + row["lambda"] * entail
    total.backward()
    computed = {
        "inner": inner, "distance": lorentz.distance(inner, c), "contrastive": contrastive, "entail": entail,
        "total": total,
    }  # fmt: skip
    grads = {f"grad_{key}": leaf.grad for key, leaf in (("txt", txt), ("pcd", pcd), ("c", c))}
    return computed | {key: value for key, value in grads.items() if value is not None}


def _leaf(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in one precision that gathers a gradient."""
    return value.detach().clone().to(dtype).requires_grad_()


def evaluation(path: Path, case: Case) -> Iterator[Quantity]:
    """Ranks and figures of score matrices with any links, in both directions, in blocks of rows."""
    recorded = tensors_of(path, case)
    for row in case["cases"]:
        tag = row["tag"]
        scores, pairs = array(recorded[f"{tag}.sims"]), recorded[f"{tag}.link"].tolist()
        right: list[list[int]] = [[] for _ in scores]
        for text, cloud in pairs:
            right[text].append(cloud)
        links = Relevance.of(right, scores.shape[1])
        half = len(scores) // 2
        blocks = [(slice(a, b), scores[a:b]) for a, b in ((0, half), (half, len(scores))) if b > a]
        ranks = [computed.strict for computed in link_ranks(blocks, links)]
        for name, side in DIRECTIONS.items():
            yield same(f"{tag}.{name}.ranks", ranks[side].tolist(), recorded[f"{tag}.{name}.ranks"].tolist())
            yield from _figures(f"{tag}.{name}", ranks[side], row[name])
        if "Rsum_percent" in row:
            computed = rsum(ranks[0], ranks[1], units_of(links), seed=0, resamples=1).value
            yield near(f"{tag}.Rsum_percent", computed, row["Rsum_percent"], 1e-4, 1e-6)
    yield from recorded.left()


def _figures(name: str, ranks: Any, expected: Mapping[str, float]) -> Iterator[Quantity]:
    figures = metrics(ranks)
    ours = {"MR": figures["MnR"], "MRR": figures["MRR"], "queries": float(len(ranks))}
    ours |= {key: value / 100 for key, value in figures.items() if key.startswith("R@")}
    for key, value in expected.items():
        if key in ours:
            yield near(f"{name}.{key}", ours[key], value, 1e-6, 1e-6)
        else:
            yield failure(f"{name}.{key}", "this quantity is not understood")


KINDS: dict[str, Callable[[Path, Case], Iterator[Quantity]]] = {
    "retrieval_model": retrieval,
    "retrieval_model_published_size": published_size,
    "unit_geometry": geometry,
    "evaluation": evaluation,
    **verify_encoders.KINDS,
    **verify_pipeline.KINDS,
}
FOLDERS = {"feature_extraction_end_to_end": ("data", "clip", "bert")}
"""Kind of a case -> folder of its data, beside the case."""
