import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from project.data import load, memory
from project.data.load import fits_in_memory
from project.data.memory import INDEX_LIMIT, Images
from project.data.sources import ImageFiles, Sample, Source
from project.data.transforms import ImageFormat

AREA = (0.2, 0.6)
SIZE = 172  # 1.5 x as many are 258: ramps of 256 are not reduced before they are cropped


class Ramp(Source):
    """Images whose red is the column and whose green is the row: a crop of them shows where it was taken."""

    def __init__(self, count: int, width: int = 256, height: int = 256) -> None:
        self.samples = [Sample(f"{i:04d}") for i in range(count)]
        columns, rows = np.arange(width, dtype=np.uint8), np.arange(height, dtype=np.uint8)
        self.pixels = np.stack([*np.meshgrid(columns, rows), np.zeros((height, width), np.uint8)], axis=2)

    def content(self, sample: Sample) -> np.ndarray:
        return self.pixels


def cropped(count: int, seed: int = 0, area: tuple[float, float] | None = AREA, size: int = SIZE, **options) -> Images:
    source = Ramp(count, **options)
    labels = torch.zeros(count, dtype=torch.int64)
    return Images(source, range(count), labels, ImageFormat(size, 3, "squash", crop=area is not None), None, seed, area)


def held(pixels: torch.Tensor, index: list[int], labels: list[int]) -> Images:
    """Images in memory."""
    return Images(None, index, torch.tensor(labels), None, pixels)


def one(images: Images, epoch: int, key: int) -> torch.Tensor:
    return images.__getitems__([(epoch, key)])["image"][0]


def boxes(images: torch.Tensor) -> list[tuple[float, float, float, float]]:
    """left, top, width, height of crops of a ramp, from the means of their columns and rows away from the rim."""
    found = []
    for image in images.double():
        columns, rows = image[0].mean(0), image[1].mean(1)  # (SIZE,), (SIZE,)
        width, height = ((line[-4] - line[3]).item() / (SIZE - 7) * SIZE for line in (columns, rows))
        left, top = ((line[3:-3].mean().item() + 0.5 - side / 2) for line, side in ((columns, width), (rows, height)))
        found.append((left, top, width, height))
    return found


def test_memory_images_are_the_rows_that_are_asked_for():
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    images = held(pixels, [10, 40, 20, 99, 0], [1, 2, 3, 4, 5])
    assert len(images) == 5
    batch = images.__getitems__([(0, 99), (0, 10), (7, 99), (0, 20)])
    assert torch.equal(batch["image"], torch.stack([pixels[3], pixels[0], pixels[3], pixels[2]]))
    assert batch["label"].tolist() == [4, 1, 4, 3] and batch["label"].dtype == torch.int64
    assert batch["index"].tolist() == [99, 10, 99, 20] and batch["index"].dtype == torch.int64


def test_a_repeated_key_is_the_same_image_under_another_index():
    images = held(torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1), [3, 8], [0, 1])
    keys = [8, 8 + INDEX_LIMIT, 8 + 5 * INDEX_LIMIT, 3 + INDEX_LIMIT]
    batch = images.__getitems__([(0, key) for key in keys])
    assert batch["image"].flatten().tolist() == [1, 1, 1, 0]
    assert batch["index"].tolist() == keys


def test_an_unknown_image_is_no_other_image():
    with pytest.raises(KeyError):
        held(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), [3, 8], [0, 1]).__getitems__([(0, 4)])


def test_files_are_read_when_they_are_asked_for(tmp_path: Path):
    for i in range(3):
        Image.new("L", (8, 8), 50 * i).save(tmp_path / f"{i}.png")
    source = ImageFiles(str(tmp_path))
    images = Images(source, [0, 1, 2], torch.tensor([0, 1, 2]), ImageFormat(8, 1, "crop"))
    assert images.__getitems__([(0, 2), (0, 0)])["image"].flatten(1).float().mean(1).tolist() == [100, 0]
    Image.new("L", (8, 8), 33).save(tmp_path / "2.png")
    assert one(images, 1, 2).unique().tolist() == [33]


