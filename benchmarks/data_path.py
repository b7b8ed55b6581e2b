"""Reading photographs: images a second against torchvision, and what a data set costs at the start, by its size.

    python -m benchmarks.data_path [--quick] [--out data_path.json]

First table: where the time of our path goes (cProfile, `data.cache none`, no workers).
Second table: photographs on the disk, read, decoded and brought to 3 x 224 x 224, with 0 and with 2 worker processes.
The rival is what a user would write: torchvision's ImageFolder with v2.Resize((224, 224)) or v2.RandomResizedCrop(224),
then floats and v2.Normalize, in a DataLoader. As `uint8` it leaves the floats to somebody else, as we do: our images
are normalised in the network. Ours are `data.resize squash` and `data.random_resized_crop`, with `data.cache none` and
with a warm `disk`. All take turns, epoch by epoch, A B C A B C ..., after one epoch to warm up, which also starts the
workers; the table gives medians, and medians of the ratios within a round. The photographs are JPEGs of quality 90 that
this script makes: 12 megapixels (2.3 MB), and 500 x 375 (64 kB).

Third table: 1,000, 10,000 and 50,000 JPEGs of 64 pixels, in a process of its own each. `first start` lists, splits,
checks and decodes; `start` is the next one, with a warm `data.cache disk`, up to the first batch; both in seconds, as
is an epoch of reading; memory is the most that the process has taken.

A CPU that does nothing else: seven minutes on two cores, two with --quick. Needs 1 GB of disk.
"""

import argparse
import cProfile
import io
import json
import multiprocessing
import os
import pstats
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.measure import throughput
from project.data import ImageDataModule

