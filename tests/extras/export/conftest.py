"""One exported run, shared by the tests of this folder."""

import os
import shutil
from pathlib import Path

import pytest

from project.__main__ import main


@pytest.fixture(scope="session")
def exported_once(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run with its temperature, and model.onnx, model.pt2 and model.safetensors made from it."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(_trained / "runs", folder / "runs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for suffix in ("onnx", "pt2", "safetensors"):
            assert main(["export", "--ckpt_path", "best", "--out", f"model.{suffix}", "--speed", "false"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def exported(exported_once: Path, workdir: Path) -> Path:
    """A copy in the current folder: runs, model.onnx, model.pt2, model.safetensors."""
    shutil.copytree(exported_once, workdir, dirs_exist_ok=True)
    return workdir
