"""An image-classification template on PyTorch Lightning: point it at a folder of images, train, test, deploy."""

__version__ = "0.1.0"
