"""What `fit` costs beside a plain loop that does the same work, what pictures cost, and how long a start takes.

    python -m benchmarks.overhead SUBSET [--parts steps pictures start] [--pairs 3] [--out overhead.json]

SUBSET holds train/<class>/* (`benchmarks.subset` makes it). Within each part the contestants take turns, A B A B, each
in a process of its own; the tables have medians, and medians of the ratios within a round, with their range.

steps     `fit` and `benchmarks.raw_loop`, with the fast network (on all images) and ResNet-18 with the 3x3 stem (20
          batches an epoch) at a batch of 256, equal precision and threads: images a second in the epochs after the
          first, and the most memory that the processes took. To be reached: 0.97 of the plain loop. The share is that
          of the bf16 throughput of a convolution alone (`measure.convolution`); the goal is 60 %.
pictures  The fast recipe for ten epochs without and with configs/look.yaml: seconds of the whole process. To be
          reached: at most 1.05.
start     Seconds from the command to the end of the first step on the digits; of `--version`, `--help` and an unknown
          command, which shall take less than one.

A CPU or one GPU that does nothing else. On two CPU cores of 209 GFLOP/s in bfloat16: 25, 35 and 2 minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure
from project.nets import FastNet, ResNet

MODELS = {
    "fast": (FastNet(3, 10, 32), "configs/model/fastnet.yaml", []),
    "resnet18": (ResNet(3, 10, 32), "configs/model/resnet18.yaml", [20]),
}
QUICK = (["--version"], ["--help"], ["unknown"])
Rounds = list[dict[str, Any]]


def fit(work: Path, folder: Path, val_size: float, epochs: int, options: list[str]) -> tuple[measure.Process, dict]:
    """One fit of the fast recipe, and what `benchmarks.timing` wrote of it."""
    images = ["--data.source", "project.data.ImageFolder", "--data.root", str(folder)]
    images += ["--data.val_size", str(val_size), "--trainer.max_epochs", str(epochs)]
    runs = ["--trainer.default_root_dir", str(work), "--trainer.enable_progress_bar", "false"]
    # The pictures come before the timer, which is the last of the callbacks and is given its path.
    process = measure.run("project", "fit", *options, *images, *runs, *measure.timed(work / "times.json"))
    return process, json.loads((work / "times.json").read_text())


def speed(times: dict[str, list]) -> float:
    """Images a second of all epochs but the first."""
    return sum(times["images"][1:]) / sum(times["seconds"][1:])


def steps(folder: Path, pairs: int, epochs: int) -> tuple[list[dict], dict[str, Rounds]]:
    rows, found = [], {}
    for name, (net, model, batches) in MODELS.items():
        rounds = []
        for _ in range(pairs):
            with tempfile.TemporaryDirectory() as place:
                work, out = Path(place), Path(place) / "raw.json"
                options = ["--config", "configs/cifar10_fast.yaml", "--model", model, "--data.batch_size", "256"]
                options += [f"--trainer.limit_train_batches={number}" for number in batches]
                ours, times = fit(work, folder, 0, epochs, options)
                words = [str(folder), "--model", name, "--epochs", str(epochs), "--out", str(out)]
                words += [f"--batches={number}" for number in batches]
                plain = measure.run("benchmarks.raw_loop", *words, *measure.arithmetic(work))
                speeds = speed(times), speed(json.loads(out.read_text()))
                rounds.append({"images/s": speeds, "MB": (ours.megabytes, plain.megabytes)})
                print(name, rounds[-1], flush=True)
        found[name] = rounds
        (ours, plain), memory = ([*zip(*(each[key] for each in rounds), strict=True)] for key in ("images/s", "MB"))
        ratio = {"fit / plain loop": measure.middle(measure.ratios(ours, plain), 3), "to be reached": "0.97"}
        speeds = {"fit, images/s": measure.middle(ours, 0), "plain loop, images/s": measure.middle(plain, 0)}
        megabytes = {"fit, MB": f"{median(memory[0]):.0f}", "plain loop, MB": f"{median(memory[1]):.0f}"}
        fastest = measure.convolution()
        share = {"of a convolution's GFLOP/s": f"{median(ours) * measure.work(net) / fastest / 1e9:.0%}"}
        rows.append({"network": name, **speeds, **ratio, **megabytes, **share})
        found[name].append({"GFLOP an image": measure.work(net) / 1e9, "GFLOP/s of a convolution": fastest})
    return rows, found


def pictures(folder: Path, pairs: int, epochs: int) -> tuple[list[dict], Rounds]:
    rounds, task = [], ["--config", "configs/cifar10_fast.yaml"]
    for _ in range(pairs):
        taken = []
        for options in (task, [*task, "--config", "configs/look.yaml"]):
            with tempfile.TemporaryDirectory() as place:
                taken.append(fit(Path(place), folder, 0.1, epochs, options)[0].seconds)
        rounds.append({"seconds": taken})
        print("pictures", rounds[-1], flush=True)
    plain, looked = zip(*(each["seconds"] for each in rounds), strict=True)
    row = {"without pictures, s": measure.middle(plain), "with, s": measure.middle(looked)}
    ratio = measure.middle(measure.ratios(looked, plain), 3)
    return [row | {"with / without": ratio, "to be reached": "1.05"}], rounds


def start(pairs: int) -> tuple[list[dict], dict[str, list[float]]]:
    first, found = "fit on digits, to the first step", {}
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as place:
            times, runs = Path(place) / "times.json", ["--trainer.default_root_dir", place, "--trainer.max_epochs", "1"]
            began = time.time()
            measure.run("project", "fit", "--config", "configs/digits.yaml", *runs, *measure.timed(times))
            found.setdefault(first, []).append(json.loads(times.read_text())["first_step"] - began)
        for words in QUICK:
            began = time.time()
            subprocess.run([sys.executable, "-m", "project", *words], cwd=measure.ROOT, capture_output=True)
            found.setdefault(words[0], []).append(time.time() - began)
    limits = {first: ""} | {words[0]: "1" for words in QUICK}
    rows = [
        {"command": name, "seconds": measure.middle(values, 2), "to be reached": limits[name]}
        for name, values in found.items()
    ]
    return rows, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="SUBSET", help="holds train/<class>/*")
    parser.add_argument("--parts", nargs="+", choices=["steps", "pictures", "start"])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of steps, at least 2: the first does not count")
    parser.add_argument("--out", type=Path, default=Path("overhead.json"))
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("--epochs must be 2 or more: the first one does not count")
    if not (args.folder / "train").is_dir():
        parser.error(f"there is no {args.folder / 'train'}")
    folder, found = args.folder.resolve(), {"machine": [measure.machine()]}
    parts = {
        "steps": lambda: steps(folder, args.pairs, args.epochs),
        "pictures": lambda: pictures(folder, args.pairs, 10),  # as docs and configs/look.yaml draw them: three times
        "start": lambda: start(args.pairs),
    }
    for name in args.parts or parts:
        rows, found[name] = parts[name]()
        measure.table(rows)
    found["machine"].append(measure.machine())
    measure.save(args.out, found)


if __name__ == "__main__":
    main()
