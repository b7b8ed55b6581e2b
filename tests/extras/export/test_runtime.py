"""Exported files read, run and verified without torch; against torch, and against a file made without our code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from project.__main__ import main
from project.errors import UserError
from project.extras.export.files import write
from project.extras.export.runtime import BOUND, KEY, format_of, need, open_exported, pack, read_metadata, unpack
from project.nets.deployable import Deployable, NetworkOnly

SUFFIXES = ("onnx", "pt2", "safetensors")
WITHOUT_TORCH = (
    "import runpy, sys\n"
    "for name in ('torch', 'lightning', 'torchvision', 'torchmetrics'): sys.modules[name] = None\n"
    "sys.argv[0] = 'project'\n"
    "runpy.run_module('project', run_name='__main__')"
)


@settings(max_examples=20, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["uint8", "float32", "float64", "int64"]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
    )
)
def test_an_array_goes_through_json_without_loss(array) -> None:
    for view in (array, array.T, array[..., ::-1] if array.ndim else array):
        found = unpack(json.loads(json.dumps(pack(view))))
        assert (found.shape, found.dtype, found.tobytes()) == (view.shape, view.dtype, view.tobytes())  # NaN, too
        assert found.flags.writeable


# What a file says about itself


def test_every_format_says_the_same_as_the_checkpoint(exported) -> None:
    first, *others = (read_metadata(Path(f"model.{suffix}")) for suffix in SUFFIXES)
    assert all(other == first for other in others)
    checkpoint = torch.load("runs/digits/version_0/checkpoints/best.ckpt", weights_only=True)
    hyper, weights = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    assert first["class_names"] == hyper["class_names"] == [str(i) for i in range(10)]
    assert (first["image_size"], first["channels"], first["resize"]) == (8, 1, "letterbox")
    assert (first["colour_order"], first["preprocess"]) == ("L", True)
    assert first["mean"] == weights["normalise.mean"].flatten().tolist()
    assert first["std"] == weights["normalise.std"].flatten().tolist()
    assert first["temperature"] == checkpoint["temperature"] != 1
    assert [fold["norm"] for fold in first["folds"]] == ["stages.0.0.norm", "stages.1.0.norm"]
    assert unpack(first["golden"]["images"]).shape == (4, 1, 8, 8)
    np.testing.assert_allclose(unpack(first["golden"]["probabilities"]).sum(axis=1), 1, atol=1e-6)


def refused(path: Path, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_metadata(path)
    assert str(path) in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_and_missing_files(exported, suffix) -> None:
    path = Path(f"model.{suffix}")
    content = path.read_bytes()
    for damaged in (b"", b"not a model", content[: len(content) // 2], content[:-1]):
        path.write_bytes(damaged)
        refused(path, "is damaged, or not written by python -m project export: export it again")
    path.unlink()
    refused(path, "does not exist")
    refused(path.with_suffix(".ckpt"), "must end in .onnx, .pt2 (torch.export) or .safetensors")


def test_files_of_others(tmp_path) -> None:
    info, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [info], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a.onnx")
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(2),)), tmp_path / "b.pt2")
    save_file({"x": torch.zeros(2)}, tmp_path / "c.safetensors")
    for path in tmp_path.iterdir():
        refused(path, "not written by python -m project export")


def test_formats_and_packages() -> None:
    for name in ("model.ckpt", "model", "model.onnx.txt", ".onnx"):
        with pytest.raises(UserError, match=r"must end in \.onnx, \.pt2 .* or \.safetensors"):
            format_of(Path(name))
    assert need("json") is json
    with pytest.raises(UserError) as caught:
        need("surely_not_there")
    assert str(caught.value) == 'surely_not_there is not installed: run pip install -e ".[export]"'


# What it computes

MEAN, STD, TEMPERATURE = [0.2, 0.5, 0.6], [0.1, 0.25, 0.3], 1.7


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=1)


@pytest.mark.parametrize(
    ("suffix", "preprocess"),
    [("pt2", True), ("pt2", False), *(pytest.param("onnx", p, marks=pytest.mark.slow) for p in (True, False))],
)
@torch.no_grad()
def test_probabilities_are_those_of_the_network(tmp_path, suffix, preprocess) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    about = {"preprocess": preprocess, "mean": MEAN, "std": STD, "temperature": TEMPERATURE}
    images = torch.zeros(2, 3, 6, 6, dtype=torch.uint8)
    path = tmp_path / f"model.{suffix}"
    if preprocess:
        write(Deployable(net, torch.tensor(MEAN), torch.tensor(STD), TEMPERATURE, softmax).eval(), images, path, about)
    else:
        write(NetworkOnly(net).eval(), images.float(), path, about)
    run = open_exported(path)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    for count in (1, 2, 3, 64):
        images = np.random.default_rng(count).integers(0, 256, (count, 3, 6, 6), dtype=np.uint8)
        normalised = (torch.from_numpy(images).double() / 255 - mean) / std
        expected = (net(normalised.float()).double() / TEMPERATURE).softmax(dim=1)
        found = run(images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e2, 1e6])
def test_logits_of_any_size_become_probabilities(tmp_path, monkeypatch, scale) -> None:
    logits = scale * np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    about = {"preprocess": False, "mean": MEAN, "std": STD, "temperature": TEMPERATURE}
    monkeypatch.setattr("project.extras.export.runtime.read_metadata", lambda path: about)
    monkeypatch.setattr("project.extras.export.runtime._onnx", lambda path: lambda images: logits)
    found = open_exported(tmp_path / "some.onnx")(np.zeros((5, 3, 2, 2), dtype=np.uint8))
    expected = torch.from_numpy(logits).double().div(TEMPERATURE).softmax(dim=1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-4, atol=1e-7)


# Golden images

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).integers(0, 256, (4, 1, 2, 2), dtype=np.uint8)


def expected_by_hand() -> np.ndarray:
    powers = np.exp(IMAGES.reshape(4, 4) / 255 @ WEIGHTS)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def handmade(path: Path, weights: np.ndarray = WEIGHTS, probabilities: np.ndarray | None = None) -> str:
    """A file of ours made without our code: softmax(images / 255 @ weights)."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 1, 2, 2])
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])
    constants = [numpy_helper.from_array(weights / np.float32(255), "weights")]
    graph = helper.make_graph(nodes, "g", [images], [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    recorded = expected_by_hand() if probabilities is None else probabilities
    about = {
        "class_names": ["a", "b", "c"],
        "image_size": 2,
        "colour_order": "L",
        "channels": 1,
        "resize": "crop",
        "mean": [0.0],
        "std": [1.0],
        "temperature": 1.0,
        "preprocess": True,
        "golden": {"images": pack(IMAGES), "probabilities": pack(recorded)},
    }
    helper.set_model_props(model, {KEY: json.dumps(about)})
    onnx.save(model, path)
    return str(path)


def verify(capsys: pytest.CaptureFixture[str], path: str, code: int) -> str:
    """What the command says, in one line where it fails."""
    assert main(["verify", str(path)]) == code
    out, err = capsys.readouterr()
    if code:
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    else:
        assert err == ""
    return out + err


def test_a_file_is_verified_and_damage_is_found_without_torch(tmp_path) -> None:
    good = handmade(tmp_path / "good.onnx")
    command = [sys.executable, "-c", WITHOUT_TORCH, "verify"]
    done = subprocess.run([*command, good], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 classes, L images of 2 pixels, temperature 1" in done.stdout and "4 golden images" in done.stdout
    bad = handmade(tmp_path / "bad.onnx", weights=3 * WEIGHTS)
    done = subprocess.run([*command, bad], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "does not compute here what it did when it was exported" in done.stderr


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_export_writes_is_verified(exported, capsys, suffix) -> None:
    assert "10 classes, L images of 8 pixels" in verify(capsys, f"model.{suffix}", 0)


def test_a_changed_pt2_is_found(exported, capsys) -> None:
    extra = {KEY: ""}
    program = torch.export.load("model.pt2", extra_files=extra)
    bias = next(value for name, value in program.state_dict.items() if name.endswith("bias") and value.shape == (10,))
    bias.data[3] += 1
    torch.export.save(program, "changed.pt2", extra_files=extra)
    assert "golden image" in verify(capsys, "changed.pt2", 2)


@pytest.mark.parametrize(("factor", "code"), [(0.9, 0), (1.1, 2), (-0.9, 0), (-1.1, 2)])
def test_how_far_a_probability_may_be_off(tmp_path, capsys, factor, code) -> None:
    recorded = expected_by_hand()
    recorded[2, 1] += factor * BOUND
    said = verify(capsys, handmade(tmp_path / "m.onnx", probabilities=recorded), code)
    assert ("golden image 3 of 4 differs by 0.0011" in said) == bool(code)


def test_what_is_not_a_number_is_not_a_match(tmp_path, capsys) -> None:
    assert "golden image" in verify(capsys, handmade(tmp_path / "m.onnx", weights=WEIGHTS * np.float32("nan")), 2)
    other_shape = handmade(tmp_path / "m.onnx", probabilities=expected_by_hand()[:, :2])
    assert "is damaged" in verify(capsys, other_shape, 2)


def test_any_changed_byte_is_harmless_or_one_line(tmp_path, capsys) -> None:
    path = tmp_path / "m.onnx"
    handmade(path)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    codes = []
    for position in random.integers(0, len(content), 60):
        flipped = bytes([content[position] ^ (1 << random.integers(8))])
        path.write_bytes(content[:position] + flipped + content[position + 1 :])
        codes.append(main(["verify", str(path)]))
        out, err = capsys.readouterr()
        assert (out == "" and err.count("\n") == 1) if codes[-1] else err == ""
    assert set(codes) == {0, 2}


def test_verify_takes_one_file(capsys) -> None:
    for arguments in ([], ["a.onnx", "b.onnx"], ["--ckpt_path", "a.onnx"]):
        assert main(["verify", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["verify", "--help"]) == 0 and "file" in capsys.readouterr().out
