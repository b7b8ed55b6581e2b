"""Statistics that follow the weights: what a network computed with them, it computes with images of other channels."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_folder
from torch import Tensor, nn

from project.classifier import ImageClassifier
from project.nets import ConvNet, TorchvisionModel, weights
from project.nets.published import Source

HALF = ([0.5] * 3, [0.5] * 3)  # of many of timm's, and of torchvision's vision transformers
UNEVEN = ([0.485, 0.3, 0.61], [0.2, 0.35, 0.11])


def small(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    return ConvNet(in_channels, num_classes, image_size, channels=[8, 16])


def shuffle(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    return TorchvisionModel(in_channels, num_classes, image_size, "shufflenet_v2_x0_5")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Makes a network, as if published with these statistics; gives it, in float64 and eval mode."""

    def make(net, mean, std, channels=3) -> nn.Module:
        torch.manual_seed(1)
        source = net(channels, 5, 32)
        for _ in range(3):
            source(torch.rand(8, channels, 32, 32))  # statistics of its norms
        torch.save(source.state_dict(), tmp_path / "w.pth")
        found = Source("published", tmp_path / "w.pth", mean=mean, std=std)
        monkeypatch.setattr(weights, "fetch_weights", lambda *_: found)
        return source.double().eval()

    return make


def classifier(net, channels: int, **options) -> ImageClassifier:
    """As a fit starts it."""
    model = ImageClassifier(net, list("abcde"), channels, 32, weights="published", **options)
    model._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), ckpt_path=None)
    model.setup("validate")
    return model.eval()


def normalised(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    values = (images.double().unbind(1), mean, std)
    return torch.stack([(image / 255 - m) / s for image, m, s in zip(*values, strict=True)], 1)


@pytest.mark.parametrize("net", [small, shuffle])
@pytest.mark.parametrize("statistics", [HALF, UNEVEN], ids=["half", "uneven"])
@torch.no_grad()
def test_a_grey_image_gives_what_its_rgb_copy_gave(trained, net, statistics) -> None:
    """To the rounding of float32, at the border of the image too, where a convolution pads with the mean."""
    source = trained(net, *statistics)
    images = torch.randint(256, (4, 1, 32, 32), dtype=torch.uint8)
    expected = source(normalised(images.expand(-1, 3, -1, -1), *statistics))
    model = classifier(net, 1)
    for found in (model(images), model(images / 255), model.fused()(images)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    again = ImageClassifier(net, list("abcde"), 1, 32, weights="published")  # as a checkpoint is loaded
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images), model(images))


@torch.no_grad()
def test_colour_images_as_before_and_of_four_channels_in_turn(trained) -> None:
    source, (mean, std) = trained(small, *UNEVEN), UNEVEN
    images = torch.randint(256, (4, 4, 32, 32), dtype=torch.uint8)
    colour = normalised(images[:, :3], mean, std)
    torch.testing.assert_close(classifier(small, 3)(images[:, :3]).double(), source(colour), rtol=1e-4, atol=1e-5)
    first = source.stages[0][0].conv
    four = normalised(images, [*mean, mean[0]], [*std, std[0]])
    kernel = torch.cat([first.weight, first.weight[:, :1]], 1) * 3 / 4
    first.forward = lambda given: nn.functional.conv2d(given, kernel, padding=1)
    torch.testing.assert_close(classifier(small, 4)(images).double(), source(four), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_of_a_grey_network(trained) -> None:
    """In a colour network, which gives for a grey picture what they gave, and in a grey one."""
    source = trained(small, [0.3], [0.17], channels=1)
    images = torch.randint(256, (4, 1, 32, 32), dtype=torch.uint8)
    expected = source(normalised(images, [0.3], [0.17]))
    for channels in (1, 3):
        found = classifier(small, channels)(images.expand(-1, channels, -1, -1))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_statistics_that_are_given_stay(trained) -> None:
    trained(small, *UNEVEN)
    model = classifier(small, 1, mean=[0.25] * 3)
    assert model.mean.flatten().tolist() == [0.25] * 3
    assert model.std.flatten().tolist() == pytest.approx(UNEVEN[1])


def test_without_weights_a_grey_network_stays_grey() -> None:
    model = ImageClassifier(small, list("abcde"), 1, 32)
    assert model.net.stages[0][0].conv.in_channels == 1 and model.mean.shape == (1, 1, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["m.onnx", "m.pt2", "m.safetensors"])
def test_a_grey_run_from_weights_to_every_file(cli, tmp_path, workdir, form) -> None:
    root = make_folder(tmp_path / "grey", {"blue": 30, "grey": 30})
    torch.save(small(3, 7, 16).state_dict(), "w.pth")
    net = ["--model.net", "project.nets.ConvNet", "--model.net.channels=[8,16]", "--model.weights", "w.pth"]
    data = ["--data.root", root, "--data.channels", "1", "--data.image_size", "16", "--data.batch_size", "16"]
    look = ["--trainer.callbacks+=project.extras.look.LookAtWeights", "--trainer.callbacks.graph=true"]
    assert cli("fit", *net, *data, *look, "--trainer.max_epochs", "1").code == 0
    (workdir / "w.pth").unlink()
    assert cli("predict", "--ckpt_path", "last", "--data.root", root, "--out", "one.csv").code == 0
    for options in [[], ["--preprocess", "false"]][: 1 if form.endswith("safetensors") else 2]:
        export = ["export", "--ckpt_path", "last", "--out", form, "--calibrate", "false", "--speed", "false"]
        result = cli(*export, *options)
        assert result.code == 0, result.err
        assert cli("predict", "--ckpt_path", form, "--data.root", root, "--out", "two.csv").code == 0
        ours, theirs = (
            [float(line.split(",")[2]) for line in (workdir / name).read_text().splitlines()[1:]]
            for name in ("one.csv", "two.csv")
        )
        assert ours == pytest.approx(theirs, abs=1e-5)
        assert cli("verify", form).code == 0
