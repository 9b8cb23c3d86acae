"""The way of batches to a device and of results back, so that a GPU computes while the next batch is made ready.

On a GPU: batches lie in pinned memory and are copied on a stream of their own, results are copied back on another one,
and nobody waits until a result is asked for. On a CPU the same calls compute at once, with plain memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

Arrays = dict[str, NDArray[Any]]
Rows = TypeVar("Rows")
Others = TypeVar("Others")


class Results:
    """Results of a batch, on their way."""

    def __init__(
        self, lane: Lane, tensors: Mapping[str, Tensor], marks: Mapping[str, Any], kept: Any
    ) -> None:
        self._lane, self._tensors, self._marks = lane, tensors, marks
        self._kept = kept  # pinned memory that a copy may still read

    def ready(self) -> bool:
        """Whether the results are here, so that `arrays` does not wait."""
        return not self._marks or bool(self._marks["down"].query())

    def arrays(self) -> Arrays:
        """Return the results as arrays (float32 for floats), after waiting for them."""
        if self._marks:
            self._marks["down"].synchronize()
            self._lane.count(self._marks)
            # Copies, so that pinned memory is used again: an item keeps its rows until all its frames are encoded.
            return {name: tensor.numpy().copy() for name, tensor in self._tensors.items()}
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}

    def then(self, shape: Callable[[Arrays], Rows]) -> Shaped[Rows]:
        """The results in the form that `shape` gives to the arrays."""
        return Shaped(self, shape)


@dataclass(frozen=True)
class Shaped(Generic[Rows]):
    """Results on their way that `shape` brings into another form once they are here, as rows of their own lengths."""

    source: Results | Shaped[Any]
    shape: Callable[[Any], Rows]

    def ready(self) -> bool:
        """Whether the results are here, so that `arrays` does not wait."""
        return self.source.ready()

    def arrays(self) -> Rows:
        """The results in that form, after waiting for them."""
        return self.shape(self.source.arrays())

    def then(self, shape: Callable[[Rows], Others]) -> Shaped[Others]:
        """The results in the form that `shape` gives to this one."""
        return Shaped(self, shape)


class Lane:
    """Copies between this process and one device, and the seconds that copies and computation took."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copy_seconds = self.network_seconds = 0.0
        self._up: Any = None
        self._down: Any = None
        if device.type == "cuda":
            self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def room(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return memory for a batch: pinned, if the device is a GPU."""
        if self._up is None:
            return np.empty(shape, dtype)
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        pinned: NDArray[Any] = torch.empty(shape, dtype=kind, pin_memory=True).numpy()
        return pinned

    @torch.inference_mode()
    def launch(
        self, batch: NDArray[Any] | Sequence[NDArray[Any]], network: Callable[..., Mapping[str, Tensor]]
    ) -> Results:
        """Start to copy a batch, one array or several, to the device, to compute there, and to copy results back.

        `network` gives a tensor for each output of the batch's arrays on the device. A lack of memory is raised here.
        """
        arrays = [batch] if isinstance(batch, np.ndarray) else list(batch)
        if self._up is None:
            return self._computed(arrays, network)
        marks = {
            name: torch.cuda.Event(enable_timing=True) for name in ("start", "up", "begin", "end", "down")
        }
        now = torch.cuda.current_stream(self.device)
        sources = [_pinned(torch.from_numpy(array)) for array in arrays]
        with torch.cuda.stream(self._up):
            marks["start"].record(self._up)
            sent = [source.to(self.device, non_blocking=True) for source in sources]
            marks["up"].record(self._up)
        now.wait_event(marks["up"])
        for tensor in sent:
            tensor.record_stream(now)  # its memory is not given away while the network may read it
        marks["begin"].record(now)
        outputs = {name: _floats(tensor) for name, tensor in network(*sent).items()}
        marks["end"].record(now)
        self._down.wait_event(marks["end"])
        fetched = {}
        with torch.cuda.stream(self._down):
            for name, tensor in outputs.items():
                fetched[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                fetched[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._down)
            marks["down"].record(self._down)
        return Results(self, fetched, marks, (arrays, sources))

    def _computed(
        self, arrays: Sequence[NDArray[Any]], network: Callable[..., Mapping[str, Tensor]]
    ) -> Results:
        started = time.perf_counter()
        sent = [torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in arrays]
        copied = time.perf_counter()
        tensors = {name: _floats(tensor).cpu() for name, tensor in network(*sent).items()}
        self.copy_seconds += copied - started
        self.network_seconds += time.perf_counter() - copied
        return Results(self, tensors, {}, None)

    def count(self, marks: Mapping[str, Any]) -> None:
        """Add the seconds between the marks of a finished batch."""
        up, down = marks["start"].elapsed_time(marks["up"]), marks["end"].elapsed_time(marks["down"])
        self.copy_seconds += (up + down) / 1000
        self.network_seconds += marks["begin"].elapsed_time(marks["end"]) / 1000

    def taken_seconds(self) -> tuple[float, float]:
        """Return the seconds of copies and of computation since the last call."""
        taken = self.copy_seconds, self.network_seconds
        self.copy_seconds = self.network_seconds = 0.0
        return taken


def _floats(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is a float, for NumPy has no bfloat16."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _pinned(tensor: Tensor) -> Tensor:
    """The tensor in pinned memory, a copy if it lies elsewhere."""
    return tensor if tensor.is_pinned() else tensor.pin_memory()
