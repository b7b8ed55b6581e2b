"""Sources that need no folder of the user's: scikit-learn's digits and torchvision's classic data sets."""

import numpy as np

from project.data.sources import Sample, Source
from project.errors import UserError


class ArraySource(Source):
    """A source of images that lie in memory; a subclass fills `self.arrays`, from key to pixels."""

    arrays: dict[str, np.ndarray]

    def content(self, sample: Sample) -> np.ndarray:
        return self.arrays[sample.key]


class Digits(ArraySource):
    """The 1,797 handwritten digits of scikit-learn: 8x8, grey, ten classes, no download (Alpaydin & Kaynak 1998)."""

    def __init__(self, root: str | None) -> None:
        from sklearn.datasets import load_digits  # here, because scikit-learn takes a second to import

        if root is not None:
            raise UserError("data.root has no effect on the embedded digits: remove it, or use the source ImageFolder")
        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8); stored as 0..16
        self.class_names = list("0123456789")
        self.samples = [Sample(f"digit-{i:04d}", str(label)) for i, label in enumerate(digits.target)]
        self.arrays = dict(zip([sample.key for sample in self.samples], images, strict=True))


class _Torchvision(ArraySource):
    """A data set of torchvision that lies in memory, with the split of its authors; named like torchvision's class."""

    def __init__(self, root: str | None, download: bool = False) -> None:
        """
        Args:
            root: Folder where the files are, or where they are to be downloaded.
            download: Fetch the files when they are missing.
        """
        import torchvision

        name, self.samples, self.arrays = type(self).__name__, [], {}
        if root is None:
            raise UserError(f"data.root is missing: the folder where the files of {name} are, or are to be put")
        for split in ("test", "train"):
            try:
                part = getattr(torchvision.datasets, name)(root, train=split == "train", download=download)
            except Exception as error:  # missing, damaged, or no network: torchvision has many words for it
                place = f"{root}/{name}/raw" if "MNIST" in name else root
                raise UserError(
                    f"data.root: the files of {name} are missing or damaged, or could not be fetched: put the original "
                    f"archive, unpacked, into {place}, or fetch it with --data.source.init_args.download true"
                ) from error
            self.class_names = [label.replace("/", "-") for label in part.classes]
            images = np.asarray(part.data)  # (N, H, W) or (N, H, W, 3), uint8
            for i, (image, target) in enumerate(zip(images, part.targets, strict=True)):
                sample = Sample(f"{split}-{i:05d}", self.class_names[int(target)], split)
                self.samples.append(sample)
                self.arrays[sample.key] = image


class CIFAR10(_Torchvision):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 colour, 10 classes (Krizhevsky 2009)."""


class CIFAR100(_Torchvision):
    """CIFAR-100: 50,000 training and 10,000 test images, 32x32 colour, 100 classes (Krizhevsky 2009)."""


class MNIST(_Torchvision):
    """MNIST: 60,000 training and 10,000 test digits, 28x28 grey (LeCun et al. 1998)."""


class FashionMNIST(_Torchvision):
    """Fashion-MNIST: 60,000 training and 10,000 test garments, 28x28 grey (Xiao et al. 2017, arXiv:1708.07747)."""
