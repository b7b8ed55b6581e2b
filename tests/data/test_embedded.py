import hashlib
import pickle
import struct
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from sklearn.datasets import load_digits

from project.data.embedded import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST
from project.errors import UserError

CLASSIC = [CIFAR10, CIFAR100, MNIST, FashionMNIST]


@contextmanager
def one_line(*words: str):
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def made_images(count: int, shape: tuple[int, ...], classes: int, seed: int) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, *shape), dtype=np.uint8), generator.integers(0, classes, count).tolist()


def write_cifar(root: Path, name: str, monkeypatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The files of CIFAR as its authors pickled them: rows of 3072 bytes, reds before greens before blues."""
    dataset = getattr(torchvision.datasets, name)
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    classes, key = (10, "labels") if name == "CIFAR10" else (100, "fine_labels")
    made, lists = {}, {}
    for split, attribute in (("train", "train_list"), ("test", "test_list")):
        images, targets, lists[attribute] = [], [], []
        for number, (file, _) in enumerate(getattr(dataset, attribute)):
            some, labels = made_images(3, (32, 32, 3), classes, seed=number + 10 * (split == "test"))
            rows = np.stack([np.concatenate([image[..., c].reshape(-1) for c in range(3)]) for image in some])
            content = pickle.dumps({"data": rows, key: labels})
            (folder / file).write_bytes(content)
            lists[attribute].append([file, hashlib.md5(content).hexdigest()])
            images.append(some)
            targets += labels
        made[split] = np.concatenate(images), targets
    meta = pickle.dumps({dataset.meta["key"]: [f"class/{i}" for i in range(classes)]})
    (folder / dataset.meta["filename"]).write_bytes(meta)
    for attribute, value in lists.items():
        monkeypatch.setattr(dataset, attribute, value)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": hashlib.md5(meta).hexdigest()})
    return made


def write_mnist(root: Path, name: str) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The idx files of http://yann.lecun.com/exdb/mnist: magic 0x0800 + dimensions, sizes (big endian), bytes."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    made = {}
    for split, file, count in (("train", "train", 7), ("test", "t10k", 4)):
        images, labels = made_images(count, (28, 28), 10, seed=count)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{file}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{file}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + bytes(labels))
        made[split] = images, labels
    return made


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """Names of the data sets that were asked to download themselves; nothing is fetched."""
    asked: list[str] = []
    for source in CLASSIC:
        dataset = getattr(torchvision.datasets, source.__name__)
        monkeypatch.setattr(dataset, "download", lambda self: asked.append(type(self).__name__))
    return asked


def write(source: type, root: Path, monkeypatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    return (
        write_mnist(root, source.__name__)
        if "MNIST" in source.__name__
        else write_cifar(root, source.__name__, monkeypatch)
    )


def test_digits_are_scikit_learns():
    source, reference = Digits(None), load_digits()
    assert len(source.samples) == 1797
    assert source.class_names == list("0123456789")
    assert [int(sample.label) for sample in source.samples] == reference.target.tolist()
    assert {(sample.split, sample.group) for sample in source.samples} == {(None, None)}
    keys = [sample.key for sample in source.samples]
    assert keys == sorted(set(keys))
    images = np.stack([source.content(sample) for sample in source.samples])
    assert images.dtype == np.uint8 and images.shape == (1797, 8, 8)
    assert np.abs(images / 255 - reference.images / 16).max() <= 0.5 / 255 + 1e-9  # the nearest of 256 steps
    assert source.path(source.samples[0]) is None


def test_digits_take_no_root():
    with one_line("data.root has no effect", "ImageFolder"):
        Digits("/somewhere")


@pytest.mark.parametrize("source", CLASSIC, ids=lambda source: source.__name__)
def test_classic_data_sets_are_read_from_their_original_files(tmp_path, monkeypatch, downloads, source):
    made = write(source, tmp_path, monkeypatch)
    read = source(str(tmp_path))
    assert downloads == []
    keys = [sample.key for sample in read.samples]
    assert keys == sorted(set(keys))
    for split, (images, labels) in made.items():
        part = [sample for sample in read.samples if sample.split == split]
        assert len(part) == len(images)
        assert [read.class_names.index(sample.label) for sample in part] == labels
        for sample, image in zip(part, images, strict=True):
            content = read.content(sample)
            assert content.dtype == np.uint8
            assert np.array_equal(content, image)
    assert len(read.samples) == sum(len(images) for images, _ in made.values())


@pytest.mark.parametrize("source", CLASSIC, ids=lambda source: source.__name__)
def test_class_names_can_be_folder_names(tmp_path, monkeypatch, source):
    write(source, tmp_path, monkeypatch)
    names = source(str(tmp_path)).class_names
    assert len(names) == len(set(names)) == (100 if source is CIFAR100 else 10)
    assert not any("/" in name for name in names)
    if source is FashionMNIST:
        assert names[0] == "T-shirt-top" and names[9] == "Ankle boot"


@pytest.mark.parametrize("source", CLASSIC, ids=lambda source: source.__name__)
def test_missing_files_are_one_line_that_says_where_to_put_them(tmp_path, downloads, source):
    place = tmp_path / source.__name__ / "raw" if "MNIST" in source.__name__ else tmp_path
    with one_line("data.root", source.__name__, f"into {place}", "--data.source.init_args.download true"):
        source(str(tmp_path))
    assert downloads == []
    with one_line("data.root is missing", source.__name__):
        source(None)


@pytest.mark.parametrize("source", [CIFAR10, MNIST], ids=lambda source: source.__name__)
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_damaged_files_are_one_line(tmp_path, monkeypatch, downloads, source, damage):
    write(source, tmp_path, monkeypatch)
    change = {"cut": lambda content: content[:-5], "empty": lambda content: b"", "garbage": lambda content: b"x" * 99}
    for path in tmp_path.rglob("*"):
        if path.is_file() and "label" not in path.name and "meta" not in path.name:
            path.write_bytes(change[damage](path.read_bytes()))
    with one_line("data.root", source.__name__, "missing or damaged"):
        source(str(tmp_path))


@pytest.mark.parametrize("source", CLASSIC, ids=lambda source: source.__name__)
def test_files_are_fetched_only_when_asked(tmp_path, monkeypatch, downloads, source):
    write(source, tmp_path, monkeypatch)
    source(str(tmp_path), download=True)
    assert set(downloads) == {source.__name__}


@pytest.mark.parametrize("source", CLASSIC, ids=lambda source: source.__name__)
def test_a_failed_download_is_one_line(tmp_path, monkeypatch, source):
    def fail(*args, **kwargs):
        raise URLError("no network\nat all")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    with one_line("data.root", source.__name__, "could not be fetched", str(tmp_path)):
        source(str(tmp_path), download=True)
