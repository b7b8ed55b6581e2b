"""configs/fashion_mnist.yaml as it is, on the original files, beside published figures.

    python -m benchmarks.fashion_mnist [FOLDER] [--seeds 1] [--out FILE.json]

FOLDER holds the four original .gz files; Debian's package dataset-fashion-mnist puts them into
/usr/share/datasets/fashion-mnist. `fit` chooses the best epoch on its validation images; that is tested once. To be
reached: 94.5 % in at most 15 minutes x 209 / the GFLOP/s in bfloat16 that are measured here.

A CPU or one GPU: a quarter of an hour a seed on two CPU cores.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import measure

PUBLISHED = {  # in the README of Fashion-MNIST, accuracy in %
    "2 convolutions": 92.5,
    "2 convolutions, batch norm": 93.4,
    "ResNet-18": 94.9,
    "WRN-28-10, random erasing": 96.3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args, options = parser.parse_known_args()
    files = sorted(args.folder.resolve().glob("*-ubyte.gz"))
    if len(files) != 4:
        parser.error(f"{args.folder} has {len(files)} files *-ubyte.gz, not the four originals")
    before, scores = measure.machine(), []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as name:
            raw = Path(name) / "data" / "FashionMNIST" / "raw"  # where torchvision looks; it unpacks them there
            raw.mkdir(parents=True)
            for file in files:
                (raw / file.name).symlink_to(file)
            how = ["--config", "configs/fashion_mnist.yaml", "--data.root", str(raw.parent.parent), *options]
            how += ["--data.source.init_args.download", "true"]  # torchvision unpacks only when it may fetch
            scores.append(measure.train(Path(name), *how, "--seed_everything", str(seed)))
        print(f"seed {seed}: {scores[-1]}", flush=True)
    seconds, plain, flipped = zip(*scores, strict=True)
    limit = 15 * 60 * measure.REFERENCE / before["gflops"]["bfloat16"]
    ours = {"who": "configs/fashion_mnist.yaml", "accuracy": measure.spread(plain)}
    ours |= {"with flips": measure.spread(flipped), "seconds": f"{measure.spread(seconds, '.0f')} of {limit:.0f}"}
    others = [
        {"who": who, "accuracy": f"{value} %", "with flips": "", "seconds": ""} for who, value in PUBLISHED.items()
    ]
    measure.table([ours, *others])
    measure.save(args.out, {"machine": [before, measure.machine()], "scores": scores})


if __name__ == "__main__":
    main()
