"""What `fit` costs beside a plain loop that does the same work, and what the pictures of look.yaml cost.

    python -m benchmarks.overhead SUBSET [--pairs 3] [--epochs 2] [--out FILE.json]

SUBSET holds train/<class>/* (`benchmarks.subset` makes it). For ResNet-18 with the 3x3 stem and for the fast network,
at a batch of 256, `fit`, `benchmarks.raw_loop` and `fit` with pictures take turns, A B C A B C, each in a process of
its own; the pairs of the fast network are on all images, those of ResNet-18 on the first 20 batches. The table gives
medians of images a second over all epochs but the first, of the ratios within a round, and of the memory (the most that
the process has taken). To be reached: fit at 0.97 of the plain loop, and 5 % more time with pictures.

Last, the seconds from the command to the end of the first step on the digits, and of `--help` and `--version`.

A CPU or one GPU that does nothing else: half an hour on two CPU cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import measure

MODELS = {"ResNet-18": ("configs/model/resnet18.yaml", 20), "fast network": ("configs/model/fastnet.yaml", None)}
FEW = ["--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false", "--data.batch_size", "256"]


def memory_of(*words: str, **environment: str) -> float:
    """Run `python -m` these words; the most memory that it has taken, in MB."""
    process = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=measure.ROOT, env={**os.environ, **environment}, stdout=sys.stderr
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed")
    return usage.ru_maxrss / 1024


def speed_of(path: Path) -> float:
    """Images a second of all epochs but the first."""
    times = json.loads(path.read_text())
    return sum(times["images"][1:]) / sum(times["seconds"][1:])


def turn(folder: Path, model: str, batches: int | None, epochs: int) -> dict[str, tuple[float, float]]:
    """Images a second and megabytes of each of the three."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        images = ["--data.source", "project.data.ImageFolder", "--data.root", str(folder), "--data.val_size", "0.05"]
        how = ["--config", "configs/cifar10_fast.yaml", "--model", model, *images, *FEW]
        how += ["--trainer.max_epochs", str(epochs), "--trainer.callbacks+=benchmarks.timing.EpochTimer"]
        how += ["--trainer.limit_train_batches", str(batches)] if batches else []
        for who in ("fit", "plain loop", "with pictures"):
            times = work / f"{who.split()[0]}.json"
            if who == "plain loop":
                settings = next((work / "fit").glob("*/version_*/config.yaml"))
                limit = ["--batches", str(batches)] if batches else []
                words = ["benchmarks.raw_loop", str(settings), "--epochs", str(epochs), *limit, "--out", str(times)]
                memory = memory_of(*words)
            else:
                looks = ["--config", "configs/look.yaml"] if who == "with pictures" else []
                root = ["--trainer.default_root_dir", str(work / who.split()[0])]
                memory = memory_of("project", "fit", *how[:2], *looks, *how[2:], *root, EPOCH_TIMES=str(times))
            found[who] = speed_of(times), memory
    return found


def seconds_of(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "project", *words], cwd=measure.ROOT, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="SUBSET", help="holds train/<class>/*")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="at least 2: the first does not count")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    before, rows, found = measure.machine(), [], {}
    for title, (model, batches) in MODELS.items():
        turns = [turn(args.folder.resolve(), model, batches, args.epochs) for _ in range(args.pairs)]
        found[title] = turns
        plain = [each["plain loop"][0] for each in turns]
        for who in turns[0]:
            speed, memory = zip(*(each[who] for each in turns), strict=True)
            row = {"network": title, "who": who, "images/s": f"{median(speed):.0f}"}
            row |= {"/ plain loop": f"{measure.ratio(speed, plain):.3f}", "MB": f"{median(memory):.0f}"}
            rows.append(row)
    measure.table(rows)
    with tempfile.TemporaryDirectory() as name:
        first = [
            "fit",
            "--config",
            "configs/digits.yaml",
            "--trainer.max_steps",
            "1",
            "--trainer.limit_val_batches",
            "0",
        ]
        commands = {"fit, first step": [*first, "--trainer.default_root_dir", name], "fit --help": ["fit", "--help"]}
        commands |= {"--help": ["--help"], "--version": ["--version"]}
        starts = {title: [seconds_of(*words) for _ in range(args.pairs)] for title, words in commands.items()}
    measure.table([{"command": title, "seconds": f"{median(times):.2f}"} for title, times in starts.items()])
    measure.save(args.out, {"machine": [before, measure.machine()], "turns": found, "starts": starts})


if __name__ == "__main__":
    main()
