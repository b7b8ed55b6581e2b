"""Exported files in the place of a checkpoint, and the program to copy: the same predictions from all of them."""

import csv
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, ROOT, make_folder, slow_but
from PIL import Image
from profiles import cmyk_profile, grey_profile, rgb_profile
from sklearn.datasets import load_digits

from project.classifier import ImageClassifier
from project.data.transforms import MODES, ImageFormat, load_image
from project.extras.export.runtime import open_exported, read_metadata

SUFFIXES = ("onnx", "pt2", "safetensors")
EXPORT = ["export", "--ckpt_path", "best", "--speed", "false", "--out"]
NETS = """
import torch
from torch import nn

class Jumping(nn.Module):  # no batch norm, and no graph can hold it
    def __init__(self, in_channels, num_classes, image_size):
        super().__init__()
        inputs = in_channels * image_size**2
        self.norm, self.head = nn.LayerNorm(inputs), nn.Linear(inputs, num_classes)

    def forward(self, images):
        logits = self.head(self.norm(images.flatten(1)))
        return logits if images.sum() > 0 else 2 * logits
"""


def error_of(result) -> str:
    """The one line of a command that was refused."""
    assert result.code == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result
    return result.err


@pytest.fixture
def digits(workdir) -> Path:
    """A folder of 70 images: a full batch, and a part of one."""
    folder = workdir / "images"
    folder.mkdir()
    for i, pixels in enumerate(load_digits().images[:70]):
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def predictions(cli, name: str, root: Path, *options: str) -> list[dict]:
    """What `predict` writes."""
    assert cli("predict", "--ckpt_path", name, "--data.root", root, "--out", "out.csv", *options).code == 0
    with open("out.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_alike(one: list[dict], other: list[dict]) -> None:
    """The same classes in the same order, and almost the same probabilities."""
    assert len(one) == len(other) > 0 and one[0].keys() == other[0].keys()
    for a, b in zip(one, other, strict=True):
        for name in a:
            if name.startswith("probability"):
                assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-4)
            else:
                assert a[name] == b[name]


def test_all_files_predict_what_the_checkpoint_does(exported, digits, cli) -> None:
    expected = predictions(cli, "best", digits)
    assert len(expected) == 70
    for suffix in SUFFIXES:
        assert_alike(predictions(cli, f"model.{suffix}", digits), expected)
    assert_alike(predictions(cli, "model.onnx", digits / "03.png"), expected[3:4])


@pytest.mark.slow
def test_neither_preprocessed_nor_calibrated(trained, digits, cli) -> None:
    checkpoint = trained / "checkpoints" / "best.ckpt"
    before = checkpoint.read_bytes()
    result = cli(*EXPORT, "bare.pt2", "--preprocess", "false", "--calibrate", "false")
    assert result.code == 0 and "Temperature" not in result.out and checkpoint.read_bytes() == before
    about = read_metadata(Path("bare.pt2"))
    assert (about["temperature"], about["preprocess"]) == (1.0, False)
    assert_alike(predictions(cli, "bare.pt2", digits), predictions(cli, "best", digits))
    message = error_of(cli(*EXPORT, "bare.safetensors", "--preprocess", "false"))
    assert "preprocess has no effect on .safetensors" in message


