"""Videos compressed to 3 frames a second and a short side of 224 pixels: the files that frame extractors decode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field as Setting

from extractors.base import Extractor, Output, Unit
from pipeline.media import video
from pipeline.run.stage import Digests
from pipeline.settings import Params
from pipeline.store.fields import Field


class CompressParams(Params):
    """Frame rate, size and quality of the compressed video."""

    fps: float = Setting(3.0, gt=0, le=60)  # frames a second
    short_side: int = Setting(224, ge=16)  # pixels; smaller videos are not enlarged
    crf: int = Setting(23, ge=0, le=51)  # x264's constant rate factor
    key_frame_every: int = Setting(3, ge=1)  # frames; one second at 3 fps, so that seeking is cheap
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "medium"] = (
        "ultrafast"  # of x264: slower ones make smaller files
    )
    # x264's effort. CPU seconds against decoding alone: ultrafast 1.08, veryfast 1.28 with files 18 % smaller


class Compress(Extractor[CompressParams]):
    """A video in any format to a small .mp4, with the presentation times of its frames in seconds."""

    name, version = "compress", 1
    kind = "video"
    programs = ("ffmpeg",)
    settings = CompressParams
    file_suffix = ".mp4"
    fields = {"time": Field("float64", (None,))}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The version of ffmpeg: another one may select other frames and write other bytes."""
        return {"ffmpeg": video.ffmpeg_version()}

    def extract(self, unit: Unit, work: Path) -> Output:
        """Compress one video."""
        if unit.media is None:
            raise ValueError(f"{unit.name} has no media")
        target = work / f"{unit.key}.mp4"
        how = video.Compression(**self.params.model_dump())
        times = video.compress(unit.media, target, how, self.options.item_seconds)
        return Output({"time": times}, {"decoder": "ffmpeg"}, target)
