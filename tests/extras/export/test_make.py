"""What `python -m project export` writes, keeps in the checkpoint, proves and refuses."""

import csv
import os
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import project.extras.export.make
from project.classifier import ImageClassifier
from project.extras.export.runtime import read_metadata

EXPORT = ["export", "--ckpt_path", "best", "--speed", "false", "--out"]
CHECKPOINTS = Path("runs/digits/version_0/checkpoints")


def error_of(result) -> str:
    """The one line of a command that was refused."""
    assert result.code == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result
    return result.err


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


def test_what_export_says_and_writes(exported, cli, monkeypatch) -> None:
    monkeypatch.setattr("project.extras.export.speed.SECONDS", 0.001)
    before = Path("model.safetensors").read_bytes()
    (exported / "model.safetensors").unlink()
    result = cli("export", "--ckpt_path", "best", "--out", "model.safetensors")
    assert result.code == 0 and result.err == ""
    assert Path("model.safetensors").read_bytes() == before  # the same each time
    with open("model.folds.csv", newline="", encoding="utf-8") as file:
        table = [tuple(row.values()) for row in csv.DictReader(file)]
    assert table == [("stages.0.0.norm", "stages.0.0.conv", ""), ("stages.1.0.norm", "stages.1.0.conv", "")]
    assert "2 of 2 batch norms folded." in result.out and "stages.1.0.norm: into stages.1.0.conv" in result.out
    assert " (287 images): calibration error " in result.out
    assert "Proof: the logits of 144 images differ by up to " in result.out
    assert "eager, unfused" in result.out and "batch of 64" in result.out
    assert f"{exported / 'model.safetensors'}: 0.02 MB" in result.out


# The checkpoint and its temperature


def test_only_the_temperature_is_new_in_the_checkpoint(trained, exported_once) -> None:
    before = torch.load(CHECKPOINTS / "best.ckpt", weights_only=True)
    after = torch.load(exported_once / CHECKPOINTS / "best.ckpt", weights_only=True)
    temperature = after.pop("temperature")
    assert "temperature" not in before and 0.05 <= temperature <= 20
    assert_same(after, before)
    assert (CHECKPOINTS / "last.ckpt").read_bytes() == (exported_once / CHECKPOINTS / "last.ckpt").read_bytes()
    assert not list(exported_once.rglob("*.part*"))


@pytest.mark.parametrize(
    "options", [["--data.val_size", "0"], pytest.param(["--calibrate", "false"], marks=pytest.mark.slow)]
)
def test_a_calibrated_checkpoint_stays_so(exported, cli, options) -> None:
    before = (CHECKPOINTS / "best.ckpt").read_bytes()
    result = cli(*EXPORT, "again.safetensors", *options)
    assert result.code == 0 and ("nothing to calibrate on" in result.out) == ("--data.val_size" in options)
    assert (CHECKPOINTS / "best.ckpt").read_bytes() == before
    temperature = torch.load(CHECKPOINTS / "best.ckpt", weights_only=True)["temperature"]
    assert read_metadata(Path("again.safetensors"))["temperature"] == temperature != 1


@pytest.mark.slow
def test_a_fit_that_is_resumed_is_not_changed_and_drops_the_temperature(trained, cli, workdir) -> None:
    shutil.copytree("runs", "untouched")
    assert cli("export", "--ckpt_path", "last", "--speed", "false", "--out", "m.safetensors").code == 0
    assert "temperature" in torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)
    resume = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"]
    assert cli(*resume).code == 0
    shutil.move("runs", "touched")
    shutil.move("untouched", "runs")
    assert cli(*resume).code == 0
    one, other = (
        torch.load(Path(root) / "digits/version_0/checkpoints/last.ckpt", weights_only=True)
        for root in ("runs", "touched")
    )
    assert "temperature" not in other and one["epoch"] == other["epoch"] == 4 - 1
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(one[part], other[part])


def test_folded_weights_are_no_start_for_training(exported, cli) -> None:
    fit = ["fit", "--config", "runs/digits/version_0/config.yaml", "--model.weights", "model.safetensors"]
    assert "model.safetensors are folded" in error_of(cli(*fit))


@pytest.mark.slow
def test_a_model_that_was_never_validated(cli, folder, tiny_net, workdir) -> None:
    fit = ["fit", "--data.root", folder, *tiny_net, "--data.val_size", "0", "--trainer.max_epochs", "1"]
    assert cli(*fit).code == 0
    checkpoint = next(workdir.rglob("last.ckpt"))
    before = checkpoint.read_bytes()
    result = cli("export", "--ckpt_path", "last", "--speed", "false", "--out", "m.safetensors")
    assert result.code == 0 and "without validation images there is nothing to calibrate on" in result.out
    assert checkpoint.read_bytes() == before and read_metadata(Path("m.safetensors"))["temperature"] == 1