def test_random_crops_have_the_stated_areas_and_ratios():
    found = boxes(cropped(200).__getitems__([(0, i) for i in range(200)])["image"])
    areas = [w * h / 256**2 for _, _, w, h in found]
    ratios = [w / h for _, _, w, h in found]
    assert min(areas) > AREA[0] - 0.01 and max(areas) < AREA[1] + 0.01
    assert min(areas) < AREA[0] + 0.04 and max(areas) > AREA[1] - 0.04
    assert np.mean(areas) == pytest.approx(0.4, abs=4 * 0.4 / math.sqrt(12 * 200))
    assert 0.75 - 0.01 < min(ratios) < 0.77 and 1.30 < max(ratios) < 4 / 3 + 0.01
    assert np.mean(np.log(ratios)) == pytest.approx(0, abs=4 * 0.576 / math.sqrt(12 * 200))
    for start, side in ((0, 2), (1, 3)):
        assert all(box[start] > -1 and box[start] + box[side] < 257 for box in found)
        where = [box[start] / (256 - box[side]) for box in found]
        assert np.mean(where) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 200))
        assert min(where) < 0.05 and max(where) > 0.95


def mean_area(width: int, height: int, low: float, high: float) -> float:
    """Of torchvision's law, by quadrature: the first of 10 boxes that fits, else the whole image."""
    share = low + (high - low) * (np.arange(700)[:, None] + 0.5) / 700
    ratio = np.exp(np.linspace(np.log(3 / 4), np.log(4 / 3), 701))[None]
    across, down = np.sqrt(share * width * height * ratio).round(), np.sqrt(share * width * height / ratio).round()
    fits = (across <= width) & (down <= height)
    missed = (1 - fits.mean()) ** 10
    return float((across * down)[fits].mean()) / (width * height) * (1 - missed) + missed


@pytest.fixture
def cut(monkeypatch) -> list[tuple[int, ...]]:
    """left, top, right, bottom of every crop: nothing is reduced, but each pixel tells where it is."""
    found = []

    def resized(image: torch.Tensor, size: list[int]) -> torch.Tensor:
        (top, left, _), (bottom, right, _) = image[:, 0, 0].tolist(), image[:, -1, -1].tolist()
        found.append((left, top, right + 1, bottom + 1))
        return torch.zeros(3, *size)

    def where(content, image_format) -> torch.Tensor:
        rows, columns = torch.meshgrid(*map(torch.arange, content.shape[:2]), indexing="ij")
        return torch.stack([rows, columns, rows])

    monkeypatch.setattr(memory, "resized", resized)
    monkeypatch.setattr(memory, "load_image", where)
    return found


@pytest.mark.parametrize(
    ("width", "height", "area"), [(640, 480, (0.35, 1.0)), (640, 480, (0.08, 1.0)), (80, 60, (0.5, 0.9))]
)
def test_random_crops_have_the_distribution_of_torchvision(cut, width, height, area):
    count = 800
    cropped(count, area=area, width=width, height=height).__getitems__([(0, i) for i in range(count)])
    left, top, right, bottom = np.array(cut).T
    ours = [(right - left) * (bottom - top) / (width * height), (right - left) / (bottom - top), left, top]
    crop = v2.RandomResizedCrop(32, area)
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        image = torch.empty(1, height, width)
        drawn = [crop.make_params([image]) for _ in range(count)]
    left, top, across, down = (np.array([box[k] for box in drawn]) for k in ("left", "top", "width", "height"))
    theirs = [across * down / (width * height), across / down, left, top]
    for one, other in zip(ours, theirs, strict=True):
        assert ks_2samp(one, other).pvalue > 1e-3
    wanted = mean_area(width, height, *area)
    assert np.mean(ours[0]) == pytest.approx(wanted, abs=4 * np.std(ours[0]) / count**0.5)
    if (width, area[0]) == (640, 0.35):
        assert wanted == pytest.approx(0.572, abs=0.005)


@pytest.mark.parametrize(
    ("width", "height", "box"), [(256, 16, (117, 0, 138, 16)), (16, 256, (0, 117, 16, 138)), (60, 40, (3, 0, 56, 40))]
)
def test_where_no_box_fits_the_middle_is_cut_out(cut, width, height, box):
    """Of the ratio nearest to the image's."""
    cropped(3, area=(1.0, 1.0), width=width, height=height).__getitems__([(0, i) for i in range(3)])
    assert set(cut) == {box}


def test_a_crop_leaves_the_global_generator_as_it_was():
    state = torch.get_rng_state()
    cropped(3).__getitems__([(0, 1)])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_crop_is_a_cut_and_resized_image():
    """Against torchvision's resized_crop, at the whole pixels nearest to the box."""
    images = cropped(20)
    batch = images.__getitems__([(3, i) for i in range(20)])["image"]
    whole = torch.from_numpy(images.source.pixels).permute(2, 0, 1)
    for image, (left, top, width, height) in zip(batch, boxes(batch), strict=True):
        cut = F.resized_crop(whole, round(top), round(left), round(height), round(width), [SIZE, SIZE], antialias=True)
        assert (image.float() - cut.float()).abs().max() <= 3


