"""The project against fastai on the same images: training time, whole-process time and test accuracy.

    python benchmarks/peers.py SUBSET [--rounds 1] [--epochs 3] [--venv FOLDER] [--config configs/folder.yaml] [options
    of fit]

SUBSET holds train/<class>/* and test/<class>/* (`benchmarks.subset` makes it). Each round runs fastai
(`benchmarks/fastai_run.py`, in a virtual environment of its own, made at the first run: about 6 GB) and then the
project, `fit` on all training images and `test` once. The round's number, from 0, is the seed of both.

- Training time: of fastai the wall time of `fit_one_cycle`, which reads the image files as it goes; of the project the
sum
  of its training epochs, before which it has decoded all images into memory. Neither validates in between.
- Whole process: wall time from start to exit with imports, loading and the test; of the project, `fit` and `test`
added.

A CPU or one GPU that does nothing else. On two CPU cores, with the 10k/2k subset, a round takes about four minutes. The
table gives the medians over the rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


class Result(NamedTuple):
    """Of one run: seconds of training, seconds of all processes, test accuracy."""

    training: float
    process: float
    accuracy: float


def run(command: list[str], **environment: str) -> float:
    """Run a command from the root of the repository, its output on stderr; its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=sys.stderr, check=True)
    return time.perf_counter() - start


def fastai_python(folder: Path) -> str:
    """The Python of the virtual environment, which is made, and fastai installed, where it is missing."""
    python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    if not Path(python).exists():
        run([sys.executable, "-m", "venv", str(folder)])
    if subprocess.run([python, "-c", "import fastai"], capture_output=True).returncode:
        run([python, "-m", "pip", "install", "--quiet", "fastai"])
    return python


def fastai(python: str, folder: Path, epochs: int, seed: int) -> tuple[Result, str]:
    """One run of fastai, and its versions."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "result.json"
        command = [python, str(ROOT / "benchmarks" / "fastai_run.py"), str(folder), "--epochs", str(epochs)]
        process = run([*command, "--seed", str(seed), "--out", str(out)])
        result = json.loads(out.read_text())
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return Result(result["train_seconds"], process, result["accuracy"]), versions


def project(folder: Path, config: Path, epochs: int, seed: int, options: list[str]) -> Result:
    """One run of the project: fit, then test."""
    with tempfile.TemporaryDirectory() as name:
        times = Path(name) / "times.json"
        command, root = [sys.executable, "-m", "project"], ["--trainer.default_root_dir", name]
        fit = [*command, "fit", "--config", str(config), "--data.root", str(folder), "--data.val_size", "0", *root]
        fit += ["--trainer.max_epochs", str(epochs), "--seed_everything", str(seed)]
        fit += ["--trainer.callbacks+=benchmarks.timing.EpochTimer", *options]
        process = run(fit, EPOCH_TIMES=str(times))
        process += run([*command, "test", "--ckpt_path", "last", *root])
        metrics = json.loads(next(Path(name).glob("*/version_*/metrics.json")).read_text())
        return Result(sum(json.loads(times.read_text())["seconds"]), process, metrics["test/acc"])


def row(who: str, epochs: int, results: list[Result]) -> str:
    training, process, accuracy = (median(values) for values in zip(*results, strict=True))
    return f"| {who} | {epochs} | {training:.1f} s | {process:.1f} s | {accuracy:.2%} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("subset", type=Path, help="holds train/<class>/* and test/<class>/*")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each (default: 1)")
    parser.add_argument("--epochs", type=int, default=3, help="of each run (default: 3)")
    parser.add_argument("--venv", type=Path, default=CACHE / "image-classification-template" / "venv-fastai")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "folder.yaml")
    args, options = parser.parse_known_args()
    folder, config = args.subset.resolve(), args.config.resolve()
    if not (folder / "train").is_dir():
        parser.error(f"there is no {folder / 'train'}; options of fit come after the folder")
    python = fastai_python(args.venv.absolute())
    theirs, ours, versions = [], [], ""
    for seed in range(args.rounds):
        result, versions = fastai(python, folder, args.epochs, seed)
        theirs.append(result)
        ours.append(project(folder, config, args.epochs, seed, options))
        for who, results in (("fastai", theirs), ("project", ours)):
            print(f"round {seed + 1}/{args.rounds} {row(who, args.epochs, results[-1:])}", file=sys.stderr, flush=True)
    print("| who | epochs | training time | whole process | test accuracy |\n|---|---:|---:|---:|---:|")
    print(row(f"fastai, resnet18 ({versions})", args.epochs, theirs))
    print(row(" ".join([f"project, {config.stem} (torch {version('torch')})", *options]), args.epochs, ours))


if __name__ == "__main__":
    main()
