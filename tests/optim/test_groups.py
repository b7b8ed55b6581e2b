"""Parameter groups: every parameter in exactly one, with the rate and decay that a brute-force loop finds."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from project.errors import UserError
from project.nets import ConvNet, ResNet, TorchvisionModel
from project.optim import group_table, layers, param_groups
from project.optim.groups import without_decay

SLOW = pytest.mark.slow


def net() -> nn.Module:
    return ConvNet(3, 5, 16, channels=[4, 8])


def rates(some: nn.Module, groups: list[dict]) -> dict[str, tuple[float, bool]]:
    """Name -> its rate, and whether it decays."""
    found = {id(p): (group["lr"], group.get("weight_decay") != 0.0) for group in groups for p in group["params"]}
    return {name: found[id(parameter)] for name, parameter in some.named_parameters()}


def test_one_group_by_default() -> None:
    some = net()
    groups = param_groups(some, 0.1)
    assert [(group["name"], group["lr"]) for group in groups] == [("all", 0.1)]
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in some.parameters()]


def test_a_shared_parameter_comes_once() -> None:
    some = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    some[1].weight = some[0].weight
    assert sum(len(group["params"]) for group in param_groups(some, 0.1)) == 3  # one weight, two biases


PATTERNS = ["head", "^stages", r"\.norm\.", "bias$", "conv", r"0\.", "weight"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(PATTERNS), unique=True, max_size=3),
    st.lists(st.floats(0.01, 10), min_size=3, max_size=3),
    st.floats(0.1, 1),
    st.booleans(),
)
def test_every_rate_is_that_of_a_plain_loop(patterns, factors, decay, spare) -> None:
    some = ResNet(3, 4, 16, depths=[1, 1], width=8)
    lr_mult = dict(zip(patterns, factors, strict=False))
    names = [name for name, _ in some.named_parameters()]
    first = {name: next((pattern for pattern in lr_mult if re.search(pattern, name)), None) for name in names}
    if set(lr_mult) - set(first.values()):
        with pytest.raises(UserError, match="applies to none of"):
            param_groups(some, 0.5, lr_mult, decay, spare)
        return
    groups = param_groups(some, 0.5, lr_mult, decay, spare)
    times = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert times == Counter(id(parameter) for parameter in some.parameters())
    titles = [group["name"] for group in groups]
    assert len(set(titles)) == len(titles)
    ordered, found = layers(some), rates(some, groups)
    for place, layer in enumerate(ordered):
        for name in set(layer.tensors) & set(names):
            rate = 0.5
            for _ in range(len(ordered) - 1 - place):
                rate *= decay
            assert found[name][0] == pytest.approx(rate * lr_mult.get(first[name], 1.0))
            assert found[name][1] == (not spare or (name.endswith("weight") and some.get_parameter(name).ndim > 1))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", pytest.param("resnet18d", marks=SLOW), "convnext_atto"])
def test_layer_decay_is_timms(name) -> None:
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    bare = timm.create_model(name, num_classes=7)
    theirs = {}
    spared = bare.no_weight_decay() if hasattr(bare, "no_weight_decay") else ()
    for group in param_groups_layer_decay(bare, weight_decay=0.1, layer_decay=0.7, no_weight_decay_list=spared):
        theirs |= {id(p): (group["lr_scale"], group["weight_decay"] != 0.0) for p in group["params"]}
    ours = rates(bare, param_groups(bare, 1.0, layer_decay=0.7, no_weight_decay=True))
    # Theirs has the final norm, where there is one, and the head in one layer; ours gives the head a layer of its own.
    ratio = {round(ours[name][0] / theirs[id(p)][0], 9) for name, p in bare.named_parameters()}
    assert len(ratio) <= 2 and all(ours[name][1] == theirs[id(p)][1] for name, p in bare.named_parameters())


def test_torchvision_from_stem_to_head() -> None:
    groups = param_groups(TorchvisionModel(3, 5, 32, "resnet18"), 1.0, layer_decay=0.5)
    names = ["conv1", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2))]
    assert [group["name"] for group in groups] == [*(f"backbone.{name}" for name in names), "head"]
    assert [group["lr"] for group in groups] == [0.5**depth for depth in range(9, -1, -1)]


def test_the_first_pattern_counts() -> None:
    some = net()
    found = rates(some, param_groups(some, 1.0, {"bias$": 2.0, "^head": 10.0}))
    assert (
        found["head.bias"][0] == 2.0 and found["head.weight"][0] == 10.0 and found["stages.0.0.conv.weight"][0] == 1.0
    )


def test_norms_biases_and_what_a_network_names_itself_do_not_decay() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.scale = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 4))
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

        def no_weight_decay(self) -> set[str]:
            return {"token"}

    some = nn.Sequential(Own())
    assert without_decay(some) == {"0.token", "0.norm.weight", "0.norm.bias", "0.head.bias"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr_mult": {"nothing": 2}}, "'nothing' applies to none of stages.0.0.conv.weight"),
        ({"lr_mult": {"head": 2, "head.bias": 3}}, "'head.bias' applies to none of"),
        ({"lr_mult": {"(": 2}}, "not a regular expression"),
        ({"lr_mult": {"head": 0}}, "above 0"),
        ({"lr_mult": {"head": -1}}, "above 0"),
        ({"lr_mult": {"head": float("nan")}}, "above 0"),
        ({"layer_decay": 0}, "above 0 and at most 1"),
        ({"layer_decay": -1}, "above 0 and at most 1"),
        ({"layer_decay": 1.5}, "above 0 and at most 1"),
    ],
)
def test_bad_input(arguments, words) -> None:
    with pytest.raises(UserError) as caught:
        param_groups(net(), 0.1, **arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_optimizers_take_them_and_keep_their_names(kind) -> None:
    some = net()
    optimizer = kind(param_groups(some, 0.25, {"head": 2}, no_weight_decay=True), 0.1, weight_decay=0.5)
    rows = group_table(optimizer.param_groups, {})
    assert [(row["group"], row["rate"], row["weight_decay"], row["trainable"]) for row in rows] == [
        ("rest", 0.25, 0.5, "yes"),
        ("rest/no_decay", 0.25, 0.0, "yes"),
        ("head", 0.5, 0.5, "yes"),
        ("head/no_decay", 0.5, 0.0, "yes"),
    ]
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in some.parameters())


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ({}, "yes"),
        ({0: None, 1: None}, "no"),
        ({0: 2, 1: 2}, "from epoch 3"),
        ({0: None, 1: 4}, "2 no, 3 from epoch 5"),
    ],
)
def test_when_a_group_trains(starts, words) -> None:
    two = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    groups = [{"name": "all", "params": two, "lr": 0.1}]
    (row,) = group_table(groups, {id(two[i]): start for i, start in starts.items()})
    assert row["trainable"] == words and row["weight_decay"] == 0.0