@pytest.mark.slow
def test_a_network_that_cannot_be_traced_is_written_as_weights(cli, workdir, digits, monkeypatch) -> None:
    (workdir / "own_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(workdir))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    assert cli("fit", *DIGITS[:2], "--model.net", "own_nets.Jumping", "--trainer.max_epochs", "1").code == 0
    assert "this network cannot be written as .onnx, but as .safetensors: " in error_of(cli(*EXPORT, "m.onnx"))
    assert not Path("m.onnx").exists() and not list(workdir.rglob("*.part*"))
    result = cli(*EXPORT, "m.safetensors")
    assert result.code == 0 and "0 of 0 batch norms folded." in result.out
    assert_alike(predictions(cli, "m.safetensors", digits), predictions(cli, "best", digits))


def test_improbable_classes_are_uncertain(exported, digits, cli) -> None:
    plain = predictions(cli, "model.onnx", digits)
    bound = sorted(float(row["probability"]) for row in plain)[20] + 1e-5
    below = [float(row["probability"]) < bound for row in plain]
    doubt = predictions(cli, "model.onnx", digits, "--min_prob", f"{bound:.6f}")
    assert list(doubt[0]) == [*plain[0], "guess"] and 0 < sum(below) < 70
    for row, old, doubted in zip(doubt, plain, below, strict=True):
        assert row.pop("guess") == old["class"]
        assert row.pop("class") == ("uncertain" if doubted else old.pop("class"))
        old.pop("class", None)
        assert row == old


def test_an_exported_file_can_only_predict(exported, cli) -> None:
    for command, suffix in zip(("fit", "test", "export"), SUFFIXES, strict=True):
        message = error_of(cli(command, "--ckpt_path", f"model.{suffix}"))
        assert "can only predict" in message and command in message


def test_predictions_that_cannot_be(exported, digits, cli) -> None:
    for suffix in SUFFIXES:
        Path(f"short.{suffix}").write_bytes(Path(f"model.{suffix}").read_bytes()[:-8])
    cases = [
        (["model.onnx"], "data.root is not given"),
        (["model.onnx", "--data.root", "images", "--data.image_size", "16"], "data.image_size belongs to the model"),
        (["no.onnx", "--data.root", "images"], "no.onnx is not a file"),
        *(([f"short.{suffix}", "--data.root", "images"], f"short.{suffix} is damaged") for suffix in SUFFIXES),
    ]
    for arguments, words in cases:
        assert words in error_of(cli("predict", "--ckpt_path", *arguments))


# docs/export_deploy.py


def make_pictures(folder: Path) -> Path:
    """Ordinary images of all kinds: turned, large, transparent, grey, with a palette."""
    folder.mkdir()
    random = np.random.default_rng(0)
    pixels = np.kron(random.integers(0, 256, (7, 9, 4)), np.ones((40, 50, 1))).astype(np.uint8)  # 450 x 280
    colour, alpha = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        colour.resize((45, 28)).save(folder / f"turned_{turn}.jpg", exif=exif)
    colour.save(folder / "large.jpg", quality=80)
    colour.convert("L").save(folder / "grey.jpg")
    colour.convert("CMYK").save(folder / "print.jpg")
    alpha.save(folder / "alpha.png")
    alpha.convert("LA").save(folder / "grey_alpha.png")
    colour.convert("L").save(folder / "grey.png")
    colour.convert("P").save(folder / "palette.png")
    colour.convert("P").save(folder / "palette_transparent.png", transparency=3)
    colour.convert("L").save(folder / "grey_transparent.png", transparency=100)
    colour.convert("1").save(folder / "black_and_white.png")
    alpha.save(folder / "alpha.webp", lossless=True)
    deep = pixels[..., 0].astype(np.int32) * 16
    Image.fromarray(deep.astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(deep - 99).save(folder / "deep_signed.tif")
    Image.fromarray(deep.astype(np.float32)).save(folder / "deep_floats.tif")
    wide, grey, ink = rgb_profile("Display P3"), grey_profile(1.5), cmyk_profile(np.full((2, 2, 2, 2, 3), 50))
    colour.save(folder / "wide.jpg", icc_profile=wide)
    alpha.save(folder / "wide_alpha.png", icc_profile=wide)
    colour.convert("P").save(folder / "wide_palette.png", icc_profile=wide, transparency=3)
    colour.convert("L").save(folder / "wide_grey.png", icc_profile=wide)
    alpha.convert("LA").save(folder / "grey_profile.png", icc_profile=grey)
    colour.convert("CMYK").save(folder / "ink.jpg", icc_profile=ink)
    colour.save(folder / "no_profile.png", icc_profile=b"broken")
    colour.save(folder / "other_profile.png", icc_profile=grey)
    colour.save(folder / "srgb.png", icc_profile=rgb_profile("sRGB"))
    Image.new("RGB", (16, 16), "red").save(folder / "fits.png")
    Image.new("RGB", (300, 2), "blue").save(folder / "long.png")
    return folder


@pytest.mark.parametrize(("channels", "resize"), [(1, "letterbox"), (3, "letterbox"), (3, "crop"), (4, "squash")])
def test_the_program_to_copy_loads_images_as_the_training_does(tmp_path, channels, resize) -> None:
    spec = importlib.util.spec_from_file_location("deploy", ROOT / "docs" / "export_deploy.py")
    deploy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(deploy)
    for path in make_pictures(tmp_path / "pictures").iterdir():
        for size, value_range in ((16, (-5.0, 4095.0)), (33, (0.0, 0.0))):
            image_format = ImageFormat(size, channels, resize, value_range)
            expected = load_image(path.read_bytes(), image_format)[None].numpy()
            found = deploy.load(str(path), size, MODES[channels], resize, image_format.value_range)
            assert found.dtype == np.uint8 and np.array_equal(found, expected), (path.name, size)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "resize"), [(3, "crop"), (4, "squash")])
