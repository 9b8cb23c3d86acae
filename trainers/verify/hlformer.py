"""Runs the recorded cases of HLFormer: data, forward pass, losses, gradients, updates, evaluation, checkpoint.

Sizes and options come from the case; a part that a case does not hold is left out, and a tensor that is not
understood is a failure.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.features.layouts.ms_sl import MsSl
from trainers.hlformer import losses, official
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.data import HLFormerData, Split, open_data, pack
from trainers.hlformer.losses import Negatives
from trainers.hlformer.method import HLFormer, TrainingOutputs, optimizer
from trainers.hlformer.model import HLFormerNetwork, LorentzAttention, MixtureEncoder, gaussian_window
from trainers.loop.optim import BertAdam
from trainers.measure.metrics import metrics, text_ranks
from trainers.method import Batch
from trainers.verify.cases import Quantity, Recorded, compare, failure, same, worst
from trainers.verify.following import training_loop
from trainers.verify.tensors import array, read_tensors

DATA_TOLERANCE = 1e-6  # absolute, of rows of length 1
RELATIVE = 1e-5  # relative tolerance of gradients, and of quantities without recorded float32 noise
STEP_SHARE = 2e-3  # share of a learning rate by which parameters may differ after an update
ULPS = 2.4e-7  # two units in the last place: a step of a large value cannot be recorded more finely
NOISE_SHARE = 5e-6  # share of a tensor's largest gradient below which an element's gradient is rounding noise
NORM_SHARE = 5e-4
RECALLS = ("R@1", "R@5", "R@10", "R@100")

BATCH_NAMES = {
    "clips": "clip_video_features",
    "frames": "frame_video_features",
    "frame_mask": "videos_mask",
    "tokens": "text_feat",
    "token_mask": "text_mask",
    "owner": "text_labels",
}
"""Our name of a tensor of a training batch, and the authors'."""


def understands(case: Mapping[str, Any]) -> bool:
    """Whether the content of a .json file is a case of HLFormer."""
    return _is_model_case(case) or _is_loader_case(case)


def run(path: Path, case: Mapping[str, Any]) -> Iterator[Quantity]:
    """Every quantity of a case."""
    if _is_loader_case(case):
        yield from LoaderCase(path, case).quantities()
    else:
        yield from ModelCase(path, case).quantities()


def _is_model_case(case: Mapping[str, Any]) -> bool:
    config = case.get("config")
    return (
        "tensors_file" in case and isinstance(config, Mapping) and {"lorentz_dim", "n_heads"} <= set(config)
    )


def _is_loader_case(case: Mapping[str, Any]) -> bool:
    return {"collection", "visual_feature", "map_size", "max_ctx_l", "max_desc_l"} <= set(case)


