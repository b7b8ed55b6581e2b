"""Search against an exhaustive grid and against random search, on the digits with 200 training images (A1).

    python -m benchmarks.search --seeds 5 --out runs/benchmark_search

For each seed (of the split, the training and the sampler): a grid of 48 points without pruning; `search` with TPE and
ASHA, of which the trials count that end within a third of the grid's epochs; `search --sampler random --pruner none`
with as many epochs as those, rounded up to whole trials.
Prints a markdown table of the best validation accuracies, and the paired differences with 95 % intervals (Student's t).
Every result is a line of results.jsonl, so that the same command continues after a kill.
Hardware: any CPU. Time: about 15 minutes a seed on two cores. With --smoke: the smallest of everything, two minutes.
"""

import argparse
import csv
import itertools
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import t

from project.__main__ import main as project

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 15
GRID = {
    "model.lr": [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1],
    "model.optimizer.init_args.weight_decay": [0.001, 0.1],
    "model.task.init_args.label_smoothing": [0.0, 0.1],
    "data.batch_size": [16, 64],
}
SPACE = {  # the same ranges, all between included
    "model.lr": {"log_float": [0.0003, 0.1]},
    "model.optimizer.init_args.weight_decay": {"log_float": [0.001, 0.1]},
    "model.task.init_args.label_smoothing": {"float": [0.0, 0.1]},
    "data.batch_size": {"choice": [16, 32, 64]},
}
# 1,797 images: half to test, which nothing here opens; of the other 899 the validation's share leaves 200 to train on.
DATA = ["--config", str(ROOT / "configs/digits.yaml"), "--data.test_size", "0.5", "--data.val_size", str(699 / 899)]
NET = ["--model.net.init_args.channels", "[32,64]", "--model.net.init_args.convs_per_block", "1"]


def known(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole; a kill may have cut the last."""
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def options(seed: int, epochs: int) -> list[str]:
    return [
        *DATA,
        *NET,
        "--seed_everything",
        str(seed),
        "--data.split_seed",
        str(seed),
        "--trainer.max_epochs",
        str(epochs),
    ]


def grid(seed: int, epochs: int, points: list[tuple[Any, ...]], out: Path) -> float:
    """The best validation accuracy of the grid; points that are written down are not trained again."""
    results = out / "results.jsonl"
    done = {tuple(row["point"]): row["val"] for row in known(results) if row["kind"] == "grid" and row["seed"] == seed}
    for point in points:
        if point not in done:
            place = out / f"grid_{seed}"
            settings = [f"--{key}={value}" for key, value in zip(GRID, point, strict=True)]
            if project(["fit", *options(seed, epochs), *settings, f"--trainer.default_root_dir={place}"]):
                raise SystemExit(f"the grid's point {point} failed")
            run = place / (place / "latest").read_text().strip()
            done[point] = json.loads((run / "metrics.json").read_text())["val/acc"]
            append(results, {"kind": "grid", "seed": seed, "point": point, "val": done[point], "epochs": epochs})
    return max(done.values())


def search(kind: str, seed: int, epochs: int, trials: int, out: Path, *more: str) -> list[dict[str, str]]:
    """The trials of a search in the order of their numbers, from the command itself."""
    space = out / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE, sort_keys=False))
    name, place = f"{kind}_{seed}", f"--trainer.default_root_dir={out}"
    own = ["--space", str(space), "--trials", str(trials), "--name", name, "--seed", str(seed), "--resume", *more]
    subprocess.run(
        [sys.executable, "-m", "project", "search", *options(seed, epochs), *own, place], cwd=ROOT, check=True
    )
    with (out / "search" / name / "trials.csv").open() as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["trial"]))


def within(rows: list[dict[str, str]], budget: float) -> tuple[float, int]:
    """Best completed score, and epochs, of the first trials that together keep within a budget of epochs."""
    spent, best = 0, 0.0
    for row in rows:
        if spent + int(row["validations"] or 0) > budget:
            break
        spent += int(row["validations"] or 0)
        best = max(best, float(row["val/acc"]) if row["state"] == "complete" else 0.0)
    return best, spent


def interval(values: list[float]) -> str:
    """Mean and 95 % interval, in points."""
    mean = 100 * statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    half = 100 * t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.2f} ± {half:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_search"))
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    points = list(itertools.product(*GRID.values()))
    epochs, trials = EPOCHS, 40  # more than fit into the budget
    if given.smoke:
        points, epochs, trials = points[::12], 3, 4
    rows = []
    for seed in range(1 if given.smoke else given.seeds):
        best = grid(seed, epochs, points, out)
        tpe, spent = within(search("tpe", seed, epochs, trials, out), len(points) * epochs / 3)
        count = max(1, math.ceil(spent / epochs))
        plain, used = within(
            search("random", seed, epochs, count, out, "--sampler", "random", "--pruner", "none"), count * epochs
        )
        rows.append((best, tpe, plain))
        row = {"kind": "seed", "seed": seed, "grid": best, "search": tpe, "random": plain}
        append(out / "results.jsonl", {**row, "epochs": [len(points) * epochs, spent, used]})
    print("\n| seed | grid | search | random |\n|---|---|---|---|")
    for seed, row in enumerate(rows):
        print(f"| {seed} | " + " | ".join(f"{value:.2%}" for value in row) + " |")
    print(f"\nsearch - grid: {interval([tpe - best for best, tpe, _ in rows])} points")
    print(f"search - random at equal epochs: {interval([tpe - plain for _, tpe, plain in rows])} points")


if __name__ == "__main__":
    main()