SIZE, AREA, BATCH = 224, (0.35, 1.0), 32
# Width, height, images, and epochs for each round of the first kind.
PHOTOGRAPHS = {"12 megapixels": (4000, 3000, 32, 1), "500 x 375": (500, 375, 256, 3)}
KINDS = {False: "resized", True: "random crop"}
WORKERS = (0, 2)
RIVALS = ("torchvision", "torchvision uint8")
OURS = ("none", "disk")
SIZES = (1_000, 10_000, 50_000)
Row = dict[str, Any]
Contestant = tuple[Iterable, Callable[[int], None]]  # the batches of an epoch, and what starts one


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Smooth patches of four sizes, and noise: as JPEG it takes as many bytes as a photograph."""
    random, total = np.random.default_rng(seed), np.zeros((height, width, 3), np.float32)
    for cells in (8, 32, 128, 512):
        grid = random.normal(0, 40 / np.log2(cells) ** 0.7, (cells * height // width + 2, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(grid[..., channel]).resize((width, height), Image.BILINEAR)
            total[..., channel] += np.asarray(layer)
    total += random.normal(128, 4, total.shape)
    return Image.fromarray(np.uint8(total.clip(0, 255)))


def make(root: Path, width: int, height: int, count: int) -> Path:
    """Write JPEGs in two classes; some photographs, over and over, each with a byte of its own at the end."""
    several = [photograph(width, height, seed) for seed in range(min(count, 4))]
    for image in several:
        image.save(root / "photograph.jpg", quality=90)
        image.info["content"] = (root / "photograph.jpg").read_bytes()
    (root / "photograph.jpg").unlink()
    for i in range(count):
        path = root / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(several[i % len(several)].info["content"] + i.to_bytes(4, "little"))
    return root


def ours(root: Path, cache: str, crops: bool, workers: int | None, image_size: int = SIZE) -> Contestant:
    """The training batches of the data module, uint8, and what starts an epoch."""
    area = AREA if crops else None
    options = {"cache": cache, "random_resized_crop": area, "num_workers": workers, "resize": "squash"}
    data = ImageDataModule(str(root), image_size=image_size, batch_size=BATCH, val_size=0, test_size=0, **options)
    with redirect_stdout(io.StringIO()):
        data.setup("fit")
    data.trainer = SimpleNamespace(
        global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=torch.device("cpu")), fit_loop=None
    )
    loader = data.train_dataloader()
    return loader, loader.batch_sampler.set_epoch


def torchvisions(root: Path, crops: bool, floats: bool, workers: int) -> Contestant:
    """The same by torchvision."""
    resize = v2.RandomResizedCrop(SIZE, AREA) if crops else v2.Resize((SIZE, SIZE))
    rest = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    images = ImageFolder(root, v2.Compose([resize, v2.ToImage(), *rest * floats]))
    return DataLoader(images, BATCH, True, num_workers=workers, persistent_workers=workers > 0), lambda epoch: None


def epoch(batches: Iterable, begin: Callable[[int], None], number: int) -> float:
    """Images a second."""
    begin(number)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["label"] if isinstance(batch, dict) else batch[1])
    return count / (time.perf_counter() - start)


@contextmanager
def photographs(title: str, quick: bool) -> Iterator[Path]:
    """A folder of them, for as long as it is needed."""
    width, height, count, _ = PHOTOGRAPHS[title]
    with tempfile.TemporaryDirectory() as folder:
        yield make(Path(folder), width, height, count // 4 if quick else count)


def show(row: Row) -> Row:
    """Print a row of a table."""
    print("|", " | ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()), "|")
    return row


def heading(columns: Iterable[str]) -> None:
    columns = list(columns)
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def against_torchvision(rounds: int, quick: bool) -> list[Row]:
    """Images a second, and ratios."""
    ratios = {f"{one} / {other}": (one, other) for one in OURS for other in RIVALS}
    heading(["photographs", "workers", "kind", *(f"{name}, images/s" for name in (*RIVALS, *OURS)), *ratios])
    rows = []
    for title, (*_, times) in PHOTOGRAPHS.items():
        with photographs(title, quick) as root:
            for workers, crops in [(workers, crops) for workers in WORKERS for crops in KINDS]:
                contestants = {name: torchvisions(root, crops, name == RIVALS[0], workers) for name in RIVALS}
                contestants |= {cache: ours(root, cache, crops, workers) for cache in OURS}
                speeds: dict[str, list[float]] = {name: [] for name in contestants}
                for number in range(1 + rounds * times):
                    for name, contestant in contestants.items():
                        speeds[name].append(epoch(*contestant, number))
                row: Row = {"photographs": title, "workers": workers, "kind": KINDS[crops]}
                row |= {f"{name}, images/s": median(values[1:]) for name, values in speeds.items()}
                for ratio, (one, other) in ratios.items():
                    pairs = zip(speeds[one][1:], speeds[other][1:], strict=True)
                    row[ratio] = median(mine / theirs for mine, theirs in pairs)
                rows.append(show(row))
    return rows


def start(root: Path, answers: multiprocessing.Queue) -> None:
    """In a process of its own: seconds up to the first batch, seconds of an epoch, MB that it has taken at most."""
    begin = time.perf_counter()
    batches, set_epoch = ours(root, "disk", False, 0, 64)
    next(iter(batches))
    seconds = time.perf_counter() - begin
    speed = epoch(batches, set_epoch, 1)
    answers.put((seconds, len(batches.dataset) / speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def by_size(quick: bool) -> list[Row]:
    """What a start, an epoch and the memory cost."""
    columns = ("images", "first start, s", "start, s", "epoch, s", "memory, MB")
    heading(columns)
    rows, context = [], multiprocessing.get_context("spawn")
    for count in SIZES[: 2 if quick else 3]:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), 64, 64, count)
            found = []
            for _ in range(4):  # the first builds the cache
                answers = context.Queue()
                child = context.Process(target=start, args=(Path(folder), answers))
                child.start()
                found.append(answers.get())
                child.join()
        warm = [median(values) for values in zip(*found[1:], strict=True)]
        rows.append(show(dict(zip(columns, (count, found[0][0], *warm), strict=True))))
    return rows


def profiles(quick: bool) -> list[Row]:
    """Of the time of our path, the shares of opening and decoding, and of the steps after it."""
    steps = {"open": "open", "load": "decode", "resize": "resize", "resized": "resize", "read_bytes": "read"}
    columns = ("photographs", "kind", *dict.fromkeys(steps.values()), "rest")
    heading(columns)
    rows = []
    for title in PHOTOGRAPHS:
        with photographs(title, quick) as root:
            for crops in KINDS:
                profile, contestant = cProfile.Profile(), ours(root, "none", crops, 0)
                profile.runcall(epoch, *contestant, 0)
                stats = pstats.Stats(profile)
                spent = dict.fromkeys(columns[2:], 0.0)
                for (file, _, name), (*_, seconds, _) in stats.stats.items():
                    if name in steps and file.endswith(
                        ("PIL/Image.py", "PIL/ImageFile.py", "transforms.py", "pathlib.py")
                    ):
                        spent[steps[name]] += seconds / stats.total_tt
                spent["rest"] = 1 - sum(spent.values())
                shares = {name: f"{share:.0%}" for name, share in spent.items()}
                rows.append(show({"photographs": title, "kind": KINDS[crops]} | shares))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of the first table (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a quarter of the photographs; up to 10,000 small images")
    parser.add_argument("--out", default="data_path.json", help="file for all numbers (default: data_path.json)")
    given = parser.parse_args()
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, PIL)}
    machine = {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "fp32 GFLOP/s": round(throughput()["float32"]),
    }
    print(", ".join(f"{name} {value}" for name, value in (versions | machine).items()))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # nothing is left in the user's cache
        tables = {
            "profile": profiles(given.quick),
            "photographs": against_torchvision(given.rounds, given.quick),
            "sizes": by_size(given.quick),
        }
    Path(given.out).write_text(json.dumps(versions | machine | tables, indent=1))


if __name__ == "__main__":
    main()
