"""Check the images of one split and load them: kept decoded in memory or on the disk, else to be read when wanted."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import Literal, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError
from PIL.ImageCms import PyCMSError
from torch import Tensor

from project.data import transforms
from project.data.disk import Disk, has_room, state_of
from project.data.memory import Images
from project.data.sources import FileSource, Sample, Source, some
from project.data.transforms import ImageFormat, load_image, open_image, to_srgb, white
from project.errors import UserError
from project.files import written_whole
from project.messages import say

CGROUPS = (  # limit and use of the memory of a container: version 2, version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
Cache = Literal["auto", "memory", "disk", "none"]
Bad = list[tuple[str, str]]  # (key, why) of the images that cannot be read; they are left out
SHOWN = 20  # names in a message; a thousand of them would hide the sentence


class Verdict(NamedTuple):
    """What is known of one image file."""

    state: str  # size and time of the last change when it was read; empty when it is to be read again
    digest: int  # 64-bit blake2b of the content, signed: the image's identity, whatever its name
    fault: str  # why it cannot be read; empty when it can


@dataclass
class Loaded:
    """The images of one split."""

    images: Images
    digests: dict[int, int]  # position among all samples -> identity of the content
    bad: Bad
    disk: Disk | None = None  # where they are kept

    @property
    def index(self) -> list[int]:
        return list(self.digests)

    def identities(self) -> Tensor:
        """The identities of all images, int64, sorted, each once."""
        return torch.tensor(sorted(set(self.digests.values())))


def load(
    source: Source,
    rows: Sequence[int],
    labels: Sequence[int],
    image_format: ImageFormat,
    cache: Cache = "auto",
    seed: int = 0,
    area: tuple[float, float] | None = None,
) -> Loaded:
    """Survey the images at these positions in `source.samples`. A UserError when none, or none of a class, can be read.

    Args:
        labels: Class of each; -1 where it is not known.
        cache: Where they are kept decoded; with `area` what the crops are cut from.
        area: Of random resized crops, drawn by `seed`.
    """
    image_format = image_format._replace(crop=area is not None)
    shape = len(rows), image_format.channels, *[image_format.image_size] * 2
    samples = [source.samples[row] for row in rows]
    # A crop is cut from 1.5 x image_size, and the longer side of photographs is about 1.5 times the shorter one.
    size, folder = math.prod(shape) * (1.5**3 if area else 1), disk_cache(source, samples, image_format)
    if cache == "auto":  # images to predict, which have no labels, are read only once
        cache = "disk" if folder and max(labels) >= 0 and has_room(folder, size) else "none"
        cache = "memory" if fits_in_memory(size) else cache
    pixels = disk = None
    if cache == "memory":
        pixels = {} if area else torch.empty(shape, dtype=torch.uint8)
    elif cache == "disk":
        if not folder:
            raise UserError("data.cache disk is for images that are files of their own: leave data.cache auto")
        disk = Disk(folder)
    with disk or nullcontext():
        verdicts = survey(source, samples, image_format, disk or pixels)
    bad = [(samples[i].key, each.fault) for i, each in enumerate(verdicts) if each.fault]
    good = [i for i, each in enumerate(verdicts) if not each.fault]
    if lost := {sample.label for sample in samples} - {samples[i].label for i in good}:
        raise UserError(f"no image is left{'' if None in lost else f' of {min(lost)}'}: {describe_bad(bad)}")
    kept = {}
    for i in good if disk else ():
        if place := disk.places.get((path_of(source, samples[i]), verdicts[i].state)):
            kept[rows[i]] = place
    if isinstance(pixels, dict):
        kept, pixels = {rows[i]: partial(np.asarray, image.permute(1, 2, 0)) for i, image in pixels.items()}, None
    elif bad and cache == "memory":
        pixels = pixels[good]
    digests = {rows[i]: verdicts[i].digest for i in good}
    images = Images(source, list(digests), torch.tensor(labels)[good], image_format, pixels, seed, area, kept)
    return Loaded(images, digests, bad, disk)


def path_of(source: Source, sample: Sample) -> str:
    """The absolute path of the image's file; empty where the source holds pixels."""
    path = source.path(sample)
    return os.path.abspath(path) if path else ""


def user_cache(kind: str, source: Source, samples: Sequence[Sample], *cause: object) -> Path:
    """Where in the user's cache folder is kept what follows from the folder that the images share, and this cause."""
    folders = [os.path.dirname(path_of(source, sample)) for sample in samples]
    cause = os.path.commonpath(folders), PIL.__version__, sorted(Image.registered_extensions()), *cause
    name = f"{kind}-{hashlib.blake2b(os.fsencode(repr(cause)), digest_size=8).hexdigest()}"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "image-classification-template", name)


def disk_cache(source: Source, samples: Sequence[Sample], image_format: ImageFormat) -> Path | None:
    """Where decoded images are kept on the disk; None where pixels may depend on more than their file.

    Its name depends on all that the pixels do: the code, too, and the processor, whose instructions round in their way.
    """
    if type(source).content is not FileSource.content:
        return None
    code, processor = Path(transforms.__file__).read_text(), torch.backends.cpu.get_cpu_capability()
    return user_cache("images", source, samples, torch.__version__, processor, code, *image_format)


