"""How accurate a minute of training is: configs/cifar10_fast.yaml on 10,000 images, beside a plain loop and rivals.

    python -m benchmarks.time_to_accuracy SUBSET [--seeds 3] [--epochs 3 6] [--peers] [--out FILE] [options of fit]

SUBSET holds train/<class>/* and test/<class>/* (`benchmarks.subset` makes it of CIFAR-10 as JPEGs). `fit` trains on all
training images, and its last weights are tested once, without and with test-time flips. `benchmarks.raw_loop` trains
the same network by the same recipe, precision and threads; the two take turns, A B A B. Of the options of `fit` the
plain loop follows the batch size and the widths; the others change `fit` alone. Seconds are those of the training
epochs alone, without loading and test. To be reached without flips: 79.5 % after 3 epochs in 75 s, 83.5 % after 6 in
150 s, on a machine of 209 GFLOP/s in bfloat16 (the limits are scaled by what is measured here), in at most 1.03 times
the plain loop's time.

With --peers, timm, fastai and Ultralytics train on the same images for the seconds that `fit` took (their median), each
in a process of its own (`benchmarks/rivals.py`) of an environment that is made at the first time, with pip, in the
user's cache folder or at --venv: 2 to 6 GB.

A CPU or one GPU that does nothing else. On two such cores 25 minutes, with --peers 55.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure
from benchmarks.rivals import RIVALS

TARGETS = {3: (0.795, 75), 6: (0.835, 150)}  # epochs -> accuracy without flips, seconds
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def pair(folder: Path, epochs: int, seed: int, options: list[str]) -> tuple[measure.Score, dict[str, Any]]:
    """One training by `fit`, and what one by the plain loop gave."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        images = ["--data.source", "project.data.ImageFolder", "--data.root", str(folder), "--data.val_size", "0"]
        length, out = ["--seed_everything", str(seed), "--trainer.max_epochs", str(epochs)], work / "raw.json"
        fit = measure.train(work, "--config", "configs/cifar10_fast.yaml", *images, *length, *options)
        words = [str(folder), "--epochs", str(epochs), "--seed", str(seed), "--out", str(out)]
        measure.run("benchmarks.raw_loop", *words, *measure.arithmetic(work))
        return fit, json.loads(out.read_text())


def environment(folder: Path) -> str:
    """The Python of the rivals' virtual environment, which is made where it is missing."""
    python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    if not Path(python).exists():
        measure.run("venv", str(folder))
    missing = f"from importlib.util import find_spec; raise SystemExit(None in map(find_spec, {list(RIVALS)}))"
    if subprocess.run([python, "-c", missing]).returncode:
        measure.execute([python, "-m", "pip", "install", "--quiet", *RIVALS])
    return python


def rival(python: str, name: str, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """What one rival reached."""
    with tempfile.TemporaryDirectory() as place:
        out, script = Path(place) / "result.json", str(measure.ROOT / "benchmarks" / "rivals.py")
        words = [name, str(folder), "--seconds", f"{seconds:.1f}", "--seed", str(seed), "--out", str(out)]
        measure.execute([python, script, *words])
        return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, metavar="SUBSET", help="holds train/<class>/* and test/<class>/*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--peers", action="store_true", help="run the rivals, too")
    parser.add_argument("--venv", type=Path, default=CACHE / "image-classification-template" / "venv-rivals")
    parser.add_argument("--out", type=Path, default=Path("time_to_accuracy.json"))
    args, options = parser.parse_known_args()
    folder, before, found, rows = args.folder.resolve(), measure.machine(), {}, []
    if not (folder / "test").is_dir():
        parser.error(f"there is no {folder / 'test'}; options of fit come after the folder")
    python = environment(args.venv.absolute()) if args.peers else ""
    for epochs in args.epochs:
        pairs = []
        for seed in range(args.seeds):
            pairs.append(pair(folder, epochs, seed, options))
            print(f"{epochs} epochs, seed {seed}: {pairs[-1]}", flush=True)
        fit, raw = zip(*pairs, strict=True)
        ours, plain = [score.seconds for score in fit], [sum(result["seconds"]) for result in raw]
        times = measure.ratios(ours, plain)
        wanted = {"to be reached": "1.03"}
        if epochs in TARGETS:
            accuracy, seconds = TARGETS[epochs]
            wanted = {"to be reached": f"{accuracy:.1%} in {measure.limit(seconds, before):.0f} s, 1.03"}
        rows.append(row("fit", epochs, ours, [s.accuracy for s in fit], [s.flipped for s in fit], times) | wanted)
        accuracies = zip(*(result["accuracies"] for result in raw), strict=True)
        rows.append(row("plain loop", epochs, plain, *accuracies, [1.0]) | {"to be reached": ""})
        found[epochs] = {"fit": [score._asdict() for score in fit], "plain loop": raw, "ratios": times}
        for name in RIVALS if args.peers else ():
            try:
                results = [rival(python, name, folder, median(ours), seed) for seed in range(args.seeds)]
            except SystemExit as error:  # what was measured before it is kept
                print(f"{name} failed: {error}", flush=True)
                found[epochs][name] = {"failed": str(error)}
                continue
            found[epochs][name] = results
            title = ", ".join(f"{one} {number}" for one, number in results[0]["versions"].items())
            values = ([result[key] for result in results] for key in ("seconds", "accuracy"))
            length = measure.middle([result["epochs"] for result in results], 0)
            rows.append(row(title, length, *values, None, None) | {"to be reached": ""})
    after = measure.machine()
    measure.table(rows)
    measure.save(args.out, {"machine": [before, after], "options": options, "found": found})


def row(who: str, epochs: Any, seconds: list, accuracies: list, flipped: list | None, times: list | None) -> dict:
    """Of the table."""
    return {
        "who": who,
        "epochs": epochs,
        "seconds": measure.middle(seconds),
        "accuracy": measure.spread(accuracies),
        "with flips": measure.spread(flipped) if flipped else "",
        "/ plain loop": measure.middle(times, 3) if times else "",
    }


if __name__ == "__main__":
    main()
