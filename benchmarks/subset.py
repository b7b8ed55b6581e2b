"""Make a small image folder out of a large one: of each class, the first files in sorted order.

    python benchmarks/subset.py CIFAR_FOLDER OUT [--train 1000] [--test 200]

It measures nothing: it prepares what `benchmarks.time_to_accuracy` and others run on. CIFAR_FOLDER holds
train/<class>/* and test/<class>/*; OUT gets the same layout. With CIFAR-10 the defaults give "the 10k/2k subset". Any
machine, about a second: the files are hard links where the file system allows, else copies.
"""

import argparse
import os
import shutil
from pathlib import Path


def take(source: Path, target: Path, count: int) -> int:
    """Link the first `count` files of each class folder of `source` into `target`.

    Returns:
        How many files there are in all.

    Raises:
        SystemExit: when there is no class folder, or one has too few files.
    """
    classes = sorted(folder for folder in source.glob("*") if folder.is_dir())
    if not classes:
        raise SystemExit(f"there is no class folder in {source}")
    for folder in classes:
        files = sorted(path for path in folder.iterdir() if path.is_file())[:count]
        if len(files) < count:
            raise SystemExit(f"{folder} has {len(files)} files; {count} are wanted")
        (target / folder.name).mkdir(parents=True)
        for path in files:
            link_or_copy(path, target / folder.name / path.name)
    return count * len(classes)


def link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(path, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds train/<class>/* and test/<class>/*")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--train", type=int, default=1000, help="training images of each class (default: 1000)")
    parser.add_argument("--test", type=int, default=200, help="test images of each class (default: 200)")
    args = parser.parse_args()
    if args.out.exists():
        raise SystemExit(f"{args.out} exists already; remove it or name another")
    for split, count in (("train", args.train), ("test", args.test)):
        print(f"{take(args.folder / split, args.out / split, count)} images in {args.out / split}")


if __name__ == "__main__":
    main()
