"""The four callbacks that draw into TensorBoard: what they draw, that training does not notice, and what they leave out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DIGITS, ROOT, SMALL, Command, make_folder
from lightning import LightningModule
from PIL import Image
from sklearn.metrics import confusion_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_ddp import DDP, launch
from torch import Tensor, nn

from project.classifier import ImageClassifier
from project.extras.look import figures
from project.extras.look.activations import LookAtActivations
from project.extras.look.data import LookAtData
from project.extras.look.predictions import LookAtPredictions
from project.extras.look.weights import LookAtWeights

LOOK = ["--config", str(ROOT / "configs" / "look.yaml")]
RUN = Path("runs/fit/version_0")
ALL = {  # tags of a run whose network has convolutions
    "activations/image",
    "activations/spread_by_layer",
    "data/1_before_augmentation",
    "data/2_as_the_network_sees_it",
    "predictions/accuracy_by_class",
    "predictions/confusion_matrix",
    "predictions/precision_recall",
    "predictions/reliability",
    "predictions/worst_mistakes",
    "rates/planned",
    "weights/filters_of_the_first_layer",
}


def events(run: Path = RUN) -> EventAccumulator:
    found = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    found.Reload()
    return found


def images(run: Path = RUN) -> set[str]:
    return {
        tag for tag in events(run).Tags()["images"] if not tag.startswith(("activations/stages", "activations/body"))
    }


def weights(run: Path = RUN) -> dict[str, Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_hooks_gone(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        assert not layer._forward_hooks and not layer._forward_pre_hooks, name


@pytest.fixture
def models(monkeypatch) -> list[ImageClassifier]:
    """The models that the command line makes."""
    made, real = [], ImageClassifier.setup
    monkeypatch.setattr(ImageClassifier, "setup", lambda self, stage: (made.append(self), real(self, stage))[1])
    return made


@pytest.fixture
def few(tmp_path: Path) -> list[str]:
    """Options: 3 classes of 20 images, a network of two blocks, two epochs."""
    root = make_folder(tmp_path / "few")
    net = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[4,8]", "--data.image_size", "16"]
    return ["fit", "--data.root", str(root), "--data.batch_size", "16", "--trainer.max_epochs", "2", *net]


EVERYTHING = {
    "plain": [],
    "mixed, averaged, accumulated": [
        *("--model.mixup=0.4", "--model.cutmix=1.0", "--trainer.callbacks+=project.run.EMA"),
        *("--trainer.accumulate_grad_batches=2", "--data.augment", "[{class_path: project.data.HorizontalFlip}]"),
    ],
    "dropout, crops from files": [
        *("--model.net.init_args.dropout=0.5", "--data.random_resized_crop=[0.3,1.0]", "--data.num_workers=0"),
        "--trainer.gradient_clip_val=0.1",
    ],
}


@pytest.mark.parametrize("options", EVERYTHING.values(), ids=EVERYTHING.keys())
def test_a_training_that_is_looked_at_ends_with_the_same_weights_to_the_last_bit(cli, few, models, options) -> None:
    assert cli(*few, *options).code == 0
    result = cli(*few, *LOOK, *options)
    assert result.code == 0, result.err
    looked = Path("runs/look/version_0")
    plain = weights()
    assert plain.keys() == weights(looked).keys()
    assert all(torch.equal(value, weights(looked)[name]) for name, value in plain.items())
    found = images(looked)
    assert {tag for tag in ALL if "mistakes" not in tag} <= found
    for model in models:
        assert_hooks_gone(model)


def test_a_run_on_the_digits_has_every_picture_and_its_pixels(cli: Command, workdir: Path) -> None:
    result = cli("fit", *DIGITS, *LOOK, *SMALL, "--trainer.max_epochs", "2")
    assert result.code == 0 and "leaves out" not in result.out, result.out
    found = events(Path("runs/digits/version_0"))
    tags = found.Tags()
    assert set(tags["images"]) >= ALL and sum(tag.startswith("activations/stages") for tag in tags["images"]) == 2
    assert tags["graph"] and "lr/all" in tags["scalars"]
    for tag in tags["images"]:
        for event in found.Images(tag):
            assert event.width > 50 and event.height > 50 and len(event.encoded_image_string) > 500, tag
    names = [name for name, value in weights(Path("runs/digits/version_0")).items() if name.startswith("net.")]
    parameters = {
        name[4:] for name in names if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    for kind in ("weights", "gradients"):
        assert {tag for tag in tags["histograms"] if tag.startswith(kind)} == {f"{kind}/{name}" for name in parameters}
    projector = Path("runs/digits/version_0") / "projector_config.pbtxt"
    assert projector.is_file()
    folder = next(path.parent for path in Path("runs/digits/version_0").rglob("tensors.tsv"))
    features = np.loadtxt(folder / "tensors.tsv")
    labels = (folder / "metadata.tsv").read_text().split()
    assert len(features) == len(labels) == 287 and set(labels) == {str(digit) for digit in range(10)}
    # Features before the head of a trained network: nearest centroids tell the classes apart.
    kinds = np.array(labels)
    centres = np.stack([features[kinds == digit].mean(0) for digit in sorted(set(labels))])
    nearest = np.linalg.norm(features[:, None] - centres[None], axis=2).argmin(1)
    assert (nearest == kinds.astype(int)).mean() > 0.8


def test_the_ratio_of_update_to_weight_is_that_of_plain_sgd(cli, few, monkeypatch) -> None:
    before, real = {}, LookAtWeights.on_before_optimizer_step

    def keep(self, trainer, pl_module, optimizer):
        before.update({name: (p.detach().clone(), p.grad.clone()) for name, p in pl_module.net.named_parameters()})
        real(self, trainer, pl_module, optimizer)

    monkeypatch.setattr(LookAtWeights, "on_before_optimizer_step", keep)
    sgd = ["--model.optimizer=torch.optim.SGD", "--model.lr=0.05"]
    assert cli(*few, "--trainer.callbacks+=project.extras.look.LookAtWeights", *sgd, "--trainer.max_epochs=1").code == 0
    scalars = events().Tags()["scalars"]
    checked = 0
    for name, (weight, gradient) in before.items():
        if weight.ndim > 1:
            (value,) = [event.value for event in events().Scalars(f"update_ratio/{name}")]
            assert value == pytest.approx(float(0.05 * gradient.norm() / weight.norm()), rel=1e-3)
            checked += 1
        else:
            assert f"update_ratio/{name}" not in scalars
    assert checked == 3  # two convolutions and the head


def brute_force_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    total = 0.0
    for low in range(bins):
        inside = [
            (float(p.max()), int(p.argmax()) == int(y)) for p, y in zip(probabilities.double(), labels, strict=True)
        ]
        inside = [(c, r) for c, r in inside if low / bins < c <= (low + 1) / bins]
        total += abs(sum(c for c, _ in inside) - sum(r for _, r in inside))
    return total / len(labels)


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Any]:
    """What the confusion and reliability figures were given last."""
    given: dict[str, Any] = {}
    for name in ("confusion", "reliability", "mistakes"):
        real = getattr(figures, name)
        monkeypatch.setattr(
            figures, name, lambda *args, name=name, real=real: (given.__setitem__(name, args), real(*args))[1]
        )
    return given


def test_confusion_and_calibration_are_those_of_all_validation_images(cli, workdir, drawn) -> None:
    options = [
        "--trainer.max_epochs",
        "1",
        "--trainer.callbacks+=project.extras.look.LookAtPredictions",
        "--model.lr",
        "0.002",
    ]
    assert cli("fit", *DIGITS, *SMALL[:-2], *options).code == 0
    run = Path("runs/digits/version_0")
    from project.data import Digits, ImageDataModule

    model = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    data = ImageDataModule(source=Digits, image_size=8, channels=1)
    data.setup("validate")
    batch = data.loaded["val"].images.__getitems__([(0, key) for key in data.loaded["val"].index])
    with torch.no_grad():
        probabilities = model(batch["image"]).softmax(1)
    matrix = confusion_matrix(batch["label"], probabilities.argmax(1))
    assert (drawn["confusion"][0].numpy() == matrix).all() and matrix.sum() == 287 and matrix.trace() < 288
    (error,) = [event.value for event in events(run).Scalars("val/calibration_error")]
    assert error == pytest.approx(brute_force_calibration_error(probabilities, batch["label"]), abs=1e-5)
    # The worst mistakes: those of the highest loss, none that was right.
    shown, true, guessed, losses, maps = drawn["mistakes"]
    loss = nn.functional.cross_entropy(probabilities.log(), batch["label"], reduction="none")
    loss[probabilities.argmax(1) == batch["label"]] = 0
    worst = loss.sort(descending=True).values[:16]
    assert torch.allclose(losses, worst, atol=1e-3) and all(a != b for a, b in zip(true, guessed, strict=True))
    assert maps.shape == (16, 8, 8) and maps.min() >= 0 and maps.amax((1, 2)).max() == 1
    first = batch["image"][loss.argmax()]
    assert torch.equal(shown[0], first)


def test_two_processes_draw_once_and_over_all_validation_images(workdir) -> None:
    text = launch("fit", *DIGITS, *SMALL, *LOOK, *DDP, "--trainer.max_epochs", "1", "--data.val_size", "0.1003")
    assert text.count("look ") == text.count("look       ") <= 1  # at most one line, by one process
    run = workdir / "runs/digits/version_0"
    files = list(run.glob("events.out.tfevents.*"))
    assert len(files) == 1
    found = events(run)
    assert set(found.Tags()["images"]) >= ALL - {"predictions/worst_mistakes"}
    from project.data import Digits, ImageDataModule

    model = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    data = ImageDataModule(source=Digits, image_size=8, channels=1, val_size=0.1003)
    data.setup("validate")
    batch = data.loaded["val"].images.__getitems__([(0, key) for key in data.loaded["val"].index])
    assert len(batch["label"]) % 2 == 1  # the ranks have different numbers of images
    with torch.no_grad():
        probabilities = model(batch["image"]).softmax(1)
    (error,) = [event.value for event in found.Scalars("val/calibration_error")]
    assert error == pytest.approx(brute_force_calibration_error(probabilities, batch["label"]), abs=1e-5)


class Stop(LookAtData):
    """Ctrl-C while the hook is on the network."""

    def _keep(self, module: nn.Module, inputs: tuple) -> None:
        raise KeyboardInterrupt


class Fail(LookAtPredictions):
    def _keep(self, module: nn.Module, inputs: tuple) -> None:
        raise RuntimeError("in the validation")


def test_hooks_are_gone_after_ctrl_c_and_after_an_error(cli, few, models) -> None:
    module = "callbacks.test_look" if __name__.startswith("callbacks") else __name__
    assert cli(*few, f"--trainer.callbacks+={module}.Stop").code == 130
    with pytest.raises(RuntimeError, match="in the validation"):
        cli(*few, f"--trainer.callbacks+={module}.Fail")
    assert len(models) == 2
    for model in models:
        assert_hooks_gone(model)


def epochs_of(tag: str, steps: int, run: Path) -> list[int]:
    return [event.step // steps for event in events(run).Images(tag)]


def test_pictures_come_after_the_first_every_nth_and_the_last_epoch(cli, few) -> None:
    assert cli(*few, *LOOK, "--trainer.max_epochs=12").code == 0
    run = Path("runs/look/version_0")
    steps = events(run).Scalars("train/loss")[0].step + 1
    assert epochs_of("predictions/confusion_matrix", steps, run) == [1, 5, 10, 12]
    assert epochs_of("weights/filters_of_the_first_layer", steps, run) == [1, 5, 10, 12]
    assert epochs_of("activations/spread_by_layer", steps, run) == [0, 1, 5, 10, 12]
    first_steps = [epoch * steps + 1 for epoch in (0, 4, 9, 11)]
    assert [event.step for event in events(run).Images("data/1_before_augmentation")] == first_steps


def test_a_validation_now_and_then_is_drawn_when_an_epoch_before_it_was_due(cli, few) -> None:
    assert cli(*few, *LOOK, "--trainer.max_epochs=8", "--trainer.check_val_every_n_epoch=2").code == 0
    run = Path("runs/look/version_0")
    steps = events(run).Scalars("train/loss")[0].step + 1
    assert epochs_of("predictions/confusion_matrix", steps, run) == [2, 6, 8]


def test_an_early_stop_draws_the_last_predictions_and_activations(cli, few) -> None:
    stop = ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping"]
    stop += ["--trainer.callbacks.monitor=val/loss", "--trainer.callbacks.patience=1", "--model.lr=0.00000001"]
    result = cli(*few, *LOOK, *stop, "--trainer.max_epochs=9")
    assert result.code == 0, result.err
    run = Path("runs/look/version_0")
    steps = events(run).Scalars("train/loss")[0].step + 1
    last = len(events(run).Scalars("train/loss"))
    assert 1 < last < 5
    assert epochs_of("predictions/confusion_matrix", steps, run) == [1, last]
    assert epochs_of("activations/spread_by_layer", steps, run) == [0, 1, last]


def test_mixed_images_bear_both_names(cli, few, monkeypatch) -> None:
    titles, real = [], figures.image_grid
    monkeypatch.setattr(figures, "image_grid", lambda images, names: (titles.append(names), real(images, names))[1])
    callback = "--trainer.callbacks+=project.extras.look.LookAtData"
    assert cli(*few, callback, "--trainer.max_epochs=1", "--model.mixup=8.0").code == 0
    before, after = titles
    assert set(before) <= {"blue", "green", "red"}
    for name, mixed in zip(before, after, strict=True):
        shares = dict(part.split(" ")[::-1] for part in mixed.split(", ")) if "," in mixed else {mixed: "100%"}
        assert name in shares and sum(int(share[:-1]) for share in shares.values()) in (99, 100, 101)
    assert any("," in mixed for mixed in after)


class Flat(nn.Module):
    """No convolution, no ReLU, no head."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def test_a_vision_transformer_goes_without_grad_cam_and_says_so(cli, few) -> None:
    vit = [
        "--model.net=project.nets.TimmModel",
        "--model.net.init_args.name=vit_tiny_patch16_224",
        "--data.image_size=32",
    ]
    result = cli(*few[: few.index("--model.net")], *vit, *LOOK, "--trainer.max_epochs=1", "--model.lr=0.00001")
    assert result.code == 0, result.err
    assert "leaves out Grad-CAM" in result.out or "leaves out the worst mistakes" in result.out
    assert {"activations/spread_by_layer", "weights/filters_of_the_first_layer"} <= images(Path("runs/look/version_0"))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_grey_and_four_channel_images_are_drawn(cli, workdir, tmp_path, tiny_net, channels, mode) -> None:
    random = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(20):
            pixels = random.integers(0, 256, (16, 16) if channels == 1 else (16, 16, 4), dtype=np.uint8)
            Image.fromarray(pixels, mode).save(tmp_path / "set" / name / f"{i}.png")
    options = ["--data.root", str(tmp_path / "set"), f"--data.channels={channels}", "--trainer.max_epochs=1", *tiny_net]
    result = cli("fit", *options, *LOOK)
    assert result.code == 0, result.err
    assert images(Path("runs/look/version_0")) >= ALL - {"predictions/worst_mistakes"}


