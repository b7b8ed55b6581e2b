"""SWATS beside Adam and SGD (advice A19): same network, images, schedule and number of epochs.

    python -m benchmarks.swats SUBSET [--seeds 3] [--epochs 3] [--switch_tol 1e-3]

SUBSET is a folder with train/ and test/, such as benchmarks/subset.py makes. ResNet9, configs/model/resnet9.yaml, at 32
pixels, cosine, everything trained on all training images; the last checkpoint is tested once. The rates are the usual
ones, Adam 0.001 and SGD 0.1 with momentum 0.9, fixed beforehand, as is the tolerance. Prints a table. About two
minutes a run on two CPU cores.
"""

import argparse
import json
import re
import shutil
import statistics
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from project.__main__ import main

CONFIGS = Path(__file__).parent.parent / "configs"
CONFIG = ["--config", str(CONFIGS / "folder.yaml"), "--model", str(CONFIGS / "model" / "resnet9.yaml")]


def optimizers(switch_tol: float) -> dict[str, list[str]]:
    swats = ["--model.optimizer", "project.optim.SWATS", "--model.optimizer.switch_tol", str(switch_tol)]
    return {
        "Adam": ["--model.optimizer", "torch.optim.Adam", "--model.lr", "0.001"],
        "SGD": ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.momentum", "0.9", "--model.lr", "0.1"],
        "SWATS": [*swats, "--model.lr", "0.001"],
    }


def run(folder: Path, runs: Path, seed: int, epochs: int, options: list[str]) -> tuple[float, str]:
    """Test accuracy of the last checkpoint, and what SWATS said."""
    shutil.rmtree(runs, ignore_errors=True)
    common = ["--trainer.default_root_dir", str(runs), "--trainer.enable_progress_bar", "false"]
    fit = [*CONFIG, "--data.root", str(folder), "--data.val_size", "0", "--seed_everything", str(seed)]
    fit += ["--model.schedule", "project.optim.Cosine", "--trainer.max_epochs", str(epochs), *options]
    said = StringIO()
    with redirect_stdout(said):
        if main(["fit", *fit, *common]) or main(["test", "--ckpt_path", "last", *common]):
            raise SystemExit("failed")
    (found,) = runs.rglob("metrics.json")
    return json.loads(found.read_text())["test/acc"], "; ".join(re.findall(r"SWATS: .*", said.getvalue()))


def compare(folder: Path, seeds: int, epochs: int, switch_tol: float) -> None:
    table: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as runs:
        for seed in range(seeds):
            for name, options in optimizers(switch_tol).items():
                accuracy, words = run(folder, Path(runs, "runs"), seed, epochs, options)
                table.setdefault(name, []).append(accuracy)
                print(f"seed {seed}  {name}: {accuracy:.2%}  {words}", flush=True)
    print("\n| optimizer | " + " | ".join(f"seed {seed}" for seed in range(seeds)) + " | mean ± deviation |")
    print("|---|" + "---:|" * (seeds + 1))
    for name, values in table.items():
        spread = statistics.stdev(values) if seeds > 1 else 0.0
        each = " | ".join(f"{value:.2%}" for value in values)
        print(f"| {name} | {each} | {100 * statistics.mean(values):.2f} ± {100 * spread:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="SUBSET")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--switch_tol", type=float, default=1e-3)
    given = parser.parse_args()
    compare(given.folder.resolve(), given.seeds, given.epochs, given.switch_tol)
