"""The constants of flows/costs.py, measured on this machine: CPU seconds of one core, networks with seeded weights.

    python benchmarks/costs.py

Prints a line a constant: what is measured, what the file says. A plan's estimates are as good as these.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from extractors.backbones import clip_configs, parsers
from extractors.backbones.clip import ClipBackbone
from extractors.backbones.parsers import SHIPPED
from extractors.backbones.vgg16 import Vgg16Backbone
from extractors.dgcnn import Dgcnn, DgcnnParams
from extractors.keyframes import histogram
from extractors.pointnet import Pointnet, PointnetParams
from extractors.pointnet2 import Pointnet2, Pointnet2Params
from extractors.triples import TriplesParams
from flows import costs
from pipeline.media import video
from pipeline.media.clouds.sampling import farthest_points

MODEL = "ViT-B-32-quickgelu"
FRAMES, TEXTS, POINTS, SECONDS = 8, 32, 10_000, 20
SENTENCE = "a man in a red shirt throws a small ball to his dog in the garden"


def cpu_seconds(call: Callable[[], object], times: int = 3) -> float:
    """The least CPU seconds of a call, of several; children that have ended count."""
    best = float("inf")
    for _ in range(times):
        before = sum(os.times()[:4])
        call()
        best = min(best, sum(os.times()[:4]) - before)
    return best


def shown(what: str, measured: float, assumed: float, scale: float = 1.0, unit: str = "") -> None:
    """One line: a constant as it was measured, and as it stands in the file."""
    print(f"{what}: {measured * scale:.3g}{unit} measured, {assumed * scale:.3g}{unit} assumed", flush=True)


def networks() -> None:
    """Operations a second of networks at published sizes."""
    config = clip_configs.read(MODEL)
    network = ClipBackbone(MODEL, "seed:0", "cpu")
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 224, 398, 3)).astype(np.uint8)
    crops = network.crops(frames)
    shown(
        "crop of a frame", cpu_seconds(lambda: network.crops(frames)) / FRAMES, costs.CROP_SECONDS, 1e3, " ms"
    )
    each = cpu_seconds(lambda: network.crop_features(crops)) / FRAMES
    operations = costs.vision_operations(config["vision_cfg"])
    shown("ViT-B/32, pictures", operations / each, costs.OPERATIONS_A_SECOND, 1e-9, " GFLOP/s")
    each = cpu_seconds(lambda: network.text_tokens([SENTENCE] * TEXTS)) / TEXTS
    tokens = len(SENTENCE.split()) * costs.TOKENS_A_WORD + costs.SPECIAL_TOKENS
    operations = costs.text_operations(config["text_cfg"], tokens)
    shown("ViT-B/32, captions", operations / each, costs.OPERATIONS_A_SECOND, 1e-9, " GFLOP/s")
    vgg16 = Vgg16Backbone("vgg16", "seed:0", "fc7", "cpu")
    pictures = frames[:2, :, :224]
    each = cpu_seconds(lambda: vgg16.features(pictures)) / len(pictures)
    shown("VGG16", costs.VGG16_OPERATIONS / each, costs.OPERATIONS_A_SECOND, 1e-9, " GFLOP/s")


def texts() -> None:
    """Parsing by the parser that is shipped."""
    parser = parsers.build(TriplesParams(package=SHIPPED), "cpu")
    each = cpu_seconds(lambda: parser.parse([SENTENCE] * TEXTS)) / TEXTS / len(SENTENCE.split())
    shown("a word, small parser", each, costs.PARSED_WORD_SECONDS[SHIPPED], 1e3, " ms")


def videos() -> None:
    """Compression, decoding, histograms."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.mp4", Path(folder) / "target.mp4"
        made = f"testsrc2=duration={SECONDS}:size=640x360:rate=25,noise=alls=8"
        command = [
            video.find_ffmpeg(),
            "-v",
            "error",
            "-f",
            "lavfi",
            "-i",
            made,
            "-pix_fmt",
            "yuv420p",
            str(source),
        ]
        subprocess.run(command, check=True)
        each = (
            cpu_seconds(lambda: video.compress(source, target, video.Compression(), 300)) - costs.ITEM_SECONDS
        )
        megapixels = 640 * 360 * 25 * SECONDS / 1e6
        shown("decoding a source", each / megapixels, costs.MEGAPIXEL_SECONDS, 1e3, " ms a megapixel")
        frames: list[np.ndarray] = []

        def decoded() -> None:
            frames[:] = [frame for chunk, _ in video.decode(target) for frame in chunk]

        each = cpu_seconds(decoded) / (SECONDS * 3)
        shown("decoding a compressed frame", each, costs.DECODED_FRAME_SECONDS, 1e3, " ms")
        each = cpu_seconds(lambda: [histogram(frame) for frame in frames]) / len(frames)
        shown("histogram", each, costs.HISTOGRAM_SECONDS, 1e3, " ms")


def clouds() -> None:
    """Sampling and encoding of points."""
    rng = np.random.default_rng(0)
    xyz = rng.random((2 * POINTS, 3))
    each = cpu_seconds(lambda: farthest_points(xyz, POINTS)) / (2 * POINTS * POINTS)
    shown("farthest points", each, costs.SAMPLED_POINT_SECONDS, 1e9, " ns a pair")
    points = torch.from_numpy(rng.random((POINTS, 9)).astype(np.float32))
    for stage in (
        Dgcnn(DgcnnParams(weights="seed:0")),
        Pointnet(PointnetParams(weights="seed:0")),
        Pointnet2(Pointnet2Params(weights="seed:0")),
    ):
        network = stage.build().eval()
        with torch.inference_mode():
            each = cpu_seconds(lambda s=stage, n=network: s.encode(n, points, "key"), 2) / POINTS  # type: ignore[misc]
        shown(stage.name, each, costs.CLOUD_POINT_SECONDS[stage.name], 1e6, " us a point")


def main() -> None:
    """Print every constant."""
    torch.set_num_threads(1)
    began = time.monotonic()
    for measure in (videos, networks, texts, clouds):
        measure()
    print(json.dumps({"seconds": round(time.monotonic() - began, 1), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
