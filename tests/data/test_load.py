import hashlib
import io
import os
import statistics
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from profiles import grey_profile, rgb_profile

from project.data import load as load_module
from project.data.embedded import Digits
from project.data.load import SHOWN, Verdict, describe_bad, load, measure, survey
from project.data.sources import ImageFiles, ImageFolder, Sample, Source
from project.data.transforms import MAX_PIXELS, ImageFormat
from project.errors import UserError

FORMAT = ImageFormat(12, 3, "letterbox")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def digest(content: bytes) -> int:
    """blake2b as a signed number."""
    return struct.unpack(">q", hashlib.blake2b(content, digest_size=8).digest())[0]


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
    memory = load(source, rows, labels, image_format, cache="memory")
    files = load(source, rows, labels, image_format, cache="none")
    disk = load(source, rows, labels, image_format, cache="disk")
    assert memory.images.pixels is not None and files.images.pixels is None and len(disk.images.kept) == 4
    assert memory.index == [11, 3, 0, 8] and memory.index == files.index
    assert len(memory.bad) == 2 and memory.bad == files.bad == disk.bad
    assert memory.digests == files.digests == disk.digests
    requests = [(4, row) for row in (8, 0, 11, 3, 8)]
    one, other = memory.images.__getitems__(requests), files.images.__getitems__(requests)
    assert one.keys() == other.keys() == {"image", "label", "index"}
    third = disk.images.__getitems__(requests)
    assert all(torch.equal(one[key], other[key]) and torch.equal(one[key], third[key]) for key in one)
    size, channels = image_format.image_size, image_format.channels
    assert one["image"].shape == (5, channels, size, size) and one["image"].dtype == torch.uint8


def test_each_image_keeps_its_index_label_pixels_and_identity(tmp_path):
    for i, level in enumerate((10, 60, 110, 160, 210)):
        (tmp_path / str(i)).mkdir()
        Image.new("L", (12, 12), level).save(tmp_path / str(i) / "a.png")
    source = ImageFolder(str(tmp_path))
    rows, labels = [4, 1, 3], [44, 11, 33]
    for mode in ("memory", "disk", "none"):
        loaded = load(source, rows, labels, FORMAT, mode)
        assert loaded.index == rows and loaded.images.labels.tolist() == labels and len(loaded.images) == 3
        batch = loaded.images.__getitems__([(0, row) for row in (1, 3, 4)])
        assert batch["label"].tolist() == [11, 33, 44] and batch["index"].tolist() == [1, 3, 4]
        assert batch["image"].flatten(1).float().mean(1).tolist() == [60, 160, 210]
        assert loaded.digests == {row: digest(source.content(source.samples[row])) for row in rows}


def test_bad_images_are_left_out_and_named(tmp_path):
    source = pictures(tmp_path, 9, bad=(1, 4))
    bad = {sample.key for sample in source.samples if sample.key[3:5] in ("01", "04")}
    for mode in ("memory", "disk", "none"):
        loaded = load(source, range(9), list(range(9)), FORMAT, mode)
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
    loaded = load(source, rows, [0] * len(rows), FORMAT, cache="memory")
    assert loaded.bad == []
    assert sorted(opened) == [source.samples[row].key for row in rows]


@pytest.mark.parametrize("mode", ["memory", "disk", "none", "auto"])
def test_nothing_readable_is_an_error_with_the_list(tmp_path, mode):
    source = pictures(tmp_path, 3, bad=(0, 1, 2))
    with pytest.raises(UserError) as caught:
        load(source, range(3), [0] * 3, FORMAT, mode)
    assert str(caught.value).startswith("no image is left of c0: 3 of the images cannot be read")
    assert all(sample.key in str(caught.value) for sample in source.samples)


