"""Check the images of one split and load them: decoded into memory where they fit, else to be read when wanted."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median_high

import torch
from PIL import Image
from torch import Tensor

from project.data.memory import Images
from project.data.sources import Sample, Source
from project.data.transforms import ImageFormat
from project.data.verify import survey
from project.errors import UserError

SHOWN = 20  # names in a message; a thousand of them would hide the sentence


@dataclass
class Loaded:
    """The images of one split.

    Attributes:
        images: The data set.
        digests: Position among all samples -> identity of the image's content.
        bad: (key, why) of the images that cannot be read; they are left out.
    """

    images: Images
    digests: dict[int, int]
    bad: list[tuple[str, str]]

    @property
    def index(self) -> list[int]:
        return list(self.digests)

    def identities(self) -> Tensor:
        """The identities of all images, int64, sorted, each once."""
        return torch.tensor(sorted(set(self.digests.values())), dtype=torch.int64)


def load(
    source: Source,
    rows: Sequence[int],
    labels: Sequence[int],
    image_format: ImageFormat,
    in_memory: bool | None = None,
    seed: int = 0,
    area: tuple[float, float] | None = None,
) -> Loaded:
    """Survey the images, and decode them into memory where wanted.

    Args:
        source: Where the images come from.
        rows: Positions in `source.samples`.
        labels: Class of each; -1 where it is not known.
        image_format: What the images are brought to.
        in_memory: Keep them decoded; None when they fit.
        seed: Of the random crops.
        area: Of random resized crops; they need the files, so nothing is kept in memory.

    Raises:
        UserError: when not one of the images can be read.
    """
    samples = [source.samples[i] for i in rows]
    if in_memory is None:
        in_memory = fits_in_memory(len(rows), image_format)
    pixels = None
    if in_memory and area is None:
        size = image_format.image_size
        pixels = torch.empty(len(rows), image_format.channels, size, size, dtype=torch.uint8)
    verdicts = survey(source, samples, image_format, pixels)
    bad = [(samples[i].key, verdict.fault) for i, verdict in enumerate(verdicts) if verdict.fault]
    good = [i for i, verdict in enumerate(verdicts) if not verdict.fault]
    if not good:
        raise UserError(f"no image is left: {describe_bad(bad)}")
    if pixels is not None and bad:
        pixels = pixels[good]
    digests = {rows[i]: verdicts[i].digest for i in good}
    labels = torch.tensor([labels[i] for i in good])
    return Loaded(Images(source, list(digests), labels, image_format, pixels, seed, area), digests, bad)


def fits_in_memory(images: int, image_format: ImageFormat) -> bool:
    """Whether that many uint8 images take at most a quarter of the memory that is free now."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        free = 4 * 2**30
    return images * image_format.channels * image_format.image_size**2 <= free / 4


def describe_bad(bad: Sequence[tuple[str, str]]) -> str:
    """The list of unreadable images, and what to do."""
    lines = [f"\n  {key}: {why}" for key, why in bad]
    lines[SHOWN:] = ["\n  ..."] * (len(bad) > SHOWN)
    advice = "remove them, or leave them out with --data.on_bad_image skip"
    return f"{len(bad)} of the images cannot be read: {advice}{''.join(lines)}"


def common_size(source: Source, samples: Sequence[Sample]) -> int:
    """A size for the images: the median shorter side of up to 500 of them, in steps of 32 above 64, at most 224.

    224 is what the classic ImageNet networks were made for; a larger size is a decision about memory and time (advice A8).
    """
    sides = []
    for sample in samples[:: max(1, -(-len(samples) // 500))]:
        if path := source.path(sample):
            with (
                suppress(Exception),
                Image.open(path) as image,
            ):  # of any kind; the survey, which comes next, names the file
                sides.append(min(image.size))  # from the header
        else:
            sides.append(min(source.content(sample).shape[:2]))  # (H, W, ...)
    median = median_high(sides or [224])
    return median if median <= 64 else min(224, round(median / 32) * 32)
