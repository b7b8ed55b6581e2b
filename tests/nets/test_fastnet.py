"""FastNet: its whitening against numpy in float64, its stages against plain torch, its life in a training."""

import numpy as np
import pytest
import torch
from conftest import ROOT, make_folder, slow_but
from torch import nn

from project.data import ImageDataModule
from project.nets import FastNet, fastnet
from project.nets.blocks import initialize
from project.nets.fuse import fuse
from project.optim import Freeze, layers, param_groups

PART = ["--config", ROOT / "configs/folder.yaml", "--model", ROOT / "configs/model/fastnet.yaml"]
TINY = ["--data.image_size", "10", "--model.net.widths", "[8,12]", "--data.batch_size", "8", "--data.root", "images"]


def pictures(count: int, channels: int, size: int) -> torch.Tensor:
    """Smooth ones, whose neighbouring pixels are alike, as in photographs; large, so that EPS is nothing."""
    noise = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 100 * noise.cumsum(2).cumsum(3) + 50 * noise[:, :1] + 7


def patches(images: torch.Tensor, size: int, stride: int) -> np.ndarray:
    """(patches, C * size * size)."""
    windows = np.lib.stride_tricks.sliding_window_view(images.numpy(), (size, size), axis=(2, 3))
    return windows[:, :, ::stride, ::stride].transpose(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * size**2)


@pytest.mark.parametrize(
    ("channels", "size", "whiten", "kernel", "stride"), [(3, 12, 2, 2, 1), (1, 12, 3, 3, 1), (4, 66, 2, 4, 2)]
)
def test_whitened_patches_are_uncorrelated(channels, size, whiten, kernel, stride) -> None:
    images = pictures(20, channels, size)
    net = FastNet(channels, 5, size, widths=(8, 8), whiten=whiten).double()
    net.prepare(images)
    conv = net.stem[0]
    half = channels * whiten**2
    assert conv.weight.shape == (2 * half, channels, kernel, kernel) and conv.stride == (stride, stride)
    assert torch.equal(conv.weight[:half], -conv.weight[half:]) and not conv.bias.any()
    given = patches(images, kernel, stride)
    white = given @ conv.weight[:half].reshape(half, -1).numpy().T
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(half), atol=1e-6)
    kept = np.linalg.eigvalsh(given.T @ given / len(given))[::-1][:half]  # the strongest
    found = 1 / np.linalg.norm(conv.weight[:half].reshape(half, -1).numpy(), axis=1) ** 2
    np.testing.assert_allclose(found, kept, rtol=1e-6)
    with torch.no_grad():  # and the network gives just these
        out = conv(images)[:, :half].permute(0, 2, 3, 1).reshape(-1, half)
    np.testing.assert_allclose(out.numpy(), white, rtol=1e-6, atol=1e-9)


def test_what_hardly_varies_is_not_blown_up() -> None:
    net = FastNet(3, 5, 16, widths=(8,)).double()
    net.prepare(torch.full((4, 3, 16, 16), 0.3))
    assert net.stem[0].weight.abs().max() <= 5e-4**-0.5 + 1e-9


def test_a_constant_channel_is_not_blown_up() -> None:
    """As the alpha channel of opaque images: outputs of about 1, on other images too."""
    images = torch.cat([torch.randn(8, 3, 16, 16), torch.full((8, 1, 16, 16), 2.0)], 1).double()
    net = FastNet(4, 5, 16, widths=(8,)).double()
    net.prepare(images)
    assert net.stem[0](images.flip(0).roll(3, 2)).abs().max() < 10


def test_filters_that_are_there_stay() -> None:
    net = FastNet(3, 5, 12, widths=(8,))
    assert not net.stem[0].fitted
    net.prepare(torch.randn(4, 3, 12, 12))
    before = net.stem[0].weight.clone()
    net.prepare(torch.randn(4, 3, 12, 12))
    assert net.stem[0].fitted and torch.equal(net.stem[0].weight, before)


