"""Lightning's Trainer with the options that our commands have."""

import lightning as L

from project.callbacks import PredictionWriter


class Trainer(L.Trainer):
    """Lightning's Trainer. Its commands take what the command line can say; results are shown by callbacks."""

    resumed_step: int | None = None  # the optimizer step of the checkpoint that a fit goes on from

    def fit(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Train, and validate after every epoch.

        Args:
            model: The classifier.
            datamodule: The images.
            ckpt_path: Go on from this checkpoint: a path, or last or best of the newest run.
        """
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)

    def validate(
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Score a checkpoint on the validation images.

        Args:
            model: The classifier.
            datamodule: The images.
            ckpt_path: The checkpoint: a path, or best or last of the newest run.
        """
        super().validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

    def test(
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Score a checkpoint on the test images, once everything has been chosen, and add the score to its run.

        Args:
            model: The classifier.
            datamodule: The images.
            ckpt_path: The checkpoint: a path, or best or last of the newest run.
        """
        super().test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

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
