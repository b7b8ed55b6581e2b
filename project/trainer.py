"""Lightning's Trainer with the options that our commands have."""

import lightning as L

from project.run.predictions import PredictionWriter


class Trainer(L.Trainer):
    """Lightning's Trainer. Its commands take what the command line can say; results are shown by callbacks."""

    resumed_step: int | None = None  # the optimizer step of the checkpoint that a fit goes on from
    exported = False  # the model is an exported file, which it has opened itself

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
        min_prob: float | None = None,
    ) -> None:
        """Predict the images of a folder and write them to a CSV file.

        Args:
            model: The classifier.
            datamodule: The images.
            ckpt_path: The checkpoint: a path, or best or last of the newest run; or a file of export.
            out: The file to write: path, class, probability and the next four guesses of each image.
            min_prob: Below this probability the class is written as uncertain, above 0 to 1; null never does.
        """
        self.callbacks.append(PredictionWriter(out, min_prob))
        path = None if self.exported else ckpt_path
        super().predict(model, datamodule=datamodule, ckpt_path=path, return_predictions=False)

    def export(
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        out: str = "model.onnx",
        preprocess: bool = True,
        calibrate: bool = True,
        tolerance: float = 1e-4,
        speed: bool = True,
    ) -> None:
        """Fold the batch norms of a checkpoint, prove that nothing changed, and write a file that runs without this project.

        Args:
            model: The classifier.
            datamodule: The images.
            ckpt_path: The checkpoint: a path, or best or last of the newest run.
            out: The file to write: .onnx, .pt2 (torch.export) or .safetensors (the fused weights alone).
            preprocess: Put normalisation, temperature and softmax into the file: uint8 images in, probabilities out. False:
                normalised float32 images in, logits out.
            calibrate: Fit a temperature on the validation images, so that a probability of 0.8 is right in 80 of 100 cases; it
                is kept in the checkpoint too. False: leave the probabilities as they are.
            tolerance: Largest difference of the file's logits from the checkpoint's, relative to the largest logit; over it,
                nothing is written.
            speed: Measure how fast the model runs on this machine, unfused, fused and exported; under a minute.
        """
        from project.extras.export.make import export_checkpoint  # here, because training needs none of it

        export_checkpoint(self, model, datamodule, ckpt_path, out, preprocess, calibrate, tolerance, speed)

    def check(
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        out: str | None = None,
        images: int = 2000,
        steps: int = 100,
        compare_init: bool = False,
    ) -> None:
        """Look at images, model and plan of a fit before it begins; exit code 1 when there is something to stop for.

        Args:
            model: The classifier.
            datamodule: The images.
            out: Folder for the pictures; null: check/<config name> beside the runs.
            images: Of more images than that, some are looked at, evenly taken.
            steps: Optimizer steps in which one batch is to be learnt by heart, at most.
            compare_init: Draw what each model.init makes of this network (A7).

        Raises:
            RuntimeError: always; the command line runs it from the configuration, since what cannot be built is to be reported.
        """
        raise RuntimeError("check runs from the command line: python -m project check --config ...")

    def lr_find(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        out: str = "lr.yaml",
        steps: int = 100,
        min_lr: float = 1e-6,
        max_lr: float = 10.0,
    ) -> None:
        """Find a learning rate: train a copy for a moment while the rate rises, and see where the loss falls. Takes fit's options.

        Args:
            model: The classifier.
            datamodule: The images.
            out: The file to write, to be given to fit as a further --config; the curve is drawn beside it, as .png.
            steps: Steps of the optimizer, 10 or more; the training images are repeated as often as it takes.
            min_lr: The value of model.lr to begin with, above 0.
            max_lr: The value to end with; the test stops before, once the loss is four times its lowest.
        """
        from project.extras.tune.lr_find_command import lr_find  # here, because training needs none of it

        lr_find(self, model, datamodule, out, steps, min_lr, max_lr)

    def batch_find(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        out: str = "batch.yaml",
        min_batch: int = 8,
        max_batch: int = 1024,
        steps: int = 5,
        memory_limit: float | None = None,
    ) -> None:
        """Find a batch size: measure speed and memory of every power of two that fits. Takes fit's options.

        Args:
            model: The classifier.
            datamodule: The images.
            out: The file to write, to be given to fit as a further --config.
            min_batch: The smallest size, a power of two.
            max_batch: No size above this one; nor above the number of training images.
            steps: Steps of the optimizer that are timed for each size, after one that is not; the median counts.
            memory_limit: GB that training may take on a CPU, its data and libraries included; null takes 90 % of what is free.
        """
        from project.extras.tune.batch_find_command import batch_find  # here, because training needs none of it

        batch_find(self, model, datamodule, out, min_batch, max_batch, steps, memory_limit)