def test_the_filters_depend_on_the_images_alone(monkeypatch) -> None:
    images, nets = pictures(9, 3, 12).float(), [FastNet(3, 5, 12, widths=(8,)) for _ in range(2)]
    nets[0].prepare(images)
    nets[1].prepare(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(nets[0].stem[0].weight, nets[1].stem[0].weight)
    monkeypatch.setattr(fastnet, "AT_ONCE", 2)
    nets[1].prepare(images)
    torch.testing.assert_close(nets[0].stem[0].weight.abs(), nets[1].stem[0].weight.abs())


def test_unprepared_its_filters_are_random() -> None:
    net = FastNet(3, 5, 16)
    assert 0.05 < net.stem[0].weight.std() < 1 and net(torch.randn(2, 3, 16, 16)).isfinite().all()
    assert not torch.equal(net.stem[0].weight, FastNet(3, 5, 16).stem[0].weight)
    net = FastNet(3, 5, 16, whiten=None)
    before = net.stem[0].weight.clone()
    net.prepare(torch.randn(2, 3, 16, 16))
    assert torch.equal(net.stem[0].weight, before) and "stem.0.weight" in dict(net.named_parameters())


ACTS = {"relu": nn.functional.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu}


@pytest.mark.parametrize("act", ACTS)
def test_forward_written_out(act) -> None:
    torch.manual_seed(0)
    net = FastNet(3, 7, 19, widths=(6, 8), act=act, norm_momentum=0.3, norm_scale=act == "relu", head_scale=0.2)
    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.3
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x, f, state = torch.randn(2, 3, 19, 19, dtype=torch.float64), nn.functional, net.state_dict()

    def norm(x, key):
        return f.batch_norm(x, *(state[f"{key}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")))

    y = ACTS[act](f.conv2d(x, state["stem.0.weight"], state["stem.0.bias"]))
    for stage in ("stages.0", "stages.1"):
        y = f.max_pool2d(f.conv2d(y, state[f"{stage}.0.conv.weight"], padding=1), 2)
        y = ACTS[act](norm(y, f"{stage}.0.norm"))
        y = ACTS[act](norm(f.conv2d(y, state[f"{stage}.1.conv.weight"], padding=1), f"{stage}.1.norm"))
    features = 0.2 * y.amax((2, 3))
    torch.testing.assert_close(net.forward_features(x), features)
    torch.testing.assert_close(net(x), features @ state["head.weight"].T)
    names = {name for name, _ in net.named_parameters()}
    assert "stem.0.weight" not in names and "stem.0.bias" in names
    assert ("stages.0.0.norm.weight" in names) == (act == "relu") and "stages.0.0.norm.bias" in names


@pytest.mark.parametrize("scheme", ["default", "dirac", "xavier_normal", "kaiming_uniform"])
def test_no_initialisation_touches_what_is_fixed(scheme) -> None:
    net = FastNet(3, 5, 16, widths=(8, 8))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    initialize(net, scheme)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert torch.equal(net.stages[0][0].norm.weight, torch.ones(8))


@pytest.mark.parametrize(("stages", "whiten", "least"), [(3, 2, 9), (3, None, 9), (2, 5, 8)])
def test_the_smallest_image(stages, whiten, least) -> None:
    widths = (4,) * stages
    assert FastNet(1, 3, least, widths, whiten).eval()(torch.zeros(2, 1, least, least)).shape == (2, 3)
    with pytest.raises(ValueError, match=rf"image_size: {least - 1} must be {least} or more"):
        FastNet(1, 3, least - 1, widths, whiten)


@pytest.mark.parametrize("whiten", [None, 2, 20])
@pytest.mark.parametrize("size", [64, 65, 128, 129, 224])
def test_large_images_become_maps_of_64_pixels_or_fewer(size, whiten) -> None:
    """Six stages, which need 64 pixels: what is built can be run, and what cannot be run is not built."""
    net, image = FastNet(1, 3, size, (4,), whiten).eval(), torch.zeros(1, 1, size, size)
    assert 20 <= net.stem(image).shape[2] <= 64
    try:
        net = FastNet(1, 3, size, (4,) * 6, whiten).eval()
    except ValueError:
        assert net.stem(image).shape[2] < 64
    else:
        assert net(image).shape == (1, 3)


def test_values_out_of_range() -> None:
    for wrong in ({"widths": []}, {"widths": [8, 0]}, {"whiten": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FastNet(3, 5, 32, **wrong)


def test_groups_and_freezing_know_its_layers() -> None:
    net = FastNet(3, 5, 32)
    found = layers(net)
    assert [layer.name for layer in found] == ["stem", *(f"stages.{i}.{j}" for i in range(3) for j in (0, 1)), "head"]
    assert found[0].tensors == ("stem.0.bias", "stem.0.weight") and found[1].stage == "stages.0"
    groups = param_groups(net, 1.0, stem_lr=0.5, no_weight_decay=True)
    assert groups[0]["name"] == "stem/no_decay" and groups[0]["lr"] == 0.5 and groups[-1]["lr"] == 1
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in net.parameters())
    assert set(Freeze(layers="^stem").plan(net)) == {"stem.0.bias", "stem.0.weight"}


def test_every_norm_folds() -> None:
    torch.manual_seed(0)
    net = FastNet(3, 5, 20, widths=(8, 8)).double().train()
    x = 3 * torch.randn(6, 3, 20, 20, dtype=torch.float64)
    net(x)
    fused, folds = fuse(net.eval(), x)
    assert {fold.norm: fold.into for fold in folds} == {
        f"stages.{i}.{j}.norm": f"stages.{i}.{j}.conv" for i in (0, 1) for j in (0, 1)
    }
    torch.testing.assert_close(fused(x), net(x), rtol=1e-10, atol=1e-12)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


@pytest.mark.slow
def test_autocast_compile_and_channels_last() -> None:
    torch.manual_seed(0)
    net = FastNet(3, 5, 16, widths=(8, 8)).to(memory_format=torch.channels_last).eval()
    assert net.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 16, 16)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net(x).float(), expected, rtol=0.1, atol=0.1)
    keys = list(net.state_dict())
    net.compile(backend="eager")
    torch.testing.assert_close(net(x), expected)
    assert list(net.state_dict()) == keys


