"""What the benchmarks share: the machine's speed, runs in processes of their own, tables and JSON."""

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
import yaml
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = 209.0  # GFLOP/s in bfloat16 of the machine for which the time limits are meant

LAST = torch.channels_last


class Process(NamedTuple):
    """What a process took: wall seconds, CPU seconds, and at most so many megabytes of memory."""

    seconds: float
    cpu: float
    megabytes: float


class Score(NamedTuple):
    """Of one training: seconds of its epochs and of the whole process, accuracy on the test images, also with flips."""

    seconds: float
    process: float
    accuracy: float
    flipped: float


def throughput(size: int = 2048) -> dict[str, float]:
    """GFLOP/s of a product of two square matrices, float32 and bfloat16: the best of eight, after one to warm up."""
    found, device = {}, "cuda" if torch.cuda.is_available() else "cpu"
    size *= 4 if device == "cuda" else 1
    for kind in (torch.float32, torch.bfloat16):
        one, times = torch.randn(size, size, device=device).to(kind), []
        for _ in range(9):
            start = time.perf_counter()
            (one @ one)[0, 0].item()  # waits for a GPU
            times.append(time.perf_counter() - start)
        found[str(kind).removeprefix("torch.")] = 2 * size**3 / min(times[1:]) / 1e9
    return found


def convolution(kind: torch.dtype = torch.bfloat16) -> float:
    """GFLOP/s of training a convolution as the fast network has them, alone: the best of eight.

    128 images of 16 pixels, 3x3, from 256 channels to 256, channels last, forward and both gradients.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes, times = ((128, 256, 16, 16), (256, 256, 3, 3)), []
    images, weight = (
        torch.randn(shape, device=device).to(kind, memory_format=LAST).requires_grad_() for shape in shapes
    )
    for _ in range(9):
        start = time.perf_counter()
        torch.nn.functional.conv2d(images, weight, padding=1).float().mean().backward()
        weight.grad[0, 0, 0, 0].item()  # waits for a GPU
        times.append(time.perf_counter() - start)
    return 6 * 128 * 256**2 * 9 * 16**2 / min(times[1:]) / 1e9


def work(net: torch.nn.Module) -> float:
    """Operations of a training step for each image of 3 x 32 x 32: three times those of the forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(2, 3, 32, 32))
    return 3 * counter.get_total_flops() / 2


def machine() -> dict[str, Any]:
    """What the figures were measured on; printed, too."""
    speed, device = throughput(), torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{device}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}, "
        f"matrix product {', '.join(f'{kind} {rate:.0f} GFLOP/s' for kind, rate in speed.items())}",
        flush=True,
    )
    here = {"device": device, "cores": os.cpu_count(), "load": os.getloadavg()[0], "time": time.strftime("%F %T")}
    return here | {"torch": torch.__version__, "gflops": speed}


def limit(seconds: float, here: dict[str, Any]) -> float:
    """A time limit that is meant for the machine of REFERENCE, on this one."""
    return seconds * REFERENCE / here["gflops"]["bfloat16"]


def execute(command: Sequence[str]) -> Process:
    """Run a command from the root of the project, its output on stderr.

    Raises:
        SystemExit: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{' '.join(command)}\nended with exit code {process.returncode}")
    return Process(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def run(*words: str) -> Process:
    """`python -m` these words."""
    return execute([sys.executable, "-m", *words])


def timed(times: Path) -> list[str]:
    """Options of a fit that then writes the seconds of its epochs to this file."""
    return ["--trainer.callbacks+=benchmarks.timing.EpochTimer", f"--trainer.callbacks.path={times}"]


def train(folder: Path, *options: str, checkpoint: str = "last") -> Score:
    """`fit` in a folder for its runs, and `test` of its checkpoint, without and with flips."""
    times, runs = folder / "times.json", ["--trainer.default_root_dir", str(folder)]
    runs += ["--trainer.enable_progress_bar", "false"]
    process = run("project", "fit", *options, *runs, *timed(times))
    accuracies = []
    for tta in ("none", "flip"):
        run("project", "test", "--ckpt_path", checkpoint, "--model.tta", tta, *runs)
        accuracies.append(json.loads(next(folder.glob("*/version_*/metrics.json")).read_text())["test/acc"])
    return Score(sum(json.loads(times.read_text())["seconds"]), process.seconds, *accuracies)


def arithmetic(runs: Path) -> list[str]:
    """Options of `benchmarks.raw_loop`: precision, threads, batch and widths as in the newest run of a folder."""
    folder = runs / (runs / "latest").read_text().strip()
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    threads = json.loads((folder / "run.json").read_text())["threads"]
    words = ["--precision", settings["trainer"]["precision"], "--threads", str(threads)]
    words += ["--batch", str(settings["data"]["batch_size"])]
    widths = settings["model"]["net"].get("init_args", {}).get("widths", [])
    return [*words, "--widths", *map(str, widths)] if widths else words


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in percent, of a single value that alone."""
    return f"{mean(values):.2%}" + (f" ± {stdev(values):.2%}" if len(values) > 1 else "")


def middle(values: Sequence[float], digits: int = 1) -> str:
    """Median, lowest and highest, of a single value that alone."""
    around = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{median(values):.{digits}f}{around}"


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """first / second of each round."""
    return [a / b for a, b in zip(first, second, strict=True)]


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys as a Markdown table."""
    print()
    for cells in (rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)):
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def save(path: Path, found: dict[str, Any]) -> None:
    """Write the figures as JSON, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"\nall figures: {path}")