# The proof: over the tolerance, what was there before is there still, and nothing else


def refused(cli, out: str, *options: str, code: int = 2) -> str:
    """What an export says that is refused."""
    Path(out).write_bytes(b"old")
    kept = (CHECKPOINTS / "best.ckpt").read_bytes()
    result = cli(*EXPORT, out, *options)
    assert result.code == code and result.err.count("\n") == (code == 2)
    assert Path(out).read_bytes() == b"old" and (CHECKPOINTS / "best.ckpt").read_bytes() == kept
    assert not list(Path().rglob("*.part*")) and not Path(out).with_suffix(".folds.csv").exists()
    return result.err


@pytest.mark.parametrize(("suffix", "layer"), [("safetensors", 1), pytest.param("pt2", 0, marks=pytest.mark.slow)])
def test_a_wrong_fold_is_found_and_named(trained, cli, monkeypatch, suffix, layer) -> None:
    fused = ImageClassifier.fused

    def wrong(model: ImageClassifier) -> torch.nn.Module:
        deployable = fused(model)
        with torch.no_grad():
            deployable.net.get_submodule(f"stages.{layer}.0.conv").weight[3] *= 1.1
        return deployable

    monkeypatch.setattr(ImageClassifier, "fused", wrong)
    message = refused(cli, f"m.{suffix}")
    assert "nothing was written: the logits of 144 images differ by up to" in message
    assert f"first layer that differs: net.stages.{layer}.0.norm" in message


def test_a_damaged_pt2_is_found_and_its_layer_named(trained, cli, monkeypatch) -> None:
    real = project.extras.export.make.write

    def damaging(module: torch.nn.Module, images: torch.Tensor, path: Path, metadata: dict, *_: object) -> None:
        part = module.get_submodule("net.stages.1.0.conv")
        kept = part.weight.detach().clone()
        with torch.no_grad():
            part.weight[2] += 0.2
            real(module, images, path, metadata)
            part.weight.copy_(kept)

    monkeypatch.setattr(project.extras.export.make, "write", damaging)
    assert "first layer that differs: net.stages.1.0.conv" in refused(cli, "m.pt2")


@pytest.mark.slow
def test_a_damaged_onnx_is_found_and_its_layer_named(trained, cli, monkeypatch) -> None:
    real = project.extras.export.make.write

    def damaging(module: torch.nn.Module, images: torch.Tensor, path: Path, metadata: dict, *_: object) -> None:
        real(module, images, path, metadata)
        model = onnx.load(path)
        largest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
        values = numpy_helper.to_array(largest).copy()
        values.flat[100] += 0.3
        largest.CopyFrom(numpy_helper.from_array(values, largest.name))
        onnx.save(model, path)

    monkeypatch.setattr(project.extras.export.make, "write", damaging)
    assert "first layer that differs: net.stages.1.0.conv" in refused(cli, "m.onnx", "--preprocess", "false")


def test_probabilities_that_are_wrong_while_the_logits_are_right(trained, cli, monkeypatch) -> None:
    real = project.extras.export.make.write

    def hotter(module: torch.nn.Module, images: torch.Tensor, path: Path, metadata: dict, *_: object) -> None:
        kept, module.temperature = module.temperature, 2 * module.temperature
        real(module, images, path, metadata)
        module.temperature = kept

    monkeypatch.setattr(project.extras.export.make, "write", hotter)
    assert "first layer that differs: None" in refused(cli, "m.pt2")


def test_weights_that_are_not_numbers_fail(trained, cli) -> None:
    checkpoint = torch.load(CHECKPOINTS / "best.ckpt", weights_only=True)
    checkpoint["state_dict"]["net.stages.1.0.conv.weight"][0, 0] = float("nan")
    torch.save(checkpoint, CHECKPOINTS / "best.ckpt")
    assert "logits that are not finite" in refused(cli, "m.onnx")


@pytest.mark.slow
def test_a_tolerance_below_what_rounding_allows(trained, cli) -> None:
    assert "tolerance is 1e-12" in refused(cli, "m.safetensors", "--tolerance", "1e-12")