class ModelCase:
    """A case that holds weights, a batch and everything that follows from them."""

    def __init__(self, path: Path, case: Mapping[str, Any]) -> None:
        self.path, self.case = path, case
        self.recorded = Recorded(read_tensors(path.parent / case["tensors_file"]))
        self.state = self.recorded.under("state/")
        known = official.sizes(self.state)
        self.dims = known.pop("visual_dim"), known.pop("text_dim")
        self.config = official.config_from(case["config"], case.get("preset"), **known)
        self.zero_gradient = set(case.get("zero_gradient_params", ()))

    def quantities(self) -> Iterator[Quantity]:
        """Every quantity, in the order in which a mistake would show first."""
        yield from self.windows()
        yield from self.data()
        yield from self.forward()
        yield from self.phases()
        method, adam = self.fresh(), None
        if "steps/loss" in self.recorded:
            adam = optimizer(method.config, method, self.total_steps())
            yield from self.updates(method, adam)
        if self.case.get("official_format_checkpoint"):
            yield from self.checkpoint(method if adam is not None else None, adam)
        yield from self.metric()
        yield from self.recorded.left()

    def fresh(self) -> HLFormer:
        """The method with the recorded weights."""
        method = HLFormer(self.config, *self.dims)
        official.load_state(method, self.state)
        return method.train()

    def compared(self, name: str, computed: Tensor | NDArray | float) -> Quantity:
        """Compare a computed value with the recorded one; the noise that the case records sets the tolerance."""
        return compare(name, _array(computed), _array(self.recorded[name]), self.allowed(name))

    def allowed(self, name: str) -> float:
        """Ten times the recorded float32 noise and 1e-6 of the greatest value, as the cases ask.

        1e-5 for gradients: the recorded noise of a scalar, one number, can be near 0 by luck.
        """
        noise = self.case.get("max_abs_diff_f32_vs_f64", {}).get(name)
        greatest = self.case.get("max_abs_value", {}).get(name)
        if noise is None or greatest is None:
            return RELATIVE * float(np.abs(_array(self.recorded[name])).max(initial=0))
        return 10 * noise + (RELATIVE if name.startswith("grad/") else 1e-6) * greatest

    def windows(self) -> Iterator[Quantity]:
        """gauss/L<length>_w<width>."""
        for name in self.recorded.under("gauss/"):
            computed = re.fullmatch(r"L(\d+)_w([\d.]+)", name)
            if computed is None:
                yield failure(f"gauss/{name}", "this quantity is not understood")
                continue
            window = gaussian_window(int(computed[1]), float(computed[2]), torch.get_default_device())
            yield self.compared(f"gauss/{name}", window)

    def data(self) -> Iterator[Quantity]:
        """pre/, batch/ and eval/, through packed arrays made of raw/."""
        videos, texts = self.recorded.under("raw/video/"), self.recorded.under("raw/text/")
        if not videos or not texts:
            return
        splits = {
            name: split for name, split in (("train", self.training()), ("test", self.judged())) if split
        }
        with packed(self.config, splits, _rows(videos), _rows(texts)) as data:
            if "train" in splits:
                yield from compare_rows(data, "train", self.recorded, "pre/", ("clip", "frame"))
                yield from self.collation(data)
            if "test" in splits:
                yield from self.evaluation(data)

    def training(self) -> Split | None:
        """The recorded batch as a split in the order before collation."""
        videos, captions = self.case.get("batch_video_order"), self.case.get("batch_query_order")
        if not videos or not captions:
            return None
        owner = [videos[row] for row in self.recorded["batch/text_labels"].tolist()]
        rows = [(caption, "", video) for caption, video in zip(captions, owner, strict=True)]
        return self.case.get("video_ids", videos), rows

    def judged(self) -> Split | None:
        """The recorded evaluation as a split."""
        computed = self.case.get("eval")
        if not computed:
            return None
        owner = [computed["video_ids"][row] for row in computed["gt_video_index"]]
        return computed["video_ids"], [(q, "", v) for q, v in zip(computed["query_ids"], owner, strict=True)]

    def collation(self, data: HLFormerData) -> Iterator[Quantity]:
        """batch/: order, padding, masks."""
        index = data.splits["train"]
        batch, videos, captions = data.train_batch("train", data.train_items())
        yield same("batch_video_order", [index.items[v] for v in videos], self.case["batch_video_order"])
        yield same("batch_query_order", [index.captions[c] for c in captions], self.case["batch_query_order"])
        yield from compare_batch(batch, self.recorded, "batch/")

    def evaluation(self, data: HLFormerData) -> Iterator[Quantity]:
        """eval/: every item and caption encoded once, in the batches of an evaluation."""
        method = self.fresh().eval()
        with torch.inference_mode():
            items = _joined(map(method.encode_items, data.item_batches("test")))
            batches = list(data.text_batches("test"))
            texts = _joined(map(method.encode_texts, batches))
            order = torch.cat([batch["index"] for batch in batches]).argsort()
            texts = {name: values[order] for name, values in texts.items()}
            clip, frame = method.branch_scores(texts, items)
            computed = {"clip_cos": clip, "frame_cos": frame, "fused": method.scores(texts, items)}
        for name, scores in computed.items():
            if f"eval/{name}" in self.recorded:
                yield self.compared(f"eval/{name}", scores)
        expected = self.case["eval"]
        yield from compare_metrics("eval", array(computed["fused"]), expected["gt_video_index"], expected)

    def metric(self) -> Iterator[Quantity]:
        """The recalls of a recorded score matrix."""
        if "metric/scores" in self.recorded:
            scores, truth = array(self.recorded["metric/scores"]), self.recorded["metric/gt"].tolist()
            yield from compare_metrics("metric", scores, truth, self.case["metric"])

    def batch(self) -> Batch:
        """The recorded batch under our names."""
        return {ours: self.recorded[f"batch/{theirs}"] for ours, theirs in BATCH_NAMES.items()}

    def forward(self) -> Iterator[Quantity]:
        """out/: every intermediate of one pass."""
        if not self.recorded.under("out/"):
            return
        method = self.fresh()
        computed = intermediates(method, self.batch())
        for name, value in self.case.get("clamped", {}).items():
            parameter = method.network.get_parameter(name)
            yield compare(f"clamped {name}", parameter.item(), value, 1e-6 * max(1.0, abs(value)))
        for name in self.recorded.under("out/"):
            if name in computed:
                yield self.compared(f"out/{name}", computed[name])
            else:
                yield failure(f"out/{name}", "this quantity is not understood")

    def negatives(self, group: str, out: TrainingOutputs) -> tuple[Negatives, Negatives]:
        """The recorded negatives of both branches, looked up by their ranks where only ranks are recorded."""
        return self._negatives(group, "clip", out), self._negatives(group, "frame", out)

    def _negatives(self, group: str, branch: str, out: TrainingOutputs) -> Negatives:
        name = _neg(group, branch)
        if f"{name}_v2t_query" in self.recorded:
            return Negatives(self.recorded[f"{name}_v2t_query"], self.recorded[f"{name}_t2v_video"])
        return self.ranked(group, branch, out)

    def ranked(self, group: str, branch: str, out: TrainingOutputs) -> Negatives:
        """The negatives that the recorded ranks mean under our scores; without a rank, the best caption."""
        scores, owner = getattr(out, branch).cos.detach(), self.recorded["batch/text_labels"]
        masked = scores.masked_fill(losses.positives(owner, scores.shape[1]), -torch.inf)
        name = _neg(group, branch).replace("neg", "rng")
        ranks = torch.zeros(scores.shape[1], dtype=torch.int64)
        if f"{name}_v2t_rank" in self.recorded:
            ranks = self.recorded[f"{name}_v2t_rank"]
        captions = masked.argsort(0, descending=True).gather(0, ranks[None]).squeeze(0)
        videos = masked.argsort(1, descending=True)  # the positive, last here, has rank 0 there
        return Negatives(
            captions, videos.gather(1, self.recorded[f"{name}_t2v_rank"][:, None] - 1).squeeze(1)
        )

    def draws(self, group: str, out: TrainingOutputs) -> Iterator[Quantity]:
        """Whether ranks and explicit negatives mean the same, and hard captions are those we would take."""
        for branch in ("clip", "frame"):
            name = _neg(group, branch)
            if (
                f"{name}_v2t_query" not in self.recorded
                or f"{name.replace('neg', 'rng')}_t2v_rank" not in self.recorded
            ):
                continue
            computed = self.ranked(group, branch, out)
            yield same(
                f"{name}_v2t_query", computed.captions.tolist(), self.recorded[f"{name}_v2t_query"].tolist()
            )
            yield same(
                f"{name}_t2v_video", computed.videos.tolist(), self.recorded[f"{name}_t2v_video"].tolist()
            )

    def phases(self) -> Iterator[Quantity]:
        """loss_soft/ and loss_hard/: every term before and after hard negatives set in."""
        for phase in ("soft", "hard"):
            expected = self.recorded.under(f"loss_{phase}/")
            if not expected:
                continue
            method = self.fresh()
            out = method.outputs(self.batch())
            yield from self.draws(phase, out)
            terms = method.terms(out, self.recorded["batch/text_labels"], *self.negatives(phase, out))
            computed = {
                **_raw_terms(out, self.recorded["batch/text_labels"], self.config),
                **_used_terms(terms),
            }
            for name in expected:
                if name in computed:
                    yield self.compared(f"loss_{phase}/{name}", computed[name])
                else:
                    yield failure(f"loss_{phase}/{name}", "this quantity is not understood")

    def total_steps(self) -> int:
        """Updates of the recorded schedule: as stated, else from the factor of the second update."""
        for stated in (self.case.get("t_total"), self.case["config"].get("t_total")):
            if stated:
                return int(stated)
        computed = re.search(r"t_total (\d+)", " ".join(map(str, self.case.get("description", {}).values())))
        if computed:
            return int(computed[1])
        return round(1 / (self.case["lr_multipliers"][1] * self.config.warmup))

    def updates(self, method: HLFormer, adam: BertAdam) -> Iterator[Quantity]:
        """grad/, steps/loss and step<k>/: as many updates as are recorded, on the recorded batch."""
        expected, computed = self.recorded["steps/loss"], []
        factors: list[float] = []
        for step in range(1, len(expected) + 1):
            adam.zero_grad()
            out = method.outputs(self.batch())
            yield from self.draws(f"step{step}", out)
            negatives = self.negatives(f"step{step}", out)
            loss = _total(method.terms(out, self.recorded["batch/text_labels"], *negatives))
            loss.backward()
            computed.append(loss.item())
            if step == 1:
                yield from self.gradients(method)
            factors.append(adam.learning_rates()[0] / self.config.lr)
            adam.step()
            yield from self.parameters(method, adam, step)
        yield self.compared("steps/loss", np.array(computed))
        yield from self.loop(method, np.asarray(array(expected), np.float64))
        if "lr_multipliers" in self.case:
            yield compare("lr_multipliers", factors, self.case["lr_multipliers"], 1e-6)
        for key, norms in self.case.items():
            if re.fullmatch(r"param_norms_after_step\d+", key) and int(
                key[len("param_norms_after_step") :]
            ) == len(computed):
                yield from self.norms(key, norms, dict(method.network.named_parameters()))

    def gradients(self, method: HLFormer) -> Iterator[Quantity]:
        """grad/, and the norms of all gradients."""
        gradients = {n: p.grad for n, p in method.network.named_parameters() if p.grad is not None}
        for name in self.recorded.under("grad/"):
            if name in self.zero_gradient and name in gradients:
                zeros = np.zeros(gradients[name].shape)
                yield compare(f"grad/{name}", _array(gradients[name]), zeros, 1e-6)
            elif name in gradients:
                yield self.compared(f"grad/{name}", gradients[name])
            else:
                yield failure(f"grad/{name}", "this parameter has no gradient here")
        yield from self.norms("grad_norms_step1", self.case.get("grad_norms_step1", {}), gradients)

    def norms(
        self, key: str, expected: Mapping[str, float | None], computed: Mapping[str, Tensor]
    ) -> Iterator[Quantity]:
        """The norms of named tensors as one quantity: the worst, relative to its own size."""
        exact = self.case.get(f"{key}_f64", {})
        quantities = []
        for name, norm in expected.items():
            if norm is None or name.endswith(official.CURVATURE) or name in self.zero_gradient:
                continue
            if name in computed:
                noise = abs(norm - exact.get(name, norm))
                quantities.append(
                    compare(name, computed[name].norm().item(), norm, 10 * noise + NORM_SHARE * norm)
                )
            else:
                quantities.append(failure(name, "is not there"))
        yield from worst(key, quantities)

    def loop(self, updated: HLFormer, expected: NDArray[np.float64]) -> Iterator[Quantity]:
        """The training loop over the same updates."""
        method = self.fresh()

        def loss(number: int) -> Tensor:
            out = method.outputs(self.batch())
            negatives = self.negatives(f"step{number + 1}", out)
            return _total(method.terms(out, self.recorded["batch/text_labels"], *negatives))

        adam = optimizer(method.config, method, self.total_steps())
        allowed = self.compared("steps/loss", expected).tolerance * float(np.abs(expected).max())
        yield from training_loop(method, loss, method.config, adam, expected.tolist(), allowed, updated)

    def parameters(self, method: HLFormer, adam: BertAdam, step: int) -> Iterator[Quantity]:
        """step<k>/: parameters right after an update, before the next clamp."""
        named = dict(method.network.named_parameters())
        for name, expected in self.recorded.under(f"step{step}/").items():
            if name not in named:
                yield failure(f"step{step}/{name}", "there is no such parameter")
            elif name not in self.zero_gradient:  # Adam makes a full step of their rounding noise
                moments = adam.state.get(named[name], {})
                yield self.updated(f"step{step}/{name}", named[name], expected, moments)
        if step == 1 and self.case.get("step1_leaves_weights_unchanged"):
            clamped = set(self.case.get("clamped", ())) | {n for n in named if n.endswith("scale_alpha")}
            moved = [n for n in named if n not in clamped and not torch.equal(named[n], self.state[n])]
            yield same("step1 leaves the weights unchanged", moved, [])

    def updated(
        self, name: str, computed: Tensor, expected: Tensor, moments: Mapping[str, Tensor]
    ) -> Quantity:
        """A parameter after updates, within a small share of a learning rate.

        Adam divides by sqrt(v), so that an element whose gradient is rounding noise moves by noise of the
        size of a learning rate; the difference of each element counts the less, the more it is that.
        """
        weight = torch.ones_like(expected)
        if moments:
            noise = NOISE_SHARE * moments["first"].abs().max() / (moments["second"].sqrt() + 1e-6)
            weight = STEP_SHARE / (STEP_SHARE + noise)
        allowed = STEP_SHARE * self.config.lr + ULPS * float(expected.detach().abs().max())
        return compare(name, _array(weight * computed), _array(weight * expected), allowed)

    def checkpoint(self, method: HLFormer | None, adam: BertAdam | None) -> Iterator[Quantity]:
        """The authors' checkpoint: read and compared with our updates, written and compared with itself."""
        path = self.path.parent / str(self.case["official_format_checkpoint"]).split()[0]
        theirs = official.read(path)
        imported = official.method_from(theirs, self.case.get("preset"))
        restored = official.optimizer_from(imported, theirs)
        if method is not None and adam is not None:
            yield from self.imported(imported, restored, method, adam)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "official.ckpt"
            official.write(copy, imported, restored, theirs.epoch, theirs.model_val, theirs.config)
            yield from exported(official.read(copy), theirs)

    def imported(
        self, computed: HLFormer, restored: BertAdam, method: HLFormer, adam: BertAdam
    ) -> Iterator[Quantity]:
        """Weights, moments and count of updates in the checkpoint against those after our updates."""
        weights, moments = [], []
        for name, mine in method.network.named_parameters():
            if name in self.zero_gradient:
                continue
            theirs = computed.network.get_parameter(name)
            weights.append(self.updated(name, mine, theirs, restored.state.get(theirs, {})))
            for moment, value in adam.state.get(mine, {}).items():
                b = restored.state[theirs][moment]
                moments.append(
                    compare(f"{name} {moment}", _array(value), _array(b), 1e-3 * float(b.abs().max()))
                )
        yield from worst("checkpoint weights", weights)
        yield from worst("checkpoint moments", moments)
        for ours, read in zip(adam.param_groups, restored.param_groups, strict=True):
            keys = [key for key in ours if key != "params"]
            yield same("checkpoint optimizer group", {k: read[k] for k in keys}, {k: ours[k] for k in keys})


