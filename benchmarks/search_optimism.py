"""The optimism of validation, measured by nested evaluation on the digits with about 100 training images (A2).

    python -m benchmarks.search_optimism --seeds 5 --out runs/benchmark_optimism

For each seed 156 images are drawn, evenly by class; `search --outer_folds 5` then trains on 100 of them, chooses by 25,
and tests on 31. Prints inner, outer and gap of each seed, and the mean gap with its 95 % interval over seeds.
Every seed is a line of results.jsonl, and a search continues where it was, so the same command continues after a kill.
Hardware: any CPU. Time: 5 folds x 20 trials a seed, about 15 minutes on two cores.
With --smoke: 2 folds x 2 trials, a minute.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks.search import NET, ROOT, SPACE, append, interval, known
from project.data import Digits

IMAGES = 156  # 4/5 of them are searched in, and 4/5 of those train


def draw(seed: int, folder: Path) -> None:
    """Write a folder of images, as evenly by class as can be."""
    source, random = Digits(None), np.random.default_rng(seed)
    by_class: dict[str, list[int]] = {}
    for i in random.permutation(len(source.samples)):
        by_class.setdefault(str(source.samples[i].label), []).append(int(i))
    for k in range(IMAGES):
        label = sorted(by_class)[k % len(by_class)]
        i = by_class[label].pop()
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(source.content(source.samples[i])).squeeze().astype(np.uint8)).save(
            folder / label / f"{i:04d}.png"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20, help="of each search (default: 20)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_optimism"))
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    (out / "space.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    folds, trials, epochs = (2, 2, 2) if given.smoke else (5, given.trials, 15)
    results = out / "results.jsonl"
    for seed in range(1 if given.smoke else given.seeds):
        if any(row["seed"] == seed for row in known(results)):
            continue
        images = out / f"images_{seed}"
        draw(seed, images)
        data = [
            "--config",
            str(ROOT / "configs/digits.yaml"),
            "--data.source",
            "project.data.ImageFolder",
            f"--data.root={images}",
        ]
        run = ["--seed_everything", str(seed), "--trainer.max_epochs", str(epochs), f"--trainer.default_root_dir={out}"]
        # No pruning: the guide's warning is about the best of many finished trainings.
        own = ["--trials", str(trials), "--pruner", "none", "--seed", str(seed), "--name", f"seed_{seed}", "--resume"]
        command = [
            sys.executable,
            "-m",
            "project",
            "search",
            *data,
            *NET,
            *run,
            "--space",
            str(out / "space.yaml"),
            *own,
        ]
        subprocess.run([*command, "--outer_folds", str(folds)], cwd=ROOT, check=True)
        append(results, {"seed": seed, **json.loads((out / "search" / f"seed_{seed}" / "nested.json").read_text())})
    rows = known(results)
    print("\n| seed | inner | outer | gap | standard deviation of the gap over folds |\n|---|---|---|---|---|")
    for row in rows:
        inner, outer, gap = (row[name]["mean"] for name in ("inner", "outer", "gap"))
        print(f"| {row['seed']} | {inner:.2%} | {outer:.2%} | {100 * gap:+.2f} | {100 * row['gap']['sd']:.2f} |")
    gaps = [row["gap"]["mean"] for row in rows]
    print(f"\ngap: {interval(gaps)} points; positive in {sum(gap > 0 for gap in gaps)} of {len(gaps)} seeds")
    print(f"outer mean: {statistics.fmean(row['outer']['mean'] for row in rows):.2%}")


if __name__ == "__main__":
    main()
