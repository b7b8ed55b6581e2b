"""Networks. Each takes `(in_channels, num_classes, image_size)` first; its other arguments are YAML keys.

A network of your own: one class in one new file of this folder (or anywhere importable), with `forward_features(x)`
giving `(N, D)`, a last layer `head`, and `forward(x) = head(forward_features(x))`; then
`net: {class_path: your.module.YourNet}`. A method `prepare(images)` is called once, before a training that starts from
first weights, with up to 5,000 training images, normalised, float (N, C, H, W), on the CPU.
"""

from project.nets.backbone import TimmModel, TorchvisionModel
from project.nets.convnet import ConvNet
from project.nets.fastnet import FastNet
from project.nets.resnet import ResNet
from project.nets.resnet9 import ResNet9

__all__ = ["ConvNet", "FastNet", "ResNet", "ResNet9", "TimmModel", "TorchvisionModel"]
