"""Sources that need no folder of the user's: scikit-learn's digits and torchvision's classic data sets."""

from collections.abc import Callable
from typing import Any

import numpy as np

from project.data.sources import Sample, Source
from project.errors import UserError


class Digits(Source):
    """The 1,797 real handwritten digits that come with scikit-learn: 8x8, grey, ten classes, no download.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998).
    """

    def __init__(self, root: str | None) -> None:
        from sklearn.datasets import load_digits  # here, because scikit-learn takes a second to import

        if root is not None:
            raise UserError("data.root has no effect on the embedded digits: remove it, or use the source ImageFolder")
        digits = load_digits()
        self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8); stored as 0..16
        self.class_names = [str(number) for number in range(10)]
        self.samples = [Sample(f"digit-{i:04d}", str(label)) for i, label in enumerate(digits.target)]
        self._row = {sample.key: i for i, sample in enumerate(self.samples)}

    def content(self, sample: Sample) -> np.ndarray:
        return self._images[self._row[sample.key]]


class _Torchvision(Source):
    """A data set of torchvision that lies in memory, with the split its authors made."""

    name: str  # of the class in torchvision.datasets

    def __init__(self, root: str | None, download: bool = False) -> None:
        """
        Args:
            root: Folder where the files are, or where they are to be downloaded.
            download: Fetch the files when they are missing.
        """
        import torchvision

        dataset: Callable[..., Any] = getattr(torchvision.datasets, self.name)
        if root is None:
            raise UserError(f"data.root is missing: say in which folder the files of {self.name} are, or shall be put")
        self.samples, self._arrays = [], {}
        for split in ("train", "test"):
            try:
                part = dataset(root, train=split == "train", download=download)
            except (
                RuntimeError,
                ValueError,
                TypeError,
                AssertionError,
                OSError,
            ) as error:  # missing, damaged, or no network
                place = f"{root}/{self.name}/raw" if "MNIST" in self.name else root
                tried = " and could not be fetched" if download else ""
                fetch = "" if download else ", or let it be fetched with --data.source.init_args.download true"
                raise UserError(
                    f"data.root: the files of {self.name} are missing or damaged{tried}: put the original archive, unpacked, into "
                    f"{place}{fetch}"
                ) from error
            images = np.asarray(part.data)  # (N, H, W) or (N, H, W, 3), uint8
            self.class_names = [name.replace("/", "-") for name in part.classes]
            for i, target in enumerate(part.targets):
                key = f"{split}-{i:05d}"
                self.samples.append(Sample(key, self.class_names[int(target)], split))
                self._arrays[key] = images[i]
        self.samples.sort(key=lambda sample: sample.key)

    def content(self, sample: Sample) -> np.ndarray:
        return self._arrays[sample.key]


class CIFAR10(_Torchvision):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 colour, 10 classes (Krizhevsky 2009)."""

    name = "CIFAR10"


class CIFAR100(_Torchvision):
    """CIFAR-100: 50,000 training and 10,000 test images, 32x32 colour, 100 classes (Krizhevsky 2009)."""

    name = "CIFAR100"


class MNIST(_Torchvision):
    """MNIST: 60,000 training and 10,000 test digits, 28x28 grey (LeCun et al. 1998)."""

    name = "MNIST"


class FashionMNIST(_Torchvision):
    """Fashion-MNIST: 60,000 training and 10,000 test garments, 28x28 grey (Xiao et al. 2017, arXiv:1708.07747)."""

    name = "FashionMNIST"