# In a training


def weights(run: str = "runs/folder/version_0") -> dict[str, torch.Tensor]:
    return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


OPTIONS = {
    "plain": [],
    "from files": ["--data.cache", "none", "--data.num_workers", "1", "--data.random_resized_crop", "[0.9,1.0]"],
    "grey": ["--data.channels", "1"],
    "alpha": ["--data.channels", "4", "--trainer.callbacks+", "project.run.EMA"],
    "bf16": ["--trainer.precision", "bf16-mixed"],
}


@pytest.mark.parametrize("name", slow_but(OPTIONS, "from files"))
def test_a_training_starts_with_the_filters_of_its_images(name, cli, workdir) -> None:
    make_folder(workdir / "images")
    result = cli("fit", *PART, *TINY, *OPTIONS[name], "--trainer.max_epochs", "1")
    assert result.code == 0, result.err
    found = weights()
    channels = {"grey": 1, "alpha": 4}.get(name, 3)
    data = ImageDataModule("images", image_size=10, channels=channels)
    data.setup("fit")
    images = (data.loaded["train"].images.pixels.double() / 255 - found["normalise.mean"].double()) / found[
        "normalise.std"
    ].double()
    given = patches(images, 2, 1)
    half = channels * 4
    filters = found["net.stem.0.weight"][:half].double().reshape(half, -1).numpy()
    squares, white = np.linalg.eigvalsh(given.T @ given / len(given))[::-1], given @ filters.T
    np.testing.assert_allclose(white.T @ white / len(white), np.diag(squares / (squares + 5e-4)), atol=1e-4)
    assert found["net.stem.0.bias"].any()  # it trains


