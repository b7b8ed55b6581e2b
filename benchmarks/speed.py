"""Speed of `fit` against a plain PyTorch loop that does the same work: what the framework costs.

    python -m benchmarks.speed FOLDER [--pairs 5] [--epochs 3] [--config configs/folder.yaml] [options of fit]

FOLDER holds train/<class>/* (`benchmarks.subset` makes it). `fit` and `benchmarks.raw_loop` take turns, A B A B ...,
each in a process of its own, so that a slow moment of the machine meets both. The loop reads the config.yaml that
`fit` left in its run, so both have every setting alike, the options given here included (--trainer.precision
bf16-mixed). Measured are the images per second of the training epochs, the first one of each process left out as a
warm-up; validation, checkpoints and the loading of images do not count. The table gives the medians over the pairs,
with the range.

A CPU or one GPU that does nothing else. On two CPU cores, with the 10k/2k subset and the defaults, a pair takes three
to four minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent


def images_per_second(times: Path) -> float:
    """Of all epochs but the first."""
    record = json.loads(times.read_text())
    return sum(record["images"][1:]) / sum(record["seconds"][1:])


def run(command: list[str], **environment: str) -> None:
    """Run a Python module from the root of the repository; what it prints goes to stderr."""
    command, env = [sys.executable, "-m", *command], {**os.environ, **environment}
    subprocess.run(command, cwd=ROOT, env=env, stdout=sys.stderr, check=True)


def pair(folder: Path, config: Path, epochs: int, options: list[str]) -> tuple[float, float]:
    """Images per second of `fit`, then of the raw loop."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        fit = ["project", "fit", "--config", str(config), "--data.root", str(folder), "--data.val_size", "0"]
        fit += ["--trainer.max_epochs", str(epochs), "--trainer.devices", "1", "--trainer.default_root_dir", name]
        fit += ["--trainer.callbacks+=benchmarks.timing.EpochTimer", *options]
        run(fit, EPOCH_TIMES=str(work / "fit.json"))
        settings = next(work.glob("*/version_*/config.yaml"))
        loop = ["benchmarks.raw_loop", str(settings), "--epochs", str(epochs), "--out", str(work / "raw.json")]
        run(loop)
        return images_per_second(work / "fit.json"), images_per_second(work / "raw.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="holds train/<class>/*")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each of the two (default: 5)")
    parser.add_argument("--epochs", type=int, default=3, help="of each run, at least 2 (default: 3)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "folder.yaml")
    args, options = parser.parse_known_args()
    if args.epochs < 2:
        parser.error("--epochs must be 2 or more: the first one does not count")
    if not (args.folder / "train").is_dir():
        parser.error(f"there is no {args.folder / 'train'}; options of fit come after the folder")
    pairs = []
    for number in range(args.pairs):
        pairs.append(pair(args.folder.resolve(), args.config.resolve(), args.epochs, options))
        fit, raw = pairs[-1]
        print(
            f"pair {number + 1}/{args.pairs}: fit {fit:.0f}, raw loop {raw:.0f} images/s", file=sys.stderr, flush=True
        )
    columns = {
        "fit, images/s": [fit for fit, _ in pairs],
        "raw loop, images/s": [raw for _, raw in pairs],
        "fit / raw loop": [fit / raw for fit, raw in pairs],
    }
    print("| | median | lowest | highest |\n|---|---:|---:|---:|")
    for title, values in columns.items():
        digits = 3 if "/ raw" in title else 0
        print(f"| {title} | " + " | ".join(f"{f(values):.{digits}f}" for f in (median, min, max)) + " |")


if __name__ == "__main__":
    main()
