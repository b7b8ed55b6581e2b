"""Parameter groups: every parameter in exactly one, with the rate and decay that a brute-force loop finds."""

import re
from collections import Counter

import pytest
import torch
from conftest import slow_but
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
    st.floats(0.01, 1),
    st.booleans(),
)
def test_every_rate_is_that_of_a_plain_loop(patterns, factors, share, spare) -> None:
    some = ResNet(3, 4, 16, depths=[1, 1], width=8)
    lr_mult = dict(zip(patterns, factors, strict=False))
    names = [name for name, _ in some.named_parameters()]
    first = {name: next((pattern for pattern in lr_mult if re.search(pattern, name)), None) for name in names}
    if set(lr_mult) - set(first.values()):
        with pytest.raises(UserError, match="applies to none of"):
            param_groups(some, 0.5, lr_mult, share, spare)
        return
    groups = param_groups(some, 0.5, lr_mult, share, spare)
    times = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert times == Counter(id(parameter) for parameter in some.parameters())
    titles = [group["name"] for group in groups]
    assert len(set(titles)) == len(titles)
    ordered, found = layers(some), rates(some, groups)
    for place, layer in enumerate(ordered):
        for name in set(layer.tensors) & set(names):
            rate = 0.5
            for _ in range(len(ordered) - 1 - place):
                rate *= share ** (1 / (len(ordered) - 1))
            assert found[name][0] == pytest.approx(rate * lr_mult.get(first[name], 1.0))
            assert found[name][1] == (not spare or (name.endswith("weight") and some.get_parameter(name).ndim > 1))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", pytest.param("resnet18d", marks=SLOW), "convnext_atto"])
def test_factor_between_layers_is_timms_layer_decay(name) -> None:
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    bare = timm.create_model(name, num_classes=7)
    theirs = {}
    spared = bare.no_weight_decay() if hasattr(bare, "no_weight_decay") else ()
    for group in param_groups_layer_decay(bare, weight_decay=0.1, layer_decay=0.7, no_weight_decay_list=spared):
        theirs |= {id(p): (group["lr_scale"], group["weight_decay"] != 0.0) for p in group["params"]}
    share = 0.7 ** (len(layers(bare)) - 1)
    ours = rates(bare, param_groups(bare, 1.0, stem_lr=share, no_weight_decay=True))
    # Theirs has the final norm, where there is one, and the head in one layer; ours gives the head a layer of its own.
    ratio = {round(ours[name][0] / theirs[id(p)][0], 9) for name, p in bare.named_parameters()}
    assert len(ratio) <= 2 and all(ours[name][1] == theirs[id(p)][1] for name, p in bare.named_parameters())


def test_torchvision_from_stem_to_head() -> None:
    groups = param_groups(TorchvisionModel(3, 5, 32, "resnet18"), 1.0, stem_lr=0.5**9)
    names = ["conv1", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2))]
    assert [group["name"] for group in groups] == [*(f"backbone.{name}" for name in names), "head"]
    assert [group["lr"] for group in groups] == pytest.approx([0.5**depth for depth in range(9, -1, -1)])


DEPTHS = {"resnet18": 10, "densenet121": 63, "vgg11": 11, "vit_b_32": 14}


@pytest.mark.parametrize("name", DEPTHS)
def test_the_stem_has_its_share_in_networks_of_any_depth(name) -> None:
    with torch.device("meta"):
        some = TorchvisionModel(3, 5, 32, name)
    found = [group["lr"] for group in param_groups(some, 2.0, stem_lr=0.01)]
    assert len(found) == DEPTHS[name] and found[-1] == 2.0
    assert found == pytest.approx(torch.logspace(-2, 0, len(found), dtype=torch.float64).mul(2).tolist())


def test_a_network_that_is_all_head_has_the_whole_rate() -> None:
    (group,) = param_groups(nn.Linear(3, 2), 0.5, stem_lr=0.01)
    assert group["lr"] == 0.5


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
    assert without_decay(some) == {"0.token", "0.scale", "0.norm.weight", "0.norm.bias", "0.head.bias"}


DECAYING = {  # last names of what is left when norms, biases, tokens, position embeddings and scales are spared
    "vit_b_32": "weight in_proj_weight",
    "swin_t": "weight",
    "swin_v2_t": "weight",
    "maxvit_t": "weight",
    "convnext_tiny": "weight",
}


@pytest.mark.parametrize("name", slow_but(DECAYING, "vit_b_32", "swin_v2_t"))
def test_torchvisions_embeddings_and_scales_do_not_decay(name) -> None:
    with torch.device("meta"):
        some = TorchvisionModel(3, 5, 224, name)
    kept = {key: value for key, value in some.named_parameters() if key not in without_decay(some)}
    assert {key.rpartition(".")[2] for key in kept} == set(DECAYING[name].split())
    layers_of = nn.Linear | nn.Conv2d | nn.MultiheadAttention
    assert all(isinstance(some.get_submodule(key.rpartition(".")[0]), layers_of) for key in kept)
    every = [module.weight for module in some.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert {id(value) for value in every} <= {id(value) for value in kept.values()}


TIMM = ["deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s", "xcit_nano_12_p16_224"]
TIMM += ["beit_base_patch16_224", "mvitv2_tiny", "coat_lite_tiny", "pit_ti_224", "cait_xxs24_224", "tnt_s_patch16_224"]


@pytest.mark.parametrize("name", [TIMM[0], *(pytest.param(name, marks=SLOW) for name in TIMM[1:])])
def test_the_rule_finds_what_timm_lists(name) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        some = timm.create_model(name, num_classes=7)
    listed = {key for key, _ in some.named_parameters() if key in some.no_weight_decay()}
    some.no_weight_decay = set
    assert listed and listed <= without_decay(some)


def test_norms_of_any_shape_and_embeddings_do_not_decay_but_every_matrix_does() -> None:
    some = nn.Module()
    some.norm, some.places, some.lstm = nn.LayerNorm([3, 4, 4]), nn.Embedding(5, 4), nn.LSTM(4, 4)
    some.head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    kept, original = set(dict(some.named_parameters())) - without_decay(some), "head.parametrizations.weight.original"
    assert kept == {"lstm.weight_ih_l0", "lstm.weight_hh_l0", *(f"{original}{i}" for i in "01")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr_mult": {"nothing": 2}}, "'nothing' applies to none of stages.0.0.conv.weight"),
        ({"lr_mult": {"head": 2, "head.bias": 3}}, "'head.bias' applies to none of"),
        ({"lr_mult": {"(": 2}}, "not a regular expression"),
        ({"lr_mult": {"head": 0}}, "above 0"),
        ({"lr_mult": {"head": -1}}, "above 0"),
        ({"lr_mult": {"head": float("nan")}}, "above 0"),
        ({"stem_lr": 0}, "above 0 and at most 1"),
        ({"stem_lr": -1}, "above 0 and at most 1"),
        ({"stem_lr": 1.5}, "above 0 and at most 1"),
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
