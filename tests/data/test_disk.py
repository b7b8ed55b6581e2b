import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from project.data import ImageDataModule, disk, load, memory
from project.data.disk import Disk, has_room
from project.data.load import describe_disk
from project.data.sources import FileSource, ImageFolder
from project.data.transforms import ImageFormat

FORMAT = ImageFormat(12, 3, "letterbox")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """Grows by the number of bytes with every decoding, in the survey or for a batch."""
    calls, real = [], load.load_image

    def counting(content, image_format):
        calls.append(len(content))
        return real(content, image_format)

    monkeypatch.setattr(load, "load_image", counting)
    monkeypatch.setattr(memory, "load_image", counting)
    return calls


def images(root: Path, count: int = 6) -> ImageFolder:
    """Images of many sizes, all larger than the format."""
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 30 + 2 * i, 3), dtype=np.uint8)
        (root / "cat").mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels).save(root / "cat" / f"{i}.png")
    return ImageFolder(str(root))


def loaded(source: FileSource, cache: str = "disk", area: tuple | None = None, rows: range | None = None):
    rows = range(len(source.samples)) if rows is None else rows
    return load.load(source, rows, [0] * len(rows), FORMAT, cache, area=area)


def pixels(part) -> torch.Tensor:
    return part.images.__getitems__([(1, row) for row in part.index])["image"]


def parts(part) -> list[Path]:
    return sorted(part.disk.folder.glob("*.pixels"))


