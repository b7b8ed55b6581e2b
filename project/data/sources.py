"""Where images come from: a source lists its samples and reads their content. A new source is a class in a new file."""

import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from project.errors import UserError

# When a plug-in of Pillow is imported, where it is installed, Pillow opens its formats, too.
for _plug_in in ("pillow_heif.HeifImagePlugin", "pillow_heif.AvifImagePlugin", "pillow_avif", "pillow_jxl"):
    with suppress(ImportError):
        __import__(_plug_in)
# Photographs even where no plug-in opens them: the survey of the images says so.
_PHOTOS = ".heic .heif .hif .avif .jxl .jxr .dng .cr2 .cr3 .nef .nrw .arw .orf .rw2 .pef .raf .raw .dcm"
# Known to Pillow, but no photographs, or without their pixels.
_NO_PHOTOS = ".bufr .emf .eps .fit .grib .h5 .hdf .iim .mpeg .mpg .palm .pdf .ps .wmf"
# Files and folders that somebody else has put there.
_SYSTEM = r"(?:eh)?thumbs\.db|desktop\.ini|\.ds_store|icon\r|@eadir|[#@]recycle|\$recycle\.bin|__macosx|lost\+found"
_ASIDE = rf"(?i)(?:^|/)(?:(?P<system>(?:{_SYSTEM}|system volume information)(?:/|$)|\._)|(?P<hidden>\.[^/]))"
# A word of its own in a name: Training, test_set, seg_train, val2017.
_SPLIT = r"(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?)"
_SPLIT = rf"(?i)(?<![a-z])(?:{_SPLIT})(?:set)?(?![a-z])"


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
    layout: str = ""  # what the root was taken for
    unused: Counter[str] | None = None  # why files below the root are not used -> how many

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
        return self.path(sample).read_bytes()

    def find(self, root: Path) -> None:
        """List the images below `root`, and count all other files by reason. Links are followed, each folder once."""
        self.paths, self.unused, seen = {}, Counter(), {}
        endings = {*Image.registered_extensions(), *_PHOTOS.split()}.difference(_NO_PHOTOS.split())
        for folder, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
            folders.sort()
            here = Path(folder).relative_to(root)
            aside = re.search(_ASIDE, here.as_posix())
            there = seen.setdefault((not aside, os.path.realpath(folder)), here)
            if not (aside or here.is_relative_to(there)):
                raise UserError(
                    f"data.root: {here} and {there} in {root} are one folder under two names: remove the link "
                    "(without a val or test folder, that set is split off the training images)"
                )
            if there != here:  # a link that leads back up
                folders.clear()
                continue
            empty = not (aside or folders)
            for name in files:
                key = (here / name).as_posix()
                if why := re.search(_ASIDE, key):
                    self.unused[f"{why.lastgroup} files"] += 1
                elif (ending := Path(name).suffix.lower()) not in endings:
                    self.unused[key_of(ending) or "without an ending"] += 1
                elif key_of(key) in self.paths:
                    raise UserError(f"data.root: two files are named {key_of(key)}, one with decomposed accents")
                else:
                    self.paths[key_of(key)], empty = root / key, False
            self.unused["folders without images"] += empty


class ImageFolder(FileSource):
    """One sub-folder per class, nested at will: root/<class>/**, or root/{train,val,test}/<class>/**."""

    def __init__(self, root: str | None) -> None:
        self.find(existing(root, "a folder with one sub-folder per class"))
        parents = {key: key.split("/")[:-1] for key in sorted(self.paths)}
        above, below = ({split_of(names[i]) for names in parents.values() if names[i:]} for i in (0, 1))
        # In doubt: splits beside classes (but one of them may be called train), and splits inside of classes.
        if (None in above and above - {None, "" if below else "train"}) or len(below - {None}) > 1:
            raise UserError(
                f"data.root: are these splits or classes? {root} holds "
                f"{some(sorted({'/'.join(names[:2]) for names in parents.values()}, key=natural))}; make it "
                "root/<class>/ or root/{train,val,test}/<class>/ without others, or use a table (project.data.Manifest)"
            )
        splits = None not in above
        self.samples = [
            Sample(key, names[splits].strip(), split_of(names[0]) if splits else None)
            for key, names in parents.items()
            if names[splits:]
        ]
        self.unused["images in no class folder"] = len(parents) - len(self.samples)
        if not self.samples:
            raise UserError(
                f"data.root: no labelled image in {root}: of its {len(self.paths)} images none is in a class folder, "
                f"root/<class>/ or root/train/<class>/; not used: {counted(self.unused)}"
            )
        self.layout = f"{root}{'/<split>' * splits}/<class>"


class ImageFiles(FileSource):
    """Images without labels, for predict: one file, or every image below a folder however it is nested."""

    def __init__(self, root: str | None) -> None:
        folder = existing(root, "the folder, or the image, to predict")
        self.paths = {key_of(folder.name): folder}
        if folder.is_dir():
            self.find(folder)
        self.samples = list(map(Sample, sorted(self.paths)))
        if not self.samples:
            raise UserError(f"data.root: no image in {folder}; not used: {counted(self.unused)}")


def existing(root: str | None, what: str) -> Path:
    """The root as a path; a UserError when no root is given or nothing is there."""
    path = Path(root or "").expanduser()
    if not (root and path.exists()):
        raise UserError(
            f"data.root {f'{root} does not exist' if root else 'is not given'}: it must be {what}, such as ~/flowers"
        )
    return path


def _unreadable(error: OSError) -> None:
    raise UserError(f"data.root: {error.filename} cannot be read ({error.strerror})") from error


def key_of(name: str) -> str:
    """A name in one spelling, the same on every machine: macOS stores accents decomposed, the others composed."""
    if re.search("[\ud800-\udfff]", name):  # how Python marks bytes that it cannot decode
        raise UserError(f"data.root: the file name {os.fsencode(name)!r} is not UTF-8; rename it")
    return unicodedata.normalize("NFC", name)


def split_of(name: str) -> str | None:
    """train, val or test, where a name means one of them."""
    found = re.search(_SPLIT, name)
    return found and found.lastgroup


def natural(name: str) -> tuple:
    """Sorts names as people do: 2 before 10."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name), name


def counted(unused: Counter[str]) -> str:
    """Why files are not used, and how many, in words."""
    return ", ".join(f"{why} {count}" for why, count in unused.items() if count) or "nothing"


def some(names: list[str], most: int = 12) -> str:
    """The first of many names."""
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''}"
