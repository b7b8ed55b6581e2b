"""What the pictures in TensorBoard cost: CPU time of whole fits with and without `configs/look.yaml`.

    python -m benchmarks.look FOLDER [--pairs 2] [--epochs 10] [options of fit]

FOLDER holds train/<class>/* and so on (`benchmarks.subset` makes it). Fits with and without the pictures alternate,
each in its own process; their user and system time is compared, because it depends less on what else the machine does
than the clock. At the end the weights of each pair are compared: they must be equal to the last bit.

On two CPU cores, with the 10k/2k subset and the defaults, a pair takes about a quarter of an hour.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent


def fit(folder: Path, epochs: int, out: Path, options: list[str]) -> tuple[float, dict[str, torch.Tensor]]:
    """CPU seconds of one fit, and its last weights."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "project", "fit", "--config", "configs/folder.yaml", "--data.root", str(folder)]
    command += ["--data.image_size", "32", "--trainer.max_epochs", str(epochs)]
    command += ["--trainer.default_root_dir", str(out), *options]
    subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    weights = torch.load(next(out.rglob("last.ckpt")), weights_only=True)["state_dict"]
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=2, help="fits of each kind (default: 2)")
    parser.add_argument("--epochs", type=int, default=10, help="of each fit (default: 10)")
    args, options = parser.parse_known_args()
    folder, ratios = args.folder.resolve(), []
    for pair in range(args.pairs):
        with tempfile.TemporaryDirectory() as name:
            plain, weights = fit(folder, args.epochs, Path(name) / "plain", options)
            looked, same = fit(folder, args.epochs, Path(name) / "look", ["--config", "configs/look.yaml", *options])
        ratios.append(looked / plain)
        equal = all(torch.equal(value, same[key]) for key, value in weights.items())
        cost = f"{plain:.1f} s without, {looked:.1f} s with: {looked / plain - 1:+.2%}"
        print(f"pair {pair}: {cost}; weights equal: {equal}", flush=True)
    print(f"median {median(ratios) - 1:+.2%} CPU time ({min(ratios) - 1:+.2%} to {max(ratios) - 1:+.2%})")


if __name__ == "__main__":
    main()