def test_auto_takes_memory_then_disk_then_none(tmp_path, monkeypatch):
    source, asked = pictures(tmp_path, 4), []
    size = 4 * 3 * 12 * 12  # bytes of 4 images
    for memory, disk, kept in ((True, True, "memory"), (False, True, "disk"), (False, False, "none")):
        monkeypatch.setattr(load_module, "fits_in_memory", lambda size, fits=memory: asked.append(size) or fits)
        monkeypatch.setattr(load_module, "has_room", lambda _, size, fits=disk: asked.append(size) or fits)
        loaded = load(source, range(4), [0] * 4, FORMAT, "auto")
        assert (loaded.images.pixels is not None) is (kept == "memory")
        assert (loaded.disk is not None) is (kept == "disk") and len(loaded.images.kept) == 4 * (kept == "disk")
    assert asked and set(asked) == {size}
    asked.clear()
    load(source, range(4), [0] * 4, FORMAT, "memory")
    assert not asked  # said is said
    monkeypatch.setattr(load_module, "has_room", lambda *_: pytest.fail("images to predict are read only once"))
    assert load(source, range(4), [-1] * 4, FORMAT, "auto").disk is None


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_crops_are_cut_from_the_same_images_whatever_keeps_them(tmp_path, channels):
    """Those of a shorter side above 1.5 x image_size are reduced to that."""
    source = pictures(tmp_path, 8)
    requests = [(epoch, row) for epoch in range(3) for row in range(8)]
    batches = []
    for mode in ("memory", "disk", "disk", "none"):
        image_format = FORMAT._replace(channels=channels)
        images = load(source, range(8), [0] * 8, image_format, mode, seed=5, area=(0.3, 0.9)).images
        assert images.pixels is None and len(images.kept) == 8 * (mode != "none")
        assert (images.seed, images.area) == (5, (0.3, 0.9))
        batches.append(images.__getitems__(requests)["image"])
        assert batches[-1].shape == (24, channels, 12, 12)
        shapes = [images._decoded(row).shape for row in range(8)]
        assert sorted(min(shape[1:]) for shape in shapes) == sorted(min(10 + 7 * i, 60 - 3 * i, 18) for i in range(8))
        wanted = load(source, range(8), [0] * 8, image_format, "none").images.__getitems__(
            [(0, row) for row in range(8)]
        )
        assert torch.equal(images.whole(range(8))["image"], wanted["image"])
    assert all(torch.equal(batch, batches[0]) for batch in batches)


def test_a_source_without_files_loads_its_pixels():
    source = Digits(None)
    rows = [5, 1796, 0]
    for mode in ("memory", "auto", "none"):
        loaded = load(source, rows, [1, 2, 3], ImageFormat(8, 1, "letterbox"), mode)
        images = loaded.images.__getitems__([(0, row) for row in rows])["image"]
        assert all(np.array_equal(images[i, 0], source.content(source.samples[row])) for i, row in enumerate(rows))
        assert loaded.digests == {row: digest(source.content(source.samples[row]).tobytes()) for row in rows}
    with pytest.raises(UserError, match=r"^data\.cache disk is for images that are files of their own"):
        load(source, rows, [1, 2, 3], ImageFormat(8, 1, "letterbox"), "disk")


def test_identities_are_sorted_and_each_once(tmp_path):
    pictures(tmp_path, 5)
    (tmp_path / "c1" / "copy.png").write_bytes((tmp_path / "c0" / "00.png").read_bytes())
    source = ImageFolder(str(tmp_path))
    loaded = load(source, range(6), [0] * 6, FORMAT, cache="memory")
    identities = loaded.identities()
    assert identities.dtype == torch.int64
    assert identities.tolist() == sorted({digest(source.content(sample)) for sample in source.samples})
    assert len(identities) == 5 and len(loaded.digests) == 6


def test_decomposed_names_and_single_files_load(tmp_path):
    folder = tmp_path / "Ba\u0308r"
    folder.mkdir()
    Image.new("L", (3, 3)).save(folder / "Ka\u0308se.png")
    for source in (ImageFolder(str(tmp_path)), ImageFiles(str(folder / "Ka\u0308se.png"))):
        assert len(load(source, [0], [-1], FORMAT, "memory").images) == 1


