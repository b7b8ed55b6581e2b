import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from project.data import load as load_module
from project.data.embedded import Digits
from project.data.load import SHOWN, common_size, describe_bad, load
from project.data.memory import FileImages, ImageFormat, MemoryImages
from project.data.sources import ImageFiles, ImageFolder, Sample, Source
from project.data.verify import digest
from project.errors import UserError

FORMAT = ImageFormat(12, 3, "letterbox")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def pictures(root: Path, count: int, bad: tuple[int, ...] = ()) -> ImageFolder:
    """Images of many shapes and kinds, in two classes by turns; those of `bad` are texts."""
    for i in range(count):
        path = root / f"c{i % 2}" / f"{i:02d}.{('png', 'jpg', 'bmp')[i % 3]}"
        path.parent.mkdir(exist_ok=True)
        if i in bad:
            path.write_text("no image")
            continue
        pixels = np.random.default_rng(i).integers(0, 256, (10 + 7 * i, 60 - 3 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if i % 4 == 0 else "RGB").save(path)
    return ImageFolder(str(root))


@pytest.mark.parametrize("image_format", [FORMAT, ImageFormat(20, 1, "crop"), ImageFormat(9, 4, "squash")])
def test_memory_and_files_give_the_same_batches(tmp_path, image_format):
    source = pictures(tmp_path, 12, bad=(2, 7))
    rows, labels = [11, 3, 1, 0, 9, 8], [1, 0, 0, 0, 1, 1]  # 1 and 9 are the bad ones: c0 comes before c1
    memory = load(source, rows, labels, image_format, in_memory=True)
    files = load(source, rows, labels, image_format, in_memory=False)
    assert isinstance(memory.images, MemoryImages) and isinstance(files.images, FileImages)
    assert memory.index == [11, 3, 0, 8] and memory.index == files.index
    assert len(memory.bad) == 2 and memory.bad == files.bad and memory.digests == files.digests
    requests = [(4, row) for row in (8, 0, 11, 3, 8)]
    one, other = memory.images.__getitems__(requests), files.images.__getitems__(requests)
    assert one.keys() == other.keys() == {"image", "label", "index"}
    assert all(torch.equal(one[key], other[key]) for key in one)
    size, channels = image_format.image_size, image_format.channels
    assert one["image"].shape == (5, channels, size, size) and one["image"].dtype == torch.uint8


def test_each_image_keeps_its_index_label_pixels_and_identity(tmp_path):
    for i, level in enumerate((10, 60, 110, 160, 210)):
        (tmp_path / str(i)).mkdir()
        Image.new("L", (12, 12), level).save(tmp_path / str(i) / "a.png")
    source = ImageFolder(str(tmp_path))
    rows, labels = [4, 1, 3], [44, 11, 33]
    for in_memory in (True, False):
        loaded = load(source, rows, labels, FORMAT, in_memory)
        assert loaded.index == rows and loaded.images.labels.tolist() == labels and len(loaded.images) == 3
        batch = loaded.images.__getitems__([(0, row) for row in (1, 3, 4)])
        assert batch["label"].tolist() == [11, 33, 44] and batch["index"].tolist() == [1, 3, 4]
        assert batch["image"].flatten(1).float().mean(1).tolist() == [60, 160, 210]
        assert loaded.digests == {row: digest(source.content(source.samples[row])) for row in rows}


def test_bad_images_are_left_out_and_named(tmp_path):
    source = pictures(tmp_path, 9, bad=(1, 4))
    bad = {sample.key for sample in source.samples if sample.key[3:5] in ("01", "04")}
    for in_memory in (True, False):
        loaded = load(source, range(9), list(range(9)), FORMAT, in_memory)
        assert {key for key, _ in loaded.bad} == bad and all(why for _, why in loaded.bad)
        assert [source.samples[row].key for row in loaded.index] == [s.key for s in source.samples if s.key not in bad]
        assert len(loaded.images) == 7 and loaded.images.labels.tolist() == loaded.index
        assert loaded.images.__getitems__([(0, row) for row in loaded.index])["image"].shape == (7, 3, 12, 12)


def test_no_other_image_is_opened(tmp_path, monkeypatch):
    """The test set is not touched by training, not even to look whether it can be read."""
    source = pictures(tmp_path, 8, bad=(1, 5))
    opened = []
    content = ImageFolder.content
    monkeypatch.setattr(ImageFolder, "content", lambda self, sample: opened.append(sample.key) or content(self, sample))
    rows = [i for i, sample in enumerate(source.samples) if sample.label == "c0"]  # the bad ones are in c1
    loaded = load(source, rows, [0] * len(rows), FORMAT, in_memory=True)
    assert loaded.bad == []
    assert sorted(opened) == [source.samples[row].key for row in rows]


@pytest.mark.parametrize("in_memory", [True, False, None])
def test_nothing_readable_is_an_error_with_the_list(tmp_path, in_memory):
    source = pictures(tmp_path, 3, bad=(0, 1, 2))
    with pytest.raises(UserError) as caught:
        load(source, range(3), [0] * 3, FORMAT, in_memory)
    first, *listed = str(caught.value).split("\n")
    assert first == "none of the 3 images can be read"
    assert [line.split(":")[0].strip() for line in listed] == [sample.key for sample in source.samples]


def test_in_memory_where_it_fits(tmp_path, monkeypatch):
    source = pictures(tmp_path, 4)
    asked = []
    for fits, kind in ((True, MemoryImages), (False, FileImages)):
        monkeypatch.setattr(load_module, "fits_in_memory", lambda *args, fits=fits: asked.append(args) or fits)
        assert type(load(source, range(4), [0] * 4, FORMAT, None).images) is kind
    assert asked == [(4, FORMAT)] * 2
    load(source, range(4), [0] * 4, FORMAT, True)
    assert len(asked) == 2  # said is said


def test_random_crops_need_the_files(tmp_path):
    source = pictures(tmp_path, 4)
    for in_memory in (True, False, None):
        images = load(source, range(4), [0] * 4, FORMAT, in_memory, seed=5, area=(0.3, 0.9)).images
        assert isinstance(images, FileImages)
        assert (images.seed, images.area) == (5, (0.3, 0.9))


def test_a_source_without_files_loads_its_pixels():
    source = Digits(None)
    rows = [5, 1796, 0]
    for in_memory in (True, False):
        loaded = load(source, rows, [1, 2, 3], ImageFormat(8, 1, "letterbox"), in_memory)
        images = loaded.images.__getitems__([(0, row) for row in rows])["image"]
        assert all(np.array_equal(images[i, 0], source.content(source.samples[row])) for i, row in enumerate(rows))
        assert loaded.digests == {row: digest(source.content(source.samples[row]).tobytes()) for row in rows}


def test_identities_are_sorted_and_each_once(tmp_path):
    pictures(tmp_path, 5)
    (tmp_path / "c1" / "copy.png").write_bytes((tmp_path / "c0" / "00.png").read_bytes())
    source = ImageFolder(str(tmp_path))
    loaded = load(source, range(6), [0] * 6, FORMAT, in_memory=True)
    identities = loaded.identities()
    assert identities.dtype == torch.int64
    assert identities.tolist() == sorted({digest(source.content(sample)) for sample in source.samples})
    assert len(identities) == 5 and len(loaded.digests) == 6


def test_decomposed_names_and_single_files_load(tmp_path):
    folder = tmp_path / "Ba\u0308r"
    folder.mkdir()
    Image.new("L", (3, 3)).save(folder / "Ka\u0308se.png")
    for source in (ImageFolder(str(tmp_path)), ImageFiles(str(folder / "Ka\u0308se.png"))):
        assert len(load(source, [0], [-1], FORMAT, True).images) == 1


@pytest.mark.parametrize("count", [1, 2, SHOWN, SHOWN + 1, 1000])
def test_a_long_list_of_bad_images_is_cut(count):
    first, *lines = describe_bad([(f"cat/{i}.png", f"reason {i}") for i in range(count)]).split("\n")
    assert first.startswith(f"{count} image{'s' * (count > 1)} cannot be read") and "--data.on_bad_image skip" in first
    assert lines[:20] == [f"  cat/{i}.png: reason {i}" for i in range(min(count, 20))]
    assert lines[20:] == ([f"  ... and {count - 20} more"] if count > 20 else [])


class Blank(Source):
    """Empty pixels of these shapes."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        self.samples = [Sample(f"{i:04d}") for i in range(len(shapes))]
        self.shapes, self.asked = shapes, 0

    def content(self, sample: Sample) -> np.ndarray:
        self.asked += 1
        return np.empty(self.shapes[int(sample.key)], dtype=np.uint8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=30), st.booleans())
def test_common_size_is_the_median_in_steps(shapes, color):
    source = Blank([(*shape, 3) if color else shape for shape in shapes])
    size, median = common_size(source, source.samples), statistics.median_high(min(shape) for shape in shapes)
    if median <= 64:
        assert size == median
    else:
        assert size % 32 == 0 and 64 <= size <= 224
        assert abs(size - min(median, 224)) <= 16


def test_common_size_looks_at_500_images_of_the_whole_list():
    for count in (10, 500, 501, 999, 1000, 3000):
        source = Blank([(50, 50)] * (count // 3) + [(100, 100)] * (count - count // 3))
        assert common_size(source, source.samples) == 96
        assert min(count, 250) <= source.asked <= 500


def test_common_size_of_files(tmp_path):
    for i, size in enumerate([(30, 90), (200, 40), (50, 50)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no image")
    source = ImageFiles(str(tmp_path))
    assert common_size(source, source.samples) == 40
    assert common_size(source, [sample for sample in source.samples if sample.key == "bad.png"]) == 224
    assert common_size(source, []) == 224
