"""Point clouds as a fixed number of points with nine columns, the input of every cloud encoder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field as Setting
from pydantic import field_validator

from extractors.base import Extractor, Output, Unit
from pipeline.media.clouds import read as clouds
from pipeline.media.clouds.cloud import AUTO, parse_columns
from pipeline.media.clouds.sampling import farthest_points, nine_columns
from pipeline.run.stage import Digests
from pipeline.settings import Params
from pipeline.store.fields import Field


class PointsParams(Params):
    """The number of sampled points, and how a file is read."""

    sample: int = Setting(10_000, ge=0)  # H2ARN's num_points; 0: every point in file order, as it takes S3DIS
    columns: str = AUTO  # columns of a table: "x y z r g b", "x y z", positions from 0; auto: by their number
    colour_scale: clouds.Scale = (
        "as-in-file"  # unit: divided by 255, as the public DGCNN weights were trained
    )
    mesh_points: int = Setting(clouds.MESH_POINTS, ge=1)  # drawn from a mesh before the sampling
    seed: int = Setting(0, ge=0)  # seed of the points drawn from a mesh

    @field_validator("columns")
    @classmethod
    def _parsed(cls, value: str) -> str:
        parse_columns(value)
        return value


class Points(Extractor[PointsParams]):
    """A cloud in any format to points (N, 9) by farthest-point sampling: x y z r g b, and x y z scaled to 0 to 1.

    Points stand in the order of their selection; a cloud of at most `sample` points is kept whole, in file order.
    """

    name, version, kind = "points", 1, "pointcloud"
    settings = PointsParams
    fields: ClassVar[Mapping[str, Field]] = {"points": Field("float32", (None, 9))}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The main version of trimesh, which samples meshes: a minor release does not make all points again."""
        return {"trimesh": version("trimesh").partition(".")[0]}

    def extract(self, unit: Unit, work: Path) -> Output:
        """Read and sample one cloud."""
        if unit.media is None:
            raise ValueError(f"{unit.name} has no media")
        p = self.params
        cloud = clouds.read(unit.media, p.columns, p.colour_scale, p.mesh_points, p.seed)
        rows = cloud.rows
        if 0 < p.sample < len(rows):
            rows = rows[farthest_points(cloud.xyz, p.sample)]
        note = {"points": cloud.points, "dropped": cloud.dropped, "coloured": cloud.rgb is not None}
        return Output(
            {"points": nine_columns(rows)}, note | ({"said": list(cloud.remarks)} if cloud.remarks else {})
        )