class LoaderCase:
    """A miniature MS-SL directory with what the authors' loaders make of it."""

    def __init__(self, path: Path, case: Mapping[str, Any]) -> None:
        self.path, self.case = path, case
        self.recorded = Recorded(read_tensors(path.with_suffix(".safetensors")))
        names = ("map_size", "max_ctx_l", "max_desc_l")
        self.config = HLFormerConfig(**{name: case[name] for name in names})

    def quantities(self) -> Iterator[Quantity]:
        """Orders, rows of videos and captions, the collated batch of all training videos."""
        folder = self.path.parent / self.case["collection"]
        with MsSl.open(folder, self.case["visual_feature"]) as source:
            yield from self.orders(source)
            with packed(self.config, source.splits, source.video, source.tokens) as data:
                yield same("dv", data.visual_dim, self.case.get("dv", data.visual_dim))
                yield same("dq", data.text_dim, self.case.get("dq", data.text_dim))
                for split in data.splits:
                    yield from compare_rows(data, split, self.recorded, "", ("clip", "frame", "text"))
                yield from self.batch(data)
        yield from self.recorded.left()

    def orders(self, source: MsSl) -> Iterator[Quantity]:
        """The videos and captions of each split, in order."""
        for split, (videos, captions) in source.splits.items():
            computed = {
                "video_ids_order": videos,
                "caption_ids_order": [caption for caption, _, _ in captions],
            }
            for key, order in computed.items():
                if f"{split}_{key}" in self.case:
                    yield same(f"{split}_{key}", list(order), self.case[f"{split}_{key}"])

    def batch(self, data: HLFormerData) -> Iterator[Quantity]:
        """train_batch/: all training videos taken in the order of the data."""
        index = data.splits["train"]
        batch, videos, captions = data.train_batch("train", data.train_items())
        computed = {
            "train_video_ids": index.items,
            "train_batch_video_ids": [index.items[v] for v in videos],
            "train_batch_caption_ids": [index.captions[c] for c in captions],
        }
        for key, order in computed.items():
            if key in self.case:
                yield same(key, order, self.case[key])
        yield from compare_batch(batch, self.recorded, "train_batch/")


