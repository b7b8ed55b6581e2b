"""An exported file in the place of the classifier, for `python -m project predict` (card C3)."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.cli import instantiate_module

from project.classifier import Batch, ImageClassifier
from project.extras.export.metadata import need, read_metadata
from project.extras.export.runtime import Run, open_exported
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
        self.class_names, self.run = class_names, _open(Path(path))

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """index (N,), and probabilities (N, num_classes)."""
        return {"index": batch["index"], "probabilities": torch.from_numpy(self.run(batch["image"].cpu().numpy()))}


def _open(path: Path) -> Run:
    metadata = read_metadata(path)
    if path.suffix != ".safetensors":
        return open_exported(path, metadata)
    need("safetensors")
    from safetensors.torch import load_model

    # Weights alone: the network is built as it was for training, folded likewise, and takes them over.
    model = instantiate_module(
        ImageClassifier, {**metadata["model"], "mean": metadata["mean"], "std": metadata["std"]}
    ).eval()
    module = Deployable(model.fused().net, model.mean, model.std, metadata["temperature"]).eval()
    load_model(module, str(path))

    def run(images: object) -> object:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run
