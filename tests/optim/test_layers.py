"""The order of the layers against the order in which networks run; names and stages against lists written by hand."""

from itertools import groupby

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_builder, list_models
from torchvision.models.regnet import BlockParams

from project.errors import UserError
from project.nets import ConvNet, FastNet, ResNet, ResNet9, TimmModel, TorchvisionModel
from project.optim.layers import layers

OURS = {
    "convnet": lambda: ConvNet(3, 7, 32),
    "convnet_deep": lambda: ConvNet(3, 7, 32, convs_per_block=3),
    "resnet": lambda: ResNet(3, 7, 32),
    "resnet_imagenet": lambda: ResNet(1, 7, 96, depths=[1, 3, 12], width=8, block="bottleneck"),
    "resnet9": lambda: ResNet9(3, 7, 32),
    "fastnet": lambda: FastNet(3, 7, 32),
}
# those that are run, one of every family, for the sake of time
FAMILIES = [
    *(
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "efficientnet_v2_s",
        "googlenet",
        "inception_v3",
        "maxvit_t",
    ),
    *(
        "mnasnet0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "regnet_y_400mf",
        "resnet18",
        "resnet50",
        "shufflenet_v2_x0_5",
    ),
    *("squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32"),
]
TIMM = [
    *(
        "resnet18d",
        "convnext_atto",
        "vit_tiny_patch16_224",
        "efficientnet_b0",
        "mobilenetv3_small_050",
        "swin_tiny_patch4_window7_224",
    ),
    *(
        "levit_128s",
        "regnetx_002",
        "densenet121",
        "twins_pcpvt_small",
        "focalnet_tiny_srf",
        "xception41",
        "poolformerv2_s12",
    ),
]


FAST = ("alexnet", "resnet18", "squeezenet1_1", "swin_t", "vgg11_bn", "vit_b_32", "resnet18d", "convnext_atto")