@pytest.mark.parametrize("area", [None, (0.3, 0.9)])
def test_a_warm_cache_decodes_nothing_and_reads_no_file(tmp_path, decoded, monkeypatch, area):
    source = images(tmp_path)
    wanted = pixels(loaded(source, "none", area))
    first = loaded(source, "disk", area)
    assert torch.equal(pixels(first), wanted)
    decoded.clear()
    monkeypatch.setattr(FileSource, "content", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(load.FileSource, "content", FileSource.content)
    second = loaded(source, "disk", area)
    assert torch.equal(pixels(second), wanted) and torch.equal(pixels(second), wanted)
    assert second.digests == first.digests and not decoded and len(parts(second)) == 1


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_processes_that_are_spawned_get_the_images(tmp_path, cache):
    """Of what is on the disk they get the places."""
    part = loaded(images(tmp_path), cache, (0.3, 0.9))
    content = pickle.dumps(part.images)
    copy = pickle.loads(content).__getitems__([(1, row) for row in part.index])["image"]
    assert torch.equal(copy, pixels(part)) and (cache == "memory" or len(content) < 6 * 18 * 27 * 3)


ANONYMOUS = """
import sys
from pathlib import Path
from project.data import load
from project.data.sources import ImageFolder
from project.data.transforms import ImageFormat
def taken():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024
load.fits_in_memory = lambda size: False
source = ImageFolder(sys.argv[1])
rows, image_format = range(len(source.samples)), ImageFormat(224, 3, "squash")
load.load(source, rows[:50], [0] * 50, image_format).images.__getitems__([(0, row) for row in rows[:50]])
before, most = taken(), 0
images = load.load(source, rows, [0] * len(rows), image_format).images
for first in range(0, len(rows), 50):
    images.__getitems__([(0, row) for row in rows[first : first + 50]])
    most = max(most, taken())
print(len(images.kept), most - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_set_that_is_larger_than_the_memory(tmp_path):
    """2,000 images of 150 kB: the process takes little more than what waits to be written."""
    (tmp_path / "cat").mkdir()
    for i in range(2000):
        Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(tmp_path / "cat" / f"{i}.bmp")
    command = [sys.executable, "-c", ANONYMOUS, str(tmp_path)]
    kept, megabytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(kept) == 2000 and float(megabytes) < 150


def test_what_crops_are_cut_from_has_a_cache_of_its_own(tmp_path):
    source = images(tmp_path)
    whole, crops = loaded(source), loaded(source, area=(0.3, 0.9))
    assert whole.disk.folder != crops.disk.folder
    assert {whole.images.kept[row]().shape[0] for row in whole.index} == {12}
    assert all(min(place().shape[:2]) == 18 for place in crops.images.kept.values())
    other = load.load(source, range(6), [0] * 6, FORMAT._replace(resize="crop"), "disk")
    assert other.disk.folder not in (whole.disk.folder, crops.disk.folder)


def test_only_what_has_changed_is_decoded_again(tmp_path, decoded):
    source = images(tmp_path)
    before = pixels(loaded(source))
    decoded.clear()
    path = source.path(source.samples[2])
    Image.new("RGB", (30, 30), "red").save(path)
    after = loaded(source)
    assert decoded == [path.stat().st_size]
    assert torch.equal(pixels(after), pixels(loaded(source, "none")))
    assert [torch.equal(one, other) for one, other in zip(before, pixels(after), strict=True)] == [
        row != 2 for row in range(6)
    ]
    source = images(tmp_path, 8)  # all of them are written anew, and there are two more
    assert torch.equal(pixels(loaded(source)), pixels(loaded(source, "none")))
    assert len(parts(loaded(source))) == 1  # what has wholly changed is removed


def test_the_folder_may_be_named_from_elsewhere(tmp_path, decoded, monkeypatch):
    images(tmp_path / "set")
    for folder, root in ((tmp_path, "set"), (tmp_path / "set", "."), (tmp_path / "set" / "cat", "../../set")):
        monkeypatch.chdir(folder)
        part = loaded(ImageFolder(root))
        assert len(part.images.kept) == len(decoded) == 6


def test_sets_of_images_share_a_cache(tmp_path, decoded):
    source = images(tmp_path)
    loaded(source, rows=range(4))
    decoded.clear()
    assert torch.equal(pixels(loaded(source)), pixels(loaded(source, "none")))
    assert len(decoded) == 2 + 6


def test_an_image_that_is_gone_from_the_cache_is_read_from_its_file(tmp_path):
    source = images(tmp_path)
    part = loaded(source)
    wanted = pixels(part)
    shutil.rmtree(part.disk.folder)
    assert torch.equal(pixels(part), wanted)
    again = loaded(source)
    assert len(again.images.kept) == 6 and torch.equal(pixels(again), wanted)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "ones", "draft"])
def test_a_damaged_part_is_never_believed(tmp_path, damage):
    source = images(tmp_path)
    wanted, (file,) = pixels(part := loaded(source)), parts(part)
    content = file.read_bytes()
    if damage == "draft":  # as a kill leaves it
        file.rename(file.with_name(f".{file.stem}.1.part.pixels"))
    else:
        file.write_bytes({"cut": content[:-20], "ones": b"\xff" * 999, "empty": b"", "text": b"I am no part"}[damage])
    again = loaded(source)
    assert torch.equal(pixels(again), wanted) and len(again.images.kept) == 6
    assert not list(again.disk.folder.glob(".*.pixels"))


def test_a_full_disk_is_one_line_and_the_rest_is_read_from_the_files(tmp_path, monkeypatch, decoded):
    source = images(tmp_path)
    wanted = pixels(loaded(source, "none"))
    monkeypatch.setattr(disk, "PART", 3 * 12 * 12 * 2)  # two images a part
    written, real = [], disk.written_whole

    def full(file):
        if len(written) == 2:
            raise disk.UserError("No space left on device")
        written.append(file)
        return real(file)

    monkeypatch.setattr(disk, "written_whole", full)
    part = loaded(source)
    assert torch.equal(pixels(part), wanted) and len(part.images.kept) == 4
    line = describe_disk([part])
    assert line.startswith(f"4 decoded images, 0 MB, in {part.disk.folder.parent}")
    assert line.endswith("; others are read from their files: No space left on device")
    monkeypatch.undo()
    decoded.clear()
    part = loaded(source)  # there is room again
    assert len(part.images.kept) == 6 and torch.equal(pixels(part), wanted)


def test_some_of_the_disk_is_left_free(tmp_path, monkeypatch):
    source = images(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: Usage(2**40, 0, disk.SPARE + 2591))
    part = loaded(source)
    assert not part.images.kept and "less than 2 GB would be left free" in describe_disk([part])
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: Usage(2**40, 0, disk.SPARE + 2592))  # 6 x 3 x 12 x 12
    assert len(loaded(source).images.kept) == 6


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "disk")], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "disk"))
        monkeypatch.setattr(disk, "SPARE", -(2**40))
        monkeypatch.setattr(disk, "PART", 20_000)
        source = images(tmp_path / "images", 8)
        monkeypatch.setattr(sys.modules[__name__], "FORMAT", FORMAT._replace(image_size=60))  # 10,800 bytes
        part = loaded(source)
        assert 0 < len(part.images.kept) < 8 and "No space left on device" in describe_disk([part])
        assert torch.equal(pixels(part), pixels(loaded(source, "none")))
        assert not list(part.disk.folder.glob(".*.part*"))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = images(tmp_path / "images")
    part = loaded(source)
    assert torch.equal(pixels(part), pixels(loaded(source, "none"))) and not part.images.kept
    assert "Not a directory" in describe_disk([part])
    assert not has_room(tmp_path / "file" / "images", 1)


def test_auto_leaves_half_of_the_disk_free(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: Usage(2**40, 0, disk.SPARE + 2000))
    assert has_room(tmp_path / "new", 1000) and not has_room(tmp_path / "new", 1001)
    assert not (tmp_path / "new").exists()  # where memory is taken in the end, nothing is left
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1.pixels").touch()
    assert has_room(tmp_path / "new", 1001)  # it has been begun


BUILD = """
import sys
from project.data import disk, load
from project.data.load import describe_disk
from project.data.sources import ImageFolder
from project.data.transforms import ImageFormat
disk.PART = 3 * 12 * 12 * 2
real, count = load.load_image, []
def slowly(*given):
    count.append(1)
    if len(count) > int(sys.argv[2]):
        __import__("time").sleep(1)  # the others finish
        print("ready", flush=True)
        __import__("time").sleep(60)
    return real(*given)
load.load_image = slowly
source = ImageFolder(sys.argv[1])
load.load(source, range(len(source.samples)), [0] * len(source.samples), ImageFormat(12, 3, "letterbox"), "disk")
print(len(count))
"""


@pytest.mark.slow
def test_a_killed_builder_leaves_what_was_whole(tmp_path, decoded):
    source = images(tmp_path, 12)
    child = subprocess.Popen([sys.executable, "-c", BUILD, str(tmp_path), "7"], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline().startswith("ready")  # several threads may say it in one line
    child.send_signal(signal.SIGKILL)
    child.wait()
    part = loaded(source)
    assert len(decoded) <= 12 - 6 and len(part.images.kept) == 12  # of the 7 three parts of 2 had been written
    assert torch.equal(pixels(part), pixels(loaded(source, "none")))


def _enter(folder: Path, answers: multiprocessing.Queue) -> None:
    with Disk(folder) as mine:
        answers.put((__file__, disk.state_of(__file__)) in mine.places)


def test_a_second_builder_waits_for_the_first(tmp_path):
    """And then finds its images."""
    context, folder = multiprocessing.get_context("fork"), tmp_path / "cache"
    answers = context.Queue()
    with Disk(folder) as mine:
        second = context.Process(target=_enter, args=(folder, answers))
        second.start()
        key = __file__, disk.state_of(__file__)
        mine[key] = torch.full((3, 5, 4), 7, dtype=torch.uint8)
        time.sleep(0.3)
        assert answers.empty() and second.is_alive()
    assert answers.get(timeout=20) is True
    second.join(20)
    assert not second.exitcode and mine.places[key]().tolist() == torch.full((5, 4, 3), 7).tolist()


def test_without_locks_images_are_kept_twice_at_worst(tmp_path, monkeypatch):
    def none(self, *given, **options):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", none)
    source = images(tmp_path)
    assert len(loaded(source).images.kept) == 6


def test_what_it_keeps_is_said_once(tmp_path, capsys):
    for name in ("blue", "red"):
        for i in range(6):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (i, 9, 200)).save(tmp_path / "set" / name / f"{i}.png")
    data = ImageDataModule(str(tmp_path / "set"), image_size=8, cache="disk", test_size=0)
    data.setup("fit")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cache")]
    assert len(lines) == 1 and "12 decoded images, 0 MB" in lines[0] and "image-classification-template" in lines[0]


def test_a_part_has_a_table_that_can_be_read_without_this_project(tmp_path):
    source = images(tmp_path)
    (file,) = parts(loaded(source))
    line, _, content = file.read_bytes().partition(b"\n")
    rows = json.loads(line)
    assert {Path(row[0]).name for row in rows} == {f"{i}.png" for i in range(6)}
    wanted = dict(zip([str(source.path(s)) for s in source.samples], pixels(loaded(source, "none")), strict=True))
    for path, _, offset, shape in rows:
        values = np.frombuffer(content, np.uint8, int(np.prod(shape)), offset).reshape(shape)
        assert np.array_equal(values, wanted[path].permute(1, 2, 0))