def test_a_thousand_classes_are_drawn(cli, workdir, tmp_path, tiny_net) -> None:
    rows, random = [], np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for i in range(2000):
        path = tmp_path / "set" / f"{i}.png"
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        rows.append(f"{path},class {i % 1000:04d},{'train' if i < 1000 else 'val'}")
    (tmp_path / "set.csv").write_text("\n".join(["path,label,split", *rows]))
    options = ["--data.source=project.data.Manifest", "--data.root", str(tmp_path / "set.csv"), "--data.test_size=0"]
    result = cli("fit", *options, *LOOK, *tiny_net, "--trainer.max_epochs=1")
    assert result.code == 0 and "leaves out" not in result.out, result.err
    assert images(Path("runs/look/version_0")) >= ALL


def test_without_validation_images_the_rest_is_drawn(cli, few) -> None:
    result = cli(*few, *LOOK, "--data.val_size=0")
    assert result.code == 0 and "LookAtPredictions draws nothing, because there are no validation images" in result.out
    found = images(Path("runs/look/version_0"))
    assert {tag for tag in ALL if not tag.startswith("predictions")} <= found and not any(
        "predictions" in tag for tag in found
    )


def test_without_tensorboard_nothing_is_drawn_and_each_says_so(cli, few) -> None:
    result = cli(*few, *LOOK, "--trainer.logger=false")
    assert result.code == 0 and result.out.count("draws nothing, because there is no TensorBoard logger") == 4
    assert not list(Path().rglob("events*"))