@pytest.mark.parametrize("place", ["prove", pytest.param("write", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_what_was_there(trained, cli, monkeypatch, place) -> None:
    real = getattr(project.extras.export.make, place)

    def interrupted(*arguments: object) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(project.extras.export.make, place, interrupted)
    refused(cli, "m.safetensors", code=130)


@pytest.mark.parametrize("what", ["checkpoint", pytest.param("file", marks=pytest.mark.slow)])
def test_a_full_disk(trained, cli, what) -> None:
    size = 5000 if what == "file" else (CHECKPOINTS / "best.ckpt").stat().st_size // 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # bytes of a file
    try:
        message = refused(cli, "m.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ("m.safetensors" if what == "file" else "best.ckpt") + f" cannot be written ({os.strerror(27)})" in message


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "m.ckpt"], "must end in .onnx, .pt2 (torch.export) or .safetensors"),
        (["--out", "runs"], "runs is a folder; give a file, for example --out model.onnx"),
        (["--tolerance", "0"], "tolerance"),
        (["--opset", "0"], "opset: must be above 0, not 0"),
        (["--opset", "new"], "opset: expected a whole number"),
        (["--opset", "26"], "opset is for .onnx, 18 to 25: not 26"),
        pytest.param(["--opset", "17"], "opset 17 is not possible, 18 to 25 may be", marks=pytest.mark.slow),
        (["--out", "m.pt2", "--opset", "18"], "opset is for .onnx"),
        (["--tolerance", ".nan"], "tolerance"),
        (["--preprocess", "maybe"], "preprocess"),
        (["--trainer.max_epochs", "3"], "trainer.max_epochs has no effect on export: leave it out"),
        (["--trainer.accelerator", "gpu"], "trainer.accelerator has no effect on export"),
    ],
)
def test_options_that_cannot_be(trained, cli, workdir, options, words) -> None:
    assert words in error_of(cli("export", "--ckpt_path", "best", *options))
    assert sorted(path.name for path in workdir.iterdir()) == ["runs"]


def test_a_missing_package_is_told_before_any_work(trained, cli, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = cli(*EXPORT, "m.onnx")
    assert 'onnxruntime is not installed: run pip install -e ".[export]"' in error_of(result) and result.out == ""


def test_export_needs_a_checkpoint(cli, workdir) -> None:
    assert "export needs a trained model: --ckpt_path best" in error_of(cli("export", "--out", "m.onnx"))
    result = cli("export", "--help")
    assert result.code == 0
    for name in ("--ckpt_path", "--out", "--preprocess", "--calibrate", "--tolerance", "--speed"):
        assert name in result.out


def test_the_lowest_opset_and_format_that_suffice(exported) -> None:
    """As the table of versions in ONNX's docs/Versioning.md has them: opset 18 came with format (IR) 8."""
    model = onnx.load("model.onnx")
    assert (model.ir_version, [(each.domain, each.version) for each in model.opset_import]) == (8, [("", 18)])
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "format_version"), [(20, 9), (21, 10)])
def test_another_opset(trained, cli, opset, format_version) -> None:
    assert cli(*EXPORT, "m.onnx", "--opset", str(opset)).code == 0
    model = onnx.load("m.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (opset, format_version)


@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_without_the_images_of_the_training(cli, folder, tiny_net, workdir, suffix) -> None:
    assert cli("fit", "--data.root", folder, *tiny_net, "--trainer.max_epochs", "1").code == 0
    gone = folder.rename(folder.parent / "gone")
    result = cli("export", "--ckpt_path", "last", "--speed", "false", "--out", f"m.{suffix}")
    assert result.code == 0 and result.err == ""
    assert f"There are no images at {folder}: the proof is on made ones" in result.out
    assert "Proof: the logits of 256 images differ by up to" in result.out and "nothing to calibrate on" in result.out
    path = Path(f"m.{suffix}")
    assert read_metadata(path)["made_images"] is True and cli("verify", str(path)).code == 0
    for model in ("last", str(path)):
        assert cli("predict", "--ckpt_path", model, "--data.root", gone, "--out", f"{len(model)}.csv").code == 0
    one, other = (
        np.genfromtxt(f"{len(model)}.csv", delimiter=",", skip_header=1, usecols=(2, 4))
        for model in ("last", str(path))
    )
    np.testing.assert_allclose(one, other, atol=1e-5)
    gone.rename(folder)
    assert cli("export", "--ckpt_path", "last", "--speed", "false", "--out", f"n.{suffix}").code == 0
    assert read_metadata(Path(f"n.{suffix}"))["made_images"] is False
