"""The three kinds of files that are written."""

import getpass
import io
import json
import logging
import os
import resource
import socket
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from project.errors import UserError
from project.extras.export.files import write
from project.extras.export.runtime import KEY
from project.files import written_whole
from project.nets.deployable import Deployable

ABOUT = {"class_names": ["ä", "b\n", '"c"'], "folds": []}
PIXELS = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Jumping(nn.Module):
    """What it does depends on the values: no graph can hold that."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.float().mean(dim=(2, 3))
        return self.layer(rows) if rows.sum() > 0 else -self.layer(rows)


class Shared(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.b(self.a(images.float().mean(dim=(2, 3))))


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 3)).eval()


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return Deployable(network(), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.2, 0.1]), 1.5, softmax).eval()


@pytest.fixture(scope="module")
def onnx_file(module, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    write(module, PIXELS, path, ABOUT)
    return path


def test_the_onnx_graph_takes_any_number_of_images_of_one_size(module, onnx_file) -> None:
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [3, 8, 8]) and isinstance(
        given.shape[0], str
    )
    assert (result.name, result.type, result.shape) == ("probabilities", "tensor(float)", [given.shape[0], 3])
    assert json.loads(session.get_modelmeta().custom_metadata_map[KEY]) == ABOUT
    for count in (1, 3, 64):
        images = PIXELS[:1].repeat(count, 1, 1, 1)
        with torch.no_grad():
            np.testing.assert_allclose(
                session.run(None, {"images": images.numpy()})[0], module(images).numpy(), atol=1e-6
            )
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        session.run(None, {"images": np.zeros((1, 3, 9, 9), dtype=np.uint8)})
    assert onnx.load(onnx_file, load_external_data=False).graph.initializer[0].data_location == onnx.TensorProto.DEFAULT
    assert list(onnx_file.parent.iterdir()) == [onnx_file]


def test_the_pt2_graph_takes_any_number_of_images(module, tmp_path) -> None:
    path, extra = tmp_path / "m.pt2", {KEY: ""}
    write(module, PIXELS, path, ABOUT)
    graph = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra[KEY]) == ABOUT
    for count in (1, 3, 64):
        images = PIXELS[:1].repeat(count, 1, 1, 1)
        with torch.no_grad():
            assert torch.allclose(graph(images), module(images), atol=1e-6)


def test_safetensors_hold_every_weight(module, tmp_path) -> None:
    write(module, PIXELS, tmp_path / "m.safetensors", ABOUT)
    weights = load_file(tmp_path / "m.safetensors")
    assert weights.keys() == module.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in module.state_dict().items())
    write(Shared(), PIXELS, tmp_path / "shared.safetensors", ABOUT)
    shared = load_file(tmp_path / "shared.safetensors")
    assert torch.equal(shared["a.weight"], shared["b.weight"])  # written twice, since the format shares nothing


def test_a_file_can_be_read_by_whom_any_new_file_can(exported) -> None:
    Path("new").touch()
    assert {Path(f"model.{suffix}").stat().st_mode for suffix in ("onnx", "pt2", "safetensors")} == {
        Path("new").stat().st_mode
    }


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "safetensors"])
def test_a_file_says_nothing_of_the_machine_it_was_made_on(exported, suffix) -> None:
    content = Path(f"model.{suffix}").read_bytes()
    if suffix == "pt2":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = b"".join(name.encode() + archive.read(name) for name in archive.namelist())
    secrets = [
        "site-packages",
        "project/extras",
        str(Path(__file__).parents[3]),
        "/tmp/",
        os.path.expanduser("~") + "/",
    ]
    secrets += [
        name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 6
    ]  # shorter ones come in random weights
    assert [secret for secret in secrets if secret.encode() in content] == []


@pytest.mark.parametrize("suffix", ["pt2", "safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line(module, tmp_path, suffix) -> None:
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))  # bytes of a file; writing more fails as on a full disk
    try:
        with pytest.raises(UserError) as caught, written_whole(path) as draft:
            write(module, PIXELS, draft, ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{path} cannot be written (" in str(caught.value) and "\n" not in str(caught.value)
    assert "too large" in str(caught.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_network_without_a_graph_can_only_be_weights(tmp_path) -> None:
    images = torch.zeros(2, 4, 3, 3)
    for suffix in ("onnx", "pt2"):
        with pytest.raises(UserError) as caught:
            write(Jumping(), images, tmp_path / f"m.{suffix}", ABOUT)
        message = str(caught.value)
        assert message.startswith(f"this network cannot be written as .{suffix}, but as .safetensors: ")
        assert "\n" not in message and len(message) < 320
    write(Jumping(), images, tmp_path / "m.safetensors", ABOUT)
    assert set(load_file(tmp_path / "m.safetensors")) == {"layer.weight", "layer.bias"}


@pytest.mark.slow
def test_the_exporters_are_silent_and_change_no_setting(module, tmp_path, capfd) -> None:
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(module, PIXELS, tmp_path / "m.onnx", ABOUT)
        write(module, PIXELS, tmp_path / "m.pt2", ABOUT)
        with pytest.raises(UserError):
            write(Jumping(), torch.zeros(2, 4, 3, 3), tmp_path / "j.onnx", ABOUT)
    assert capfd.readouterr() == ("", "") and logging.root.manager.disable == before
