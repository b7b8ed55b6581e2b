"""What the benchmarks share: the machine's speed, runs of the project in processes of their own, tables and JSON."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = 209.0  # GFLOP/s in bfloat16 of the machine for which the time limits are meant


class Score(NamedTuple):
    """Of one training: seconds of its epochs, accuracy on the test images without and with test-time flips."""

    seconds: float
    accuracy: float
    flipped: float


def throughput(size: int = 2048) -> dict[str, float]:
    """GFLOP/s of a product of two square matrices, float32 and bfloat16: the best of eight."""
    found, device = {}, "cuda" if torch.cuda.is_available() else "cpu"
    for kind in (torch.float32, torch.bfloat16):
        one, times = torch.randn(size, size, device=device).to(kind), []
        for _ in range(8):
            start = time.perf_counter()
            (one @ one)[0, 0].item()  # waits for a GPU
            times.append(time.perf_counter() - start)
        found[str(kind).removeprefix("torch.")] = 2 * size**3 / min(times) / 1e9
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    speed = throughput()
    print(
        f"{os.cpu_count()} CPUs, torch {torch.__version__}, Python {platform.python_version()}, "
        f"matrix product {', '.join(f'{kind} {rate:.0f} GFLOP/s' for kind, rate in speed.items())}",
        flush=True,
    )
    return {"cpus": os.cpu_count(), "torch": torch.__version__, "gflops": speed, "time": time.strftime("%F %T")}


def run(*words: str, **environment: str) -> float:
    """`python -m` these words from the root of the project, its output on stderr; the seconds that it took."""
    start = time.perf_counter()
    command, env = [sys.executable, "-m", *words], {**os.environ, **environment}
    subprocess.run(command, cwd=ROOT, env=env, stdout=sys.stderr, check=True)
    return time.perf_counter() - start


def train(folder: Path, *options: str, test: bool = True) -> Score:
    """`fit` in a folder for its runs, timed by `benchmarks.timing`, and `test` of its last weights, twice."""
    times, runs = folder / "times.json", ["--trainer.default_root_dir", str(folder)]
    timer = "--trainer.callbacks+=benchmarks.timing.EpochTimer"
    run("project", "fit", *options, *runs, "--trainer.enable_progress_bar", "false", timer, EPOCH_TIMES=str(times))
    seconds, accuracies = sum(json.loads(times.read_text())["seconds"]), []
    for tta in ("none", "flip") if test else ():
        run("project", "test", "--ckpt_path", "last", "--model.tta", tta, *runs)
        accuracies.append(json.loads(next(folder.glob("*/version_*/metrics.json")).read_text())["test/acc"])
    return Score(seconds, *accuracies or (0.0, 0.0))


def spread(values: Sequence[float], form: str = ".2%") -> str:
    """Mean and standard deviation, of a single value that alone."""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys as a Markdown table."""
    for cells in (rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)):
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """The median over the rounds of first / second."""
    return median(a / b for a, b in zip(first, second, strict=True))


def save(path: Path | None, found: dict[str, Any]) -> None:
    """Write the figures as JSON, where a path is given."""
    if path:
        path.write_text(json.dumps(found, indent=2) + "\n")
