"""Where images come from: a source lists its samples and reads their content. A new source is a class in a new file."""

import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from project.errors import UserError

# Formats that Pillow decodes without further packages. Other files in a folder (notes, thumbs.db) are not images.
_ENDINGS = "jpg jpeg jpe jfif png bmp gif tif tiff webp ppm pgm pbm pnm tga jp2 avif ico"
EXTENSIONS = tuple(f".{ending}" for ending in _ENDINGS.split())
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, order=True)
class Sample:
    """One image of a source."""

    key: str  # its name, the same on every machine: the path relative to the root, with forward slashes
    label: str | None = None  # class name; None when it is not known
    split: str | None = None  # "train", "val" or "test" where the source says so; None leaves it to the split
    group: str | None = None  # images of one group (a patient, a burst) never cross splits


class Source(ABC):
    """Base of all sources. A subclass takes the root as its first argument and fills `self.samples`, sorted by key."""

    samples: list[Sample]  # every image of the source; only names and labels, nothing is decoded
    class_names: list[str] | None = None  # in their order; None for the sorted labels of the training images

    def path(self, sample: Sample) -> Path | None:
        """The file that holds this one image, or None when there is no such file."""
        return None

    @abstractmethod
    def content(self, sample: Sample) -> bytes | np.ndarray:
        """Raw content: the bytes of an image file, or a uint8 array (H, W) or (H, W, C) of 1, 3 or 4 channels."""


class FileSource(Source):
    """A source of one file per image; a subclass fills `self.paths`, from key to file."""

    paths: dict[str, Path]

    def path(self, sample: Sample) -> Path:
        return self.paths[sample.key]

    def content(self, sample: Sample) -> bytes:
        return self.paths[sample.key].read_bytes()


class ImageFolder(FileSource):
    """One sub-folder per class, nested at will: root/<class>/**, or root/{train,val,test}/<class>/** (or valid)."""

    def __init__(self, root: str | None) -> None:
        folder = existing(root, "a folder with one sub-folder per class")
        self.paths, self.samples = dict(find_images(folder)), []
        names = {key.split("/")[0] for key in self.paths if "/" in key}
        split_given = "train" in names and names <= SPLIT_FOLDERS.keys()
        for key in sorted(self.paths):
            *folders, _ = key.split("/")
            split = SPLIT_FOLDERS[folders.pop(0)] if split_given and folders else None
            if folders:
                self.samples.append(Sample(key, folders[0], split))
        if not self.samples:
            where = "in a class folder, root/<class>/ or root/train/<class>/"
            raise UserError(
                f"data.root: no labelled image in {folder}: of its {len(self.paths)} images none is {where}"
            )


class ImageFiles(FileSource):
    """Images without labels, for predict: one file, or every image below a folder however it is nested."""

    def __init__(self, root: str | None) -> None:
        folder = existing(root, "the folder, or the image, to predict")
        self.paths = dict(find_images(folder)) if folder.is_dir() else {_key(folder.name): folder}
        self.samples = [Sample(key) for key in sorted(self.paths)]
        if not self.samples:
            raise UserError(f"data.root: no image in {folder}; the known endings are {' '.join(EXTENSIONS)}")


def existing(root: str | None, what: str) -> Path:
    """The root as a path; a UserError when no root is given or nothing is there."""
    path = Path(root or "").expanduser()
    if not (root and path.exists()):
        raise UserError(
            f"data.root {f'{root} does not exist' if root else 'is not given'}: it must be {what}, such as ~/flowers"
        )
    return path


def find_images(root: Path) -> Iterator[tuple[str, Path]]:
    """Key and path of every image file below `root`, hidden ones left out, links followed once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link that leads back into the tree
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
                path = Path(folder, name)
                yield _key(path.relative_to(root).as_posix()), path


def _key(name: str) -> str:
    """A name in one spelling, the same on every machine: macOS stores accents decomposed, the others composed."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"data.root: the file name {os.fsencode(name)!r} is not UTF-8; rename it") from error
    return unicodedata.normalize("NFC", name)