def test_the_whole_area_leaves_a_square_almost_whole():
    for _, _, width, height in boxes(cropped(50, area=(1.0, 1.0)).__getitems__([(0, i) for i in range(50)])["image"]):
        assert max(width, height) == pytest.approx(256, abs=3)  # what would stick out is shortened
        assert min(width, height) > 256 * math.sqrt(3 / 4) - 3


@pytest.mark.parametrize(("width", "height"), [(256, 16), (16, 256), (1, 1), (3, 200)])
def test_long_and_tiny_images_can_be_cropped(width, height):
    batch = cropped(30, area=(0.05, 1.0), width=width, height=height).__getitems__([(0, i) for i in range(30)])
    assert batch["image"].shape == (30, 3, SIZE, SIZE)
    columns, rows = batch["image"][:, 0].int(), batch["image"][:, 1].int()
    assert columns.max() < width and rows.max() < height
    assert (columns.diff(dim=2) >= 0).all() and (rows.diff(dim=1) >= 0).all()  # neither mirrored nor wrapped around


def test_a_crop_depends_on_seed_epoch_and_image_alone():
    images, key = cropped(40), 17
    alone = one(images, 2, key)
    together = cropped(40).__getitems__([(2, i) for i in (5, key, 30)])["image"]
    assert torch.equal(together[1], alone)
    others = [
        one(images, 3, key),
        one(images, 2, key + 1),
        one(images, 2, key + INDEX_LIMIT),  # the second time in an epoch
        one(cropped(40, seed=1), 2, key),
    ]
    assert all(not torch.equal(other, alone) for other in others)


def test_without_an_area_epochs_are_alike():
    images = cropped(3, area=None)
    assert torch.equal(one(images, 0, 1), one(images, 9, 1 + INDEX_LIMIT))


def test_fits_in_memory_up_to_a_quarter_of_what_is_free(monkeypatch):
    free = {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", free.__getitem__)
    monkeypatch.setattr(load, "CGROUPS", ())
    assert fits_in_memory(1024000) and not fits_in_memory(1024001)  # 4,096,000 / 4


@pytest.mark.parametrize("error", [AttributeError, ValueError])
def test_fits_in_memory_assumes_4_gib_where_the_system_does_not_say(monkeypatch, error):
    def fail(name):
        raise error(name)

    monkeypatch.setattr(os, "sysconf", fail)
    monkeypatch.setattr(load, "CGROUPS", ())
    assert fits_in_memory(2**30) and not fits_in_memory(2**30 + 1)


@pytest.mark.parametrize(
    ("limit", "used", "fitting"),
    [
        ("4194304\n", "98304\n", 1000),  # 4,096,000 bytes are left
        ("4194304", "4194304", 0),
        ("max", "98304", 2000),  # version 2 without a limit
        ("9223372036854771712", "98304", 2000),  # version 1 without
        (None, "98304", 2000),
        ("", "98304", 2000),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_a_container_counts(tmp_path, monkeypatch, version, limit, used, fitting):
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 2000, "SC_PAGE_SIZE": 4096}.__getitem__)
    files = [tuple(tmp_path / f"{name}_{each}" for name in ("limit", "used")) for each in (2, 1)]
    assert all(str(path).startswith("/sys/fs/cgroup/") for pair in load.CGROUPS for path in pair)
    monkeypatch.setattr(load, "CGROUPS", files)
    for path, text in zip(files[2 - version], (limit, used), strict=True):
        if text is not None:
            path.write_text(text)
    assert fits_in_memory(fitting * 1024) and not fits_in_memory(fitting * 1024 + 1)


@pytest.mark.parametrize(("device", "free"), [("cpu", 2**40), ("cuda", 4 * 2 * 64 - 1)])
def test_pixels_stay_where_no_gpu_has_room(monkeypatch, device, free) -> None:
    images = held(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [0, 1], [0, 1])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**40))
    assert images.on(torch.device(device)) is images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pixels_on_a_gpu_give_the_same_batches() -> None:
    images = held(torch.arange(128, dtype=torch.uint8).reshape(2, 1, 8, 8), [5, 7], [0, 1])
    there = images.on(torch.device("cuda")).__getitems__([(0, 7), (0, 5 + INDEX_LIMIT)])
    here = images.__getitems__([(0, 7), (0, 5 + INDEX_LIMIT)])
    assert there["image"].is_cuda and not images.pixels.is_cuda
    assert all(torch.equal(value, there[name].cpu()) for name, value in here.items())
