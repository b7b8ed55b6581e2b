"""`python -m project verify`: the golden images, on a machine without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from project.extras.export.metadata import KEY, pack
from project.extras.export.verify import BOUND, main

WITHOUT_TORCH = (
    "import runpy, sys\n"
    "for name in ('torch', 'lightning', 'torchvision'): sys.modules[name] = None\n"
    "sys.argv[0] = 'project'\n"
    "runpy.run_module('project', run_name='__main__')"
)
WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).integers(0, 256, (4, 1, 2, 2), dtype=np.uint8)


def expected() -> np.ndarray:
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
    golden = {"images": pack(IMAGES), "probabilities": pack(expected() if probabilities is None else probabilities)}
    about = {
        "class_names": ["a", "b", "c"],
        "image_size": 2,
        "colour_order": "L",
        "temperature": 1.0,
        "preprocess": True,
    }
    about |= {"channels": 1, "resize": "crop", "mean": [0.0], "std": [1.0]}
    helper.set_model_props(model, {KEY: json.dumps({**about, "golden": golden})})
    onnx.save(model, path)
    return str(path)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, and nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_an_onnx_file_is_verified_without_torch(exported) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "verify", "model.onnx"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.onnx: 10 classes, L images of 8x8 pixels" in done.stdout and "4 golden images" in done.stdout


def test_a_changed_weight_is_found_without_torch(exported) -> None:
    model = onnx.load("model.onnx")
    largest = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    values = numpy_helper.to_array(largest).copy()
    values.flat[7] += 3
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    onnx.save(model, "changed.onnx")
    before, after = (
        onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
        for name in ("model.onnx", "changed.onnx")
    )
    from project.extras.export.metadata import read_metadata, unpack

    images = {"images": unpack(read_metadata(Path("model.onnx"))["golden"]["images"])}
    off = np.abs(before.run(None, images)[0] - after.run(None, images)[0]).max(axis=1)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "verify", "changed.onnx"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert f"golden image {off.argmax() + 1} of 4" in done.stderr and "does not do here what it did" in done.stderr


def test_a_pt2_file_and_its_damage(exported, capsys) -> None:
    assert main(["model.pt2"]) == 0
    assert "4 golden images: probabilities within" in capsys.readouterr().out
    extra = {KEY: ""}
    program = torch.export.load("model.pt2", extra_files=extra)
    bias = next(value for name, value in program.state_dict.items() if name.endswith("bias") and value.shape == (10,))
    bias.data[3] += 1
    torch.export.save(program, "changed.pt2", extra_files=extra)
    assert main(["changed.pt2"]) == 2
    assert "golden image" in one_line(capsys)
    content = Path("model.pt2").read_bytes()
    Path("short.pt2").write_bytes(content[: len(content) // 2])
    assert main(["short.pt2"]) == 2
    assert "short.pt2 is damaged" in one_line(capsys)


def test_the_formula_is_verified(tmp_path, capsys) -> None:
    assert main([handmade(tmp_path / "m.onnx")]) == 0
    out, err = capsys.readouterr()
    assert "3 classes, L images of 2x2 pixels, temperature 1" in out and err == ""


@pytest.mark.parametrize(("factor", "code"), [(0.9, 0), (1.1, 2), (-0.9, 0), (-1.1, 2)])
def test_how_far_a_probability_may_be_off(tmp_path, capsys, factor, code) -> None:
    recorded = expected()
    recorded[2, 1] += factor * BOUND
    assert main([handmade(tmp_path / "m.onnx", probabilities=recorded)]) == code
    if code:
        assert "golden image 3 of 4" in one_line(capsys)


def test_what_is_no_number_is_no_match(tmp_path, capsys) -> None:
    assert main([handmade(tmp_path / "m.onnx", weights=WEIGHTS * np.float32("nan"))]) == 2
    assert "golden image" in one_line(capsys)
    assert main([handmade(tmp_path / "m.onnx", probabilities=expected()[:, :2])]) == 2
    assert "gives outputs of shape (4, 3) where (4, 2) were recorded" in one_line(capsys)


def test_any_changed_byte_is_harmless_or_one_line(tmp_path, capsys) -> None:
    path = tmp_path / "m.onnx"
    handmade(path)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    codes = []
    for position in random.integers(0, len(content), 150):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ (1 << random.integers(8))]) + content[position + 1 :]
        )
        codes.append(main([str(path)]))
        if codes[-1]:
            one_line(capsys)
        capsys.readouterr()
    assert set(codes) == {0, 2}


def test_files_that_cannot_be_verified(exported, capsys) -> None:
    content = Path("model.onnx").read_bytes()
    Path("short.onnx").write_bytes(content[: len(content) // 2])
    Path("model.ckpt").write_bytes(content)
    words = {
        "short.onnx": "short.onnx is damaged",
        "no.onnx": "there is no file no.onnx",
        "model.ckpt": "must end in .onnx",
        "model.safetensors": "holds weights alone, which cannot run without the network: export to .onnx or .pt2",
    }
    for name, word in words.items():
        assert main([name]) == 2
        assert word in one_line(capsys)


def test_arguments(capsys) -> None:
    for arguments in ([], ["a.onnx", "b.onnx"], ["--ckpt_path", "a.onnx"], ["-x"]):
        assert main(arguments) == 2
        assert "verify takes one file" in one_line(capsys)
    for flag in ("-h", "--help"):
        assert main([flag]) == 0
        assert "python -m project verify FILE" in capsys.readouterr().out