def mostly_slow(names):
    """By default only some of the networks are built."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture
def meta(monkeypatch):
    """Build and run without memory or arithmetic; RegNet reads its widths from a tensor, which stays on the CPU."""
    plan = BlockParams.from_init_params.__func__

    def on_cpu(cls, *args, **kwargs):
        with torch.device("cpu"):
            return plan(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))
    with torch.device("meta"):
        yield


def check_partition(net):
    """What holds for every network. Returns the layers."""
    found = layers(net)
    tensors = [name for name, _ in net.named_parameters()] + [name for name, _ in net.named_buffers()]
    assert sorted(tensors) == sorted(name for layer in found for name in layer.tensors)
    assert len({layer.name for layer in found}) == len(found)
    paths = dict(net.named_modules())
    assert all(
        layer.name in paths and (layer.stage == layer.name or layer.name.startswith(layer.stage + "."))
        for layer in found
    )
    stages = [stage for stage, _ in groupby(layer.stage for layer in found)]
    assert len(set(stages)) == len(stages)
    assert found[-1].stage == found[-1].name
    return found


def check_order(net, size, channels=3):
    """Every module with tensors of its own runs after all those of the layers before."""
    found = check_partition(net)
    depth = {name.rpartition(".")[0]: i for i, layer in enumerate(found) for name in layer.tensors}
    calls = []
    for path, module in net.named_modules():
        if path in depth:
            module.register_forward_pre_hook(lambda module, _, path=path: calls.append(path))
    with torch.no_grad():
        net.eval()(torch.zeros(1, channels, size, size))
    first = [
        path for path in dict.fromkeys(calls) if path not in ("", "backbone", "backbone.encoder")
    ]  # around all of their layers
    depths = [depth[path] for path in first]
    assert depths == sorted(depths), [path for path, a, b in zip(first, depths, depths[1:], strict=False) if a > b]
    assert set(depths) == set(range(len(found)))
    return found


def names(net):
    return [layer.name.removeprefix("backbone.") for layer in layers(net)]


def stages(net):
    return [
        (stage.removeprefix("backbone."), len(list(group)))
        for stage, group in groupby(layer.stage for layer in layers(net))
    ]


@pytest.mark.parametrize("name", OURS)
def test_our_networks(name):
    net = OURS[name]()
    found = check_order(net, 96 if name == "resnet_imagenet" else 32, 1 if name == "resnet_imagenet" else 3)
    assert found[-1].tensors == ("head.weight", "head.bias")


@pytest.mark.parametrize("name", mostly_slow(list_models(module=torchvision.models)))
def test_every_torchvision_network(name, meta):
    net = TorchvisionModel(3, 7, 224, name)
    found = check_order(net, 224) if name in FAMILIES else check_partition(net)
    assert found[-1].name == "head" and {key.split(".")[0] for key in found[-1].tensors} == {"head"}
    assert len(found) >= 8 and len({layer.stage for layer in found}) >= (3 if name == "alexnet" else 5)
    size = {key: tensor.numel() for key, tensor in net.named_parameters()}
    largest = max(sum(size.get(key, 0) for key in layer.tensors) for layer in found)
    assert largest <= 0.8 * sum(size.values())  # VGG's first linear layer


def test_no_family_is_left_out():
    modules = [
        {get_model_builder(name).__module__ for name in names}
        for names in (FAMILIES, list_models(module=torchvision.models))
    ]
    assert modules[0] == modules[1]


@pytest.mark.parametrize("name", mostly_slow(TIMM))
def test_timm(name, meta):
    pytest.importorskip("timm")
    check_order(TimmModel(3, 7, 224, name), 224)


@pytest.mark.parametrize("name", mostly_slow(["resnet18d", "convnext_atto", "vit_tiny_patch16_224", "densenet121"]))
def test_timm_network_of_its_own(name, meta):
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=7)
    ours = layers(TimmModel(3, 7, 224, name))[:-1]
    assert [layer.name for layer in ours] == [f"backbone.{layer.name}" for layer in check_partition(net)[:-1]]
    assert set(layers(net)[-1].tensors) >= {
        key for key, value in net.named_parameters() if value is net.get_classifier().weight
    }


def test_names_and_stages_of_ours():
    assert names(OURS["convnet"]()) == ["stages.0", "stages.1", "stages.2", "head"]
    assert names(ConvNet(3, 7, 32, [8, 16], 2)) == ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1", "head"]
    assert stages(ConvNet(3, 7, 32, [8, 16], 2)) == [("stages.0", 2), ("stages.1", 2), ("head", 1)]
    resnet = OURS["resnet"]()
    assert names(resnet) == ["stem", *(f"stages.{i}.{j}" for i in range(4) for j in range(2)), "head"]
    assert stages(resnet) == [("stem", 1), *((f"stages.{i}", 2) for i in range(4)), ("head", 1)]
    assert layers(resnet)[0].tensors == tuple(
        f"stem.0.{key}" for key in dict(resnet.stem[0].named_parameters())
    ) + tuple(f"stem.0.norm.{key}" for key in ("running_mean", "running_var", "num_batches_tracked"))
    assert stages(OURS["resnet_imagenet"]()) == [
        ("stem", 1),
        ("stages.0.0", 1),
        ("stages.1", 3),
        ("stages.2", 12),
        ("head", 1),
    ]
    resnet9 = OURS["resnet9"]()
    assert names(resnet9) == ["stem", "stages.0.0", "stages.0.2", "stages.1", "stages.2.0", "stages.2.2", "head"]
    assert stages(resnet9) == [("stem", 1), ("stages.0", 2), ("stages.1", 1), ("stages.2", 2), ("head", 1)]


def test_names_and_stages_of_torchvision(meta):
    resnet = TorchvisionModel(3, 7, 224, "resnet18")
    assert names(resnet) == ["conv1", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2)), "head"]
    assert stages(resnet) == [("conv1", 1), *((f"layer{i}", 2) for i in range(1, 5)), ("head", 1)]
    assert "backbone.bn1.running_var" in layers(resnet)[0].tensors
    assert ("layer3", 23) in stages(TorchvisionModel(3, 7, 224, "resnet101"))  # more than half of all, yet a stage

    vit = TorchvisionModel(3, 7, 224, "vit_b_32")
    assert names(vit) == ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "head"]
    assert stages(vit) == [(name, 1) for name in names(vit)]
    assert {"backbone.class_token", "backbone.encoder.pos_embedding"} < set(layers(vit)[0].tensors)
    assert {"backbone.encoder.ln.weight", "backbone.encoder.ln.bias"} < set(layers(vit)[-2].tensors)

    vgg = TorchvisionModel(3, 7, 224, "vgg11_bn")
    convs = [f"features.{i}" for i in (0, 4, 8, 11, 15, 18, 22, 25)]
    assert names(vgg) == [*convs, "classifier.0", "classifier.3", "head"]
    assert stages(vgg) == [*((name, 1) for name in convs), ("classifier", 2), ("head", 1)]


@pytest.mark.slow
def test_names_and_stages_of_larger_networks(meta):
    efficientnet = TorchvisionModel(3, 7, 224, "efficientnet_b0")
    depths = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 1}
    blocks = [f"features.{i}.{j}" for i, depth in depths.items() for j in range(depth)]
    assert names(efficientnet) == ["features.0", *blocks, "features.8", "head"]
    inner = [(f"features.{i}" if depth > 1 else f"features.{i}.0", depth) for i, depth in depths.items()]
    assert stages(efficientnet) == [("features.0", 1), *inner, ("features.8", 1), ("head", 1)]

    densenet = stages(TorchvisionModel(3, 7, 224, "densenet121"))
    assert densenet[:4] == [
        ("features.conv0", 1),
        ("features.denseblock1", 6),
        ("features.transition1", 1),
        ("features.denseblock2", 12),
    ]


def test_names_and_stages_of_timm(meta):
    pytest.importorskip("timm")
    resnet = TimmModel(3, 7, 224, "resnet18d")
    assert names(resnet) == ["conv1", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2)), "head"]
    assert stages(resnet) == [("conv1", 1), *((f"layer{i}", 2) for i in range(1, 5)), ("head", 1)]
    vit = TimmModel(3, 7, 224, "vit_tiny_patch16_224")
    assert names(vit) == ["patch_embed", *(f"blocks.{i}" for i in range(12)), "head"]
    convnext = TimmModel(3, 7, 224, "convnext_atto")
    assert stages(convnext) == [
        ("stem", 1),
        ("stages.0", 2),
        ("stages.1", 2),
        ("stages.2", 6),
        ("stages.3", 2),
        ("head", 1),
    ]


@pytest.mark.parametrize(
    "name", mostly_slow(["resnet50", "alexnet", "vit_b_32", "densenet121", "convnext_tiny", "maxvit_t"])
)
def test_a_library_network_under_any_name(name, meta):
    net = nn.Module()
    net.encoder = TorchvisionModel(3, 7, 224, name).backbone
    net.fc = nn.Linear(8, 7)
    same = layers(TorchvisionModel(3, 7, 224, name))
    assert [layer.name for layer in check_partition(net)] == [
        *(layer.name.replace("backbone", "encoder", 1) for layer in same[:-1]),
        "fc",
    ]


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("vgg11", "classifier.6"), ("swin_t", "head")])
def test_the_head_of_a_foreign_network(name, head, meta):
    net = get_model(name)
    assert [layer.name for layer in check_partition(net)[-1:]] == [head]
    assert layers(net)[-1].tensors == (f"{head}.weight", f"{head}.bias")


def test_a_flat_sequential():
    norm = nn.GroupNorm(2, 8)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.PReLU(), nn.Flatten()
    )
    net.extend([nn.Linear(128, 16), nn.BatchNorm1d(16), nn.Linear(16, 7)])
    found = check_order(net, 8)
    assert [(layer.name, layer.stage) for layer in found] == [(name, name) for name in ("0", "3", "7", "9")]
    assert found[0].tensors == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert {"4.num_batches_tracked", "5.weight"} < set(found[1].tensors)


def test_a_single_linear():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7))
    assert [(layer.name, layer.stage, layer.tensors) for layer in check_partition(net)] == [
        ("1", "1", ("1.weight", "1.bias"))
    ]
    assert [(layer.name, layer.tensors) for layer in layers(nn.Linear(12, 7))] == [("head", ("weight", "bias"))]


class Loose(nn.Module):
    """Parameters and a buffer at the root; the head is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 7)
        self.token = nn.Parameter(torch.zeros(1, 4, 4))
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.body = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)])
        self.scale = nn.ParameterList([torch.ones(4)])


