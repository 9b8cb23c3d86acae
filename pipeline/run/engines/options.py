"""Where and how wide a run works: the table [run] of an experiment."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field as Setting
from pydantic import field_validator, model_validator

from pipeline.settings import Options


class RunOptions(Options):
    """Where and how wide to run. Never part of a fingerprint."""

    engine: Literal["local", "ray"] = "local"  # where shards are worked on
    address: str = (
        ""  # of a Ray cluster that runs already ("auto", "head:6379"); empty: one for this run, here
    )
    workers: int = Setting(0, ge=0)  # 0: one a core, or one a GPU (or a share of one) for networks
    worker_cpus: int = Setting(0, ge=0)  # cores of each worker; 0: the cores there are, divided; on Ray one
    gpu_fraction: float = Setting(1.0, gt=0, le=1)  # of a GPU that each worker of a network gets
    resources: dict[str, float] = Setting(default_factory=dict)  # Ray's own, that each worker asks for
    share_gpu: bool = False  # use GPUs that another run of this machine uses, instead of waiting for them
    processes: int = Setting(1, ge=0)  # of a training, on this machine; 0: one a GPU
    nodes: int = Setting(1, ge=1)  # machines that train together; the others say `crossreel stage ... --join`
    rendezvous: str = ""  # host:port of the first of them, where all meet
    device: str = Setting("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")  # auto: GPUs where there are any
    batch_size: int = Setting(64, ge=1)  # of frozen networks
    item_seconds: float = Setting(300.0, gt=0)  # without progress on one item
    stall_seconds: float = Setting(1800.0, gt=0)  # without any sign of life of a worker
    anyway: bool = False  # begin although something is known to stop a stage; the command's --anyway
    keep_decoded: bool = False  # use what another ffmpeg or decoder made, instead of making it again
    decoders: int = Setting(1, ge=1)  # that work ahead of each worker that reads frames
    decoder_bytes: int = Setting(4 << 30, ge=1 << 30)  # address space of a decoding process

    @model_validator(mode="after")
    def _meet_somewhere(self) -> Self:
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError("several nodes need a rendezvous, the host:port where they meet")
        return self

    @field_validator("address")
    @classmethod
    def _not_the_client(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                'run on a machine of the cluster, and say "auto" or host:port; Ray\'s client is not supported'
            )
        return value
