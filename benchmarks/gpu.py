"""Everything that only an accelerator shows, in one call without Prefect: right, fast, and how near to the card's peak.

    python benchmarks/gpu.py [--device cuda] [--cases DIR] [--minutes 10] [--only networks training ...]

The parts, in this order; those for which no time is left are named and left out:
  peaks       what the card does at most: matrix products in float32, TF32 and bfloat16, copies in its memory and to it
  cases       recorded numerical cases of every method, computed on it in float32 (`crossreel verify --device`)
  tests       the tests that are marked gpu
  networks    pictures, captions and clouds a second through each backbone, in batches and one by one
  compiled    a training step with `compile = true`, against the same without
  training    updates a second at published sizes by the training loop, against a plain loop of the same steps
Prints a line as each is done, and all of them as one table at the end, in Markdown. Shares of the peak are
floating-point operations, as torch counts them, over the products that the card makes in that precision. On a
machine without an accelerator it runs small sizes on the CPU, which shows that it works and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published_inputs import CLOUD_TOKENS, opened, text_of
from extractors.backbones.clip import ClipBackbone
from extractors.backbones.dgcnn import Dgcnn
from extractors.backbones.vgg16 import Vgg16Backbone
from trainers import compiler
from trainers.loop.engine import fit
from trainers.registry import METHODS

ROOT = Path(__file__).parents[1]
WARM_UP, TIMED = 3, 10  # updates, or batches
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16-legacy": torch.float16}
TRAINED: dict[str, dict[str, dict[str, Any]]] = {
    "hlformer": {"": {}},
    "neighborretr": {"frozen": {"mode": "frozen"}, "finetune": {"mode": "finetune", "backbone_weights": "seed:0"}},
    "gare": {"frozen": {"mode": "frozen"}, "finetune": {"mode": "finetune", "backbone_weights": "seed:0"}},
    "clip4clip": {"finetune": {"mode": "finetune", "backbone_weights": "seed:0"}},
    "lean": {"": {}},
    "h2arn": {"": {}},
}  # fmt: skip
"""Published settings of each method; the weights that are fine-tuned are drawn, since a step costs the same."""
SMALLER: dict[str, dict[str, Any]] = {
    "hlformer": {"batch_size": 4, "blocks": 2}, "lean": {"batch_size": 4}, "h2arn": {"batch_size": 8, "num_layers": 1},
    "neighborretr": {"batch_size": 24, "bank_size": 32, "base_encoder": "crossreel-demo", "num_neighbors": 10},
    "gare": {"batch_size": 16, "base_encoder": "crossreel-demo"},
    "clip4clip": {"batch_size": 16, "base_encoder": "crossreel-demo"},
}  # fmt: skip
"""Settings in place of those on a CPU."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    result: str
    peak: str = ""
    memory: str = ""


class Card:
    """The device under test, and what it does at most."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.real = self.device.type == "cuda"
        self.products: dict[torch.dtype, float] = {}  # operations a second

    @property
    def title(self) -> str:
        """Its name, memory and torch's version."""
        if not self.real:
            return f"a CPU, {torch.get_num_threads()} threads: small sizes; torch {torch.__version__}"
        about = torch.cuda.get_device_properties(self.device)
        software = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
        return f"{about.name}, {about.total_memory / 2**30:.0f} GiB; {software}"

    def wait(self) -> None:
        """Until all work handed to it is done."""
        if self.real:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], times: int = TIMED) -> float:
        """The median duration of a call, after some that warm up."""
        for _ in range(WARM_UP if self.real else 1):
            work()
        found = []
        for _ in range(times if self.real else 2):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    def share(self, operations: float, seconds: float, kind: torch.dtype) -> str:
        """Operations a second as a share of those of matrix products in that precision."""
        most = self.products.get(kind)
        rate = operations / seconds
        return f"{rate / 1e12:.2f} TFLOP/s" + (f", {100 * rate / most:.0f} % of the peak" if most else "")

    def forget(self) -> None:
        """Begin to measure memory anew."""
        if self.real:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def memory(self) -> str:
        """The most that was allocated since `forget`; without a card, the process's peak so far."""
        if self.real:
            return f"{torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB"
        return f"process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def peaks(card: Card, _: argparse.Namespace) -> Iterator[Row]:
    """Products of matrices and copies."""
    size = 8192 if card.real else 512
    kinds = [
        ("float32", torch.float32, False),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
    ]
    for title, kind, tf32 in [*kinds, ("TF32", torch.float32, True)] if card.real else kinds[:2]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(size, size, device=card.device).to(kind) for _ in range(2))
        seconds = card.seconds(lambda a=a, b=b: a @ b)
        torch.backends.cuda.matmul.allow_tf32 = False
        rate = 2 * size**3 / seconds
        if not tf32:
            card.products[kind] = rate
        yield Row(f"products of {size} x {size} matrices, {title}", f"{rate / 1e12:.1f} TFLOP/s")
    values = torch.zeros(2**30 if card.real else 2**24, dtype=torch.uint8, device=card.device)
    seconds = card.seconds(values.clone)
    yield Row("copy within the memory", f"{2 * values.numel() / seconds / 1e9:.0f} GB/s read and written")
    if card.real:
        for title, host in (("pageable", torch.zeros(2**28, dtype=torch.uint8)), ("pinned", None)):
            source = torch.zeros(2**28, dtype=torch.uint8).pin_memory() if host is None else host
            seconds = card.seconds(lambda source=source: source.to(card.device, non_blocking=True))
            yield Row(f"copy to the card from {title} memory", f"{source.numel() / seconds / 1e9:.1f} GB/s")


