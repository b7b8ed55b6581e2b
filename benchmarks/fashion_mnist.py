"""configs/fashion_mnist.yaml as it is, on the original files, beside published figures.

    python -m benchmarks.fashion_mnist [FOLDER] [--seeds 1] [--out fashion_mnist.json] [options of fit]

FOLDER holds the four original .gz files; Debian's package dataset-fashion-mnist puts them into
/usr/share/datasets/fashion-mnist. They are unpacked to where torchvision looks for them. `fit` chooses the best epoch
on its validation images; that is tested once, without flips, and for comparison with them. To be reached: 94.5 % by a
`fit` of at most 15 minutes x 209 / the GFLOP/s in bfloat16 that are measured here, start and validation included.

A CPU or one GPU: 20 minutes a seed on two CPU cores.
"""

import argparse
import gzip
import tempfile
from pathlib import Path

from benchmarks import measure

PUBLISHED = {  # in the README of Fashion-MNIST
    "2 convolutions": "92.5 %",
    "2 convolutions, batch norm": "93.4 %",
    "ResNet-18": "94.9 %",
    "WRN-28-10, random erasing": "96.3 %",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fashion_mnist.json"))
    args, options = parser.parse_known_args()
    files = sorted(args.folder.resolve().glob("*-ubyte.gz"))
    if len(files) != 4:
        parser.error(f"{args.folder} has {len(files)} files *-ubyte.gz, not the four originals")
    before, scores = measure.machine(), []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as name:
            raw = Path(name) / "data" / "FashionMNIST" / "raw"
            raw.mkdir(parents=True)
            for file in files:
                (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
            how = ["--config", "configs/fashion_mnist.yaml", "--data.root", str(raw.parent.parent), *options]
            scores.append(measure.train(Path(name), *how, "--seed_everything", str(seed), checkpoint="best"))
        print(f"seed {seed}: {scores[-1]}", flush=True)
    after = measure.machine()
    seconds, processes, plain, flipped = zip(*scores, strict=True)
    ours = {"who": "configs/fashion_mnist.yaml", "accuracy": measure.spread(plain)}
    ours |= {"with flips": measure.spread(flipped), "training, s": measure.middle(seconds, 0)}
    ours |= {"fit, s": measure.middle(processes, 0)}
    wanted = {"who": "to be reached", "accuracy": "94.5 %", "with flips": "", "training, s": ""}
    rows = [ours, wanted | {"fit, s": f"{measure.limit(15 * 60, before):.0f}"}]
    rows += [dict.fromkeys(ours, "") | {"who": who, "accuracy": value} for who, value in PUBLISHED.items()]
    measure.table(rows)
    scores = [score._asdict() for score in scores]
    measure.save(args.out, {"machine": [before, after], "options": options, "scores": scores})


if __name__ == "__main__":
    main()