def test_the_program_to_copy_predicts_as_we_do_without_us(cli, tiny_net, workdir, channels, resize) -> None:
    folder = make_folder(workdir / "images", {"blue": 12, "green": 12, "red": 12})
    for i in range(12):  # twelve bits
        noise = np.random.default_rng(i).integers(0, 4096, (20, 24))
        Image.fromarray(noise.astype(np.uint16)).save(folder / "blue" / f"deep_{i}.png")
    options = ["--data.root", folder, *tiny_net, "--data.channels", channels, "--data.resize", resize]
    assert cli("fit", *options, "--trainer.max_epochs", "1", "--model.net.init_args.channels", "[8]").code == 0
    assert cli(*EXPORT, "model.onnx").code == 0
    assert read_metadata(Path("model.onnx"))["value_range"] == [0, 4095]
    deployed_alike(cli, workdir)


def test_an_exported_file_of_before_the_range(exported, digits, cli, monkeypatch) -> None:
    def old(path: Path) -> dict:
        metadata = read_metadata(path)
        del metadata["value_range"]
        return metadata

    monkeypatch.setattr("project.extras.export.runtime.read_metadata", old)
    assert_alike(predictions(cli, "model.onnx", digits), predictions(cli, "best", digits))


def test_the_program_to_copy_predicts_grey_images_as_we_do(cli, exported) -> None:
    deployed_alike(cli, exported)


def deployed_alike(cli, workdir: Path) -> None:
    """best.ckpt, model.onnx, and docs/export_deploy.py in a folder and a process without us predict the same."""
    pictures = make_pictures(workdir / "pictures")
    expected = predictions(cli, "best", pictures)
    assert_alike(predictions(cli, "model.onnx", pictures), expected)

    place = workdir / "elsewhere"
    place.mkdir()
    shutil.copy(ROOT / "docs" / "export_deploy.py", place / "deploy.py")
    shutil.copy("model.onnx", place)
    code = (
        "import runpy, sys\n"
        "for name in ('project', 'torch', 'torchvision', 'lightning'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    paths = [str(pictures / row["path"]) for row in expected]
    command = [sys.executable, "-I", "-c", code, "deploy.py", "model.onnx", *paths]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env={})
    assert (done.returncode, done.stderr) == (0, "")
    said = [line.split("\t") for line in done.stdout.splitlines()]
    assert [path for path, _, _ in said] == paths
    for row, (_, name, probability) in zip(expected, said, strict=True):
        assert name == row["class"] and float(probability) == pytest.approx(float(row["probability"]), abs=1e-4)


@pytest.mark.parametrize("out", slow_but(["t.onnx", "t.pt2", "t.safetensors", "normal.onnx"], "t.safetensors"))
def test_a_file_with_tta_is_the_average(out, trained, cli) -> None:
    """Of image and mirror, by one call of the network for each; the checkpoint keeps the temperature it had."""
    options = ["--preprocess", "false"] if out == "normal.onnx" else []
    before = torch.load(trained / "checkpoints/best.ckpt", weights_only=True).get("temperature")
    result = cli(*EXPORT, out, *options, "--model.tta", "flip")
    assert result.code == 0 and "model.tta: flip here, none in the training" in result.out, result.err
    model = ImageClassifier.load_from_checkpoint(trained / "checkpoints/best.ckpt", "cpu").eval()
    assert model.tta == "none"
    images = torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = (model(images) + model(images.flip(-1))) / 2
    expected = (logits / read_metadata(Path(out))["temperature"]).softmax(1).numpy()
    np.testing.assert_allclose(open_exported(Path(out))(images.numpy()), expected, atol=1e-5)
    assert abs(expected - model.probabilities(images).numpy()).max() > 0.01
    assert torch.load(trained / "checkpoints/best.ckpt", weights_only=True).get("temperature") == before
    assert cli("verify", out).code == 0
