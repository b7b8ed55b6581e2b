"""The classifier and the data module in Python, with Lightning's Trainer alone."""

import functools
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from project.classifier import ImageClassifier
from project.data import Digits, ImageDataModule
from project.nets import ConvNet
from project.optim import Cosine
from project.tasks import MultiClass

NETS = {
    "partial": functools.partial(ConvNet, channels=[8]),
    "class": ConvNet,
    "function": lambda *shape: ConvNet(*shape, channels=[8]),
}


@pytest.fixture
def plain(workdir):
    """Train a classifier for an epoch: data, trainer, model, path of the best checkpoint."""

    def train(net, **settings):
        data = ImageDataModule(source=Digits, channels=1, batch_size=512)
        model = ImageClassifier(net, data.class_names, data.channels, data.image_size, **settings)
        best = ModelCheckpoint(monitor="val/acc", mode="max")
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(max_epochs=1, callbacks=[best], accelerator="cpu", **options)
        trainer.fit(model, data)
        return data, trainer, model, best.best_model_path

    return train


@pytest.mark.parametrize("kind", NETS)
def test_a_plain_trainer(plain, kind) -> None:
    optimizer = functools.partial(torch.optim.SGD, momentum=0.9)
    task = functools.partial(MultiClass, label_smoothing=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*removed from hparams.*")
        data, trainer, model, path = plain(NETS[kind], optimizer=optimizer, schedule=Cosine(), task=task)
    scores = trainer.validate(model, data, ckpt_path="best", verbose=False)[0]
    assert scores["val/acc"] == pytest.approx(float(trainer.checkpoint_callback.best_model_score))
    assert 0 <= trainer.test(datamodule=data, ckpt_path="best", verbose=False)[0]["test/acc"] <= 1
    again = {"net": NETS["function"]} if kind == "function" else {}
    loaded = ImageClassifier.load_from_checkpoint(path, weights_only=True, **again).eval()
    images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = model.cpu().eval().probabilities(images)
    assert torch.equal(loaded.probabilities(images), expected) and loaded.task.label_smoothing == 0.1


def test_a_function_is_to_be_given_again(plain) -> None:
    path = plain(NETS["function"])[-1]
    with pytest.raises(Exception, match=r"^[^\n]*required: module.net$"):
        ImageClassifier.load_from_checkpoint(path)


def test_predictions(plain, folder) -> None:
    _, trainer, model, path = plain(ConvNet)
    images = ImageDataModule(str(folder), channels=1, image_size=8, batch_size=32)
    found = trainer.predict(model, images, ckpt_path=path)
    assert sorted(torch.cat([batch["index"] for batch in found]).tolist()) == list(range(60))
