"""Two ways to hold a split, with the same batches: decoded once and kept in memory, or read from the files each time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from project.data.draws import Draws
from project.data.sources import Source
from project.data.transforms import ImageFormat, decode, load_image

Request = tuple[int, int]  # (epoch, key): key is the image's index, plus INDEX_LIMIT x n the n-th time in an epoch
Batch = dict[str, Tensor]  # image uint8 (N, C, H, W), label int64 (N,), index int64 (N,): the keys
INDEX_LIMIT = 2**40
CROP_STREAM = 1_000_000  # of the draws: far from the augmentations', which count up from 0


class Images(Dataset, ABC):
    """Base: a data set that is asked for a whole batch at once."""

    def __init__(self, index: Sequence[int], labels: Sequence[int]) -> None:
        """
        Args:
            index: Of each image, its position among all samples of the source: the identity that draws are made from.
            labels: Of each image, its class.
        """
        self._row = {key: row for row, key in enumerate(index)}
        self.labels = torch.as_tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, request: Request) -> Batch:
        return self.__getitems__([request])

    def __getitems__(self, requests: list[Request]) -> Batch:
        rows = torch.tensor([self._row[key % INDEX_LIMIT] for _, key in requests])
        index = torch.tensor([key for _, key in requests])
        return {"image": self.images(rows, requests), "label": self.labels[rows], "index": index}

    @abstractmethod
    def images(self, rows: Tensor, requests: list[Request]) -> Tensor:
        """The pixels of these rows, uint8 (N, C, H, W)."""


class MemoryImages(Images):
    """Every image decoded and resized, as one uint8 tensor (N, C, H, W)."""

    def __init__(self, pixels: Tensor, index: Sequence[int], labels: Sequence[int]) -> None:
        super().__init__(index, labels)
        self.pixels = pixels

    def images(self, rows: Tensor, requests: list[Request]) -> Tensor:
        return self.pixels[rows]


class FileImages(Images):
    """Images that are read and decoded when wanted: those that do not fit into memory, or are cropped at random."""

    def __init__(
        self,
        source: Source,
        index: Sequence[int],
        labels: Sequence[int],
        image_format: ImageFormat,
        seed: int = 0,
        area: tuple[float, float] | None = None,
    ) -> None:
        """
        Args:
            source: Where the images come from.
            index: Position of each in `source.samples`.
            labels: Class of each.
            image_format: What each is brought to.
            seed: Of the random crops.
            area: Smallest and largest share of the area that a random resized crop keeps; None for no such crop.
        """
        super().__init__(index, labels)
        self.source, self.format, self.seed, self.area = source, image_format, seed, area

    def images(self, rows: Tensor, requests: list[Request]) -> Tensor:
        return torch.stack([self._load(epoch, key) for epoch, key in requests])

    def _load(self, epoch: int, key: int) -> Tensor:
        content = self.source.content(self.source.samples[key % INDEX_LIMIT])
        if self.area is None:
            return load_image(content, *self.format)
        # A random resized crop (Szegedy et al. 2014, arXiv:1409.4842, section 6); what would stick out is cut off.
        image = decode(content, self.format.channels)
        draws = Draws(self.seed, epoch, torch.tensor([key])).stream(CROP_STREAM)
        area = draws.uniform(*self.area).item() * image.width * image.height
        ratio = float(np.exp(draws.uniform(-0.2877, 0.2877).item()))  # of width to height, 3/4 to 4/3
        width, height = min(image.width, (area * ratio) ** 0.5), min(image.height, (area / ratio) ** 0.5)
        left = draws.uniform().item() * (image.width - width)
        top = draws.uniform().item() * (image.height - height)
        size, box = self.format.image_size, (left, top, left + width, top + height)
        return pil_to_tensor(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
