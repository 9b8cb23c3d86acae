"""Base stage of the point cloud encoders: 100 tokens for each cloud, from its prepared points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np

from extractors.backbones import cloud_weights
from extractors.backbones import weights as weight_files
from extractors.base import Extractor, Output, Unit, WorkOptions
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
    """Prepared points (N, 9) of a cloud to tokens (100, D), in the order of the points."""

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
        """Read no weights yet: with `{area}` they depend on the cloud, so `extract` reads them."""
        super().load(options)
        self._networks: dict[Path | None, CloudNetwork] = {}

    def extract(self, unit: Unit, work: Path) -> Output:
        """The features of one cloud. Raises ItemError if it has too few points or no weights exist for its area."""
        import torch

        points = unit.inputs("points")["points"]
        if len(points) < self.least_points:
            raise ItemError(unit.name, f"{len(points)} points are too few: {self.least_points} are needed")
        on_device = torch.from_numpy(np.array(points, np.float32)).to(self.options.device)  # may be read-only
        encoded = self.encode(self._network(unit), on_device, unit.key)
        arrays = {name: value.cpu().numpy().astype(self.params.dtype) for name, value in encoded.items()}
        return Output(arrays)

    def build(self) -> CloudNetwork:
        """The network, without weights."""
        raise NotImplementedError

    def encode(self, network: Any, points: torch.Tensor, key: str) -> dict[str, torch.Tensor]:
        """The network's outputs for a cloud (N, 9) with the digest `key`, by field."""
        raise NotImplementedError

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
                cloud_weights.draw(network, seed, lambda cloud: self.encode(network, cloud, ""))
            self._networks[path] = network.to(self.options.device)
        return self._networks[path]