def intermediates(method: HLFormer, batch: Batch) -> dict[str, Tensor]:
    """Every intermediate of a training pass under the names of the cases."""
    net, seen = method.network, _Seen(method.network)
    with torch.no_grad(), seen:
        out = method.outputs(batch)
        tokens = net.videos(batch["clips"], batch["frames"], batch["frame_mask"])
        computed = {
            "query.input_proj": seen["query_input_proj"],
            "query.pos_embed": seen["query_pos_embed"],
            "query.self_attn": seen["query_encoder.self"],
            "query.encoded": seen["query_encoder"],
            "query.pooled": out.queries,
            "frame.masked": tokens.frames,
            "video.frame_pool": net.pooled(net.modular_vector_mapping_2, tokens.frames),
            "video.clip_pool": net.pooled(net.modular_vector_mapping_3, tokens.clips),
            "score.clip_cos": out.clip.cos,
            "score.clip_dot": out.clip.dot,
            "score.frame_cos": out.frame.cos,
            "score.frame_dot": out.frame.dot,
            "hyp.curv": out.c,
            "hyp.query": out.texts_space,
            "hyp.video": out.videos_space,
        }
        angle, aperture = losses.cone_terms(out.texts_space, out.videos_space, batch["owner"], out.c)
        computed |= {"hyp.oxy_angle": angle, "hyp.half_aperture": aperture}
        computed |= _mixture(net.clip_encoder, seen, "clip", "clip_encoder")
        computed |= _mixture(net.frame_encoder_1, seen, "frame", "frame_encoder_1")
        computed |= _lorentz(net, seen)
    return computed


