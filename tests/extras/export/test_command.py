"""`python -m project export`, from the checkpoint to a program without this project."""

import csv
import errno
import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import DIGITS, ROOT, SMALL, make_folder
from onnx import numpy_helper
from PIL import Image
from sklearn.datasets import load_digits

import project.extras.export.make
from project.classifier import ImageClassifier
from project.data.transforms import MODES, load_image
from project.extras.export.metadata import read_metadata

SUFFIXES = ("onnx", "pt2", "safetensors")
EXPORT = ["export", "--ckpt_path", "best", "--speed", "false", "--out"]
NETS = """
import torch
from torch import nn

class Plain(nn.Module):  # no batch norm
    def __init__(self, in_channels, num_classes, image_size):
        super().__init__()
        self.norm, self.head = nn.LayerNorm(in_channels * image_size**2), nn.Linear(in_channels * image_size**2, num_classes)

    def forward(self, images):
        return self.head(self.norm(images.flatten(1)))

class Jumping(Plain):  # no graph can hold that
    def forward(self, images):
        logits = super().forward(images)
        return logits if images.sum() > 0 else 2 * logits
"""


def error_of(result) -> str:
    """The one line of a command that was refused."""
    assert result.code == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result
    return result.err


def rows_of(path: str) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def some_digits(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for i, pixels in enumerate(load_digits().images[:count]):
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def left_overs(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".part" in path.name]


def assert_alike(one: list[dict], other: list[dict]) -> None:
    """The same classes in the same order, and almost the same probabilities."""
    assert len(one) == len(other) > 0 and one[0].keys() == other[0].keys()
    for a, b in zip(one, other, strict=True):
        for name in a:
            if name.startswith("probability"):
                assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-4)
            else:
                assert a[name] == b[name]