def test_a_network_without_convolutions_leaves_pictures_out_with_a_reason(cli, few) -> None:
    net = ["--model.net", f"{Flat.__module__}.Flat"]
    start = few.index("--model.net")
    result = cli(*few[:start], *net, "--data.image_size=16", *LOOK)
    assert result.code == 0, result.err
    for words in (
        "the filters: the network has no convolution",
        "the feature maps: no layer gives any",
        "the projector: it takes a network with forward_features and head",
    ):
        assert f"{words}" in result.out
    assert "leaves out the share of dead ReLUs: the network has none" in result.out


def test_a_figure_that_fails_is_left_out_and_the_training_goes_on(cli, few, monkeypatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no ink\nleft")

    monkeypatch.setattr(figures, "confusion", fail)
    result = cli(*few, *LOOK)
    assert result.code == 0
    assert (
        result.out.count(
            "look       LookAtPredictions leaves out predictions/confusion_matrix: ValueError: no ink left"
        )
        == 1
    )
    assert "predictions/reliability" in images(Path("runs/look/version_0"))


BAD = {
    "LookAtData.init_args.every=0": "LookAtData: every must be 1 or more epochs, not 0",
    "LookAtData.init_args.images=0": "LookAtData: images must be 1 or more, not 0",
    "LookAtActivations.init_args.images=0": "LookAtActivations: images must be 1 or more, not 0",
    "LookAtPredictions.init_args.mistakes=-1": "LookAtPredictions: mistakes must be 0 or more, not -1",
    "LookAtWeights.init_args.layers=[stages.9]": "the network has no layer 'stages.9'; near: ",
    "LookAtActivations.init_args.layers=[stage.0]": "the network has no layer 'stage.0'; near: ",
    "LookAtActivations.init_args.layers=[head]": "LookAtActivations.layers: head gives no feature maps but (9, 3)",
}


@pytest.mark.parametrize(("option", "words"), BAD.items())
def test_bad_options_are_one_line(cli, few, option, words) -> None:
    name, rest = option.split(".", 1)
    key, value = rest.split("=")
    result = cli(*few, f"--trainer.callbacks+=project.run.{name}", f"--trainer.callbacks.{key}={value}")
    assert result.code == 2 and result.err.count("\n") == 1 and words in result.err, result.err


def test_the_callbacks_are_plain_lightning_callbacks_too() -> None:
    """They need no command line of ours but a trainer, a data module and the classifier."""
    for callback in (LookAtData, LookAtWeights, LookAtActivations, LookAtPredictions):
        assert callback().every == 5
    assert issubclass(ImageClassifier, LightningModule)


class Counting(nn.Module):
    """Its forward pass depends on how often it was called, and changes a buffer."""

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(in_channels, 4, 3), nn.Linear(4, num_classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.conv(images).relu().mean((2, 3)) * (1 + self.calls % 7))


class Strange(nn.Module):
    """Layers that Grad-CAM cannot take: one gives a tuple, one whole numbers, one is not used."""

    class Pair(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images, images

    class Whole(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.long()

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(in_channels, 4, 3), nn.Linear(4, num_classes)
        self.pair, self.whole, self.unused = self.Pair(), self.Whole(), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.pair(self.conv(images))
        self.unused(first)
        return -self.head((first + self.whole(second)).mean((2, 3)))  # wrong from the start, so that there are mistakes


def own(few: list[str], net: type[nn.Module]) -> list[str]:
    start = few.index("--model.net")
    return [*few[:start], "--model.net", f"{net.__module__}.{net.__name__}", "--data.image_size=16"]


def test_a_network_that_counts_its_calls_trains_the_same(cli, few) -> None:
    assert cli(*own(few, Counting), "--trainer.max_epochs=3").code == 0
    assert cli(*own(few, Counting), *LOOK, "--trainer.max_epochs=3").code == 0
    plain, looked = weights(), weights(Path("runs/look/version_0"))
    assert all(torch.equal(value, looked[name]) for name, value in plain.items())


def test_layers_that_grad_cam_cannot_take_do_not_end_the_training(cli, few) -> None:
    result = cli(*own(few, Strange), *LOOK, "--model.lr=0.000001")
    assert result.code == 0 and result.err == "", result.err
    assert "predictions/worst_mistakes" in images(Path("runs/look/version_0")), result.out


def test_what_is_not_drawn_for_want_of_a_validation_or_of_an_epoch_is_said(cli, few) -> None:
    out = cli(*few, *LOOK, "--trainer.limit_val_batches=0").out
    assert "LookAtPredictions draws nothing, because this training never validates" in out
    out = cli(*few, *LOOK, "--trainer.max_epochs=-1", "--trainer.max_steps=1").out
    assert "LookAtWeights drew nothing, because the training ended inside its first epoch" in out


def test_a_run_that_diverges_says_so_once_for_each_kind(cli, few) -> None:
    result = cli(*few, *LOOK, "--model.lr=1e30")
    assert result.code == 0 and result.out.count("that are not finite") <= 2
