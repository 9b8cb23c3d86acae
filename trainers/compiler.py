"""Programs that torch's compiler needs on this machine, for `compile = true`. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def lack(device: str) -> str:
    """The sentence for what is not here to compile losses for a device ("cpu", "cuda:0"), "" if all is.

    A CPU needs a C++ compiler (the variable CXX, else g++), a GPU Triton and a C compiler (CC, else gcc or clang), and
    both the headers of Python. torch and Triton take the whole value of a variable for the name of a program.
    """
    remedy = "install it, or leave compile = false"
    if device.startswith("cuda"):
        if importlib.util.find_spec("triton") is None:
            return f"torch compiles for a GPU with Triton, which is not installed; {remedy}"
        if not _found("CC", "gcc", "clang"):
            return (
                f"Triton needs a C compiler, and no gcc, clang or other one that CC names is here; {remedy}"
            )
    elif not _found("CXX", "g++"):
        return f"torch compiles for a CPU with a C++ compiler, and no g++ or other one that CXX names is here; {remedy}"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        return f"torch's compiler needs the headers of Python, and {header} is not here; {remedy}"
    return ""


def reasons(processes: int, device: str) -> Iterator[str]:
    """Yield the sentences for what stands against compiled losses on so many processes and a device."""
    if processes > 1:
        yield (
            f"compiled losses cannot gather the rows of {processes} processes (run.processes times run.nodes) with "
            "their gradients; leave it false, or train in one process"
        )
    if lacking := lack(device):
        yield lacking


def _found(variable: str, *usual: str) -> bool:
    """Whether the program that a variable of the environment names, or one of the usual ones, is on this machine."""
    names = (os.environ[variable],) if variable in os.environ else usual
    return any(shutil.which(name) for name in names)
