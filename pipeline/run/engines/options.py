"""Run options: the engine, devices, workers and time limits in the table [run] of an experiment."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field as Setting
from pydantic import field_validator, model_validator

from pipeline.settings import Options


class RunOptions(Options):
    """Devices, workers and time limits of a run. Never part of a fingerprint."""

    engine: Literal["local", "ray"] = "local"  # runs shards in processes of this machine or in Ray actors
    address: str = ""  # address of a running Ray cluster ("auto", "head:6379"); empty: start one for this run
    workers: int = Setting(
        0, ge=0
    )  # 0: one for each core, or for networks one for each GPU or share of a GPU
    worker_cpus: int = Setting(
        0, ge=0
    )  # cores of each worker; 0: an equal share of all cores, on Ray one core
    gpu_fraction: float = Setting(1.0, gt=0, le=1)  # share of a GPU for each worker of a network
    resources: dict[str, float] = Setting(default_factory=dict)  # custom resources of Ray that a worker needs
    share_gpu: bool = False  # use GPUs that another run of this machine uses, instead of waiting for them
    processes: int = Setting(1, ge=0)  # training processes on this machine; 0: one for each GPU
    loader_workers: int = Setting(
        -1, ge=-1
    )  # processes that make the batches of each training process; -1: by device and cores, on a CPU none
    nodes: int = Setting(1, ge=1)  # machines that train together; the others run `crossreel stage ... --join`
    rendezvous: str = ""  # host:port of the first of these machines, to which all connect
    device: str = Setting("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")  # auto: GPUs if there are any
    batch_size: int = Setting(64, ge=1)  # batch size of frozen networks
    item_seconds: float = Setting(300.0, gt=0)  # time limit without progress on one item
    stall_seconds: float = Setting(1800.0, gt=0)  # time limit without any reply of a worker
    anyway: bool = False  # start although a problem is known that stops a stage; the command's --anyway
    keep_decoded: bool = (
        False  # keep artifacts made by another ffmpeg or decoder, instead of making them again
    )
    decoders: int = Setting(
        0, ge=0
    )  # decoding processes ahead of each worker that reads frames; 0: one, and for a GPU as many as feed it
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
