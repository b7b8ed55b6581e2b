"""Data: sources, the 80/20 split, checks, loading, augmentation, and the data module that joins them."""

# ruff: noqa: F401 (names for the YAML files)
from project.data.augment import (
    Augment,
    Augmentation,
    FlipRotate,
    HorizontalFlip,
    RandomCrop,
    RandomErasing,
    Rotate90,
    VerticalFlip,
)
from project.data.augment_color import Blur, Brightness, Contrast, GaussianNoise, Saturation
from project.data.augment_warp import RandomResize, Rotate
from project.data.embedded import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST
from project.data.manifest import Manifest
from project.data.module import ImageDataModule
from project.data.sources import ImageFiles, ImageFolder, Sample, Source
