"""What the tests share: a command line in this process, small folders of images, one trained run."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # as many processes as cores already: threads would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
DIGITS = ["--config", str(ROOT / "configs" / "digits.yaml")]
SMALL = [
    "--model.net.init_args.channels",
    "[16,32]",
    "--model.net.init_args.convs_per_block",
    "1",
    "--model.lr",
    "0.02",
]  # quick


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


def slow_but(values: Iterable, *fast: Any) -> list:
    """Values for `parametrize`: those that are named stay in the default run, the others are slow."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts about images go to a folder of the test's own, not to the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m project ...` without a process of its own."""
    from project.__main__ import main

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs on the digits: a folder with runs/digits/version_0."""
    from project.__main__ import main

    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", *DIGITS, *SMALL, "--trainer.max_epochs", "3"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def trained(_trained: Path, workdir: Path) -> Path:
    """A copy of the trained run in the current folder: runs/digits/version_0."""
    shutil.copytree(_trained / "runs", workdir / "runs")
    return workdir / "runs" / "digits" / "version_0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images: three classes of 20, 24x20 pixels, told apart by their colour."""
    return make_folder(tmp_path / "images")


def make_folder(root: Path, counts: dict[str, int] | None = None, seed: int = 0) -> Path:
    """Write images of one colour a class, with noise, so that every file has a content of its own."""
    random = np.random.default_rng(seed)
    colours = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0), "grey": (90, 90, 90)}
    for name, count in (counts or {"blue": 20, "green": 20, "red": 20}).items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = random.integers(0, 55, (20, 24, 3)) + colours.get(name, colours["grey"])
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{name}_{i:03d}.png")
    return root


@pytest.fixture
def tiny_net() -> list[str]:
    """Options for a network that trains on anything in no time."""
    return [
        "--model.net",
        "project.nets.ConvNet",
        "--model.net.init_args.channels",
        "[8,16]",
        "--data.image_size",
        "16",
    ]
