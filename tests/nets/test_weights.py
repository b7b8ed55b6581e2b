"""Files that the tests write, read back in every form; published weights with the network cut off."""

import sys
from email.message import Message
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model

from project.errors import UserError
from project.nets import ConvNet, ResNet, TimmModel, TorchvisionModel
from project.nets.deployable import Deployable
from project.nets.weights import LoadReport, fetch_weights, load_weights


def convnet(classes: int = 5, seed: int = 0, channels: int = 3) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(channels, classes, 16, channels=[8, 16], convs_per_block=1)


def resnet18(classes: int = 7, seed: int = 0, channels: int = 3) -> TorchvisionModel:
    torch.manual_seed(seed)
    return TorchvisionModel(channels, classes, 32, "resnet18").eval()


def library_net(name: str, seed: int = 1, **options) -> nn.Module:
    """torchvision's own, its statistics of batches not those of an untrained network."""
    torch.manual_seed(seed)
    net = get_model(name, **options).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.num_batches_tracked.fill_(1234)
    return net


def copy_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(net: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = net.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def save(state, path) -> str:
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(
            {key: value.contiguous() for key, value in state.items()}, path
        )
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".ckpt"])
def test_every_format_round_trips(tmp_path, suffix):
    source, net = convnet(seed=1), convnet()
    report = load_weights(net, save(source.state_dict(), tmp_path / f"w{suffix}"))
    assert same(net, source.state_dict())
    assert report == LoadReport(str(tmp_path / f"w{suffix}"), list(source.state_dict()), [], [], [], None, None)


def test_a_file_of_any_name_in_torchs_old_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, net = convnet(seed=1), convnet()
    torch.save(source.state_dict(), "weights", _use_new_zipfile_serialization=False)
    load_weights(net, "weights")
    assert same(net, source.state_dict())
    monkeypatch.setenv("HOME", str(tmp_path))
    load_weights(net := convnet(), "~/weights")
    assert same(net, source.state_dict())


def test_each_kind_is_reported_by_name(tmp_path):
    source, net = convnet(classes=9, seed=1), convnet()
    before, names = copy_of(net), list(net.state_dict())
    state = source.state_dict() | {"extra.weight": torch.ones(2)}
    missing = next(name for name in names if name.endswith("running_mean"))
    del state[missing]
    report = load_weights(net, save(state, tmp_path / "w.pt"))
    width = net.head.in_features
    assert report.left_out == [f"head.weight (9, {width}), here (5, {width})", "head.bias (9,), here (5,)"]
    assert report.missing == [missing] and report.unexpected == ["extra.weight"]
    assert report.loaded == [name for name in names if name not in (missing, "head.weight", "head.bias")]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, (source.state_dict() if name in report.loaded else before)[name])


@pytest.mark.parametrize("entry", [None, "state_dict", "model", "model_state_dict", "model_ema", "net"])
def test_prefixes_and_entries(tmp_path, entry):
    source = convnet(seed=1)
    for prefix in ("module.", "_orig_mod.", "net.", "model.", "backbone.", "module._orig_mod.", "model.net.module."):
        state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
        content = {entry: state, "epoch": 3, "best": torch.ones(3)} if entry else state
        report = load_weights(net := convnet(), save(content, tmp_path / "w.pt"))
        assert same(net, source.state_dict())
        assert report.missing == report.unexpected == []


def test_a_compiled_part_inside(tmp_path):
    source, net = resnet18(seed=1), resnet18()
    state = {name.replace("backbone.", "net.backbone._orig_mod."): value for name, value in source.state_dict().items()}
    load_weights(net, save(state, tmp_path / "w.pt"))
    assert same(net, source.state_dict())