@pytest.mark.slow
def test_resumed_and_started_from_weights_it_keeps_them(cli, workdir) -> None:
    make_folder(workdir / "images")
    make_folder(workdir / "others", seed=1)
    flip = ["--data.augment", "[{class_path: project.data.HorizontalFlip, init_args: {alternate: true}}]"]
    fit = ["fit", *PART, *TINY, *flip, "--model.schedule", "null", "--trainer.max_epochs"]
    last = "runs/folder/version_{}/checkpoints/last.ckpt".format
    assert cli(*fit, "2").code == cli(*fit, "1").code == 0
    filters = weights("runs/folder/version_1")["net.stem.0.weight"]
    assert cli(*fit, "1", "--model.weights", last(1), "--data.root", "others").code == 0
    assert torch.equal(weights("runs/folder/version_2")["net.stem.0.weight"], filters)
    assert cli(*fit, "1", "--data.root", "others").code == 0
    assert not torch.equal(weights("runs/folder/version_3")["net.stem.0.weight"], filters)
    assert cli("fit", "--ckpt_path", last(1), "--trainer.max_epochs", "2").code == 0
    whole, parts = weights("runs/folder/version_0"), weights("runs/folder/version_1")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    (workdir / last(1)).unlink()
    result = cli("fit", "--ckpt_path", last(2), "--trainer.max_epochs", "2")
    assert result.code == 0 and "weights:" not in result.out, result.err  # resumed without the file that it began with


@pytest.mark.slow
def test_a_stem_that_the_file_does_not_have_is_made_of_the_images(cli, workdir) -> None:
    make_folder(workdir / "images")
    fit = ["fit", *PART, *TINY, "--trainer.max_epochs", "1"]
    last = "runs/folder/version_{}/checkpoints/last.ckpt".format
    assert cli(*fit).code == 0
    assert cli(*fit, "--model.weights", last(0), "--model.net.init_args.whiten", "3").code == 0
    assert cli(*fit, "--model.net.init_args.whiten", "3").code == 0
    stems = [weights(f"runs/folder/version_{i}")["net.stem.0.weight"] for i in (1, 2)]
    torch.testing.assert_close(*stems)


@pytest.mark.slow
def test_a_loader_of_another_hand(capsys) -> None:
    from functools import partial

    import lightning as L
    from torch.utils.data import DataLoader

    from project.classifier import ImageClassifier

    model = ImageClassifier(partial(FastNet, widths=(8, 8)), ["a", "b"], image_size=10)
    before = model.net.stem[0].weight.clone()
    batches = DataLoader([{"image": torch.rand(3, 10, 10), "label": i % 2} for i in range(8)], batch_size=4)
    L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu").fit(model, batches)
    assert torch.equal(model.net.stem[0].weight, before)
    assert capsys.readouterr().out.count("images of an ImageDataModule") == 1


@pytest.mark.slow
def test_what_is_made_of_a_trained_one(cli, workdir) -> None:
    make_folder(workdir / "images")
    flip = ["--model.tta", "flip", "--trainer.callbacks+", "project.extras.look.LookAtPredictions"]
    more = ["--trainer.callbacks+", "project.extras.look.LookAtActivations"]
    result = cli("fit", *PART, *TINY, *flip, *more, "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3")
    assert result.code == 0 and "leaves out" not in result.out, result.out
    for out in ("m.onnx", "m.pt2", "m.safetensors"):
        result = cli("export", "--ckpt_path", "last", "--out", out, "--speed", "false")
        assert result.code == 0 and "4 of 4 batch norms folded" in result.out, result.err
    assert cli("report", "--run", "runs/folder/version_0").code == 0
    assert cli("check", *PART, *TINY, "--compare_init").code == 0


def test_an_image_too_small_is_one_line(cli, workdir) -> None:
    make_folder(workdir / "images")
    result = cli("fit", *PART, *TINY, "--data.image_size", "4")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "image_size: 4 must be 5 or more" in result.err and not (workdir / "runs").exists()
