"""Training steps with `compile = true` against the same without, for each method at the width of the demo.

    python benchmarks/compiled_steps.py [--methods gare lean ...] [--repeats 15] [--minutes 10] [--device cpu]

Each method is compiled in a process of its own with an empty cache. Both forms then take turns on the same batches:
losses, backward pass and update, in CPU seconds (seconds on a GPU). Printed are the ratio of medians, the seconds of
compilation until every batch of an epoch has come by once, after how many steps they are earned back, and the largest
relative difference of a loss term at equal weights, dropout left out.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.published_inputs import opened
from trainers import compiler

FLOWS = Path(__file__).parents[1] / "flows"
TUNED: dict[str, dict[str, Any]] = {
    "clip4clip": {
        "mode": "finetune",
        "base_encoder": "crossreel-demo",
        "backbone_weights": "seed:0",
        "batch_size": 8,
        "epochs": 1,
    },
    "neighborretr": {"base_encoder": "crossreel-demo"},
    "gare": {"base_encoder": "crossreel-demo"},
}
"""Settings beside those of the demo: CLIP4Clip trains nothing there, so that it is fine-tuned here."""
STEPS = 4  # of an epoch: the last batch of one may be smaller


def settings_of(name: str) -> dict[str, Any]:
    """The settings of the demo."""
    file = "demo-clouds.toml" if name == "h2arn" else "demo.toml"
    given = tomllib.loads((FLOWS / file).read_text(encoding="utf-8"))["trainers"].get(name, {})
    return {**given, **TUNED.get(name, {})}


def measured(name: str, repeats: int, device: torch.device) -> str:
    """Both forms of a method's step in turns, as a line."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(name)
        each = 5 if name == "hlformer" else 1
        pairs = settings["batch_size"] * STEPS
        items = pairs // (1 if name == "hlformer" else each)
        declared, config, data = opened(Path(folder), name, items, each, **settings)
        forms = {form: declared.build(config, data).to(device).train() for form in ("plain", "compiled")}
        forms["compiled"].load_state_dict(forms["plain"].state_dict())
        losses: dict[str, Callable[..., Any]] = {
            "plain": forms["plain"].losses,
            "compiled": torch.compile(forms["compiled"].losses),
        }
        batches = [{k: v.to(device) for k, v in b.items()} for b in data.train_batches(0, config.seed)]
        began = clock(device)
        apart = differences(forms, losses, batches[0])
        optimizers = {form: declared.optimizer(config, method, 10**6) for form, method in forms.items()}

        def seconds(form: str, batch: Any) -> float:
            start = clock(device)
            torch.stack([t.float().reshape(()) for t in losses[form](batch, 0).values()]).sum().backward()
            optimizers[form].step()
            optimizers[form].zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return clock(device) - start

        for batch in [*batches, batches[0]]:
            seconds("compiled", batch)
        spent = clock(device) - began
        taken: dict[str, list[float]] = {"plain": [], "compiled": []}
        for number in range(repeats):
            order = ("plain", "compiled") if number % 2 else ("compiled", "plain")
            for form in order:
                taken[form].append(seconds(form, batches[number % len(batches)]))
    plain, fast = (statistics.median(taken[form]) for form in ("plain", "compiled"))
    compilation = spent - (len(batches) + 1) * fast
    pays = f"pays after {compilation / (plain - fast):,.0f} steps" if plain > fast else "never pays"
    return (
        f"{name}: {plain * 1e3:.1f} ms a step, compiled {fast * 1e3:.1f} ms, {plain / fast:.2f} x; "
        f"compilation {compilation:.0f} s, {pays}; loss terms apart by {apart:.1e} at most"
    )


def clock(device: torch.device) -> float:
    """CPU seconds, those of the C++ compiler included, or seconds on a GPU."""
    if device.type == "cuda":
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def differences(forms: dict[str, Any], losses: dict[str, Callable[..., Any]], batch: Any) -> float:
    """The largest relative difference of a loss term between the forms, in evaluation mode, which has no dropout."""
    found = {}
    for form, method in forms.items():
        method.eval()
        torch.manual_seed(1)
        found[form] = {name: float(term.detach()) for name, term in losses[form](batch, 0).items()}
        method.train()
    return max(
        abs(value - found["compiled"][name]) / max(abs(value), 1e-6) for name, value in found["plain"].items()
    )


def main() -> None:
    """Measure each method in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", nargs="+", default=["clip4clip", "neighborretr", "gare", "lean", "hlformer", "h2arn"]
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each form")
    parser.add_argument("--minutes", type=float, default=10, help="after which a method is given up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        torch.set_num_threads(1)
        if lacking := compiler.lack(arguments.device):
            raise SystemExit(lacking)
        print(measured(arguments.only, arguments.repeats, torch.device(arguments.device)), flush=True)
        return
    for name in arguments.methods:
        with tempfile.TemporaryDirectory() as cache:
            environment = {
                **os.environ,
                "TORCHINDUCTOR_CACHE_DIR": cache,
                "TORCHINDUCTOR_COMPILE_THREADS": "1",
            }
            command = [sys.executable, __file__, "--only", name, "--repeats", str(arguments.repeats)]
            command += ["--device", arguments.device]
            try:
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=False,
                    timeout=60 * arguments.minutes,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                print(f"{name}: not compiled and measured after {arguments.minutes:g} minutes", flush=True)
                continue
            print(done.stdout.strip() or f"{name}: {done.stderr.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
