"""An exported file in the place of the classifier, for `python -m project predict`."""

from pathlib import Path

import lightning as L
import torch

from project.classifier import Batch, ImageClassifier
from project.cli import build
from project.extras.export.runtime import need, open_exported, read_metadata
from project.nets.deployable import Deployable


class ExportedClassifier(L.LightningModule):
    """Predicts with a file that `export` has written; it runs on the CPU."""

    def __init__(
        self,
        path: str,
        class_names: list[str],
        in_channels: int,
        image_size: int,
        resize: str,
        value_range: list[float],
    ) -> None:
        """
        Args:
            path: The file.
            class_names: The file's own.
            in_channels: The file's own.
            image_size: The file's own.
            resize: The file's own.
            value_range: The file's own.
        """
        super().__init__()
        self.class_names, self.run = class_names, open_exported(Path(path))

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """index (N,), and probabilities (N, num_classes)."""
        return {"index": batch["index"], "probabilities": torch.from_numpy(self.run(batch["image"].cpu().numpy()))}


def open_weights(path: Path) -> Deployable:
    """The network of a .safetensors file: built as for training, folded likewise, then given the file's weights."""
    metadata = read_metadata(path)
    # As many channels as statistics: a grey image may be shown in three.
    parts = {"in_channels": len(metadata["mean"]), "mean": metadata["mean"], "std": metadata["std"]}
    model = build(ImageClassifier, metadata["model"] | parts).eval()
    around = (model.mean, model.std, metadata["temperature"], model.task.probabilities)
    module = Deployable(model.fused().net, *around, tta=model.tta).eval()
    need("safetensors.torch").load_model(module, str(path))
    return module