def _mixture(mixture: MixtureEncoder, seen: _Seen, branch: str, encoder: str) -> dict[str, Tensor]:
    """The intermediates of a branch with its encoder."""
    half = len(mixture.e_attns)
    names = [
        (f"{family[0]}{i}", f"{encoder}.{family}.{i}")
        for family in ("e_attns", "h_attns")
        for i in range(half)
    ]
    outputs = torch.stack([seen[module] for _, module in names], 1)
    computed = {f"{branch}.{short}": seen[module] for short, module in names}
    return computed | {
        f"{branch}.input_proj": seen[f"{branch}_input_proj"],
        f"{branch}.pos_embed": seen[f"{branch}_pos_embed"],
        f"{branch}.mean_token": mixture.mean_token(outputs),
        f"{branch}.ca_tokens": seen[f"{encoder}.ca"],
        f"{branch}.agg_logits": seen[f"{encoder}.layer2"],
        f"{branch}.agg_weights": mixture.weights(seen[f"{encoder}.ca"]).transpose(1, 2),
        f"{branch}.encoded": seen[encoder],
    }


def _lorentz(net: HLFormerNetwork, seen: _Seen) -> dict[str, Tensor]:
    """The internals of the clip branch's Lorentz block of index 1, or of its only one."""
    name = f"clip_encoder.h_attns.{min(1, len(net.clip_encoder.h_attns) - 1)}.self"
    block = net.get_submodule(name)
    if not isinstance(block, LorentzAttention):
        raise UserError(f"{name} is no Lorentz attention")
    inner = f"{name}.lorentz_multiattention"
    query, keys, values = (seen[f"{inner}.linear_{part}"] for part in ("query", "keys", "values"))
    logits = block.lorentz_multiattention.logits(query, keys, None)
    return {
        "lorentz.tangent_in_unscaled": seen[f"{name}.input_proj"],
        "lorentz.point_in": block.enter(seen[f"{name}.input_proj"]),
        "lorentz.query": query.transpose(1, 2),
        "lorentz.keys": keys.transpose(1, 2),
        "lorentz.values": values.transpose(1, 2),
        "lorentz.logits": logits,
        "lorentz.probs": logits.softmax(-1),
        "lorentz.point_out": seen[inner],
        "lorentz.out": seen[name],
    }


