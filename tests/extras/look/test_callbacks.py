"""The four callbacks: what they draw into TensorBoard, that training does not notice, and what they leave out."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import DIGITS, ROOT, SMALL, make_folder
from PIL import Image
from sklearn.metrics import confusion_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_ddp import DDP, launch
from torch import Tensor, nn

from project.classifier import ImageClassifier
from project.data import Digits, ImageDataModule
from project.extras.look import LookAtData, LookAtWeights, figures
from project.extras.look.base import Look
from project.extras.look.data import _titles

LOOK = ["--config", str(ROOT / "configs" / "look.yaml")]
RUN = Path("runs/fit/version_0")
PREDICTIONS = {
    "predictions/accuracy_by_class",
    "predictions/confusion_matrix",
    "predictions/precision_recall",
    "predictions/reliability",
}
ALL = PREDICTIONS | {  # tags of a run whose network has convolutions
    "activations/image",
    "activations/spread_by_layer",
    "data/1_before_augmentation",
    "data/2_as_the_network_sees_it",
    "weights/filters_of_the_first_layer",
}


def events(run: Path = RUN) -> EventAccumulator:
    found = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    found.Reload()
    return found


def weights(run: Path = RUN) -> dict[str, Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def assert_hooks_gone(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        assert not layer._forward_hooks and not layer._forward_pre_hooks, name


def validation(run: Path, val_size: float = 0.2) -> tuple[ImageClassifier, dict[str, Tensor], Tensor]:
    """The last model of a run on the digits, all validation images, and their probabilities."""
    model = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    data = ImageDataModule(source=Digits, image_size=8, channels=1, val_size=val_size)
    data.setup("validate")
    batch = data.loaded["val"].images.__getitems__([(0, key) for key in data.loaded["val"].index])
    with torch.no_grad():
        return model, batch, model(batch["image"]).softmax(1)


def brute_force_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    pairs = zip(probabilities.double(), labels, strict=True)
    sure = [(float(p.max()), int(p.argmax()) == int(y)) for p, y in pairs]
    total = 0.0
    for low in range(bins):
        inside = [(c, r) for c, r in sure if low / bins < c <= (low + 1) / bins]
        total += abs(sum(c for c, _ in inside) - sum(r for _, r in inside))
    return total / len(labels)


class Looked(NamedTuple):
    run: Path
    out: str
    drawn: dict[str, tuple[Any, ...]]  # figure -> what it was given last
    models: list[ImageClassifier]


@pytest.fixture(scope="session")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Looked:
    """The training of the fixture `trained`, with all four callbacks."""
    import contextlib
    import io

    from project.__main__ import main

    folder, before, out = tmp_path_factory.mktemp("looked"), Path.cwd(), io.StringIO()
    drawn: dict[str, tuple[Any, ...]] = {}
    models, setup = [], ImageClassifier.setup

    def recorded(name: str, real: Any) -> Any:
        return lambda *given: (drawn.__setitem__(name, given), real(*given))[1]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        for name in ("confusion", "reliability", "mistakes"):
            patch.setattr(figures, name, recorded(name, getattr(figures, name)))
        patch.setattr(ImageClassifier, "setup", lambda self, stage: (models.append(self), setup(self, stage))[1])
        os.chdir(folder)
        try:
            assert main(["fit", *DIGITS, *LOOK, *SMALL, "--trainer.max_epochs", "3"]) == 0
        finally:
            os.chdir(before)
    return Looked(folder / "runs/digits/version_0", out.getvalue(), drawn, models)


def test_a_training_that_is_looked_at_ends_with_the_same_weights_to_the_last_bit(looked: Looked, trained: Path) -> None:
    assert_same_weights(trained, looked.run)
    assert_hooks_gone(looked.models[0])


def test_every_picture_is_there_and_has_its_pixels(looked: Looked) -> None:
    assert "look  " not in looked.out
    found = events(looked.run)
    tags = found.Tags()
    maps = {tag for tag in tags["images"] if tag.startswith("activations/stages")}
    assert set(tags["images"]) >= ALL | {"predictions/worst_mistakes"} and len(maps) == 2 and tags["graph"]
    assert {"activations/dead_share_of_relus", "val/calibration_error", "lr/all"} <= set(tags["scalars"])
    for tag in tags["images"]:
        for event in found.Images(tag):
            assert event.width > 50 and event.height > 50 and len(event.encoded_image_string) > 500, tag
    names = {name[4:] for name in weights(looked.run) if name.startswith("net.")}
    names = {name for name in names if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    for kind in ("weights", "gradients"):
        assert {tag for tag in tags["histograms"] if tag.startswith(kind)} == {f"{kind}/{name}" for name in names}


def test_pictures_come_before_training_and_after_the_first_and_the_last_epoch(looked: Looked) -> None:
    found, steps = events(looked.run), 18
    for tag, expected in {
        "predictions/confusion_matrix": [steps, 3 * steps],
        "weights/filters_of_the_first_layer": [steps, 3 * steps],
        "activations/spread_by_layer": [0, steps, 3 * steps],
        "data/1_before_augmentation": [1, 2 * steps + 1],
    }.items():
        assert [event.step for event in found.Images(tag)] == expected, tag


def test_the_projector_has_the_features_of_the_validation_images(looked: Looked) -> None:
    assert (looked.run / "projector_config.pbtxt").is_file()
    folder = next(path.parent for path in looked.run.rglob("tensors.tsv"))
    features = np.loadtxt(folder / "tensors.tsv")
    labels = (folder / "metadata.tsv").read_text().split()
    assert len(features) == len(labels) == 287 and set(labels) == {str(digit) for digit in range(10)}
    # Features before the head of a trained network: nearest centroids tell the classes apart.
    kinds = np.array(labels)
    centres = np.stack([features[kinds == digit].mean(0) for digit in sorted(set(labels))])
    nearest = np.linalg.norm(features[:, None] - centres[None], axis=2).argmin(1)
    assert (nearest == kinds.astype(int)).mean() > 0.8


def test_confusion_and_calibration_are_those_of_all_validation_images(looked: Looked) -> None:
    _, batch, probabilities = validation(looked.run)
    matrix = confusion_matrix(batch["label"], probabilities.argmax(1))
    assert (looked.drawn["confusion"][0].numpy() == matrix).all() and matrix.sum() == 287
    *_, error = [event.value for event in events(looked.run).Scalars("val/calibration_error")]
    assert error == pytest.approx(brute_force_calibration_error(probabilities, batch["label"]), abs=1e-5)


def test_the_worst_mistakes_are_the_wrong_images_with_the_highest_loss(looked: Looked) -> None:
    _, batch, probabilities = validation(looked.run)
    shown, true, guessed, losses, maps = looked.drawn["mistakes"]
    loss = nn.functional.nll_loss(probabilities.log(), batch["label"], reduction="none")
    loss[probabilities.argmax(1) == batch["label"]] = 0
    worst = loss.sort(descending=True).values[: len(losses)]
    assert torch.allclose(losses, worst, atol=1e-3) and all(a != b for a, b in zip(true, guessed, strict=True))
    assert maps.shape == (len(losses), 8, 8) and maps.min() >= 0 and maps.amax((1, 2)).max() == 1
    assert torch.equal(shown[0], batch["image"][loss.argmax()])


def test_titles_of_labels_and_of_mixed_labels() -> None:
    assert _titles(torch.tensor([1, 0]), ["a", "b"]) == ["b", "a"]
    shares = torch.tensor([[0.0, 0.75, 0.25], [1.0, 0.0, 0.0]])
    assert _titles(shares, ["a", "b", "c"]) == ["75% b, 25% c", "100% a"]


def test_an_error_is_printed_once_and_no_random_number_is_lost(capsys) -> None:
    look, state = Look(1), torch.get_rng_state()
    for _ in range(2):
        with look.guarded("a picture"):
            torch.rand(3)
            raise ValueError("no ink\nleft")
    assert capsys.readouterr().out == "look       Look leaves out a picture: ValueError('no ink\\nleft')\n"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def few(tmp_path: Path) -> list[str]:
    """Options: 3 classes of 20 images, a network of two blocks, two epochs."""
    root = make_folder(tmp_path / "few")
    net = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[4,8]", "--data.image_size", "16"]
    return ["fit", "--data.root", str(root), "--data.batch_size", "16", "--trainer.max_epochs", "2", *net]


BAD = {
    "LookAtData.init_args.every=0": "every",
    "LookAtActivations.init_args.images=0": "images",
    "LookAtPredictions.init_args.mistakes=-1": "mistakes",
    "LookAtWeights.init_args.layers=[stages.9]": "LookAtWeights.layers: there is no layer 'stages.9'; the nearest are ",
}


@pytest.mark.parametrize(("option", "words"), BAD.items())
def test_bad_options_are_one_line(cli, few, option, words) -> None:
    name, rest = option.split(".", 1)
    key, value = rest.split("=")
    result = cli(*few, f"--trainer.callbacks+=project.extras.look.{name}", f"--trainer.callbacks.{key}={value}")
    assert result.code == 2 and result.err.count("\n") == 1 and words in result.err, result.err


class Stop(LookAtData):
    """Ctrl-C while the hook is on the network."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        assert pl_module.net._forward_hooks
        Stop.net = pl_module.net
        raise KeyboardInterrupt