@torch.no_grad()
def test_torchvision_gives_the_same_features(tmp_path):
    source, net = library_net("resnet18"), resnet18()
    before = copy_of(net)
    report = load_weights(net, save(source.state_dict(), tmp_path / "w.pth"))
    x = torch.rand(2, 3, 32, 32)
    net.eval()
    features = net.forward_features(x)
    assert torch.equal(source.fc(features), source(x))
    assert report.left_out == ["head.weight (1000, 512), here (7, 512)", "head.bias (1000,), here (7,)"]
    assert report.missing == report.unexpected == []
    assert torch.equal(net.head.weight, before["head.weight"])
    assert net.backbone.bn1.num_batches_tracked == 1234 and net.backbone.bn1.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "densenet121", pytest.param("vit_b_32", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_torchvisions_head_is_taken_over_for_as_many_classes(tmp_path, name):
    size = {"image_size": 64} if name == "vit_b_32" else {}
    source = library_net(name, num_classes=7, **size)
    state = source.state_dict()
    # the published files keep these older names
    old = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2.", "norm1.": "norm.1.", "conv2.": "conv.2."}
    for new, published in old.items():
        if name in ("vit_b_32", "densenet121"):
            state = {k.replace(new, published) if "layer" in k or "mlp" in k else k: v for k, v in state.items()}
    net = TorchvisionModel(3, 7, 64, name).eval()
    report = load_weights(net, save(state, tmp_path / "w.pth"))
    assert report.missing == report.unexpected == report.left_out == []
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(x), source(x))
    assert torch.equal(net.head.weight, list(source.parameters())[-2])


@pytest.mark.parametrize(("name", "size"), [("resnet10t", 32), ("vit_tiny_patch16_224", 64), ("convnext_atto", 32)])
@torch.no_grad()
def test_timm_gives_the_same_features(tmp_path, name, size):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    options = {"img_size": size} if name.startswith("vit") else {}
    source = timm.create_model(name, num_classes=9, **options).eval()
    x = torch.rand(2, 3, size, size)
    for classes in (9, 7):
        net = TimmModel(3, classes, size, name).eval()
        report = load_weights(net, save(source.state_dict(), tmp_path / "w.safetensors"))
        assert torch.equal(net.forward_features(x), source.forward_head(source.forward_features(x), pre_logits=True))
        assert report.missing == report.unexpected == []
        if classes == 9:
            assert torch.equal(net(x), source(x))
        else:
            assert {row.split()[0] for row in report.left_out} == {"head.weight", "head.bias"}


@torch.no_grad()
def test_timm_positions_of_another_image_size(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=9, img_size=96)
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, (4, 4))
    net = TimmModel(1, 7, 64, "vit_tiny_patch16_224")
    report = load_weights(net, save(source.state_dict(), tmp_path / "w.pt"))
    assert {"backbone.patch_embed.proj.weight", "backbone.pos_embed"} <= set(report.loaded)
    torch.testing.assert_close(net.backbone.pos_embed, expected)
    load_weights(again := TimmModel(1, 7, 64, "vit_tiny_patch16_224"), save(net.state_dict(), tmp_path / "again.pt"))
    assert same(again, net.state_dict())


@pytest.mark.slow
@torch.no_grad()
def test_torchvision_positions_of_another_image_size(tmp_path):
    source = library_net("vit_b_32", image_size=128)
    positions = source.encoder.pos_embedding
    # a plane stays a plane: an independent reference for the corners, which bicubic interpolation must keep
    positions.copy_(torch.linspace(0, 1, 17).view(1, 17, 1).expand_as(positions))
    net = TorchvisionModel(3, 7, 64, "vit_b_32")
    report = load_weights(net, save(source.half().state_dict(), tmp_path / "w.pt"))
    assert "backbone.encoder.pos_embedding" in report.loaded
    ours = net.backbone.encoder.pos_embedding
    assert ours.shape == (1, 5, 768) and ours.dtype == torch.float32
    torch.testing.assert_close(ours[0, :, 0], positions[0, [0, 1, 4, 13, 16], 0].float(), atol=1e-3, rtol=0)