def test_loose_parameters_and_buffers():
    found = check_partition(Loose())
    statistics = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    assert [(layer.name, layer.tensors) for layer in found] == [
        ("body.0", ("token", "mean", *statistics, "body.0.weight", "body.0.bias")),
        ("body.1", ("body.1.weight", "body.1.bias", "scale.0")),
        ("head", ("head.weight", "head.bias")),
    ]


def test_loose_parameters_before_a_lone_head():
    """They must not join the head."""
    net = nn.Module()
    net.scale, net.norm, net.fc = nn.Parameter(torch.ones(3)), nn.BatchNorm1d(3), nn.Linear(3, 7)
    assert [layer.name for layer in layers(net)] == ["stem", "fc"]
    assert layers(net)[0].tensors[:3] == ("scale", "norm.weight", "norm.bias")


def test_shared_tensors_count_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    net[3].weight = net[0].weight
    found = check_partition(net)
    assert [layer.tensors for layer in found] == [("0.weight", "0.bias", "2.bias"), ("3.bias",)]
    block = nn.Linear(4, 4)
    twice = nn.Sequential(block, nn.ReLU(), block, nn.Linear(4, 7))
    assert [layer.name for layer in check_partition(twice)] == ["0", "3"]
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert [(layer.name, layer.tensors) for layer in layers(tied)] == [("0", ("0.weight",)), ("1", ())]


def test_parametrized_weights():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 7))
    for i in (0, 2, 4):
        nn.utils.parametrizations.weight_norm(net[i])
    assert [layer.name for layer in check_partition(net)] == ["0", "2", "4"]


def test_without_parameters():
    with pytest.raises(UserError, match=r"^model\.net: Sequential has no parameters; ") as caught:
        layers(nn.Sequential(nn.Flatten(), nn.Dropout()))
    assert "\n" not in str(caught.value)
