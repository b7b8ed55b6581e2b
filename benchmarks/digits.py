"""Digits: test accuracy of configs/digits.yaml over seeds, beside a support vector machine, and the time it takes.

    python -m benchmarks.digits --seeds 5

Trains with one split and several seeds (A9), tests each seed's best checkpoint once, and prints a markdown table. The
machine (scikit-learn's classic, SVC with gamma 0.001) learns from the same training images, and also from training and
validation images.
Hardware: any CPU. Time: about a minute a seed. Times are of whole processes, imports included.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from project.data import Digits
from project.data.split import split_samples

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> tuple[float, float]:
    """A command of the project; wall and CPU seconds of its process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "project", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def network(seed: int, folder: str) -> tuple[float, float, float, float]:
    """Validation and test accuracy of one seed, wall and CPU seconds of fit and test together."""
    place = ["--trainer.default_root_dir", folder]
    fit = run("fit", "--config", "configs/digits.yaml", "--seed_everything", str(seed), *place)
    test = run("test", "--ckpt_path", "best", *place)
    latest = Path(folder, Path(folder, "latest").read_text().strip())
    metrics = json.loads((latest / "metrics.json").read_text())
    return metrics["val/acc"], metrics["test/acc"], fit[0] + test[0], fit[1] + test[1]


def machine(*parts: str) -> float:
    """Test accuracy of the support vector machine that learns from these parts of the split."""
    source = Digits(None)
    splits = split_samples(source.samples)
    pixels = np.stack([source.content(sample).ravel() / (255 / 16) for sample in source.samples])  # 0 to 16
    labels = np.array([sample.label for sample in source.samples])
    rows = [i for part in parts for i in splits[part]]
    return SVC(gamma=0.001).fit(pixels[rows], labels[rows]).score(pixels[splits["test"]], labels[splits["test"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    print("| seed | validation | test | fit + test, wall s | CPU s |\n|---:|---:|---:|---:|---:|")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            results.append(network(seed, folder))
            val, test, wall, cpu = results[-1]
            print(f"| {seed} | {val:.2%} | {test:.2%} | {wall:.1f} | {cpu:.1f} |", flush=True)
    for name, column, form in (("validation", 0, "%"), ("test", 1, "%"), ("wall s", 2, ""), ("CPU s", 3, "")):
        values = [result[column] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        shown = (f"{statistics.mean(values):.2%} ± {spread:.2%}") if form else f"median {statistics.median(values):.1f}"
        print(f"{name}: {shown}")
    alone, both = machine("train"), machine("train", "val")
    print(f"SVC(gamma=0.001), same split: {alone:.2%} from train, {both:.2%} from train and val")


if __name__ == "__main__":
    main()
