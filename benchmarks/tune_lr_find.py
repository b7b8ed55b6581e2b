"""The learning rate that lr_find finds against the best of a grid: the accuracy that is lost by not searching.

    python -m benchmarks.tune_lr_find FOLDER TEST [--config configs/folder.yaml] [--epochs 4] [--seeds 3] [--results
    lr_find.jsonl]

FOLDER holds the training images (train/<class>/*, as benchmarks/subset.py makes it), of which 20 % validate; TEST holds
<class>/* to test on, such as CIFAR-10's test folder with all its 10,000 images. In each seed the found rate and the
rates of the grid are trained alike; the best of the grid is chosen by validation accuracy, never by test accuracy.
Prints a markdown table, the paired differences with their 95 % interval (Student's t), and the same for each of
lr_find's other rules at the nearest rate of the grid. Every fit is a process of its own, and its result a line of the
results file: the same command goes on after a kill. Options after -- go to lr_find and fit.
Hardware: any. Time: that of seeds x (rates + 1) fits; with the defaults on the 10k/2k subset some hours on two CPU
    cores.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
T975 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}  # of n - 1 degrees of freedom
ACCURACY = re.compile(r"^accuracy +\S+% +(\S+)%$", re.MULTILINE)  # validation, then test


def run(*arguments: str) -> str:
    """A command of the project in a process of its own; what it printed."""
    command = [sys.executable, "-m", "project", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout


def find(common: list[str], folder: Path) -> dict[str, Any]:
    """The learning rate that is found."""
    out = folder / "lr.yaml"
    run("lr_find", *common, "--out", str(out))
    return {"rate": yaml.safe_load(out.read_text())["model"]["lr"]}


def fit(common: list[str], folder: Path, rate: float, epochs: int, test: Path) -> dict[str, float]:
    """Train with a rate; validation accuracy of the best epoch, and its accuracy on the test images."""
    place = ["--trainer.default_root_dir", str(folder)]
    run("fit", *common, *place, "--model.lr", str(rate), "--trainer.max_epochs", str(epochs))
    printed = run("test", "--ckpt_path", "best", *place, "--data.root", str(test), "--data.test_size", "1")
    latest = folder / (folder / "latest").read_text().strip()
    return {
        "val": json.loads((latest / "metrics.json").read_text())["val/acc"],
        "test": float(ACCURACY.search(printed)[1]) / 100,
    }


def interval(values: list[float]) -> str:
    """Mean and 95 % interval, in points."""
    mean, count = 100 * statistics.mean(values), len(values)
    return (
        f"{mean:.2f} ± {100 * T975[count] * statistics.stdev(values) / math.sqrt(count):.2f}"
        if count in T975
        else f"{mean:.2f}"
    )


def report(rows: list[dict[str, Any]], seeds: int) -> None:
    """Print the table and the differences."""
    print("| seed | found | validation | test | best of the grid | validation | test | lost, points |")
    print("|---:" * 8 + "|")
    lost = []
    for seed in range(seeds):
        mine = [row for row in rows if row["seed"] == seed]
        found = next(row for row in mine if row["kind"] == "found")
        grid = [row for row in mine if row["kind"] == "grid"]
        best = max(grid, key=lambda row: row["val"])
        lost.append(best["test"] - found["test"])
        shown = [f"{r['rate']:.3g} | {r['val']:.2%} | {r['test']:.2%}" for r in (found, best)]
        print(f"| {seed} | {' | '.join(shown)} | {100 * lost[-1]:.2f} |")
    print(f"\nlost by taking the found rate, points: {interval(lost)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--config", default="configs/folder.yaml")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=int, default=8)
    parser.add_argument("--low", type=float, default=3e-5)
    parser.add_argument("--high", type=float, default=0.1)
    parser.add_argument("--results", type=Path, default=Path("lr_find.jsonl"))
    parser.add_argument("options", nargs="*", help="after --: further options of lr_find and fit")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.is_file() else []
    setting = [args.config, str(args.folder.resolve()), args.epochs, args.options]
    if any(row["setting"] != setting for row in rows):
        raise SystemExit(f"{args.results} has results of another setting; remove it or name another")

    def once(seed: int, kind: str, rate: float | None) -> dict[str, Any]:
        """A result from the file, or a new one, which is appended."""
        known = [row for row in rows if row["seed"] == seed and row["kind"] == kind and rate in (None, row["rate"])]
        if known:
            return known[0]
        common = [
            "--config",
            args.config,
            "--data.root",
            str(args.folder.resolve()),
            "--seed_everything",
            str(seed),
            *args.options,
        ]
        with tempfile.TemporaryDirectory() as folder:
            if rate is None:
                result = find(common, Path(folder))
            else:
                result = {"rate": rate, **fit(common, Path(folder), rate, args.epochs, args.test.resolve())}
        rows.append({"setting": setting, "seed": seed, "kind": kind, **result})
        with args.results.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(rows[-1], file=sys.stderr, flush=True)
        return rows[-1]

    for seed in range(args.seeds):
        once(seed, "found", once(seed, "find", None)["rate"])
        for rate in np.geomspace(args.low, args.high, args.rates):
            once(seed, "grid", float(f"{rate:.3g}"))
    report(rows, args.seeds)


if __name__ == "__main__":
    main()