def assert_same(one: object, other: object) -> None:
    """Equal in every part, tensors by their bits."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other or one != one


# Round trips


def test_all_files_predict_what_the_checkpoint_does(exported, cli) -> None:
    images = some_digits(exported / "images", 70)  # a full batch, and a part of one
    found = {}
    for name in ("best", *(f"model.{suffix}" for suffix in SUFFIXES)):
        result = cli("predict", "--ckpt_path", name, "--data.root", images, "--out", f"{name}.csv")
        assert result.code == 0 and "70 predictions" in result.out
        found[name] = rows_of(f"{name}.csv")
    for suffix in SUFFIXES:
        assert_alike(found[f"model.{suffix}"], found["best"])
    assert cli("predict", "--ckpt_path", "model.onnx", "--data.root", images / "03.png", "--out", "one.csv").code == 0
    assert_alike(rows_of("one.csv"), found["best"][3:4])


def test_neither_preprocessed_nor_calibrated(trained, cli, workdir) -> None:
    checkpoint = trained / "checkpoints" / "best.ckpt"
    before = checkpoint.read_bytes()
    result = cli(*EXPORT, "bare.onnx", "--preprocess", "false", "--calibrate", "false")
    assert result.code == 0 and "Temperature" not in result.out and checkpoint.read_bytes() == before
    about = read_metadata(Path("bare.onnx"))
    assert (about["temperature"], about["preprocess"]) == (1.0, False)
    images = some_digits(workdir / "images")
    for name in ("best", "bare.onnx"):
        assert cli("predict", "--ckpt_path", name, "--data.root", images, "--out", f"{name}.csv").code == 0
    assert_alike(rows_of("bare.onnx.csv"), rows_of("best.csv"))


def test_what_export_says(exported, cli) -> None:
    before = Path("model.safetensors").read_bytes()
    (exported / "model.safetensors").unlink()
    result = cli(*EXPORT, "model.safetensors")
    assert (
        result.code == 0 and result.err == "" and Path("model.safetensors").read_bytes() == before
    )  # the same each time
    table = rows_of("model.folds.csv")
    assert [(row["norm"], row["into"], row["reason"]) for row in table] == [
        ("stages.0.0.norm", "stages.0.0.conv", ""),
        ("stages.1.0.norm", "stages.1.0.conv", ""),
    ]
    weights = torch.load("runs/digits/version_0/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    # The weights of a fused network: convolutions gain a bias, their norms go.
    parameters = sum(v.numel() for k, v in weights.items() if k.startswith("net.") and ".norm." not in k) + 16 + 32
    assert f"{parameters:,} parameters" in result.out and "2 of 2 batch norms folded." in result.out
    assert (
        "from 287 validation images: calibration error" in result.out
        and "the class is the same for 100.00%" in result.out
    )
    assert f"{exported / 'model.safetensors'}: 0.02 MB" in result.out


def test_speed_is_told_for_every_way(exported, cli, monkeypatch) -> None:
    monkeypatch.setattr("project.extras.export.speed.SAMPLE", 0.0)
    result = cli("export", "--ckpt_path", "best", "--out", "fast.onnx")
    assert result.code == 0
    lines = [line for line in result.out.splitlines() if line.startswith("  batch")]
    ways = ["eager, unfused", "eager, fused", "fused + channels_last", "the file in onnxruntime"]
    assert len(lines) == 8
    assert all(way in line for line, way in zip(lines, 2 * ways, strict=True))
    assert all("images/s" in line and line.endswith("x") for line in lines) and lines[0].endswith("  1.00x")


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
    Image.new("RGB", (16, 16), "red").save(folder / "fits.png")
    Image.new("RGB", (300, 2), "blue").save(folder / "long.png")
    return folder


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("resize", ["letterbox", "crop", "squash"])
def test_the_program_to_copy_loads_images_as_the_training_does(tmp_path, channels, resize) -> None:
    spec = importlib.util.spec_from_file_location("deploy", ROOT / "docs" / "deploy.py")
    deploy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(deploy)
    for path in make_pictures(tmp_path / "pictures").iterdir():
        for size in (16, 33):
            expected = load_image(path.read_bytes(), size, channels, resize)[None].numpy()
            found = deploy.load(str(path), size, MODES[channels], resize)
            assert found.dtype == np.uint8 and np.array_equal(found, expected), (path.name, size)


@pytest.mark.parametrize(("channels", "resize"), [(3, "crop"), (4, "squash")])
def test_the_program_to_copy_predicts_as_we_do_without_us(cli, tiny_net, workdir, channels, resize) -> None:
    folder = make_folder(workdir / "images", {"blue": 12, "green": 12, "red": 12})
    options = ["--data.root", folder, *tiny_net, "--data.channels", channels, "--data.resize", resize]
    assert cli("fit", *options, "--trainer.max_epochs", "1", "--model.net.init_args.channels", "[8]").code == 0
    assert cli(*EXPORT, "model.onnx").code == 0
    deployed_alike(cli, workdir)


def test_the_program_to_copy_predicts_grey_images_as_we_do(cli, exported) -> None:
    deployed_alike(cli, exported)


def deployed_alike(cli, workdir: Path) -> None:
    """best.ckpt, model.onnx, and docs/export_deploy.py in a folder and a process without us predict the same."""
    pictures = make_pictures(workdir / "pictures")
    for name in ("best", "model.onnx"):
        assert cli("predict", "--ckpt_path", name, "--data.root", pictures, "--out", f"{name}.csv").code == 0
    expected = rows_of("best.csv")
    assert_alike(rows_of("model.onnx.csv"), expected)

    place = workdir / "elsewhere"
    place.mkdir()
    shutil.copy(ROOT / "docs" / "deploy.py", place)
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


# The checkpoint and its temperature


def test_only_the_temperature_is_new_in_the_checkpoint(trained, exported_once) -> None:
    name = "runs/digits/version_0/checkpoints/{}.ckpt"
    before = torch.load(name.format("best"), weights_only=True)
    after = torch.load(exported_once / name.format("best"), weights_only=True)
    temperature = after.pop("temperature")
    assert "temperature" not in before and 0.05 <= temperature <= 20
    assert_same(after, before)
    assert Path(name.format("last")).read_bytes() == (exported_once / name.format("last")).read_bytes()
    assert left_overs(exported_once) == []


def test_a_calibrated_checkpoint_stays_so_without_calibration(exported, cli) -> None:
    checkpoint = exported / "runs" / "digits" / "version_0" / "checkpoints" / "best.ckpt"
    before = checkpoint.read_bytes()
    assert cli(*EXPORT, "again.safetensors", "--calibrate", "false").code == 0
    assert checkpoint.read_bytes() == before
    temperature = torch.load(checkpoint, weights_only=True)["temperature"]
    assert read_metadata(Path("again.safetensors"))["temperature"] == temperature


def test_a_fit_that_goes_on_is_not_changed_and_drops_the_temperature(trained, cli, workdir) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    shutil.copytree("runs", "untouched")
    assert cli("export", "--ckpt_path", "last", "--speed", "false", "--out", "m.safetensors").code == 0
    assert "temperature" in torch.load(last, weights_only=True)
    go_on = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"]
    assert cli(*go_on).code == 0
    shutil.move("runs", "touched")
    shutil.move("untouched", "runs")
    assert cli(*go_on).code == 0
    one, other = (
        torch.load(Path(root) / "digits/version_0/checkpoints/last.ckpt", weights_only=True)
        for root in ("runs", "touched")
    )
    assert "temperature" not in other and one["epoch"] == other["epoch"] == 4 - 1
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(one[part], other[part])


def test_a_checkpoint_that_cannot_be_written_is_exported_all_the_same(trained, cli, workdir) -> None:
    checkpoint = trained / "checkpoints" / "best.ckpt"
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (len(before) // 2, limits[1])
    )  # as if the disk had only so many bytes left
    try:
        result = cli(*EXPORT, "m.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (
        result.code == 0
        and "The temperature could not be kept in the checkpoint, which will predict without it: " in result.out
    )
    assert read_metadata(workdir / "m.safetensors")["temperature"] != 1
    assert checkpoint.read_bytes() == before and left_overs(workdir) == []


def test_folded_weights_are_no_start_for_training(exported, cli) -> None:
    result = cli("fit", *DIGITS, *SMALL, "--model.weights", "model.safetensors")
    assert result.code == 2 and "model.safetensors are folded" in result.err and result.err.count("\n") == 1


def test_without_validation_images_a_temperature_is_kept(exported, cli) -> None:
    before = read_metadata(Path("model.onnx"))["temperature"]
    options = ["--out", "m.safetensors", "--speed", "false", "--data.val_size", "0"]
    assert before != 1 and cli("export", "--ckpt_path", "best", *options).code == 0
    assert read_metadata(Path("m.safetensors"))["temperature"] == before


def test_a_model_that_was_never_validated(cli, folder, tiny_net, workdir) -> None:
    fit = ["fit", "--data.root", folder, *tiny_net, "--data.val_size", "0", "--trainer.max_epochs", "1"]
    assert cli(*fit).code == 0
    checkpoint = next(workdir.rglob("last.ckpt"))
    before = checkpoint.read_bytes()
    result = cli("export", "--ckpt_path", "last", "--speed", "false", "--out", "m.safetensors")
    assert result.code == 0 and "without validation images there is nothing to calibrate on" in result.out
    assert checkpoint.read_bytes() == before and read_metadata(Path("m.safetensors"))["temperature"] == 1


@pytest.fixture
def own_nets(workdir, monkeypatch) -> str:
    """A module of networks that a user wrote."""
    (workdir / "own_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(workdir))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return "own_nets"


def test_a_network_without_batch_norm(own_nets, capsys) -> None:
    model = ImageClassifier(importlib.import_module(own_nets).Plain, ["a", "b", "c"], in_channels=1, image_size=8)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (30,), generator=generator)
    project.extras.export.make.export(model, images, labels, "m.pt2", {}, speed=False)
    assert "No batch norm to fold." in capsys.readouterr().out and read_metadata(Path("m.pt2"))["folds"] == []
    assert Path("m.folds.csv").read_text().splitlines() == ["norm,into,reason"]


def test_a_network_that_cannot_be_traced_is_written_as_weights(cli, own_nets, workdir) -> None:
    assert cli("fit", *DIGITS[:2], "--model.net", "own_nets.Jumping", "--trainer.max_epochs", "1").code == 0
    message = error_of(cli(*EXPORT, "m.onnx"))
    assert "this network cannot be written as ONNX: " in message and ".safetensors keeps its weights" in message
    assert not Path("m.onnx").exists() and left_overs(workdir) == []
    assert cli(*EXPORT, "m.safetensors").code == 0
    images = some_digits(workdir / "images")
    for name in ("best", "m.safetensors"):
        assert cli("predict", "--ckpt_path", name, "--data.root", images, "--out", f"{name}.csv").code == 0
    assert_alike(rows_of("m.safetensors.csv"), rows_of("best.csv"))


# The proof


def refused(cli, workdir: Path, out: str, *options: str) -> str:
    """The line of an export that is refused: what was there before is there still, and nothing else."""
    (workdir / out).write_bytes(b"old")
    checkpoint = workdir / "runs" / "digits" / "version_0" / "checkpoints" / "best.ckpt"
    kept = checkpoint.read_bytes()
    message = error_of(cli(*EXPORT, out, *options))
    assert (workdir / out).read_bytes() == b"old" and checkpoint.read_bytes() == kept
    assert left_overs(workdir) == [] and not (workdir / out).with_suffix(".folds.csv").exists()
    return message


@pytest.mark.parametrize(("suffix", "layer"), [("pt2", 0), ("safetensors", 1)])
def test_a_wrong_fold_is_found_and_named(trained, cli, workdir, monkeypatch, suffix, layer) -> None:
    fused = ImageClassifier.fused

    def wrong(model: ImageClassifier) -> torch.nn.Module:
        deployable = fused(model)
        with torch.no_grad():
            deployable.net.get_submodule(f"stages.{layer}.0.conv").weight[3] *= 1.1
        return deployable

    monkeypatch.setattr(ImageClassifier, "fused", wrong)
    message = refused(cli, workdir, f"m.{suffix}")
    assert "nothing was written: the logits of 256 validation images differ by up to" in message
    assert f"The first layer that differs is net.stages.{layer}.0.norm, where the batch norm was folded." in message


def test_a_damaged_pt2_is_found_and_its_layer_named(trained, cli, workdir, monkeypatch) -> None:
    real = project.extras.export.make.write

    def damaging(module: torch.nn.Module, images: torch.Tensor, path: Path, metadata: dict) -> None:
        part = module.get_submodule("net.stages.1.0.conv")
        kept = part.weight.detach().clone()
        with torch.no_grad():
            part.weight[2] += 0.2
            real(module, images, path, metadata)
            part.weight.copy_(kept)

    monkeypatch.setattr(project.extras.export.make, "write", damaging)
    assert "The first layer that differs is net.stages.1.0.conv, as the file runs it." in refused(cli, workdir, "m.pt2")


def test_a_damaged_onnx_is_found_and_its_layer_named(trained, cli, workdir, monkeypatch) -> None:
    real = project.extras.export.make.write

    def damaging(module: torch.nn.Module, images: torch.Tensor, path: Path, metadata: dict) -> None:
        real(module, images, path, metadata)
        model = onnx.load(path)
        largest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
        values = numpy_helper.to_array(largest).copy()
        values.flat[100] += 0.3
        largest.CopyFrom(numpy_helper.from_array(values, largest.name))
        onnx.save(model, path)

    monkeypatch.setattr(project.extras.export.make, "write", damaging)
    assert "The first layer that differs is net.stages.1.0.conv, as the file runs it." in refused(
        cli, workdir, "m.onnx", "--preprocess", "false"
    )


def test_weights_that_are_no_numbers_fail(trained, cli, workdir) -> None:
    path = trained / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["net.stages.1.0.conv.weight"][0, 0] = float("nan")
    torch.save(checkpoint, path)
    assert "logits that are no numbers" in refused(cli, workdir, "m.onnx")


def test_a_tolerance_below_what_rounding_allows_says_that_no_layer_is_to_blame(trained, cli, workdir) -> None:
    message = refused(cli, workdir, "m.safetensors", "--tolerance", "1e-12")
    assert "tolerance is 1e-12" in message


# Interrupted


def test_a_sigterm_leaves_what_was_there(trained, cli, workdir, monkeypatch) -> None:
    def terminated(module: object, images: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(project.extras.export.make, "write", terminated)
    (workdir / "m.onnx").write_bytes(b"old")
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli(*EXPORT, "m.onnx").code == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (workdir / "m.onnx").read_bytes() == b"old" and left_overs(workdir) == []


@pytest.mark.parametrize("place", ["write", "prove"])
def test_ctrl_c_leaves_what_was_there(trained, cli, workdir, monkeypatch, place) -> None:
    real = getattr(project.extras.export.make, place)

    def interrupted(*arguments: object) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(project.extras.export.make, place, interrupted)
    (workdir / "m.safetensors").write_bytes(b"old")
    kept = (trained / "checkpoints" / "best.ckpt").read_bytes()
    assert cli(*EXPORT, "m.safetensors").code == 130
    assert (workdir / "m.safetensors").read_bytes() == b"old" and left_overs(workdir) == []
    assert (trained / "checkpoints" / "best.ckpt").read_bytes() == kept


def test_a_full_disk(trained, cli, workdir, monkeypatch) -> None:
    def full(module: torch.nn.Module, images: torch.Tensor, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(project.extras.export.make, "write", full)
    assert "m.onnx cannot be written (No space left on device)" in refused(cli, workdir, "m.onnx")


# predict --min_prob


def test_improbable_classes_are_uncertain(exported, cli) -> None:
    images = some_digits(exported / "images", 60)
    predict = ["predict", "--ckpt_path", "model.onnx", "--data.root", images, "--out"]
    assert cli(*predict, "plain.csv").code == 0
    plain = rows_of("plain.csv")
    bound = sorted(float(row["probability"]) for row in plain)[20] + 1e-5
    result = cli(*predict, "doubt.csv", "--min_prob", f"{bound:.6f}")
    below = [float(row["probability"]) < bound for row in plain]
    assert result.code == 0 and f", {sum(below)} of them uncertain" in result.out
    doubt = rows_of("doubt.csv")
    assert list(doubt[0]) == [*plain[0], "guess"] and 0 < sum(below) < 60
    for row, old, doubted in zip(doubt, plain, below, strict=True):
        assert row.pop("guess") == old["class"]
        assert row.pop("class") == ("uncertain" if doubted else old.pop("class"))
        old.pop("class", None)
        assert row == old


@pytest.mark.parametrize("value", ["0", "1.01", ".nan"])
def test_bounds_of_a_probability(exported, cli, value) -> None:
    some_digits(exported / "images", 1)
    result = cli("predict", "--ckpt_path", "model.onnx", "--data.root", "images", f"--min_prob={value}")
    assert "min_prob must be above 0 and at most 1" in error_of(result) and not Path("predictions.csv").exists()


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "m.ckpt"], "must end in .onnx, .pt2 (torch.export) or .safetensors"),
        (["--out", "runs"], "runs is a folder; give a file, for example --out model.onnx"),
        (["--out", "no/m.onnx"], "there is no folder"),
        (["--tolerance", "0"], "tolerance must be above 0 and below 1, not 0.0"),
        (["--tolerance", ".nan"], "tolerance must be above 0 and below 1"),
        (["--tolerance", "small"], "tolerance: expected float"),
        (["--preprocess", "maybe"], "preprocess"),
        (["--ouput", "m.onnx"], "ouput: there is no such key"),
        (["--trainer.max_epochs", "3"], "trainer.max_epochs has no effect on export: leave it out"),
        (["--data.augment", "null"], "data.augment has no effect on export"),
        (["--trainer.accelerator", "gpu"], "trainer.accelerator has no effect on export"),
        (["--data.image_size", "16"], "data.image_size is the model's own and cannot be changed"),
    ],
)
def test_options_that_cannot_be(trained, cli, workdir, options, words) -> None:
    assert words in error_of(cli("export", "--ckpt_path", "best", *options))
    assert sorted(path.name for path in workdir.iterdir()) == ["runs"]


def test_a_missing_package_is_told_before_any_work(trained, cli, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = cli(*EXPORT, "m.onnx")
    assert 'onnxruntime is not installed: run pip install -e ".[export]"' in error_of(result) and result.out == ""


def test_export_needs_a_checkpoint(cli, exported) -> None:
    assert "export needs a trained model: --ckpt_path best" in error_of(cli("export", "--out", "m.onnx"))
    assert "no checkpoint, or a damaged one" in error_of(
        cli("export", "--ckpt_path", "runs/digits/version_0/config.yaml")
    )


@pytest.mark.parametrize("command", ["fit", "validate", "test", "export"])
def test_an_exported_file_can_only_predict(exported, cli, command) -> None:
    for suffix in SUFFIXES:
        message = error_of(cli(command, "--ckpt_path", f"model.{suffix}"))
        assert "is an exported model, which can only predict" in message and command in message


def test_predictions_that_cannot_be(exported, cli) -> None:
    (exported / "empty").mkdir()
    some_digits(exported / "images", 2)
    Path("short.onnx").write_bytes(Path("model.onnx").read_bytes()[:5000])
    Path("short.pt2").write_bytes(Path("model.pt2").read_bytes()[:5000])
    Path("short.safetensors").write_bytes(Path("model.safetensors").read_bytes()[:-8])
    cases = [
        (["model.onnx", "--data.root", "empty"], "no image found in empty"),
        (["model.onnx"], "data.root is missing"),
        (["model.onnx", "--data.root", "images", "--data.image_size", "16"], "data.image_size is the model's own"),
        (["model.onnx", "--data.root", "images", "--data.channels", "3"], "data.channels is the model's own"),
        (["no.onnx", "--data.root", "images"], "there is no file no.onnx"),
        *(([f"short.{suffix}", "--data.root", "images"], f"short.{suffix} is damaged") for suffix in SUFFIXES),
    ]
    for arguments, words in cases:
        assert words in error_of(cli("predict", "--ckpt_path", *arguments))


def test_help_names_the_commands_and_options(cli) -> None:
    result = cli("--help")
    assert result.code == 0 and "export" in result.out and result.err == ""
    result = cli("export", "--help")
    for name in ("--ckpt_path", "--out", "--preprocess", "--calibrate", "--tolerance", "--speed"):
        assert name in result.out
    assert result.code == 0 and "--min_prob" in cli("predict", "--help").out
    assert "predict, export, check, lr_find, batch_find, search, report or verify" in error_of(cli())
