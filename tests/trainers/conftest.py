"""Several processes that train together, as torchrun starts them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from trainers.loop import distributed

OnProcesses = Callable[[int, Callable[[int], object]], list[int]]
FromProcesses = Callable[[int, Callable[[int], Any]], list[Any]]


@pytest.fixture(scope="session")
def on_processes() -> OnProcesses:
    """`on_processes(count, body)` runs body(rank) in so many processes; their exit statuses, by rank."""

    def run(count: int, body: Callable[[int], object]) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [start(rank, count, port, body) for rank in range(count)]
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    return run


@pytest.fixture(scope="session")
def from_processes(on_processes: OnProcesses, tmp_path_factory: pytest.TempPathFactory) -> FromProcesses:
    """`from_processes(count, body)` runs body(rank) in a group of so many processes; what each returned, by rank."""

    def run(count: int, body: Callable[[int], Any]) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")

        def saving(rank: int) -> None:
            with distributed.process_group(torch.device("cpu")):
                torch.save(body(rank), folder / f"{rank}.pt")

        assert on_processes(count, saving) == [0] * count
        return [torch.load(folder / f"{rank}.pt") for rank in range(count)]

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are then added in one order, and a forked child has no thread to miss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(rank: int, count: int, port: int, body: Callable[[int], object]) -> int:
    """Start one of the processes; its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        body(rank)
        os._exit(0)
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
        os._exit(99)