def test_the_hook_is_gone_after_ctrl_c(cli, few) -> None:
    assert cli(*few, f"--trainer.callbacks+={Stop.__module__}.Stop").code == 130
    assert_hooks_gone(Stop.net)


def test_without_a_logger_it_says_so(capsys) -> None:
    look = Look(1)
    look.on_fit_start(SimpleNamespace(loggers=[], is_global_zero=True), SimpleNamespace(net=nn.Identity()))
    assert look.writer is None
    assert capsys.readouterr().out == "look       Look draws nothing, because there is no TensorBoard logger\n"


@pytest.mark.slow
def test_without_tensorboard_nothing_is_drawn_and_each_says_so(cli, few) -> None:
    result = cli(*few, *LOOK, "--trainer.logger=false", "--trainer.max_epochs=1")
    assert result.code == 0 and result.out.count("draws nothing, because there is no TensorBoard logger") == 4
    assert not list(Path().rglob("events*"))


def test_the_ratio_of_update_to_weight_is_that_of_plain_sgd(cli, few, monkeypatch) -> None:
    before, real = {}, LookAtWeights.on_before_optimizer_step

    def keep(self, trainer, pl_module, optimizer):
        before.update({name: (p.detach().clone(), p.grad.clone()) for name, p in pl_module.net.named_parameters()})
        real(self, trainer, pl_module, optimizer)

    monkeypatch.setattr(LookAtWeights, "on_before_optimizer_step", keep)
    sgd = ["--model.optimizer=torch.optim.SGD", "--model.lr=0.05", "--trainer.max_epochs=1"]
    assert cli(*few, "--trainer.callbacks+=project.extras.look.LookAtWeights", *sgd).code == 0
    found, checked = events(), 0
    for name, (weight, gradient) in before.items():
        if weight.ndim > 1:
            (value,) = [event.value for event in found.Scalars(f"update_ratio/{name}")]
            assert value == pytest.approx(float(0.05 * gradient.norm() / weight.norm()), rel=1e-3)
            checked += 1
        else:
            assert f"update_ratio/{name}" not in found.Tags()["scalars"]
    assert checked == 3  # two convolutions and the head


