"""How accurate a minute of training is: configs/cifar10_fast.yaml on 10,000 images, beside a plain loop.

    python -m benchmarks.time_to_accuracy SUBSET [--seeds 3] [--epochs 3 6] [--out FILE.json]

SUBSET holds train/<class>/* and test/<class>/* (`benchmarks.subset` makes it of CIFAR-10 as JPEGs). `fit` trains on all
training images, and its last weights are tested once, without and with test-time flips; in turn with it
`benchmarks.raw_loop` trains the same network by the same recipe. Seconds are those of the training epochs alone, whose
limits, 75 and 150 s, are for a machine of 209 GFLOP/s in bfloat16: they are scaled by what is measured here.
`benchmarks.peers` runs a rival on the same images.

A CPU or one GPU that does nothing else. On two CPU cores a seed takes ten minutes.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks import measure

TARGETS = {3: (0.795, 75), 6: (0.835, 150)}  # epochs -> accuracy without flips, seconds


def pair(folder: Path, epochs: int, seed: int) -> tuple[measure.Score, measure.Score]:
    """One training by `fit` and one by the plain loop."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        images = ["--data.source", "project.data.ImageFolder", "--data.root", str(folder), "--data.val_size", "0"]
        how = ["--config", "configs/cifar10_fast.yaml", *images, "--seed_everything", str(seed)]
        fit = measure.train(work, *how, "--trainer.max_epochs", str(epochs))
        settings, out = next(work.glob("*/version_*/config.yaml")), work / "raw.json"
        options = ["--epochs", str(epochs), "--seed", str(seed), "--out", str(out)]
        measure.run("benchmarks.raw_loop", str(settings), *options)
        raw = json.loads(out.read_text())
        return fit, measure.Score(sum(raw["seconds"]), *raw["accuracies"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="SUBSET", help="holds train/<class>/* and test/<class>/*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    folder, before, found, rows = args.folder.resolve(), measure.machine(), {}, []
    for epochs in args.epochs:
        pairs = [pair(folder, epochs, seed) for seed in range(args.seeds)]
        fit, raw = ([list(column) for column in zip(*scores, strict=True)] for scores in zip(*pairs, strict=True))
        found[epochs] = {"fit": fit, "raw": raw, "ratio": measure.ratio(fit[0], raw[0])}
        accuracy, limit = TARGETS.get(epochs, (0.0, 0.0))
        limit *= measure.REFERENCE / before["gflops"]["bfloat16"]
        for who, (seconds, plain, flipped) in (("fit", fit), ("plain loop", raw)):
            rows.append(
                {
                    "who": who,
                    "epochs": epochs,
                    "seconds": measure.spread(seconds, ".1f"),
                    "accuracy": measure.spread(plain),
                    "with flips": measure.spread(flipped),
                    "limits": f"{accuracy:.1%} in {limit:.0f} s",
                    "fit / plain loop": f"{found[epochs]['ratio']:.3f}",
                }
            )
    after = measure.machine()
    measure.table(rows)
    measure.save(args.out, {"machine": [before, after], "found": found})


if __name__ == "__main__":
    main()
