import hashlib
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from project.data import verify
from project.data.embedded import Digits
from project.data.sources import ImageFiles, ImageFolder, Sample, Source
from project.data.verify import Verdict, Verdicts, digest, survey


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one with every decoding."""
    calls: list[int] = []
    original = verify.decode

    def counting(content, *rest):
        calls.append(len(content))
        return original(content, *rest)

    monkeypatch.setattr(verify, "decode", counting)
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


def check(source: Source, root: Path, **options) -> list[Verdict]:
    return survey(source, source.samples, 3, Verdicts(str(root)), **options)


def only_cache_file(cache: Path) -> Path:
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert len(files) == 1
    return files[0]


@given(st.binary(max_size=300))
def test_digest_is_blake2b_as_a_signed_number(content):
    (expected,) = struct.unpack(">q", hashlib.blake2b(content, digest_size=8).digest())
    assert digest(content) == digest(memoryview(content)) == expected


@pytest.mark.parametrize("hint", [None, 4])
def test_damaged_files_are_found_and_good_ones_are_not_blamed(tmp_path, hint):
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
    verdicts = dict(zip([sample.key for sample in source.samples], check(source, tmp_path, hint=hint), strict=True))
    bad = {key for key, verdict in verdicts.items() if verdict.fault}
    assert bad == {"cat/cut.png", "cat/cut.jpg", "cat/empty.png", "cat/text.png", "cat/zeros.jpg"}
    assert verdicts["cat/empty.png"].fault == "the file is empty"
    assert verdicts["cat/text.png"].fault == "not an image, whatever its name says"
    assert all("\n" not in verdict.fault and len(verdict.fault) <= 120 for verdict in verdicts.values())
    for name, content in files.items():
        verdict = verdicts["cat/" + name.replace("_", ".")]
        assert verdict.size == len(content)
        assert verdict.digest == struct.unpack(">q", hashlib.blake2b(content, digest_size=8).digest())[0]
        assert verdict.time == (tmp_path / "cat" / name.replace("_", ".")).stat().st_mtime_ns


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
    folder, dangling, gone = check(Anywhere(*paths), tmp_path)
    assert folder.fault.startswith("cannot be opened") and "directory" in folder.fault
    assert dangling.fault == gone.fault == "cannot be opened (No such file or directory)"


def test_a_folder_with_an_images_name_is_a_folder(tmp_path):
    (tmp_path / "album.png").mkdir()
    (tmp_path / "album.png" / "a.png").write_bytes(stored(1))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    source = ImageFiles(str(tmp_path))
    assert [sample.key for sample in source.samples] == ["album.png/a.png", "gone.png"]
    assert [bool(verdict.fault) for verdict in check(source, tmp_path)] == [False, True]


def test_verdicts_are_in_the_order_of_the_samples(tmp_path):
    """More of them than a thread takes at once, some asked for twice."""
    source = folder_of(tmp_path, **{f"i{i:02d}_png": stored(i) if i % 3 else b"bad" for i in range(50)})
    samples = [*source.samples[::-1], source.samples[7]]
    verdicts = survey(source, samples, 3, Verdicts(str(tmp_path)))
    assert [verdict.digest for verdict in verdicts] == [digest(source.content(sample)) for sample in samples]
    assert [bool(verdict.fault) for verdict in verdicts] == [int(s.key[5:7]) % 3 == 0 for s in samples]


def test_pixels_of_a_source_in_memory_are_never_bad(decoded, cache):
    source = Digits(None)
    verdicts = survey(source, source.samples[:5], 3, Verdicts("Digits"))
    for sample, verdict in zip(source.samples, verdicts, strict=False):
        assert verdict == Verdict(0, 0, digest(source.content(sample).tobytes()), "")
    assert decoded == []
    assert list(cache.rglob("*")) == []


def test_keep_takes_every_good_image(tmp_path):
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad", c_png=stored(3))
    for _ in range(2):  # the second time the verdicts are known, but the pixels are wanted all the same
        kept: dict[int, np.ndarray] = {}
        verdicts = check(source, tmp_path, keep=lambda i, image, kept=kept: kept.update({i: np.asarray(image)}))
        assert [bool(verdict.fault) for verdict in verdicts] == [False, True, False]
        assert sorted(kept) == [0, 2]
        for position, pixels in kept.items():
            with Image.open(io.BytesIO(source.content(source.samples[position]))) as image:
                assert np.array_equal(pixels, np.asarray(image))
    digits, kept = Digits(None), {}
    survey(digits, digits.samples[:3], 1, Verdicts("Digits"), lambda i, image: kept.update({i: np.asarray(image)}))
    assert all(np.array_equal(kept[i], digits.content(digits.samples[i])) for i in range(3))


def test_an_error_of_keep_is_not_hidden_when_memory_runs_out(tmp_path):
    def full(position, image):
        raise MemoryError

    with pytest.raises(MemoryError):
        check(folder_of(tmp_path, a_png=stored(1)), tmp_path, keep=full)


def test_the_second_survey_decodes_nothing(tmp_path, monkeypatch):
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad", c_jpg=stored(2, "JPEG"), d_png=b"")
    first = check(source, tmp_path)

    def fail(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(verify, "decode", fail)
    monkeypatch.setattr(ImageFolder, "content", fail)  # not even read: the bad ones are remembered too
    assert check(source, tmp_path) == first
    assert [bool(verdict.fault) for verdict in first] == [False, True, False, True]


def test_a_remembered_fault_is_believed_where_pixels_are_wanted(tmp_path, decoded):
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad")
    check(source, tmp_path)
    decoded.clear()
    check(source, tmp_path, keep=lambda position, image: None)
    assert decoded == [len(stored(1))]


@pytest.mark.parametrize("change", ["time", "content"])
def test_a_changed_file_is_looked_at_again(tmp_path, decoded, change):
    source = folder_of(tmp_path, a_png=stored(1), b_png=stored(2), c_png=b"bad")
    before = check(source, tmp_path)
    path, state = tmp_path / "cat" / "a.png", (tmp_path / "cat" / "a.png").stat()
    decoded.clear()
    if change == "time":
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    else:  # another size under the same time, as a copy with its dates makes
        path.write_bytes(stored(9) + b"more")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = check(source, tmp_path)
    assert decoded == [path.stat().st_size]
    assert after[1:] == before[1:]
    assert after[0].digest == digest(path.read_bytes()) and not after[0].fault
    decoded.clear()
    assert check(source, tmp_path) == after and decoded == []


def test_a_mended_file_is_good_and_a_newly_damaged_one_bad(tmp_path):
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad")
    assert [bool(verdict.fault) for verdict in check(source, tmp_path)] == [False, True]
    folder_of(tmp_path, a_png=b"worse", b_png=stored(2))
    assert [bool(verdict.fault) for verdict in check(source, tmp_path)] == [True, False]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"7", b'{"a": 1}', b'{"a": [1]}', b'{"a": [1, 2, 3, 4, 5]}']
)
def test_a_damaged_cache_file_is_no_obstacle(tmp_path, cache, decoded, content):
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad")
    first = check(source, tmp_path)
    only_cache_file(cache).write_bytes(content)
    decoded.clear()
    assert check(source, tmp_path) == first
    assert len(decoded) == 2
    decoded.clear()
    assert check(source, tmp_path) == first  # and it has been written anew
    assert decoded == []


def test_an_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch, decoded):
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = folder_of(tmp_path, a_png=stored(1), b_png=b"bad")
    for _ in range(2):
        assert [bool(verdict.fault) for verdict in check(source, tmp_path)] == [False, True]
    assert len(decoded) == 4
    assert (tmp_path / "file").read_text() == "where a folder should be"


def test_a_failed_write_leaves_the_old_verdicts(tmp_path, cache, monkeypatch):
    source = folder_of(tmp_path, a_png=stored(1))
    check(source, tmp_path)
    before = only_cache_file(cache).read_text()
    folder_of(tmp_path, a_png=stored(2))

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    assert not check(source, tmp_path)[0].fault
    (file,) = cache.rglob("verdicts-*.json")
    assert file.read_text() == before


def test_roots_have_verdicts_of_their_own(tmp_path, cache):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        check(folder_of(tmp_path / name, a_png=stored(1)), tmp_path / name)
    assert len(list(cache.rglob("*.json"))) == 2


def test_the_cache_is_in_the_home_when_nothing_else_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert verify.cache_folder().parent == tmp_path / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # set but empty counts as unset, says the XDG specification
    assert verify.cache_folder().parent == tmp_path / ".cache"
