"""What exported files say about themselves, read without torch."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from project.errors import UserError
from project.extras.export.metadata import KEY, need, pack, read_metadata, suffix_of, unpack

SUFFIXES = ("onnx", "pt2", "safetensors")


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["uint8", "float32", "float64", "int64"]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
    )
)
def test_an_array_goes_through_json_without_loss(array) -> None:
    found = unpack(json.loads(json.dumps(pack(array))))
    assert (found.shape, found.dtype, found.tobytes()) == (
        array.shape,
        array.dtype,
        array.tobytes(),
    )  # not a number, too
    assert found.flags.writeable


def test_arrays_in_any_order_of_memory() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for view in (array.T, array[:, ::2], array[..., ::-1]):
        np.testing.assert_array_equal(unpack(pack(view)), view)


def test_every_kind_of_file_is_read_without_torch(exported) -> None:
    code = (
        "import sys, json; from pathlib import Path\n"
        "for name in ('torch', 'lightning', 'torchvision'): sys.modules[name] = None\n"
        "from project.extras.export.metadata import read_metadata\n"
        "print(json.dumps([read_metadata(Path(name)) for name in sys.argv[1:]]))"
    )
    files = [f"model.{suffix}" for suffix in SUFFIXES]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    first, *others = json.loads(done.stdout)
    assert all(other == first for other in others)
    checkpoint = torch.load("runs/digits/version_0/checkpoints/best.ckpt", weights_only=True)
    hyper, weights = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    assert first["class_names"] == hyper["class_names"] == [str(i) for i in range(10)]
    assert (first["image_size"], first["channels"], first["resize"]) == (8, 1, "letterbox")
    assert (first["colour_order"], first["preprocess"]) == ("L", True)
    assert first["mean"] == weights["mean"].flatten().tolist() and first["std"] == weights["std"].flatten().tolist()
    assert first["temperature"] == checkpoint["temperature"] != 1
    assert [fold["norm"] for fold in first["folds"]] == ["stages.0.0.norm", "stages.1.0.norm"]
    assert unpack(first["golden"]["images"]).shape == (4, 1, 8, 8)
    np.testing.assert_allclose(unpack(first["golden"]["probabilities"]).sum(axis=1), 1, atol=1e-6)
    assert first["epoch"] == checkpoint["callbacks"]["BestAndLast"]["metrics"]["epoch"]


def foreign(folder: Path) -> list[Path]:
    """Good files of all kinds that others made."""
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [info], [out])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10),
        folder / "a.onnx",
    )
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),)), folder / "b.pt2")
    save_file({"x": torch.zeros(2)}, folder / "c.safetensors")
    save_file({"x": torch.zeros(2)}, folder / "d.safetensors", metadata={KEY: "no json"})
    for name, text in (("e", "5"), ("f", "[]"), ("g", "{}")):
        save_file({"x": torch.zeros(2)}, folder / f"{name}.safetensors", metadata={KEY: text})
    with zipfile.ZipFile(folder / "h.pt2", "w") as archive:
        archive.writestr("something", "else")
    return sorted(folder.iterdir())


def test_files_that_others_made_are_told(tmp_path) -> None:
    paths = foreign(tmp_path)
    assert len(paths) == 8
    for path in paths:
        with pytest.raises(UserError, match="was not written by python -m project export") as caught:
            read_metadata(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_are_told(exported, suffix) -> None:
    path = Path(f"model.{suffix}")
    content = path.read_bytes()
    for damaged in (b"", b"not a model", content[: len(content) // 2], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            read_metadata(path)
        assert f"{path} is damaged, or no .{suffix} file" in str(caught.value) and "\n" not in str(caught.value)


def test_paths_that_lead_to_no_file(tmp_path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for name in ("folder.onnx", "no.onnx", "no.pt2", "no.safetensors"):
        with pytest.raises(UserError, match="there is no file"):
            read_metadata(tmp_path / name)
    for name in ("model.ckpt", "model", "model.onnx.txt", ".onnx"):
        with pytest.raises(UserError, match=r"must end in \.onnx, \.pt2 .* or \.safetensors"):
            suffix_of(tmp_path / name)


def test_a_missing_package_says_what_to_install() -> None:
    assert need("json") is json
    with pytest.raises(UserError) as caught:
        need("surely_not_there")
    assert str(caught.value) == 'surely_not_there is not installed: run pip install -e ".[export]"'