@pytest.mark.parametrize("count", [1, 2, SHOWN, SHOWN + 1, 1000])
def test_a_long_list_of_bad_images_is_cut(count):
    words = describe_bad([(f"cat/{i}.png", f"reason {i}") for i in range(count)])
    assert words.startswith(f"{count} of the images cannot be read: cat/0.png (reason 0)") and "\n" not in words
    assert words.count("reason") == min(count, SHOWN) and (", ...;" in words) == (count > SHOWN)
    assert words.endswith("--data.on_bad_image skip")


class Blank(Source):
    """Empty pixels of these shapes."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        self.samples = [Sample(f"{i:04d}") for i in range(len(shapes))]
        self.shapes, self.asked = shapes, 0

    def content(self, sample: Sample) -> np.ndarray:
        self.asked += 1
        return np.empty(self.shapes[int(sample.key)], dtype=np.uint8)


def common_size(source: Source, rows: range | list[int]) -> int:
    return measure(source, rows, MAX_PIXELS)[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=30), st.booleans())
def test_common_size_is_the_median_in_steps(shapes, color):
    source = Blank([(*shape, 3) if color else shape for shape in shapes])
    size, median = (
        common_size(source, range(len(source.samples))),
        statistics.median_high(min(shape) for shape in shapes),
    )
    if median <= 64:
        assert size == median
    else:
        assert size % 32 == 0 and 64 <= size <= 224
        assert abs(size - min(median, 224)) <= 16


def test_common_size_looks_at_500_images_of_the_whole_list():
    for count in (10, 500, 501, 999, 1000, 3000):
        source = Blank([(50, 50)] * (count // 3) + [(100, 100)] * (count - count // 3))
        assert common_size(source, range(len(source.samples))) == 96
        assert min(count, 250) <= source.asked <= 500


def test_common_size_of_files(tmp_path):
    for i, size in enumerate([(30, 90), (200, 40), (50, 50)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no image")
    source = ImageFiles(str(tmp_path))
    assert common_size(source, range(len(source.samples))) == 40
    assert common_size(source, [3]) == 224
    assert common_size(source, []) == 224


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        ([np.full((3, 4), 200, np.uint8)], (0, 0)),  # 8 bits know no range
        ([np.array([[0, 4000]], np.uint16), np.array([[3, 9]], np.uint16)], (0, 4095)),
        ([np.array([[0, 65535]], np.uint16)], (0, 65535)),
        ([np.array([[0, 700]], np.uint16), np.full((3, 4), 255, np.uint8)], (0, 1023)),
        ([np.array([[0, 250]], np.uint16)], (0, 255)),  # 8 bits in a file of 16
        ([np.array([[0, 1]], np.uint16)], (0, 1)),  # a mask
        ([np.array([[0, 0]], np.uint16)], (0, 1)),
        ([np.array([[-1024, 3071]], np.int32)], (-1024, 4095)),  # computed tomography
        ([np.array([[0, 0.7]], np.float32)], (0, 1)),
        ([np.array([[0, 1.0]], np.float32)], (0, 1)),
        ([np.array([[-1.5, 3.2]], np.float32)], (-1.5, 7)),
        ([np.array([[0, 254.5]], np.float32)], (0, 255)),
        ([np.array([[0, np.inf]], np.float32), np.array([[0, 0.5]], np.float32)], (0, 1)),
    ],
)
def test_the_range_of_deep_images_is_that_of_the_bits_in_use(tmp_path, images, wanted):
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.tif")
    (tmp_path / "bad.tif").write_text("no image")
    source = ImageFiles(str(tmp_path))
    assert measure(source, range(len(source.samples)), MAX_PIXELS)[1] == list(wanted)
    assert {type(value) for value in measure(source, range(len(source.samples)), MAX_PIXELS)[1]} <= {
        int,
        float,
    }  # plain


def test_of_images_of_8_bits_only_headers_are_read_to_measure_them(tmp_path, monkeypatch):
    source = pictures(tmp_path, 6)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(ImageFolder, "content", lambda *_: pytest.fail("read"))
    assert measure(source, range(6), MAX_PIXELS) == (31, [0, 0])


@pytest.mark.parametrize("mode", ["memory", "disk", "none"])
def test_unusable_profiles_are_counted_and_said_every_time(tmp_path, capsys, mode):
    source = pictures(tmp_path, 6)
    for i, profile in ((1, b"broken"), (3, grey_profile(2.2)), (5, rgb_profile("Display P3"))):
        path = source.path(source.samples[i])
        with Image.open(path) as image:
            image.convert("RGB").save(path.with_suffix(".png"), icc_profile=profile)
        if path.suffix != ".png":
            path.unlink()
    source = ImageFolder(str(tmp_path))
    for _ in range(2):
        loaded = load(source, range(6), [0] * 6, FORMAT, mode)
        assert not loaded.bad and len(loaded.images) == 6
        out = capsys.readouterr().out
        assert out.startswith("2 images have a colour profile that cannot be used, and are taken as sRGB, such as c")
        assert out.count("\n") == 1


# Verdicts


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one with every decoding."""
    calls: list[int] = []
    original = load_module.load_image

    def counting(content, *rest):
        calls.append(len(content))
        return original(content, *rest)

    monkeypatch.setattr(load_module, "load_image", counting)
    return calls