class _Seen:
    """The latest output of every module of a network, while it is entered."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.outputs: dict[str, Tensor] = {}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Seen:
        for name, module in self.network.named_modules():
            self.handles.append(module.register_forward_hook(self._keeper(name)))
        return self

    def _keeper(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.outputs[name] = output

        return keep

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def __getitem__(self, name: str) -> Tensor:
        return self.outputs[name]


def exported(computed: official.Checkpoint, expected: official.Checkpoint) -> Iterator[Quantity]:
    """A written checkpoint against the one it was read from: keys, order, shapes, values, optimizer."""
    yield same("export keys", list(computed.state_dict), list(expected.state_dict))
    values = [
        compare(name, _array(computed.state_dict[name]), _array(value), 0.0)
        for name, value in expected.state_dict.items()
        if name in computed.state_dict
    ]
    yield from worst("export values", values)
    yield same("export config", computed.config, {**computed.config, **expected.config})
    yield same("export config keys", sorted(computed.config), sorted(expected.config))
    yield same("export epoch", computed.epoch, expected.epoch)
    yield same("export model_val", computed.model_val, expected.model_val)
    yield from _optimizers(computed.optimizer, expected.optimizer)


def _optimizers(computed: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[Quantity]:
    for number, (a, b) in enumerate(zip(computed["param_groups"], expected["param_groups"], strict=True)):
        plain = [{**group, "schedule": vars(group["schedule"])} for group in (a, b)]
        yield same(f"export optimizer group {number}", *plain)
    yield same("export optimizer indices", sorted(computed["state"]), sorted(expected["state"]))
    entries = []
    for index, state in expected["state"].items():
        mine = computed["state"].get(index, {})
        entries.append(same(f"{index} entries", list(mine), list(state)))
        entries += [
            compare(f"{index} {key}", _array(mine[key]), _array(value), 0.0)
            for key, value in state.items()
            if key in mine
        ]
    yield from worst("export optimizer state", entries)


@contextmanager
def packed(
    config: HLFormerConfig,
    splits: Mapping[str, Split],
    video: Callable[[str], NDArray],
    tokens: Callable[[str], NDArray],
) -> Iterator[HLFormerData]:
    """The data of a case, packed in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        pack(Path(name), config, splits, {"video": video, "text": tokens})
        yield open_data(Path(name), config)


