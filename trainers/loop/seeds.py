"""Random numbers that repeat: seeding by (seed, epoch, process), and the state of every generator."""

from __future__ import annotations

import json
import random

import numpy as np
import torch
from torch import Tensor


def seed_everything(*parts: int) -> None:
    """Seed python, numpy and torch from whole numbers; different numbers give unrelated streams."""
    words = np.random.SeedSequence(parts).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed((int(words[2]) << 32 | int(words[3])) >> 1)  # every CUDA device too


def random_state(device: torch.device) -> Tensor:
    """The state of the generators of python, numpy, torch and the device, as bytes (n,) uint8."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None,
    }
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)


def restore_random_state(state: Tensor, device: torch.device) -> None:
    """Restore the state of every generator that `random_state` saved."""
    saved = json.loads(bytes(state.tolist()))
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(saved["torch"], dtype=torch.uint8))
    if device.type == "cuda" and saved["cuda"] is not None:
        torch.cuda.set_rng_state(torch.tensor(saved["cuda"], dtype=torch.uint8), device)