# Whole trainings

EVERYTHING = {
    "mixed, averaged, accumulated": [
        *("--model.mixup=0.4", "--model.cutmix=1.0", "--trainer.callbacks+=project.run.EMA"),
        *("--trainer.accumulate_grad_batches=2", "--data.augment", "[{class_path: project.data.HorizontalFlip}]"),
    ],
    "dropout, crops from files": [
        *("--model.net.init_args.dropout=0.5", "--data.random_resized_crop=[0.3,1.0]", "--data.num_workers=0"),
        "--trainer.gradient_clip_val=0.1",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("options", EVERYTHING.values(), ids=EVERYTHING.keys())
def test_the_weights_are_the_same_whatever_else_is_done(cli, few, options) -> None:
    assert cli(*few, *options).code == 0
    result = cli(*few, *LOOK, *options)
    assert result.code == 0 and "leaves out" not in result.out, result.out
    assert_same_weights(RUN, Path("runs/look/version_0"))
    assert set(events(Path("runs/look/version_0")).Tags()["images"]) >= ALL


@pytest.mark.slow
def test_two_processes_draw_once_and_over_all_validation_images(workdir) -> None:
    text = launch("fit", *DIGITS, *SMALL, *LOOK, *DDP, "--trainer.max_epochs", "1", "--data.val_size", "0.1003")
    assert "look  " not in text, text
    run = workdir / "runs/digits/version_0"
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    found = events(run)
    assert set(found.Tags()["images"]) >= ALL
    _, batch, probabilities = validation(run, 0.1003)
    assert len(batch["label"]) % 2 == 1  # the ranks have different numbers of images
    (error,) = [event.value for event in found.Scalars("val/calibration_error")]
    assert error == pytest.approx(brute_force_calibration_error(probabilities, batch["label"]), abs=1e-5)


@pytest.mark.slow
def test_an_early_stop_draws_the_last_predictions_and_activations(cli, few) -> None:
    stop = ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping"]
    stop += ["--trainer.callbacks.monitor=val/loss", "--trainer.callbacks.patience=1", "--model.lr=0.00000001"]
    result = cli(*few, *LOOK, *stop, "--trainer.max_epochs=9")
    assert result.code == 0, result.err
    found = events(Path("runs/look/version_0"))
    steps, last = found.Scalars("train/loss")[0].step + 1, len(found.Scalars("train/loss"))
    assert 1 < last < 5
    for tag, expected in {
        "predictions/confusion_matrix": [1, last],
        "activations/spread_by_layer": [0, 1, last],
    }.items():
        assert [event.step // steps for event in found.Images(tag)] == expected


@pytest.mark.slow
def test_mixed_images_bear_both_names(cli, few, monkeypatch) -> None:
    titles, real = [], figures.image_grid
    monkeypatch.setattr(figures, "image_grid", lambda images, names: (titles.append(names), real(images, names))[1])
    callback = "--trainer.callbacks+=project.extras.look.LookAtData"
    assert cli(*few, callback, "--trainer.max_epochs=1", "--model.mixup=8.0").code == 0
    before, after = titles
    assert set(before) <= {"blue", "green", "red"}
    for name, mixed in zip(before, after, strict=True):
        shares = dict(part.split(" ")[::-1] for part in mixed.split(", "))
        assert name in shares and sum(int(share[:-1]) for share in shares.values()) in (99, 100, 101)
    assert any("," in mixed for mixed in after)


@pytest.mark.slow
def test_a_vision_transformer_goes_without_grad_cam(cli, few) -> None:
    vit = ["--model.net=project.nets.TimmModel", "--model.net.init_args.name=vit_tiny_patch16_224"]
    options = ["--data.image_size=32", "--trainer.max_epochs=1", "--model.lr=0.00001"]
    result = cli(*few[: few.index("--model.net")], *vit, *options, *LOOK)
    assert result.code == 0 and "leaves out" not in result.out, result.out
    found = set(events(Path("runs/look/version_0")).Tags()["images"])
    assert {"activations/spread_by_layer", "weights/filters_of_the_first_layer"} <= found


@pytest.mark.slow
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
    assert set(events(Path("runs/look/version_0")).Tags()["images"]) >= ALL


@pytest.mark.slow
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
    assert set(events(Path("runs/look/version_0")).Tags()["images"]) >= ALL


@pytest.mark.slow
def test_without_validation_images_the_rest_is_drawn(cli, few) -> None:
    result = cli(*few, *LOOK, "--data.val_size=0")
    assert result.code == 0 and "leaves out" not in result.out, result.out
    found = set(events(Path("runs/look/version_0")).Tags()["images"])
    assert found >= ALL - PREDICTIONS and not any("predictions" in tag for tag in found)


class Flat(nn.Module):
    """No convolution, no ReLU, no head."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


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


@pytest.mark.slow
def test_what_a_network_lacks_is_not_drawn(cli, few) -> None:
    result = cli(*own(few, Flat), *LOOK)
    assert result.code == 0, result.err
    assert "look       LookAtPredictions leaves out the projector" in result.out
    assert set(events(Path("runs/look/version_0")).Tags()["images"]) >= PREDICTIONS


@pytest.mark.slow
def test_a_network_that_counts_its_calls_trains_the_same(cli, few) -> None:
    assert cli(*own(few, Counting), "--trainer.max_epochs=3").code == 0
    assert cli(*own(few, Counting), *LOOK, "--trainer.max_epochs=3").code == 0
    assert_same_weights(RUN, Path("runs/look/version_0"))


@pytest.mark.slow
def test_layers_that_grad_cam_cannot_take_do_not_end_the_training(cli, few) -> None:
    layers = ["--trainer.callbacks+=project.extras.look.LookAtActivations", "--trainer.callbacks.layers=[head,conv]"]
    result = cli(*own(few, Strange), *LOOK, *layers, "--model.lr=0.000001")
    assert result.code == 0 and result.err == "", result.err
    assert "leaves out Grad-CAM" in result.out
    assert "leaves out activations/head: UserError('feature maps have shape (C, H, W), not (3,)')" in result.out
    assert {"predictions/worst_mistakes", "activations/conv"} <= set(
        events(Path("runs/look/version_0")).Tags()["images"]
    )


@pytest.mark.slow
def test_a_run_that_diverges_is_drawn_as_far_as_it_can_be(cli, few) -> None:
    result = cli(*few, *LOOK, "--model.lr=1e30")
    assert result.code == 0 and result.out.count("that are not finite") <= 2
    assert "predictions/confusion_matrix" in events(Path("runs/look/version_0")).Tags()["images"]
