"""Every torchvision network by its head, one of every family by running it; timm where it is installed."""

import sys

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_builder, list_models
from torchvision.models.regnet import BlockParams

from project.nets import TimmModel, TorchvisionModel

NAMES = list_models(module=torchvision.models)
# the smallest of each family and, where the family allows, a small image
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 32,
    "vit_b_32": 64,
    "wide_resnet50_2": 32,
}


SHAPES_CHECKED = ("googlenet", "mobilenet_v3_small", "regnet_y_400mf", "squeezenet1_1", "swin_t", "vit_b_16")
RUN = ("googlenet", "mnasnet0_5", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1")


def slow_unless(name: str, fast: tuple[str, ...]):
    return name if name in fast else pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture
def meta(monkeypatch):
    """Build without memory or arithmetic. RegNet reads its widths out of a tensor, so those lines stay on the CPU."""
    plan = BlockParams.from_init_params.__func__

    def on_cpu(cls, *args, **kwargs):
        with torch.device("cpu"):
            return plan(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", [slow_unless(name, SHAPES_CHECKED) for name in NAMES])
def test_every_network_gets_its_head(name, meta):
    net = TorchvisionModel(3, 7, 224, name)
    assert isinstance(net.head, nn.Linear) and net.head.out_features == 7
    auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    reference = get_model(name, weights=None, num_classes=7, **auxiliary).state_dict()
    shapes = {key.removeprefix("backbone."): value.shape for key, value in net.state_dict().items()}
    for key in [key for key in shapes if key.startswith("head.") and f"backbone.{key}" not in net.state_dict()]:
        shapes[key.replace("head", net.head_name, 1)] = shapes.pop(key)
    assert shapes.keys() == reference.keys()  # so that published weights load by name
    assert all(shapes[key] == reference[key].shape[:2] or shapes[key] == reference[key].shape for key in shapes)


@pytest.mark.parametrize("name", [slow_unless(name, RUN) for name in FAMILIES])
@torch.no_grad()
def test_every_family_runs(name):
    torch.manual_seed(0)
    size = FAMILIES[name]
    for in_channels in (1, 3):
        net = TorchvisionModel(in_channels, 7, size, name)
        assert all(module.training for module in net.modules())
        net.eval()
        x = torch.rand(1, in_channels, size, size)
        logits, features = net(x), net.forward_features(x)
        assert features.shape == (1, net.head.in_features)
        assert logits.shape == (1, 7)
        torch.testing.assert_close(logits, net.head(features))


def test_no_family_is_left_out():
    modules = {get_model_builder(name).__module__ for name in NAMES}
    assert {get_model_builder(name).__module__ for name in FAMILIES} == modules


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", pytest.param("vit_b_32", marks=pytest.mark.slow)])
@torch.no_grad()
def test_same_as_torchvision_with_the_same_weights(name):
    torch.manual_seed(0)
    net = TorchvisionModel(3, 7, 64, name).eval()
    reference = get_model(name, num_classes=7, **({"image_size": 64} if name == "vit_b_32" else {})).eval()
    weights = {key.removeprefix("backbone."): value for key, value in net.state_dict().items()}
    weights[f"{net.head_name}.weight"], weights[f"{net.head_name}.bias"] = (
        weights.pop("head.weight"),
        weights.pop("head.bias"),
    )
    reference.load_state_dict(weights)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(x), reference(x))


@torch.no_grad()
def test_grey_images_give_what_their_rgb_copy_gives():
    nets = []
    for in_channels in (1, 3):
        torch.manual_seed(0)
        nets.append(TorchvisionModel(in_channels, 7, 32, "resnet18").eval())
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(nets[0](grey), nets[1](grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_more_channels_keep_the_size_of_the_response():
    torch.manual_seed(0)
    three = TorchvisionModel(3, 7, 32, "shufflenet_v2_x0_5").backbone.conv1[0]
    torch.manual_seed(0)
    six = TorchvisionModel(6, 7, 32, "shufflenet_v2_x0_5").backbone.conv1[0]
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(six(torch.cat([x, x], 1)), three(x))
    assert six.in_channels == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"^name: torchvision has no network 'resnet19'; the closest names are .*resnet18"),
        ({"name": "qqq"}, r"^name: torchvision has no network 'qqq'; the closest names are "),
        (
            {"name": "vit_b_16", "image_size": 40},
            "^net: vit_b_16 .* 40 x 40 pixels .its usual size is 224.: .*patch size!$",
        ),
        (
            {"name": "inception_v3"},
            "^net: inception_v3 cannot be built for .* 32 x 32 pixels .its usual size is 299.: ",
        ),
        ({"name": "maxvit_t", "image_size": 100}, "^net: maxvit_t .* 100 x 100 pixels .its usual size is 224.: "),
    ],
)
def test_bad_values_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        TorchvisionModel(**({"in_channels": 3, "num_classes": 7, "image_size": 32, "name": "resnet18"} | arguments))
    assert "\n" not in str(caught.value)


def test_without_timm_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r'^net: TimmModel needs the timm library; run pip install -e "\.\[timm\]"$'):
        TimmModel(3, 7, 32, "resnet18")


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet10t", 32), ("vit_tiny_patch16_224", 64), ("mobilenetv3_small_050", 32), ("convnext_atto", 32)],
)
@pytest.mark.parametrize("in_channels", [1, 3])
@torch.no_grad()
def test_timm(name, size, in_channels):
    pytest.importorskip("timm")
    net = TimmModel(in_channels, 7, size, name).eval()
    x = torch.rand(2, in_channels, size, size)
    features = net.forward_features(x)
    assert features.shape == (2, net.head.in_features)
    assert net(x).shape == (2, 7)
    torch.testing.assert_close(net(x), net.head(features))


def test_timm_rates_take_effect():
    timm = pytest.importorskip("timm")
    net = TimmModel(3, 7, 32, "convnext_atto", drop_rate=0.3, drop_path_rate=0.2)
    assert net.backbone.head.drop.p == 0.3
    skips = [module.drop_prob for module in net.modules() if isinstance(module, timm.layers.DropPath)]
    assert max(skips) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet18z"}, r"^name: timm has no network 'resnet18z'; .*resnet18"),
        ({"name": "inception_v3"}, "^net: inception_v3 .* 32 x 32 pixels .its usual size is 299.: "),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "^net: vgg11 cannot be built .* 'drop_path_rate'$"),
        ({"drop_rate": 1.5}, "^net: resnet18 cannot be built .* but got 1.5$"),
    ],
)
def test_timm_bad_values_are_refused_in_one_line(arguments, message):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message) as caught:
        TimmModel(**({"in_channels": 3, "num_classes": 7, "image_size": 32, "name": "resnet18"} | arguments))
    assert "\n" not in str(caught.value)