def compare_rows(
    data: HLFormerData, split: str, recorded: Recorded, prefix: str, kinds: Iterable[str]
) -> Iterator[Quantity]:
    """Packed rows of a split against recorded ones named `<prefix><kind>/<id>`."""
    index = data.splits[split]
    sources = {
        "clip": (data.clips, index.items, index.item_rows),
        "frame": (data.frames, index.items, index.item_rows),
        "text": (data.tokens, index.captions, index.caption_rows),
    }
    for kind in kinds:
        arrays, names, rows = sources[kind]
        for name, row in zip(names, rows, strict=True):
            key = f"{prefix}{kind}/{name}"
            if key in recorded:
                yield compare(key, arrays[row], _array(recorded[key]), DATA_TOLERANCE)


def compare_batch(batch: Batch, recorded: Recorded, prefix: str) -> Iterator[Quantity]:
    """A collated batch against a recorded one."""
    for ours, theirs in BATCH_NAMES.items():
        if prefix + theirs in recorded:
            yield compare(
                prefix + theirs, _array(batch[ours]), _array(recorded[prefix + theirs]), DATA_TOLERANCE
            )


def compare_metrics(
    name: str, scores: NDArray, truth: Iterable[int], expected: Mapping[str, Any]
) -> Iterator[Quantity]:
    """Recalls and their sum of a score matrix (Q, V) against recorded ones."""
    computed = metrics(text_ranks(scores, np.asarray(list(truth), dtype=np.int64)).strict)
    if "r1_r5_r10_r100" in expected:
        yield compare(f"{name} recalls", [computed[r] for r in RECALLS], expected["r1_r5_r10_r100"], 1e-9)
    if "sumr" in expected:
        yield compare(f"{name} sumr", computed["SumR"], expected["sumr"], 1e-9)


