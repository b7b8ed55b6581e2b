"""Data: sources, the 80/20 split, checks, loading, augmentation, and the data module that joins them."""

from project.data.augment import (
    Augment,
    Augmentation,
    FlipRotate,
    HorizontalFlip,
    RandomCrop,
    Rotate90,
    VerticalFlip,
)
from project.data.augment_color import Blur, Brightness, Contrast, GaussianNoise, Saturation
from project.data.augment_erase import RandomErasing
from project.data.augment_warp import RandomResize, Rotate
from project.data.embedded import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST
from project.data.manifest import Manifest
from project.data.module import ImageDataModule
from project.data.sources import ImageFiles, ImageFolder, Sample, Source

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Augment",
    "Augmentation",
    "Blur",
    "Brightness",
    "Contrast",
    "Digits",
    "FashionMNIST",
    "FlipRotate",
    "GaussianNoise",
    "HorizontalFlip",
    "ImageDataModule",
    "ImageFiles",
    "ImageFolder",
    "Manifest",
    "RandomCrop",
    "RandomErasing",
    "RandomResize",
    "Rotate",
    "Rotate90",
    "Sample",
    "Saturation",
    "Source",
    "VerticalFlip",
]
