"""The images of one split: kept decoded, in memory or on the disk, or read from the files; with the same batches."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop

from project.data.disk import Place
from project.data.sources import Source
from project.data.transforms import ImageFormat, load_image, resized

Request = tuple[int, int]  # (epoch, key): key is the image's index, plus INDEX_LIMIT x n the n-th time in an epoch
Batch = dict[str, Tensor]  # image uint8 (N, C, H, W), label int64 (N,), index int64 (N,): the keys
INDEX_LIMIT = 2**40


@dataclass(eq=False)
class Images(Dataset):
    """A data set that is asked for a whole batch at once."""

    source: Source
    index: Sequence[int]  # of each image, its position in `source.samples`: draws are made from it
    labels: Tensor  # of each, its class, int64 (N,)
    format: ImageFormat
    pixels: Tensor | None = None  # all of them decoded, uint8 (N, C, H, W); None reads each when it is wanted
    seed: int = 0  # of the random crops
    area: tuple[float, float] | None = None  # share that a random crop keeps, from and to, with `format.crop`
    kept: dict[int, Place] = field(default_factory=dict)  # index -> gives what would be decoded

    def __post_init__(self) -> None:
        self._row = {key: row for row, key in enumerate(self.index)}

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, requests: list[Request]) -> Batch:
        rows = torch.tensor([self._row[key % INDEX_LIMIT] for _, key in requests])
        if self.pixels is None:
            images = torch.stack([self._read(*each) for each in requests])
        else:
            images = self.pixels[rows.to(self.pixels.device, non_blocking=True)]
        return {"image": images, "label": self.labels[rows], "index": torch.tensor([key for _, key in requests])}

    def on(self, device: torch.device) -> "Images":
        """These, their pixels on the GPU where they take at most a quarter of its free memory: nothing is copied then
        in a step."""
        if device.type != "cuda" or self.pixels is None or self.pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
            return self
        return replace(self, pixels=self.pixels.to(device))

    def whole(self, keys: Iterable[int]) -> Batch:
        """Images by their keys, not cropped at random."""
        images = copy.copy(self)
        if self.area:  # what is kept is there to be cropped
            images.area, images.format, images.kept = None, self.format._replace(crop=False), {}
        return images.__getitems__([(0, int(key)) for key in keys])

    def _read(self, epoch: int, key: int) -> Tensor:
        image = self._decoded(key % INDEX_LIMIT)
        if self.area is None:
            return image
        # A random resized crop (Szegedy et al. 2014, arXiv:1409.4842, section 6), exactly torchvision's.
        with torch.random.fork_rng([]):  # torchvision draws from the global generator, which gets its state back
            torch.default_generator.manual_seed(Random(f"{self.seed} {epoch} {key}").getrandbits(63))
            top, left, height, width = RandomResizedCrop.get_params(image, self.area, [3 / 4, 4 / 3])  # width : height
        return resized(image[:, top : top + height, left : left + width], [self.format.image_size] * 2)

    def _decoded(self, key: int) -> Tensor:
        """uint8 (C, H, W): the image as it is wanted, or what crops are cut from."""
        with suppress(KeyError, OSError, ValueError):  # it is not kept, or somebody has removed it from the disk
            return torch.from_numpy(self.kept[key]()).permute(2, 0, 1)
        return load_image(self.source.content(self.source.samples[key]), self.format)