def survey(
    source: Source,
    samples: Sequence[Sample],
    image_format: ImageFormat,
    pixels: Tensor | dict[int, Tensor] | Disk | None = None,
) -> list[Verdict]:
    """One verdict for each sample, in order; `pixels` takes the decoded images, uint8 (C, H, W), by position.

    A good verdict from an earlier run is believed while path, size, time, Pillow, its plug-ins and the limit of pixels
    agree; the file is then decoded again only for its pixels. Threads help: Pillow decodes without Python's lock.
    """
    paths = [path_of(source, sample) for sample in samples]
    file = user_cache("verdicts", source, samples, image_format.max_pixels).with_suffix(".json")
    known, odd = {}, set()
    with suppress(Exception):  # not written yet, or by another version
        known = {path: Verdict(*row) for path, row in json.loads(file.read_text()).items()}

    def judge(position: int) -> Verdict:
        path, content, fault = paths[position], b"", ""
        state, verdict = state_of(path), known.get(path)
        key = (path, state) if isinstance(pixels, Disk) else position
        there = isinstance(pixels, Disk) and key in pixels.places
        if state and verdict and verdict.state == state and (pixels is None or there):
            return verdict
        try:
            content = source.content(samples[position])
            if not there:
                image = load_image(content, image_format)
                if pixels is not None:
                    pixels[key] = image
            opened = open_image(content, image_format.max_pixels)
            to_srgb(opened.info.get("icc_profile"), opened.mode)
        except PyCMSError:
            odd.add(position)  # said every time
        except MemoryError:
            raise
        except UnidentifiedImageError:
            fault = "not an image"
        except Exception as error:  # every one of Pillow's decoders has exceptions of its own
            fault = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
        digest = int.from_bytes(hashlib.blake2b(bytes(content), digest_size=8).digest(), "big", signed=True)
        return Verdict("" if fault else state, digest, fault)  # what could not be read is tried again

    with ThreadPoolExecutor() as threads:
        found = list(threads.map(judge, range(len(samples))))
    if odd:
        example = samples[min(odd)].key
        say(f"{len(odd)} images have a colour profile that cannot be used, and are taken as sRGB, such as {example}.")
    verdicts = known | {path: found[i] for i, path in enumerate(paths) if path and i not in odd}
    if verdicts != known:
        with suppress(OSError, UserError):  # a home that is read-only: judge again next time
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as draft:
                draft.write_text(json.dumps(verdicts))
    return found


def fits_in_memory(size: int) -> bool:
    """Whether that many bytes are at most a quarter of the memory that is free now, here and in the cgroup."""
    free = 4 * 2**30
    with suppress(AttributeError, ValueError):  # not on every system
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used in CGROUPS:
        with suppress(OSError, ValueError):  # there is no such file, or "max"
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return size <= free / 4


def describe_disk(parts: Sequence[Loaded]) -> str:
    """How many images of these parts are on the disk, what they take, where, and why others are not there."""
    sizes = [math.prod(place.args[-1]) for part in parts for place in part.images.kept.values()]  # of its shape
    faults = [f"; others are read from their files: {part.disk.fault}" for part in parts if part.disk.fault]
    return (
        f"{len(sizes)} decoded images, {sum(sizes) / 1e6:.0f} MB, in {parts[0].disk.folder.parent}{''.join(faults[:1])}"
    )


def describe_bad(bad: Bad) -> str:
    """How many images cannot be read, the first of them, and what to do."""
    names = some([f"{key} ({why})" for key, why in bad], SHOWN)
    return (
        f"{len(bad)} of the images cannot be read: {names}; remove or convert them, install Pillow's plug-in for them, "
        "or use --data.on_bad_image skip"
    )


def measure(source: Source, rows: Sequence[int], max_pixels: int) -> tuple[int, list[float]]:
    """Measure 250 to 500 of the images at these positions, evenly taken; of those of 8 bits only the header is read.

    Returns:
        Pixels of a side: the median shorter side, in steps of 32 above 64, at most 224 (advice A8). And what is black
        and white in grey images of more than 8 bits: from 0, or the lowest value below it, to the highest of the bits
        that they use, in whatever file; twice 0 where there are none.
    """
    sides, values = [], []
    for row in rows[:: 1 + len(rows) // 500]:
        sample = source.samples[row]
        with suppress(Exception), open_image(source.path(sample) or source.content(sample), max_pixels) as image:
            sides.append(min(image.size))  # what cannot be read is named by the survey, which is next
            if image.mode[0] in "IF":
                values += filter(math.isfinite, image.getextrema())
    side, high = median_high(sides or [224]), white(max(values)) if values else 0.0
    return side if side <= 64 else min(224, round(side / 32) * 32), [min([0.0, *values]), high]
