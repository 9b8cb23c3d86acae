"""Two forms that torch offers against ours: attention in one call, and convolutions on channels-last memory.

    python benchmarks/torch_forms.py [--repeats 9] [--pictures 4] [--only attention convolutions]

Attention: each one of ours that is softmax(Q K^T + bias) V, at published sizes, forward and backward, against
`scaled_dot_product_attention`. Those that a window multiplies, that weigh points of a hyperboloid, or whose weights are
used again (GARE's Gram matrices, HLFormer's pooling, LEAN's hyperedges, all that is explained) have no such form, and
networks of torch, open_clip and transformers use it already. Convolutions: the frozen networks that read pictures, in
float32. Both forms take turns in CPU seconds on one thread; printed are medians, their ratio, and the largest
difference of an output over the largest output.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from extractors.backbones.clip import ClipBackbone
from extractors.backbones.vgg16 import Vgg16Backbone
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.model import MASKED_LOGIT, GaussianAttention
from trainers.neighborretr.clustering import ScoredAttention

Forms = dict[str, Callable[[], Tensor]]
WORDS, VIDEOS = 30, 24  # of a caption, and in a batch of HLFormer


def split(values: Tensor, heads: int) -> Tensor:
    """(N, L, D) as (N, heads, L, D / heads)."""
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention() -> Iterator[tuple[str, Forms]]:
    """Forward and backward pass of each attention, ours first; the result is the output."""
    torch.manual_seed(0)
    config = HLFormerConfig()
    for title, count, length, dropout in (
        ("HLFormer, captions", 5 * VIDEOS, WORDS, 0.2),
        ("HLFormer, frames without a window", VIDEOS, config.max_ctx_l, 0.2),
    ):
        layer = GaussianAttention(config)
        layer.drop.p = dropout
        x = torch.randn(count, length, config.hidden_size, requires_grad=True)
        mask = (torch.rand(count, length) < 0.8).float()
        mask[:, 0] = 1

        def fused(layer: GaussianAttention = layer, x: Tensor = x, mask: Tensor = mask) -> Tensor:
            q, k, v = (split(part(x), layer.heads) for part in (layer.query, layer.key, layer.value))
            bias = (1 - mask[:, None, None]) * MASKED_LOGIT
            p = layer.drop.p if layer.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, bias, p).transpose(1, 2).flatten(2)

        yield (
            title,
            {
                "ours": trained(lambda layer=layer, x=x, mask=mask: layer(x, mask), layer, x),
                "torch": trained(fused, layer, x),
            },
        )
    scored = ScoredAttention(512, 8)
    queries, tokens = torch.randn(128, 6, 512, requires_grad=True), torch.randn(128, 24, 512)
    bias = torch.randn(128, 24, requires_grad=True)

    def merged() -> Tensor:
        q = split(scored.q(queries), 8)
        k, v = scored.kv(tokens).unflatten(-1, (2, 8, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, bias[:, None, None].expand(-1, 8, 6, -1))
        return scored.proj(attended.transpose(1, 2).flatten(2))

    yield (
        "NeighborRetr, clusters",
        {
            "ours": trained(lambda: scored(queries, tokens, bias), scored, queries),
            "torch": trained(merged, scored, queries),
        },
    )
    gap = torch.randn(32, 128, 512, requires_grad=True)  # captions x videos, as GARE corrects videos
    keys, values, shift = torch.randn(32, 24, 512), torch.randn(32, 24, 512), torch.randn(32, 1, 24)

    def written() -> Tensor:
        return ((gap @ keys.transpose(1, 2) + shift) / math.sqrt(512)).softmax(-1) @ values

    def called() -> Tensor:
        return F.scaled_dot_product_attention(gap, keys, values, (shift / math.sqrt(512)).expand(-1, 128, -1))

    none = torch.nn.Identity()
    yield (
        "GARE, words of a caption",
        {"ours": trained(written, none, gap), "torch": trained(called, none, gap)},
    )


def trained(forward: Callable[[], Tensor], layer: torch.nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    """The output after a backward pass in training mode; `layer.training` off gives the output alone."""

    def step() -> Tensor:
        out = forward()
        if layer.training:
            out.square().sum().backward()
            inputs.grad = None
            layer.zero_grad(set_to_none=True)
        return out.detach()

    step.layer = layer  # type: ignore[attr-defined]
    return step


def convolutions(pictures: int) -> Iterator[tuple[str, Forms]]:
    """Features of pictures by each network, its weights and pictures as they are and channels last."""
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 255, (pictures, 224, 224, 3), np.uint8)
    vgg16 = Vgg16Backbone("vgg16", "seed:0")
    given = vgg16._normalised(torch.from_numpy(frames))
    yield "VGG16", networks(vgg16.network, given)
    for model in ("RN50", "ViT-B-32-quickgelu"):
        clip = ClipBackbone(model, "seed:0")
        given = clip._pixels(torch.from_numpy(clip.crops(frames)))
        yield model, networks(clip.network.visual, given)
        if model.startswith("ViT"):
            yield f"{model}, patch embedding alone", networks(clip.network.visual.conv1, given)


def networks(network: torch.nn.Module, given: Tensor) -> Forms:
    """The outputs of a network in both layouts of memory; a copy of the pictures into the other one counts."""
    import copy

    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    plain = given.contiguous()

    def ours() -> Tensor:
        with torch.inference_mode():
            return network(plain)

    def other() -> Tensor:
        with torch.inference_mode():
            return last(plain.to(memory_format=torch.channels_last))

    return {"ours": ours, "torch": other}


def compare(title: str, forms: Forms, repeats: int) -> None:
    """Print the seconds of both forms, their ratio, and how far outputs are apart."""
    layer = getattr(forms["ours"], "layer", None)
    if layer is not None:
        layer.eval()
    one, other = (form() for form in forms.values())
    apart = float((one - other).abs().max() / one.abs().max())
    if layer is not None:
        layer.train()
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(repeats + 1):
        for name in forms if number % 2 else reversed(forms):
            began = time.process_time()
            forms[name]()
            if number:
                taken[name].append(time.process_time() - began)
    ours, theirs = (statistics.median(found) for found in taken.values())
    print(
        f"{title}: ours {ours * 1e3:.1f} ms, torch's {theirs * 1e3:.1f} ms, {ours / theirs:.2f} x; "
        f"apart by {apart:.1e}",
        flush=True,
    )


def main() -> None:
    """Compare both forms of everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each form")
    parser.add_argument("--pictures", type=int, default=4, help="in a batch of a network")
    parser.add_argument("--only", nargs="+", default=["attention", "convolutions"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if "attention" in arguments.only:
        for title, forms in attention():
            compare(f"attention of {title}", forms, arguments.repeats)
    if "convolutions" in arguments.only:
        for title, forms in convolutions(arguments.pictures):
            compare(f"channels last, {title}", forms, arguments.repeats)


if __name__ == "__main__":
    main()