def _raw_terms(out: TrainingOutputs, owner: Tensor, c: HLFormerConfig) -> dict[str, Tensor]:
    """The terms that a case records without their weight."""
    return {
        "clip_nce_raw": losses.nce(out.clip.dot, owner),
        "frame_nce_raw": losses.nce(out.frame.dot, owner),
        "div_raw": losses.diversity(out.queries, owner, c.mu, c.diversity_scale, c.diversity_power),
        "pop_raw": losses.partial_order(out.texts_space, out.videos_space, owner, out.c),
    }


def _used_terms(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms that a case records as they are used, and the total."""
    computed = {"total": _total(terms), "total_official": _total(terms)}
    triplets = {"clip_trip": "clip_triplet", "frame_trip": "frame_triplet"}
    return computed | {name: terms[ours] for name, ours in triplets.items() if ours in terms}


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def _neg(group: str, branch: str) -> str:
    """The beginning of the names of a group's negatives: neg_soft/clip, step1_neg/clip."""
    return f"{group}_neg/{branch}" if group.startswith("step") else f"neg_{group}/{branch}"


def _joined(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    collected = list(parts)
    return {name: torch.cat([part[name] for part in collected]) for name in collected[0]}


def _rows(tensors: Mapping[str, Tensor]) -> Callable[[str], NDArray]:
    return lambda name: array(tensors[name])


def _array(value: Tensor | NDArray | float | None) -> NDArray:
    return array(value) if isinstance(value, Tensor) else np.asarray(value)
