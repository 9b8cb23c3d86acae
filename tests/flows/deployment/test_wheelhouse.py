"""The packages for a machine without a network."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def wheelhouse() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheelhouse", ROOT / "docker/wheelhouse.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_glibc_takes_the_wheels_of_older_ones(wheelhouse: ModuleType) -> None:
    found = wheelhouse.target(argparse.Namespace(python="3.12", platform="manylinux_2_17_x86_64"))
    assert "manylinux_2_17_x86_64" in found and "manylinux_2_12_x86_64" in found
    assert "manylinux2014_x86_64" in found and "manylinux2010_x86_64" in found
    assert "manylinux_2_18_x86_64" not in found
    mac = wheelhouse.target(argparse.Namespace(python="3.12", platform="macosx_14_0_arm64"))
    assert mac[-1] == "macosx_14_0_arm64" and mac.count("--platform") == 1


def test_the_stand_in_of_torch_is_newer_than_the_pinned_one_and_needs_nothing(
    wheelhouse: ModuleType, tmp_path: Path
) -> None:
    wheelhouse.stand_in(tmp_path)
    target = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(tmp_path),
         "--target", str(target), "--constraint", str(ROOT / "constraints.txt"), "torch"],
        check=True,
    )  # fmt: skip
    (info,) = target.glob("torch-*.dist-info")
    assert Distribution.at(info).version.endswith("+machine") and not Distribution.at(info).requires


def test_the_instructions_name_the_version_the_extras_and_the_machine_s_torch(
    wheelhouse: ModuleType, tmp_path: Path
) -> None:
    wheelhouse.write_instructions(tmp_path, argparse.Namespace(python="3.12", torch=False), ["ray"])
    text = (tmp_path / "INSTALL.txt").read_text()
    assert "python3.12 -m venv --system-site-packages" in text and "'crossreel[ray]'" in text
    wheelhouse.write_instructions(tmp_path, argparse.Namespace(python="3.12", torch=True), [])
    assert "--system-site-packages" not in (tmp_path / "INSTALL.txt").read_text()


def test_an_extra_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docker/wheelhouse.py"), str(tmp_path / "out"), "--extras", "rays"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode and "no extra 'rays'" in done.stderr and "Traceback" not in done.stderr
