"""Against the network as it is, in float64; and against a list, by hand, of what can be folded."""

import copy
import io
import pickle
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, prune

from project.nets import ConvNet, ResNet, ResNet9
from project.nets.fuse import Fold, fuse

FOLDED = ""


def randomize(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics, affine parts (some negative) and biases: fresh ones are 0 or 1 and hide faults."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                if module.running_mean is not None:
                    module.running_mean.normal_(0, 0.5, generator=draw)
                    module.running_var.uniform_(0.3, 2, generator=draw)
                if module.weight is not None:
                    module.weight.normal_(0.5, 0.7, generator=draw)
                    module.bias.normal_(0, 0.5, generator=draw)
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.normal_(0, 0.5, generator=draw)
    return net


def pictures(channels: int = 4, side: int = 8, count: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def error(net: nn.Module, reference: nn.Module, images: Tensor) -> float:
    """Of the output, relative to the largest value; the reference runs in float64."""
    with torch.no_grad():
        expected = copy.deepcopy(reference).double().eval()(images.double())
        got = net(images)
    return ((got.double() - expected).abs().max() / expected.abs().max()).item()


def check(net: nn.Module, expected: dict[str, str], images: Tensor | None = None) -> nn.Module:
    """Fold it in both dtypes. `expected`: norm -> "> layer" that takes it in, or words of the reason why none does."""
    images = pictures() if images is None else images
    randomize(net)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours = copy.deepcopy(net).to(dtype)
        fused, folds = fuse(ours, images.to(dtype))
        assert not any(module.training for module in fused.modules()) and not any(
            p.requires_grad for p in fused.parameters()
        )
        assert [fold.norm for fold in folds] == list(expected), folds
        for fold, words in zip(folds, expected.values(), strict=True):
            if words.startswith("> "):
                assert fold == Fold(fold.norm, words[2:], "")
            else:
                assert fold.into is None and words in fold.reason, fold
        assert error(fused, ours, images.to(dtype)) < bound
        assert error(fused, ours, torch.randn(5, *images.shape[1:], dtype=dtype)) < bound
        left = [name for name, module in fused.named_modules() if isinstance(module, _BatchNorm)]
        assert set(left) <= {fold.norm for fold in folds if fold.into is None}
    return fused


class Net(nn.Module):
    """A network with a forward given as a function of (net, x)."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def pair(forward=lambda net, x: net.bn(net.conv(x)), conv=None, bn=None, **parts) -> Net:
    return Net(forward, conv=conv or nn.Conv2d(4, 4, 3, padding=1), bn=bn or nn.BatchNorm2d(4), **parts)


CONVS = {
    "bias": nn.Conv2d(4, 4, 3),
    "no bias": nn.Conv2d(4, 4, 3, bias=False),
    "dilated": nn.Conv2d(4, 4, 3, dilation=2, bias=False),
    "grouped": nn.Conv2d(4, 4, 3, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "more channels than groups": nn.Conv2d(4, 4, (1, 3), groups=2, stride=(2, 1)),
    "circular": nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="circular"),
    "reflect": nn.Conv2d(4, 4, 3, stride=2, padding=(2, 1), padding_mode="reflect", bias=False),
    "same": nn.Conv2d(4, 4, 4, padding="same"),
    "same, reflect": nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"),
    "valid": nn.Conv2d(4, 4, 3, padding="valid", bias=False),
}


@pytest.mark.parametrize("kind", CONVS)
def test_convolutions(kind):
    fused = check(pair(conv=copy.deepcopy(CONVS[kind])), {"bn": "> conv"})
    assert type(fused.bn) is nn.Identity and fused.conv.bias.shape == (4,)


NORMS = {
    "no affine": nn.BatchNorm2d(4, affine=False),
    "large eps": nn.BatchNorm2d(4, eps=0.5),
    "sync": nn.SyncBatchNorm(4),
    "a subclass that changes nothing": type("Mine", (nn.BatchNorm2d,), {})(4),
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms(kind):
    check(pair(bn=copy.deepcopy(NORMS[kind])), {"bn": "> conv"})


def test_linear():
    def flat(net, x):
        return net.bn(net.fc(x.mean((2, 3))))

    def tokens(net, x):
        return net.bn(net.fc(x.flatten(2)))  # (N, L, C): the norm is over L

    check(Net(flat, fc=nn.Linear(4, 5), bn=nn.BatchNorm1d(5)), {"bn": "> fc"})
    check(Net(flat, fc=nn.Linear(4, 5, bias=False), bn=nn.BatchNorm1d(5, affine=False)), {"bn": "> fc"})
    check(Net(tokens, fc=nn.Linear(64, 5), bn=nn.BatchNorm1d(4)), {"bn": "its channels are not those of fc"})
    check(Net(tokens, fc=nn.Linear(64, 4), bn=nn.BatchNorm1d(4)), {"bn": "would change the output of bn"})


def test_nested():
    parts = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    check(nn.Sequential(parts, nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))), {"0.1": "> 0.0", "1.1": "> 1.0"})
    check(pair(lambda net, x: net.bn(net.drop(net.conv(x))), drop=nn.Dropout(0.5)), {"bn": "it follows Dropout"})
    check(pair(lambda net, x: net.bn(F.dropout(net.conv(x), 0.0))), {"bn": "it follows dropout"})


def norm_first(net, x):
    return net.conv(net.bn(x))


LEFT = {
    "both twice": (pair(lambda net, x: net.bn(net.conv(net.bn(net.conv(x))))), {"bn": "used more than once"}),
    "conv twice": (
        pair(lambda net, x: net.bn2(net.conv(net.bn(net.conv(x)))), bn2=nn.BatchNorm2d(4)),
        {"bn": "used more than once", "bn2": "used more than once"},
    ),
    "norm twice": (
        pair(lambda net, x: net.bn(net.conv(x)) + net.bn(net.conv2(x)), conv2=nn.Conv2d(4, 4, 3, padding=1)),
        {"bn": "used more than once"},
    ),
    "after an addition": (
        pair(lambda net, x: net.bn(x + net.conv(x))),
        {"bn": "it follows add, not a Conv2d or Linear"},
    ),
    "two consumers": (pair(lambda net, x: net.bn(y := net.conv(x)) + y), {"bn": "used more than once"}),
    "two norms on one": (
        pair(lambda net, x: net.bn(y := net.conv(x)) + net.bn2(y), bn2=nn.BatchNorm2d(4)),
        {"bn": "used more than once", "bn2": "used more than once"},
    ),
    "changed in place": (pair(lambda net, x: (y := net.conv(x), y.relu_(), net.bn(y))[2]), {"bn": ""}),
    "norm first": (pair(norm_first, conv=nn.Conv2d(4, 4, 3, padding=1)), {"bn": "it follows x, not"}),
    "norm-ReLU-conv": (
        Net(
            lambda net, x: net.c2(net.b2(net.c1(net.b1(x).relu()).relu()).relu()),
            b1=nn.BatchNorm2d(4),
            c1=nn.Conv2d(4, 4, 3, padding=1),
            b2=nn.BatchNorm2d(4),
            c2=nn.Conv2d(4, 4, 3, padding=1),
        ),
        {"b1": "it follows x, not", "b2": "it follows relu"},
    ),
    "training at call": (
        pair(lambda net, x: (net.bn.train(), net.bn(net.conv(x)))[1]),
        {"bn": "would change the output of bn"},
    ),
    "no statistics": (pair(bn=nn.BatchNorm2d(4, track_running_stats=False)), {"bn": "no running statistics"}),
    "neither": (pair(bn=nn.BatchNorm2d(4, affine=False, track_running_stats=False)), {"bn": "no running statistics"}),
    "transposed": (
        pair(conv=nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2, output_padding=1)),
        {"bn": "it follows ConvTranspose2d, not a Conv2d or Linear"},
    ),
    "1-D": (
        Net(lambda net, x: net.b(net.c(x.flatten(2))), c=nn.Conv1d(4, 4, 3), b=nn.BatchNorm1d(4)),
        {"b": "it follows Conv1d"},
    ),
    "3-D": (
        Net(lambda net, x: net.b(net.c(x[:, :, None])), c=nn.Conv3d(4, 4, 1), b=nn.BatchNorm3d(4)),
        {"b": "it follows Conv3d"},
    ),
    "weight norm": (pair(conv=parametrizations.weight_norm(nn.Conv2d(4, 4, 3))), {"bn": "weight of conv is computed"}),
    "weight standardized": (
        pair(lambda net, x: net.bn(F.conv2d(x, net.conv.weight - net.conv.weight.mean(), net.conv.bias))),
        {"bn": "it follows conv2d"},
    ),
    "weight is also a penalty": (
        pair(lambda net, x: net.bn(net.conv(x)) + net.conv.weight.sum()),
        {"bn": "used more than once"},
    ),
    "gamma is also a gate": (
        pair(lambda net, x: net.bn(net.conv(x)) * net.bn.weight.sum()),
        {"bn": "used more than once"},
    ),
    "functional": (
        Net(
            lambda net, x: F.batch_norm(net.conv(x), net.part.running_mean, net.part.running_var),
            conv=nn.Conv2d(4, 4, 3),
            part=nn.BatchNorm2d(4, affine=False),
        ),
        {"part": "does not call it"},
    ),
    "unused": (pair(other=nn.BatchNorm2d(3)), {"bn": "> conv", "other": "does not call it"}),
    "bare": (nn.BatchNorm2d(4), {"": "cannot trace"}),
    "values decide": (
        pair(lambda net, x: net.bn(net.conv(x)) if net.conv(x).sum() > 0 else net.conv(x)),
        {"bn": "cannot trace the network: symbolically traced variables"},
    ),
    "number of images decides": (
        pair(lambda net, x: net.bn(net.conv(x)) if len(x) > 3 else net.conv(x)),
        {"bn": "cannot trace the network: 'len' is not supported"},
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_left_alone(kind):
    net, expected = LEFT[kind]
    check(net, expected)


@pytest.mark.filterwarnings("error")
def test_a_network_that_cannot_be_traced_makes_no_noise(capfd, caplog):
    fuse(LEFT["values decide"][0], pictures())
    assert capfd.readouterr() == ("", "") and not [record for record in caplog.records if record.levelname != "DEBUG"]


def test_functional_on_buffers_of_the_network():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)
            self.register_buffer("mean", torch.randn(4))
            self.register_buffer("var", torch.rand(4) + 0.5)

        def forward(self, x):
            return F.batch_norm(self.conv(x), self.mean, self.var)

    check(nn.Sequential(Own(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)), {"2": "> 1"})


def test_a_layer_of_ones_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.weight)

    check(pair(conv=Own()), {"bn": "it follows conv2d"})


def test_tied_weights_part_where_one_of_them_is_folded():
    net = pair(lambda net, x: net.bn(net.conv(x)) + net.conv2(x), conv2=nn.Conv2d(4, 4, 3, padding=1))
    net.conv2.weight = net.conv.weight
    check(net, {"bn": "> conv"})
    net = pair(lambda net, x: net.bn2(net.conv2(net.bn(net.conv(x)))), conv2=nn.Conv2d(4, 4, 3), bn2=nn.BatchNorm2d(4))
    net.bn2.weight = net.bn.weight
    net.conv2.bias = net.conv.bias
    check(net, {"bn": "> conv", "bn2": "> conv2"})


def test_a_module_under_two_names_is_one():
    net = pair()
    net.alias, net.inner = net.conv, nn.Sequential(net.bn)
    net.run = lambda net, x: net.inner(net.alias(x))
    fused = check(net, {"bn": "> conv"})
    assert type(fused.inner[0]) is nn.Identity


def test_hooks():
    def double(module, inputs, output):
        return 2 * output

    for name in ("conv", "bn"):
        net = pair()
        net.get_submodule(name).register_forward_hook(double)
        check(net, {"bn": "would change the output of bn"})
    net = Net(lambda net, x: net.bn(net.stem(x)), stem=nn.Sequential(nn.Conv2d(4, 4, 3)), bn=nn.BatchNorm2d(4))
    net.stem.register_forward_hook(double)
    check(net, {"bn": "it follows mul"})
    net = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    net[0].register_forward_hook(double)  # around both
    check(net, {"0.1": "> 0.0"})


class Shifted(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


class Padded(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Biasless(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight)


def test_subclasses():
    check(pair(bn=Shifted(4)), {"bn": "would change the output of bn"})
    patched = pair().eval()
    patched.bn.forward = MethodType(lambda bn, x: nn.BatchNorm2d.forward(bn, x) + 1, patched.bn)
    check(patched, {"bn": "would change the output of bn"})
    check(pair(conv=Padded(4, 4, 2, bias=False)), {"bn": "> conv"})
    check(pair(conv=Padded(4, 4, 2)), {"bn": "> conv"})
    check(pair(conv=Biasless(4, 4, 2, bias=False)), {"bn": "would change the output of bn"})
    check(pair(conv=Biasless(4, 4, 2)), {"bn": "would change the output of bn"})


def test_one_that_cannot_be_folded_does_not_keep_the_others_from_it():
    parts = [nn.Conv2d(4, 4, 3), Shifted(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), Shifted(4)]
    change = "would change the output of "
    check(nn.Sequential(*parts), {"1": f"{change}1", "3": "> 2", "5": f"{change}5"})


def test_under_no_grad_too():
    def forward(net, x):
        with torch.no_grad():
            x = net.bn(net.conv(x))
        with torch.enable_grad():
            return net.bn2(net.conv2(x))

    check(pair(forward, conv2=nn.Conv2d(4, 4, 3), bn2=nn.BatchNorm2d(4)), {"bn": "> conv", "bn2": "> conv2"})


def left_whole(net: nn.Module, reason: str) -> None:
    """Nothing is folded, for this reason, and the copy does what the network does."""
    copied, folds = fuse(net, pictures())
    assert folds and all(fold.into is None and reason in fold.reason for fold in folds)
    for count in (1, 3):
        assert torch.equal(copied(pictures(count=count)), net.eval()(pictures(count=count)))


def test_a_path_for_a_single_image_is_found():
    net = randomize(pair(lambda net, x: net.bn(net.conv(x)) if x.shape[0] > 1 else net.conv(x)))
    left_whole(net, "cannot trace the network")


def test_a_forward_that_reads_the_norm_is_found():
    net = randomize(pair(lambda net, x: net.bn(net.conv(x)) / net.bn.num_features))
    left_whole(net, "would change the output of the network")


def test_a_norm_reached_past_its_name_is_found():
    net = randomize(pair(lambda net, x: net.parts[1](net.parts[0](x))))
    net.parts = [net.conv, net.bn]  # a plain list: not replaced
    left_whole(net, "would change the output of bn")


def test_what_training_leaves_behind():
    net = randomize(pair())
    prune.l1_unstructured(net.conv, "weight", 0.5)  # its weight is part of a graph, which deepcopy refuses
    net(pictures())
    fused, folds = fuse(net, pictures())
    assert folds[0].into is None and "weight of conv is computed" in folds[0].reason
    torch.testing.assert_close(fused(pictures()), net.eval()(pictures()))


def test_networks_that_take_no_single_image():
    parts = (
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(4, track_running_stats=False),
    )
    check(nn.Sequential(*parts), {"1": "> 0", "4": "it follows Flatten"})


def test_errors_of_the_network_are_its_own():
    with pytest.raises(RuntimeError, match="expected input"):
        fuse(pair(), pictures(channels=3))


def test_network_stays_as_it_is():
    net = randomize(pair(conv=nn.Conv2d(4, 4, 3, bias=False))).train()
    net.bn.eval()
    tensors, values = dict(net.state_dict(keep_vars=True)), copy.deepcopy(net.state_dict())
    fused, _ = fuse(net, pictures())
    assert net.training and net.conv.training and not net.bn.training and net.conv.bias is None
    assert all(tensor is tensors[name] for name, tensor in net.state_dict(keep_vars=True).items())
    assert all(torch.equal(tensor, values[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not {p.data_ptr() for p in fused.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_trace_leaves_nothing_behind():
    def forward(net, x):
        net.features = net.conv(x)
        return net.bn(net.features)

    fused, _ = fuse(randomize(pair(forward)), pictures())
    assert not hasattr(fused, "features")


def test_copy_is_an_ordinary_module():
    net = randomize(
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    )
    net.requires_grad_(False)
    fused, _ = fuse(net, pictures())
    expected = fused(pictures())
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    again = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), again):
        assert torch.equal(other(pictures()), expected)


def test_memory_format_is_kept():
    net = randomize(pair(conv=nn.Conv2d(4, 4, 3, bias=False))).to(memory_format=torch.channels_last)
    fused, _ = fuse(net, pictures())
    assert fused.conv.weight.stride() == net.conv.weight.stride() != pair().conv.weight.stride()
    assert error(fused, net, pictures()) < 1e-5


def test_dead_and_negative_channels():
    net = randomize(pair())
    net.bn.weight.data.copy_(torch.tensor([0.0, -1, 2, 1e-8]))
    net.bn.running_var.copy_(torch.tensor([1.0, 0, 1e-20, 1e6]))
    fused, folds = fuse(net, pictures())
    assert folds == [Fold("bn", "conv", "")] and error(fused, net, pictures()) < 1e-5


@st.composite
def pairs(draw):
    groups = draw(st.integers(1, 3))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, stride, dilation = (draw(st.tuples(*[st.integers(1, most)] * 2)) for most in (4, 3, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode)
    norm = nn.BatchNorm2d(outputs, eps=draw(st.sampled_from([1e-8, 1e-5, 1e-3, 0.1])), affine=draw(st.booleans()))
    net = randomize(nn.Sequential(conv, norm), draw(st.integers(0, 1000)))
    values = st.sampled_from([1e-12, 1e-6, 1e-2, 1.0, 100.0])
    norm.running_var.copy_(torch.tensor([draw(values) for _ in range(outputs)]))
    if norm.affine:
        gammas = [draw(st.sampled_from([0.0, -2.0, 1e-3, 1.0, 5.0])) for _ in range(outputs)]
        norm.weight.data.copy_(torch.tensor(gammas))
    return net, pictures(inputs, 9, 2)


@settings(max_examples=25, deadline=None)
@given(pairs())
def test_any_pair(drawn):
    net, images = drawn
    fused, folds = fuse(net, images)
    assert folds == [Fold("1", "0", "")]
    assert error(fused, net, images) < 1e-5
    net = net.double()
    assert error(fuse(net, images.double())[0], net, images.double()) < 1e-12


@pytest.mark.parametrize("net", [ConvNet(4, 10, 32), ResNet(4, 10, 32), ResNet9(4, 10, 32, widths=(8, 16, 16, 32))])
def test_our_networks_fold_completely(net):
    norms = sum(isinstance(module, _BatchNorm) for module in net.modules())
    images = pictures(side=32)
    fused, folds = fuse(randomize(net), images)
    assert len(folds) == norms > 0 and all(fold.into for fold in folds)
    assert error(fused, net, images) < 1e-5


@pytest.mark.slow
def test_timm():
    timm = pytest.importorskip("timm")
    net = randomize(timm.create_model("tf_efficientnet_lite0", num_classes=5, in_chans=4))  # Conv2dSame, BatchNormAct2d
    fused, folds = fuse(net, pictures(side=32))
    assert len(folds) == 49 and all(fold.into for fold in folds)
    assert isinstance(fused.bn1, nn.Sequential) and error(fused, net, pictures(side=32)) < 1e-4


POOLED = {
    "plain": lambda net, x: net.bn(net.pool(net.conv(x))),
    "twice": lambda net, x: net.bn(net.pool(net.pool(net.conv(x)))),
    "two branches": lambda net, x: net.bn(net.pool(net.conv(x))) + net.pool(net.conv2(x)),
}


@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True)])
def test_through_a_max_pooling(kind, pool):
    """A scale of 0 too: max(0 x + b) = b."""
    net = pair(POOLED[kind], pool=pool, conv2=nn.Conv2d(4, 4, 3, padding=1))
    images = pictures().double()
    for scale, into in ((torch.tensor([0.5, 2, 1, 0]), "conv"), (torch.tensor([0.5, 2, -1, 1]), None)):
        randomize(net)
        with torch.no_grad():
            net.bn.weight.copy_(scale)
        ours = copy.deepcopy(net).double()
        fused, (fold,) = fuse(ours, images)
        assert fold.into == into and (into or fold.reason == "it follows the max pooling pool, and has negative scales")
        assert error(fused, ours, images) < 1e-12


def test_poolings_that_others_see_keep_their_norm():
    both = pair(lambda net, x: net.bn(y := net.pool(net.conv(x))) + y, pool=nn.MaxPool2d(2))
    check_positive(both, "it follows MaxPool2d, not a Conv2d or Linear")
    before = pair(lambda net, x: net.bn(net.pool(y := net.conv(x))) + net.pool(y), pool=nn.MaxPool2d(2))
    check_positive(before, "used more than once")
    mean = pair(lambda net, x: net.bn(net.pool(net.conv(x))), pool=nn.AvgPool2d(2))
    check_positive(mean, "it follows AvgPool2d")


def check_positive(net: nn.Module, reason: str) -> None:
    randomize(net)
    with torch.no_grad():
        net.bn.weight.abs_()
    fused, (fold,) = fuse(net, pictures())
    assert fold.into is None and reason in fold.reason
    assert error(fused, net, pictures()) < 1e-5
