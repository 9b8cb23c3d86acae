"""Base stage of the point cloud encoders: 100 tokens for each cloud, from its prepared points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np

from extractors.backbones import cloud_weights
from extractors.backbones import weights as weight_files
from extractors.base import (
    BATCHES_IN_FLIGHT,
    Array,
    Arrays,
    Extractor,
    Flight,
    Launched,
    Output,
    Result,
    Unit,
    WorkOptions,
)
from pipeline.errors import ItemError
from pipeline.run.stage import Digests, WorkerKind
from pipeline.settings import DIGESTED, PATH, Params
from pipeline.store.fields import Field

if TYPE_CHECKING:
    import torch

    from extractors.backbones.grouped import CloudNetwork


class CloudParams(Params):
    """The weights and the stored dtype."""

    weights: Annotated[str, PATH, DIGESTED] = (
        ""  # a local file, for S3DIS with {area} in its path, or seed:N (random, for tests)
    )
    dtype: Literal["float32", "float16"] = "float32"  # as H2ARN stores them
    precision: Literal["fp32"] = "fp32"  # the only possibility: in fewer bits a point has other neighbours


P = TypeVar("P", bound=CloudParams)


class CloudEncoder(Extractor[P]):
    """Prepared points (N, 9) of a cloud to tokens (100, D), in the order of the points.

    While a GPU computes, the processor reads the next cloud and searches its neighbours. Up to BATCHES_IN_FLIGHT clouds
    are on the device.
    """

    kind = "pointcloud"
    needs: tuple[str, ...] = ("points",)
    worker_kind: ClassVar[WorkerKind] = "model"
    shard_items = 32
    least_points: int = 1

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """100 tokens for each cloud."""
        return {"token": Field(self.params.dtype, (None, None))}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The digest of the weights file; with `{area}` in its path, the digests of the files of all areas."""
        return {"weights": cloud_weights.identity(self.params.weights, self.name, known)}

    def require(self) -> None:
        """Raise UserError if the weights are not on this machine."""
        cloud_weights.require(self.params.weights, self.name)

    def load(self, options: WorkOptions) -> None:
        """Read no weights yet: with `{area}` they depend on the cloud, so they are read with it."""
        import torch  # only a run pays for it

        from extractors.backbones.lane import Lane

        super().load(options)
        self.lane = Lane(torch.device(options.device))
        self._networks: dict[Path | None, CloudNetwork] = {}

    def results(self, units: Iterable[Unit], work: Path) -> Iterator[Result | None]:
        """Each cloud with its features, or an error if it has too few points or no weights exist for its area."""
        self.flights.clear()
        for unit in units:
            try:
                network, given = self._given(unit)
            except ItemError as error:
                yield unit, error.named(unit.name)
                continue
            yield from self._landed(BATCHES_IN_FLIGHT - 1)
            parts = self.in_parts(partial(self._launch, network), [given])
            self.flights.append(Flight(unit, parts))
            yield from self._landed(BATCHES_IN_FLIGHT)
        yield from self._landed(0)

    def build(self) -> CloudNetwork:
        """The network, without weights."""
        raise NotImplementedError

    def searched(self, network: Any, points: Array, key: str) -> Sequence[Array]:
        """What the processor searches in a cloud (N, 9) with the digest `key` for the network; here nothing."""
        return ()

    def encode(self, network: Any, points: torch.Tensor, *searched: torch.Tensor) -> dict[str, torch.Tensor]:
        """The network's outputs for a cloud (N, 9) and what was searched in it, by field."""
        raise NotImplementedError

    def _given(self, unit: Unit) -> tuple[CloudNetwork, Sequence[Array]]:
        """The network for a cloud, and what it is given: the points and what was searched in them."""
        points = unit.inputs("points")["points"]
        if len(points) < self.least_points:
            raise ItemError(unit.name, f"{len(points)} points are too few: {self.least_points} are needed")
        network = self._network(unit)
        own = np.array(points, np.float32)  # a copy: what is read may be read-only
        return network, (own, *self.searched(network, own, unit.key))

    def _launch(self, network: CloudNetwork, clouds: Sequence[Sequence[Array]]) -> Launched[Arrays]:
        (given,) = clouds
        return self.lane.launch(given, partial(self.encode, network))

    def _landed(self, most: int) -> Iterator[Result]:
        """The clouds that are ready, and the oldest ones until `most` are in flight."""
        for flight in self.arrivals(most):
            (part,) = flight.parts
            arrays = {name: value.astype(self.params.dtype) for name, value in part.arrays().items()}
            yield flight.taken, Output(arrays)

    def _network(self, unit: Unit) -> CloudNetwork:
        """The network with the unit's weights, read once."""
        weights = self.params.weights
        seed = weight_files.seed_of(weights)
        path = cloud_weights.file_for(weights, self.name, unit.name) if seed is None else None
        if path not in self._networks:
            network = self.build().eval().requires_grad_(False)
            if path is not None:
                cloud_weights.fill(network, path, self.name)
            elif seed is not None:
                cloud_weights.draw(network, seed, lambda cloud: self._encoded(network, cloud))
            self._networks[path] = network.to(self.options.device)
        return self._networks[path]

    def _encoded(self, network: CloudNetwork, cloud: torch.Tensor) -> dict[str, torch.Tensor]:
        """The network's outputs for a made cloud (N, 9), computed at once."""
        import torch

        return self.encode(network, cloud, *map(torch.from_numpy, self.searched(network, cloud.numpy(), "")))