@torch.no_grad()
def test_grey_images_give_what_their_rgb_copy_gave(tmp_path):
    path = save(library_net("resnet18").state_dict(), tmp_path / "w.pth")
    load_weights(rgb := resnet18(), path)
    report = load_weights(grey := resnet18(channels=1), path)
    assert "backbone.conv1.weight" in report.loaded
    x = torch.rand(2, 1, 32, 32)
    for net in (rgb, grey):
        net.eval()
    torch.testing.assert_close(
        grey.forward_features(x), rgb.forward_features(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_four_channels_take_the_three_in_turn(tmp_path):
    source, net = convnet(seed=1), convnet(channels=4)
    report = load_weights(net, save(source.state_dict(), tmp_path / "w.pth"))
    name = next(iter(source.state_dict()))
    assert name in report.loaded and report.left_out == []
    weight = source.state_dict()[name]
    torch.testing.assert_close(net.state_dict()[name], torch.cat([weight, weight[:, :1]], 1) * 3 / 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_and_what_the_network_keeps(tmp_path, dtype):
    source = convnet(seed=1).to(dtype)
    net = convnet().to(memory_format=torch.channels_last)
    conv = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    conv.weight.requires_grad_(False)
    parameters = list(net.parameters())
    load_weights(net, save(source.state_dict(), tmp_path / "w.safetensors"))
    assert all(one is other for one, other in zip(parameters, net.parameters(), strict=True))
    assert not conv.weight.requires_grad and all(p.requires_grad for p in parameters if p is not conv.weight)
    for own, theirs in zip(net.state_dict().values(), source.state_dict().values(), strict=True):
        assert own.dtype == (torch.float32 if theirs.is_floating_point() else torch.int64)
        assert torch.equal(own, theirs.to(own.dtype))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_checkpoint_of_ours(trained):
    path = trained / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    net = ConvNet(1, 10, 8, channels=[16, 32], convs_per_block=1)
    report = load_weights(net, str(path))
    assert same(net, {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")})
    assert report.missing == report.unexpected == report.left_out == []
    assert (
        report.mean == state["normalise.mean"].flatten().tolist()
        and report.std == state["normalise.std"].flatten().tolist()
    )
    assert len(report.mean) == 1


def test_an_older_checkpoint_of_ours(trained, tmp_path):
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    content["state_dict"] = {key.removeprefix("normalise."): value for key, value in content["state_dict"].items()}
    mean = content["state_dict"]["mean"].flatten().tolist()
    torch.save(content, tmp_path / "old.ckpt")
    net = ConvNet(1, 10, 8, channels=[16, 32], convs_per_block=1)
    report = load_weights(net, str(tmp_path / "old.ckpt"), ["other"] * 10)
    assert report.mean == mean and report.unexpected == [] and len(report.left_out) == 2


class Thing:
    pass


def bad_files(folder):
    """path by what is wrong with it."""
    good = folder / "good.pt"
    torch.save(convnet(seed=1).state_dict(), good)
    kinds = (
        "missing",
        "folder",
        "empty",
        "truncated",
        "text",
        "list",
        "numbers",
        "objects",
        "other",
        "chance",
        "nan",
        "folded",
    )
    files = {name: folder / f"{name}.pt" for name in kinds}
    files["folder"].mkdir()
    files["empty"].touch()
    files["truncated"].write_bytes(good.read_bytes()[:-3000])
    files["text"].write_text("not weights\n")
    torch.save([torch.ones(2, 2)], files["list"])
    torch.save({"epoch": 3}, files["numbers"])
    torch.save({"state_dict": convnet(seed=1).state_dict(), "args": Thing()}, files["objects"])
    torch.save({f"encoder.{key}": value for key, value in ResNet(3, 5, 16).state_dict().items()}, files["other"])
    lucky = convnet(seed=1).state_dict()
    torch.save({key: value for key, value in lucky.items() if value.ndim < 2 or key == "head.weight"}, files["chance"])
    torch.save(
        {key: value * float("nan") if value.is_floating_point() else value for key, value in lucky.items()},
        files["nan"],
    )
    torch.save(Deployable(convnet(), torch.ones(3), torch.ones(3)).state_dict(), files["folded"])
    for name in ("missing", "empty", "text", "truncated"):
        files[f"{name}.safetensors"] = folder / f"{name}.safetensors"
    files["empty.safetensors"].touch()
    files["text.safetensors"].write_text("not weights\n")
    save(lucky, files["truncated.safetensors"])
    files["truncated.safetensors"].write_bytes(files["truncated.safetensors"].read_bytes()[:-300])
    return files


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no file .*missing.pt"),
        ("folder", "no file .*folder.pt"),
        ("empty", "empty.pt cannot be read: it is damaged"),
        ("truncated", "truncated.pt cannot be read: it is damaged"),
        ("text", "text.pt cannot be read: it is damaged"),
        ("objects", r"objects.pt cannot be read: .* write it anew with torch.save\(model.state_dict"),
        ("folded", "the batch norms of .*folded.pt are folded; give the checkpoint that it is from"),
        ("list", "nothing in .*list.pt fits ConvNet, which has .*; it holds no tensors"),
        ("numbers", "nothing in .*numbers.pt fits ConvNet, which has .*; it holds no tensors"),
        ("other", "nothing in .*other.pt fits ConvNet, which has .*weight; it holds encoder.*"),
        ("chance", "nothing in .*chance.pt fits ConvNet"),
        ("nan", "nan.pt holds NaN or infinite values in "),
        ("missing.safetensors", "no file .*missing.safetensors"),
        ("empty.safetensors", "empty.safetensors cannot be read: it is damaged"),
        ("text.safetensors", "text.safetensors cannot be read: it is damaged"),
        ("truncated.safetensors", "truncated.safetensors cannot be read: it is damaged"),
    ],
)
def test_bad_files_are_refused_in_one_line_and_change_nothing(tmp_path, kind, message):
    net = convnet()
    before = copy_of(net)
    with pytest.raises(UserError, match=f"^model.weights: .*{message}") as caught:
        load_weights(net, str(bad_files(tmp_path)[kind]))
    assert "\n" not in str(caught.value)
    assert same(net, before)


def test_without_safetensors_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"needs the safetensors library; run pip install safetensors$"):
        load_weights(convnet(), str(tmp_path / "w.safetensors"))


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty cache of torch's and of the hub's, and no network."""

    def no_network(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.mark.parametrize("load", [fetch_weights, load_weights])
@pytest.mark.parametrize("name", ["IMAGENET1K_V9", "ResNet50_Weights.IMAGENET1K_V1", "a1_in1k"])
def test_unknown_names_are_refused(load, name):
    net = resnet18()
    before = copy_of(net)
    message = f"^model.weights: no file {name}; published weights of this network: IMAGENET1K_V1, DEFAULT$"
    with pytest.raises(UserError, match=message) as caught:
        load(net, name)
    assert "\n" not in str(caught.value) and same(net, before)


@pytest.mark.parametrize("load", [fetch_weights, load_weights])
def test_only_libraries_networks_have_published_weights(load):
    with pytest.raises(UserError, match="no file DEFAULT; published weights of this network: none exist for it"):
        load(convnet(), "DEFAULT")


@pytest.mark.parametrize("load", [fetch_weights, load_weights])
def test_without_a_network_one_line_says_what_to_fetch(load, torch_home, capsys):
    net = resnet18()
    before = copy_of(net)
    with pytest.raises(UserError) as caught:
        load(net, "DEFAULT")
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    file = torch_home / url.rpartition("/")[2]
    assert str(caught.value) == (
        f"model.weights: ResNet18_Weights.IMAGENET1K_V1 cannot be downloaded"
        " (<urlopen error no route to host>);"
        f" fetch {url} on another machine and put it at {file}"
    )
    assert same(net, before) and not list(torch_home.iterdir())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"])
def test_published_weights_out_of_the_cache(torch_home, name):
    torch_home.mkdir(parents=True)
    source, net = library_net("resnet18"), resnet18()
    torch.save(source.state_dict(), torch_home / torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    fetch_weights(net, name)
    report = load_weights(net, name)
    assert report.source == "ResNet18_Weights.IMAGENET1K_V1"
    assert (report.mean, report.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.equal(net.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_a_download_with_another_hash_is_refused(torch_home, monkeypatch, tmp_path):
    torch.save(library_net("resnet18").state_dict(), tmp_path / "w.pth")

    class Answer:
        def __enter__(self):
            self.file = open(tmp_path / "w.pth", "rb")
            return self

        def __exit__(self, *_):
            self.file.close()

        def info(self):
            return Message()

        def read(self, size):
            return self.file.read(size)

    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: Answer())
    with pytest.raises(UserError, match="invalid hash value") as caught:
        fetch_weights(resnet18(), "DEFAULT")
    assert "\n" not in str(caught.value) and not list(torch_home.iterdir())


@pytest.mark.parametrize("load", [fetch_weights, load_weights])
def test_timm_names(load):
    pytest.importorskip("timm")
    net = TimmModel(3, 7, 32, "resnet18")
    with pytest.raises(UserError, match="no file a1_in1; published weights of this network: a1_in1k, DEFAULT, a2_in1k"):
        load(net, "a1_in1")
    with pytest.raises(UserError, match=r"no file IMAGENET1K_V1; published weights of this network: c3_in1k, DEFAULT$"):
        load(TimmModel(3, 7, 32, "resnet10t"), "IMAGENET1K_V1")


@pytest.fixture
def hub(torch_home, tmp_path, monkeypatch):
    """The hub's cache in a folder of its own, no network."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("load", [fetch_weights, load_weights])
@pytest.mark.parametrize(
    ("built", "name"), [("resnet10t", "DEFAULT"), ("resnet10t", "c3_in1k"), ("resnet10t.c3_in1k", "DEFAULT")]
)
def test_timm_without_a_network(load, built, name, hub, torch_home, capsys):
    with pytest.raises(UserError) as caught:
        load(TimmModel(3, 7, 32, built), name)
    url = "https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"
    assert str(caught.value) == (
        "model.weights: resnet10t.c3_in1k cannot be downloaded"
        " (<urlopen error no route to host>);"
        f" fetch {url} on another machine and put it at {torch_home / 'resnet10t.c3_in1k.safetensors'}"
    )
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("cache", ["hub", "torch"])
@torch.no_grad()
def test_timm_out_of_the_cache(hub, torch_home, cache):
    timm = pytest.importorskip("timm")
    folder = hub / "models--timm--resnet10t.c3_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    torch.manual_seed(1)
    source = timm.create_model("resnet10t").eval()
    torch_home.mkdir(parents=True)
    file = folder / "snapshots" / "abc" / "model.safetensors"
    save(source.state_dict(), file if cache == "hub" else torch_home / "resnet10t.c3_in1k.safetensors")
    net = TimmModel(3, 1000, 32, "resnet10t").eval()
    fetch_weights(net, "DEFAULT")
    report = load_weights(net, "DEFAULT")
    assert report.source == "resnet10t.c3_in1k" and report.missing == report.left_out == []
    assert report.mean == timm.get_pretrained_cfg("resnet10t").mean
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(net(x), source(x))


def test_nothing_is_fetched_for_a_file(tmp_path):
    path = save(convnet().state_dict(), tmp_path / "DEFAULT.pt")
    assert fetch_weights(convnet(), path).url == ""


def test_lines():
    report = LoadReport(
        source="w.pth",
        loaded=["conv1.weight", "layer1.0.conv.weight"],
        left_out=["head.weight (1000, 512), here (7, 512)"],
        missing=[f"bn{i}.bias" for i in range(10)],
        unexpected=["aux1.fc.weight"],
        mean=None,
        std=None,
    )
    assert report.lines(limit=2) == [
        "weights: w.pth",
        "  loaded 2 of 13 tensors",
        "  left out 1: head.weight (1000, 512), here (7, 512)",
        "  missing 10: bn0.bias, bn1.bias, ...",
        "  unexpected 1: aux1.fc.weight",
    ]


def test_a_head_for_other_classes_is_not_taken(trained) -> None:
    """Ten digits and ten animals: the heads have one shape, and mean different things."""
    best = trained / "checkpoints" / "best.ckpt"
    names = torch.load(best, weights_only=True)["hyper_parameters"]["class_names"]
    nets = {key: ConvNet(1, 10, 8, channels=[16, 32]) for key in ("same", "other", "unsaid")}
    before = nets["other"].head.weight.clone()
    reports = {
        "same": load_weights(nets["same"], str(best), names),
        "other": load_weights(nets["other"], str(best), [f"animal {i}" for i in range(10)]),
        "unsaid": load_weights(nets["unsaid"], str(best)),
    }
    assert reports["other"].left_out == ["head.weight is for other classes", "head.bias is for other classes"]
    assert torch.equal(nets["other"].head.weight, before) and not reports["other"].missing
    for key in ("same", "unsaid"):
        assert not reports[key].left_out and "head.weight" in reports[key].loaded
    assert torch.equal(nets["same"].stages[0][0].conv.weight, nets["other"].stages[0][0].conv.weight)