def stored(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def folder_of(root: Path, **files: bytes) -> ImageFolder:
    for name, content in files.items():
        path = root / "cat" / name.replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return ImageFolder(str(root))


def check(source: Source, size: int = 40, **options) -> list[Verdict]:
    return survey(source, source.samples, ImageFormat(size, 3, "squash"), **options)


def only_cache_file(cache: Path) -> Path:
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert len(files) == 1
    return files[0]


@pytest.mark.parametrize("size", [4, 40])
def test_damaged_files_are_found_and_good_ones_are_not_blamed(tmp_path, size):
    files = {
        "cut_png": stored(1)[:-800],
        "cut_jpg": stored(2, "JPEG")[:-300],
        "empty_png": b"",
        "good_gif": stored(3, "GIF"),
        "good_jpg": stored(4, "JPEG"),
        "good_png": stored(5),
        "renamed_jpg": stored(6, "PNG"),
        "text_png": b"I am no image",
        "zeros_jpg": bytes(5000),
    }
    source = folder_of(tmp_path, **files)
    verdicts = dict(zip([sample.key for sample in source.samples], check(source, size), strict=True))
    bad = {key for key, verdict in verdicts.items() if verdict.fault}
    assert bad == {"cat/cut.png", "cat/cut.jpg", "cat/empty.png", "cat/text.png", "cat/zeros.jpg"}
    assert verdicts["cat/empty.png"].fault == "not an image"
    assert verdicts["cat/text.png"].fault == "not an image"
    assert all("\n" not in verdict.fault and len(verdict.fault) <= 120 for verdict in verdicts.values())
    for name, content in files.items():
        verdict = verdicts["cat/" + name.replace("_", ".")]
        assert verdict.digest == struct.unpack(">q", hashlib.blake2b(content, digest_size=8).digest())[0]
        state = (tmp_path / "cat" / name.replace("_", ".")).stat()
        assert verdict.state == ("" if verdict.fault else f"{len(content)} {state.st_mtime_ns}")


class Anywhere(Source):
    """Takes any paths, also such as the other sources would not list."""

    def __init__(self, *paths: Path) -> None:
        self.samples = [Sample(str(path)) for path in paths]

    def path(self, sample: Sample) -> Path:
        return Path(sample.key)

    def content(self, sample: Sample) -> bytes:
        return Path(sample.key).read_bytes()


def test_what_cannot_be_opened_is_a_fault_with_a_reason(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    paths = [tmp_path / "folder.png", tmp_path / "dangling.png", tmp_path / "gone.png"]
    folder, dangling, gone = check(Anywhere(*paths))
    assert folder.fault == "Is a directory"
    assert dangling.fault == gone.fault == "No such file or directory"


def test_a_folder_with_an_images_name_is_a_folder(tmp_path):
    (tmp_path / "album.png").mkdir()
    (tmp_path / "album.png" / "a.png").write_bytes(stored(1))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    source = ImageFiles(str(tmp_path))
    assert [sample.key for sample in source.samples] == ["album.png/a.png", "gone.png"]
    assert [bool(verdict.fault) for verdict in check(source)] == [False, True]


def test_verdicts_are_in_the_order_of_the_samples(tmp_path):
    """More of them than a thread takes at once, some asked for twice."""
    source = folder_of(tmp_path, **{f"i{i:02d}_png": stored(i) if i % 3 else b"bad" for i in range(50)})
    samples = [*source.samples[::-1], source.samples[7]]
    verdicts = survey(source, samples, ImageFormat(40, 3, "squash"))
    assert [verdict.digest for verdict in verdicts] == [digest(source.content(sample)) for sample in samples]
    assert [bool(verdict.fault) for verdict in verdicts] == [int(s.key[5:7]) % 3 == 0 for s in samples]


def test_pixels_of_a_source_in_memory_are_never_bad(cache):
    source = Digits(None)
    for sample, verdict in zip(source.samples, check(source, 8), strict=True):
        assert verdict == Verdict("", digest(source.content(sample).tobytes()), "")


def test_pixels_are_kept_of_every_good_image(tmp_path):
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad", c_png=stored(3))
    for _ in range(2):  # the second time the verdicts are known, but the pixels are wanted all the same
        pixels = torch.zeros(3, 3, 40, 40, dtype=torch.uint8)
        verdicts = check(source, pixels=pixels)
        assert [bool(verdict.fault) for verdict in verdicts] == [False, True, False]
        for position in (0, 2):
            with Image.open(io.BytesIO(source.content(source.samples[position]))) as image:
                assert np.array_equal(pixels[position].permute(1, 2, 0), np.asarray(image))


def test_an_error_is_not_hidden_when_memory_runs_out(tmp_path, monkeypatch):
    def full(*given):
        raise MemoryError

    monkeypatch.setattr(load_module, "load_image", full)
    with pytest.raises(MemoryError):
        check(folder_of(tmp_path, a_png=stored(1)))


def test_the_second_survey_decodes_nothing(tmp_path, monkeypatch):
    source = folder_of(tmp_path, a_png=stored(1), c_jpg=stored(2, "JPEG"))
    first = check(source)

    def fail(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(load_module, "load_image", fail)
    monkeypatch.setattr(ImageFolder, "content", fail)  # not even read
    assert check(source) == first


@pytest.mark.parametrize("mode", ["memory", "disk", "none"])
def test_a_bad_verdict_ends_with_its_cause(tmp_path, monkeypatch, mode):
    """A file that only a plug-in can read is read as soon as that is there, and no longer when it is gone."""
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"PLUG-IN 40x40")
    assert [key for key, _ in load(source, [0, 1], [0, 0], FORMAT, mode).bad] == ["cat/b.png"]

    class PlugIn(ImageFile.ImageFile):
        format = "PLUG-IN"

        def _open(self) -> None:
            self._size, self._mode, self.tile = (40, 40), "L", []

        def load(self) -> None:
            self.im = Image.new("L", (40, 40), 77).im

    monkeypatch.setattr(Image, "ID", [*Image.ID, "PLUG-IN"])
    monkeypatch.setitem(Image.OPEN, "PLUG-IN", (PlugIn, lambda prefix: prefix.startswith(b"PLUG-IN")))
    monkeypatch.setitem(Image.EXTENSION, ".plug", "PLUG-IN")
    loaded = load(source, [0, 1], [0, 0], FORMAT, mode)
    assert not loaded.bad and (loaded.images.__getitems__([(0, 1)])["image"] == 77).all()
    monkeypatch.undo()
    assert len(load(source, [0, 1], [0, 0], FORMAT, mode).bad) == 1


def test_a_good_verdict_ends_with_another_limit_or_pillow(tmp_path, monkeypatch, decoded):
    source = folder_of(tmp_path, a_png=stored(1))
    for limit, fault in ((None, False), (1600, False), (1599, True), (1600, False)):
        image_format = FORMAT if limit is None else FORMAT._replace(max_pixels=limit)
        (verdict,) = survey(source, source.samples, image_format)
        assert bool(verdict.fault) is fault, verdict
    assert verdict.fault == "" and len(decoded) == 3  # the last one is remembered
    monkeypatch.setattr("PIL.__version__", "99")
    survey(source, source.samples, image_format)
    assert len(decoded) == 4


@pytest.mark.parametrize("change", ["time", "content"])
def test_a_changed_file_is_looked_at_again(tmp_path, decoded, change):
    source = folder_of(tmp_path, a_png=stored(1), b_png=stored(2), c_png=b"bad")
    before = check(source)
    path, state = tmp_path / "cat" / "a.png", (tmp_path / "cat" / "a.png").stat()
    decoded.clear()
    if change == "time":
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    else:  # another size under the same time, as a copy with its dates makes
        path.write_bytes(stored(9) + b"more")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = check(source)
    assert sorted(decoded) == [3, path.stat().st_size]  # c.png, which is bad, is tried again
    assert after[1:] == before[1:]
    assert after[0].digest == digest(path.read_bytes()) and not after[0].fault
    decoded.clear()
    assert check(source) == after and decoded == [3]


def test_a_mended_file_is_good_and_a_newly_damaged_one_bad(tmp_path):
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad")
    assert [bool(verdict.fault) for verdict in check(source)] == [False, True]
    folder_of(tmp_path, a_png=b"worse", b_png=stored(2))
    assert [bool(verdict.fault) for verdict in check(source)] == [True, False]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"7", b'{"a": 1}', b'{"a": [1]}', b'{"a": [1, 2, 3, 4, 5]}']
)
def test_a_damaged_cache_file_is_no_obstacle(tmp_path, cache, decoded, content):
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad")
    first = check(source)
    only_cache_file(cache).write_bytes(content)
    decoded.clear()
    assert check(source) == first
    assert len(decoded) == 2
    decoded.clear()
    assert check(source) == first  # and it has been written anew
    assert decoded == [3]  # what is bad is tried again


def test_an_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch, decoded):
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad")
    for _ in range(2):
        assert [bool(verdict.fault) for verdict in check(source)] == [False, True]
    assert len(decoded) == 4
    assert (tmp_path / "file").read_text() == "where a folder should be"


def test_a_failed_write_leaves_the_old_verdicts(tmp_path, cache, monkeypatch):
    source = folder_of(tmp_path, a_png=stored(1))
    check(source)
    before = only_cache_file(cache).read_text()
    folder_of(tmp_path, a_png=stored(2))

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    assert not check(source)[0].fault
    (file,) = cache.rglob("verdicts-*.json")
    assert file.read_text() == before


def test_roots_have_verdicts_of_their_own(tmp_path, cache):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        check(folder_of(tmp_path / name, a_png=stored(1)))
    assert len(list(cache.rglob("*.json"))) == 2


def test_the_cache_is_in_the_home_when_nothing_else_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # set but empty counts as unset, says the XDG specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    check(folder_of(tmp_path, a_png=stored(1)))
    assert len(list((tmp_path / "home" / ".cache").rglob("verdicts-*.json"))) == 1
