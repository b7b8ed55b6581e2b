"""An exported file in the place of the classifier, for `python -m project predict`."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import instantiate_module

from project.classifier import Batch, ImageClassifier
from project.extras.export.metadata import need, read_metadata, reading
from project.extras.export.runtime import Run, open_graph
from project.nets.deployable import Deployable


class ExportedClassifier(L.LightningModule):
    """Predicts with a file that `export` has written; it runs on the CPU."""

    def __init__(self, path: str, class_names: list[str], in_channels: int, image_size: int, resize: str) -> None:
        """
        Args:
            path: The file.
            class_names: The file's own.
            in_channels: The file's own.
            image_size: The file's own.
            resize: The file's own.
        """
        super().__init__()
        self.class_names, self.run = class_names, open_exported(Path(path), read_metadata(Path(path)))

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """index (N,), and probabilities (N, num_classes)."""
        return {"index": batch["index"], "probabilities": torch.from_numpy(self.run(batch["image"].cpu().numpy()))}


def open_exported(path: Path, metadata: dict[str, Any]) -> Run:
    """A file of any format as a function, see `project.extras.export.runtime.open_graph`."""
    if path.suffix != ".safetensors":
        return open_graph(path, metadata)
    module = open_weights(path, metadata)
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def open_weights(path: Path, metadata: dict[str, Any]) -> Deployable:
    """The network of a .safetensors file: built as for training, folded likewise, then given the file's weights."""
    statistics = {name: metadata[name] for name in ("mean", "std")}
    model = instantiate_module(ImageClassifier, {**metadata["model"], **statistics}).eval()
    around = (model.mean, model.std, metadata["temperature"], model.task.probabilities)
    module = Deployable(model.fused().net, *around).eval()
    with reading(path):
        need("safetensors.torch").load_model(module, str(path))
    return module