def cases(card: Card, arguments: argparse.Namespace) -> Iterator[Row]:
    """Recorded cases of each method, in a process each."""
    for method in METHODS.names():
        folder = arguments.cases / method
        if not folder.is_dir():
            continue
        command = [sys.executable, "-m", "flows.cli", "verify", str(folder), "--method", method]
        command += ["--device", str(card.device), "--quiet"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).strip().splitlines()
        for line in lines:
            if "FAIL" in line:
                print(f"    {line.strip()}", flush=True)
        yield Row(f"recorded cases of {method}", lines[-1] if lines else f"ended with {done.returncode}")


def tests(card: Card, _: argparse.Namespace) -> Iterator[Row]:
    """The tests that need an accelerator."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        print("\n".join(f"    {line}" for line in lines[-20:]), flush=True)
    yield Row(
        "tests marked gpu", re.sub(r"[= ]*(.*?)[= ]*$", r"\1", lines[-1]) if lines else "nothing printed"
    )


def networks(card: Card, _: argparse.Namespace) -> Iterator[Row]:
    """Every backbone in batches, against the same one by one."""
    many, model = (256, "ViT-B-32-quickgelu") if card.real else (4, "crossreel-demo")
    draw = np.random.default_rng(0)
    clip = ClipBackbone(model, "seed:0", card.device)
    crops = clip.crops(draw.integers(0, 255, (many, 224, 298, 3), np.uint8))
    texts = [text_of(number) for number in range(many)]
    vgg16 = Vgg16Backbone("vgg16" if card.real else "crossreel-demo", "seed:0", "fc7", str(card.device))
    pictures = draw.integers(0, 255, (many // 4, 224, 224, 3), np.uint8)
    dgcnn, points = Dgcnn().to(card.device).eval(), 10_000 if card.real else 1_000
    cloud = torch.randn(points, 9, device=card.device)
    yield Row(
        f"{model}: crops of frames, on the CPU", _rate(card, many, lambda: clip.crops(pictures)[: many // 4])
    )
    yield from _both(card, f"{model}, pictures", crops, clip.crop_features)
    yield from _both(card, f"{model}, captions", texts, clip.text_tokens)
    yield from _both(card, "VGG16, pictures", pictures, vgg16.features)
    with torch.inference_mode():
        yield _measured(
            card, f"DGCNN, clouds of {points} points, {CLOUD_TOKENS} tokens", 1, lambda: dgcnn(cloud)
        )


def _both(card: Card, title: str, inputs: Any, network: Callable[[Any], object]) -> Iterator[Row]:
    row = _measured(card, title, len(inputs), lambda: network(inputs))
    few = inputs[: min(16, len(inputs))]
    single = card.seconds(lambda: [network(few[n : n + 1]) for n in range(len(few))]) / len(few)
    yield Row(row.what, f"{row.result}; one by one {1 / single:.0f}", row.peak, row.memory)


def _measured(card: Card, title: str, count: int, work: Callable[[], object]) -> Row:
    card.forget()
    with FlopCounterMode(display=False) as counter:
        work()
    seconds = card.seconds(work)
    peak = card.share(counter.get_total_flops(), seconds, torch.float16 if card.real else torch.float32)
    return Row(title, f"{count / seconds:.0f} a second", peak, card.memory)


def _rate(card: Card, count: int, work: Callable[[], object]) -> str:
    return f"{count / card.seconds(work):.0f} a second"


def training(card: Card, _: argparse.Namespace) -> Iterator[Row]:
    """The training loop of each method, against a plain loop."""
    for name, variants in TRAINED.items():
        for title, settings in variants.items():
            yield _trained(card, name, title, settings if card.real else {**settings, **SMALLER[name]})


def compiled(card: Card, _: argparse.Namespace) -> Iterator[Row]:
    """One method's step by torch's compiler, against the same without."""
    if lacking := compiler.lack(str(card.device)):
        yield Row("GARE frozen, compile = true", lacking)
        return
    card.forget()
    settings = {"mode": "frozen"} if card.real else {"mode": "frozen", **SMALLER["gare"]}
    size = METHODS.find("gare").config.model_validate(settings).batch_size
    with tempfile.TemporaryDirectory() as folder:
        declared, config, data = opened(Path(folder), "gare", -(-size // 20), 20, **settings, epochs=1)
        method = declared.build(config, data).to(card.device).train()
        batch = next(iter(data.train_batches(0, config.seed)))
        given = {name: tensor.to(card.device) for name, tensor in batch.items()}

        def step(losses: Callable[..., Mapping[str, torch.Tensor]]) -> None:
            torch.stack([term.float().reshape(()) for term in losses(given, 0).values()]).sum().backward()
            method.zero_grad(set_to_none=True)

        fast = torch.compile(method.losses)
        began = time.perf_counter()
        step(fast)
        card.wait()
        first = time.perf_counter() - began
        seconds = {
            form: card.seconds(lambda losses=losses: step(losses))
            for form, losses in (("plain", method.losses), ("compiled", fast))
        }
    yield Row(
        f"GARE frozen, losses and gradients of {size}, compile = true",
        f"{seconds['plain'] / seconds['compiled']:.2f} x ({1e3 * seconds['compiled']:.1f} ms, plain "
        f"{1e3 * seconds['plain']:.1f} ms), the first after {first:.0f} s",
        memory=card.memory,
    )


def _trained(card: Card, name: str, title: str, settings: dict[str, Any]) -> Row:
    card.forget()
    with tempfile.TemporaryDirectory() as folder:
        size = METHODS.find(name).config.model_validate(settings).batch_size
        updates = WARM_UP + TIMED if card.real else 3
        pairs = size * updates
        each = (
            5 if name == "hlformer" else 1 if name == "h2arn" else 20
        )  # of a video; fine-tuning keeps few pictures
        items = pairs if name == "hlformer" else -(-pairs // each)
        data_folder = Path(folder, "data")
        data_folder.mkdir()
        declared, config, data = opened(data_folder, name, items, each, **settings, epochs=1)
        torch.manual_seed(0)
        plain = _plain(card, declared, config, data, updates)
        method = declared.build(config, data)
        times: list[float] = []
        optimizer = declared.optimizer(config, method, updates)
        optimizer.register_step_post_hook(lambda *_: times.append(time.perf_counter()))
        result = fit(
            method, _Part(data, updates), config, optimizer, validate=lambda _: {"SumR": 1.0}, figure="SumR",
            folder=Path(folder, "run"), device=card.device,
        )  # fmt: skip
        each_update = times[:: len(times) // updates]  # an optimizer made of two reports twice
        ours = statistics.median(after - before for before, after in itertools.pairwise(each_update))
        waiting = result.history[-1].get("waiting")
    kind = PRECISIONS[config.precision]
    waited = "" if waiting is None else f", waits for data {100 * float(waiting):.0f} %"  # type: ignore[arg-type]
    return Row(
        f"{name} {title}".strip() + f", updates of {size} ({config.precision})",
        f"{1 / ours:.2f} a second, {size / ours:.0f} pairs; plain loop {1 / plain.seconds:.2f}{waited}",
        card.share(plain.operations, ours, kind),
        card.memory,
    )


class _Part:
    """The first updates of an epoch."""

    def __init__(self, data: Any, updates: int) -> None:
        self.data, self.updates = data, min(updates, data.train_steps())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def train_steps(self, world: int = 1) -> int:
        """So many."""
        return self.updates


@dataclass(frozen=True)
class Plain:
    """Seconds and operations of an update of the plain loop."""

    seconds: float
    operations: float


def _plain(card: Card, declared: Any, config: Any, data: Any, updates: int) -> Plain:
    """Batch, copy, losses, backward pass, update, one after the other."""
    method = declared.build(config, data).to(card.device).train()
    optimizer = declared.optimizer(config, method, updates)
    batches = data.train_batches(0, config.seed)

    def step() -> None:
        batch = {name: tensor.to(card.device) for name, tensor in next(batches).items()}
        with torch.autocast(card.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            total = torch.stack([term.float().reshape(()) for term in method.losses(batch, 0).values()]).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as counter:
        step()
    durations = []
    for _ in itertools.repeat(None, updates - 1):
        card.wait()
        began = time.perf_counter()
        step()
        card.wait()
        durations.append(time.perf_counter() - began)
    return Plain(statistics.median(durations), counter.get_total_flops())


PARTS: dict[str, Callable[[Card, argparse.Namespace], Iterator[Row]]] = {
    "peaks": peaks, "cases": cases, "tests": tests, "networks": networks, "compiled": compiled, "training": training,
}  # fmt: skip


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--cases", type=Path, default=ROOT / "tests/fixtures", help="a folder with one a method"
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="after which no further line is begun")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    card, began, rows = Card(arguments.device), time.monotonic(), []
    print(card.title, flush=True)
    left_out = []
    for name in arguments.only:
        for row in PARTS[name](card, arguments):
            rows.append(row)
            print(
                f"{time.monotonic() - began:5.0f} s  {row.what}: {row.result}  {row.peak}  {row.memory}",
                flush=True,
            )
            if time.monotonic() - began > 60 * arguments.minutes:
                left_out.append(name)
                break
    print(f"\n{card.title}\n\n| what | measured | share of the peak | memory |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row.what} | {row.result} | {row.peak} | {row.memory} |")
    if left_out:
        print(f"\nNo time was left for all of: {', '.join(left_out)}")


if __name__ == "__main__":
    main()
