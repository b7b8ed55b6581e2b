"""Lightning's Trainer with the options of our commands."""

import lightning as L

from project.callbacks import PredictionWriter


class Trainer(L.Trainer):
    """Lightning's Trainer; `predict` writes a file."""

    resumed_step: int | None = None  # the optimizer step of the checkpoint that a fit goes on from

    def predict(
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        out: str = "predictions.csv",
    ) -> None:
        """Predict the images of a folder and write them to a CSV file.

        Args:
            model: The classifier.
            datamodule: The images.
            ckpt_path: The checkpoint: a path, or best or last of the newest run.
            out: The file to write: path, class, probability and the next four guesses of each image.
        """
        self.callbacks.append(PredictionWriter(out))
        super().predict(model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False)
