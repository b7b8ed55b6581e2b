"""Muon: Newton-Schulz against float64 and the SVD, whole trajectories against a loop, the rest against torch's own."""

import copy
import csv
import io
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import DIGITS, SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from project.classifier import ImageClassifier
from project.errors import UserError
from project.nets import ConvNet, TorchvisionModel
from project.optim import Muon, group_table, param_groups
from project.optim.muon import orthogonal
from project.recipe import Recipe
from project.run.resume import check_changes

MUON = ["--model.optimizer=project.optim.Muon", "--model.lr=0.02"]
LAST = "runs/digits/version_0/checkpoints/last.ckpt"


def through_the_svd(matrix: np.ndarray, steps: int) -> np.ndarray:
    """U p(p(..p(S)..)) V^T: the polynomial acts on the singular values alone (Jordan et al. 2024)."""
    u, s, v = np.linalg.svd(matrix / (np.linalg.norm(matrix) + 1e-7), full_matrices=False)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 6), st.floats(1e-3, 1e3))
def test_newton_schulz_is_the_polynomial_of_the_singular_values(rows, columns, steps, scale) -> None:
    given = random(rows, columns) * scale
    found = orthogonal(given, steps)
    assert found.dtype == torch.float64
    assert found.numpy() == pytest.approx(through_the_svd(given.numpy(), steps), abs=1e-9)


@pytest.mark.parametrize("shape", [(64, 576), (256, 64), (100, 100)])
def test_singular_values_are_near_one_after_five_steps(shape) -> None:
    """In float32, thus in bfloat16 where the processor has it, whose rounding adds 2 or 3 %."""
    given = random(*shape, dtype=torch.float32)
    values = torch.linalg.svdvals(orthogonal(given, 5).float())
    large = torch.linalg.svdvals(given) > 0.1  # of up to 26
    assert values[large].min() > 0.65 and values.max() < 1.25
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    exact = torch.tensor(through_the_svd(given.double().numpy(), 5))
    assert (orthogonal(given, 5) - exact).norm() < 0.05 * exact.norm()
    assert (orthogonal(given, 5).float() - u @ v).norm() < 0.35 * (u @ v).norm()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(5, 3), (3, 5), (1, 4), (4, 1), (6, 2, 3, 3), (2, 6, 1, 1), (1, 1, 1, 1), (3, 1, 5, 5)]),
    st.sampled_from(["normal", "zeros", "equal", "tiny", "huge"]), st.booleans(), st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_any_shape_and_gradient_moves_by_a_bounded_step(shape, kind, nesterov, renormalise, dtype) -> None:
    p = nn.Parameter(random(*shape, seed=1).to(dtype).contiguous(memory_format=torch.preserve_format))
    made = {"zeros": torch.zeros(shape), "equal": torch.ones(shape), "tiny": random(*shape) * 1e-30}
    p.grad = made.get(kind, random(*shape) * (1e15 if kind == "huge" else 1)).to(dtype)
    muon, before = Muon([p], lr=0.1, nesterov=nesterov, renormalise=False), p.detach().clone()
    muon.step()
    rows, columns = shape[0], p[0].numel()
    # Newton-Schulz leaves singular values up to 1.21; each of the smaller side's at most
    largest = 0.1 * 1.25 * (min(rows, columns) * max(1, rows / columns)) ** 0.5
    assert p.isfinite().all() and (p - before).double().norm() <= largest + 0.02 * before.double().norm()
    if kind == "zeros":
        assert torch.equal(p, before)
    muon = Muon([p], lr=0.0, renormalise=renormalise)
    muon.step()
    kept = rows**0.5 if renormalise and len(shape) > 2 else p.detach().double().norm()
    assert p.detach().double().norm() == pytest.approx(float(kept), rel=0.01)


class Small(nn.Module):
    """A convolution, a norm, a 1x1 convolution that has more rows than columns, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.wide, self.hidden, self.head = nn.Conv2d(8, 12, 1), nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.norm(self.conv(x)).relu()).relu()
        return self.head(self.hidden(x.mean((2, 3))).relu())


def small(dtype: torch.dtype = torch.float64, channels_last: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Small().to(dtype).to(memory_format=layout)


def backward(net: nn.Module, step: int) -> torch.Tensor:
    dtype = net.head.weight.dtype
    net.zero_grad()
    loss = nn.functional.cross_entropy(net(random(16, 3, 6, 6, seed=step).to(dtype)), torch.arange(16) % 4)
    loss.backward()
    return loss


HIDDEN = {"conv.weight", "wide.weight", "hidden.weight"}
OPTIONS = [
    {},
    {"momentum": 0.6, "ns_steps": 3, "weight_decay": 0.2, "rest": "sgd", "rest_lr": 0.2, "rest_momentum": 0.85},
    {"nesterov": False, "renormalise": False, "weight_decay": 0.1, "momentum": 0.0},
]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_trajectory_is_that_of_a_plain_loop_and_the_rest_is_torchs(options, channels_last) -> None:
    chosen = {"momentum": 0.95, "nesterov": True, "weight_decay": 0.0, "ns_steps": 5, "renormalise": True}
    chosen |= {"rest": "adamw", "rest_lr": 0.015, "rest_momentum": 0.9} | options
    ours = small(channels_last=channels_last)
    muon = Muon(param_groups(ours, 0.1, {"^head": 3.0}, rest_lr=chosen["rest_lr"]), 0.1, **options)
    theirs = small(channels_last=channels_last)
    weights = {name: p.detach().numpy().copy() for name, p in theirs.named_parameters()}
    decay, m = chosen["weight_decay"], chosen["rest_momentum"]
    others = [(name, p) for name, p in theirs.named_parameters() if name not in HIDDEN]
    rest = [{"params": [p], "lr": 0.1 * (3.0 if "head" in name else 1.0) * chosen["rest_lr"]} for name, p in others]
    sgd = {"momentum": m, "weight_decay": decay, "nesterov": chosen["nesterov"]}
    torchs = (
        torch.optim.SGD(rest, **sgd)
        if chosen["rest"] == "sgd"
        else torch.optim.AdamW(rest, betas=(m, 0.95), weight_decay=decay)
    )
    buffers = {name: np.zeros_like(weights[name]) for name in HIDDEN}
    for step in range(6):
        backward(ours, step)
        for name, p in theirs.named_parameters():
            p.grad = ours.get_parameter(name).grad.clone()
        muon.step()
        torchs.step()
        for name in HIDDEN:
            g, w = theirs.get_parameter(name).grad.numpy(), weights[name]
            buffers[name] = chosen["momentum"] * buffers[name] + g
            update = g + chosen["momentum"] * buffers[name] if chosen["nesterov"] else buffers[name]
            update = through_the_svd(update.reshape(len(w), -1), chosen["ns_steps"])
            rows, columns = update.shape
            if w.ndim == 4 and chosen["renormalise"]:
                w = w / np.linalg.norm(w) * np.sqrt(rows)
            weights[name] = (1 - 0.1 * decay) * w - 0.1 * np.sqrt(max(1, rows / columns)) * update.reshape(w.shape)
            assert ours.get_parameter(name).detach().numpy() == pytest.approx(
                weights[name], abs=1e-7
            )  # its norms have 1e-7 added
        assert all(torch.equal(ours.get_parameter(name), p) for name, p in others)


def test_float32_weights_follow_the_float64_ones() -> None:
    exact, rounded = small(), small(torch.float32)
    for net in (exact, rounded):
        muon = Muon(net.parameters(), lr=0.05)
        for step in range(4):
            backward(net, step)
            muon.step()
    for p, q in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert (p - q).norm() < 0.1 * p.norm() + 1e-3


def test_from_python_the_number_of_dimensions_decides() -> None:
    marked, plain = small(), small()
    groups = [
        {"params": [p for p in marked.parameters() if p.ndim > 1]},
        {"params": [p for p in marked.parameters() if p.ndim <= 1], "muon": False},
    ]
    for net, muon in ((marked, Muon(groups, lr=0.1)), (plain, Muon(plain.parameters(), lr=0.1))):
        for step in range(3):
            backward(net, step)
            muon.step()
    assert all(map(torch.equal, marked.parameters(), plain.parameters()))


@pytest.mark.parametrize("options", OPTIONS)
def test_resumed_at_any_step_it_continues_to_the_same_bit(options) -> None:
    def make(net: nn.Module) -> Muon:
        return Muon(param_groups(net, 0.1, rest_lr=options.get("rest_lr", 0.015)), 0.1, **options)

    straight = small(torch.float32)
    muon, saved = make(straight), []
    for step in range(5):
        buffer = io.BytesIO()
        torch.save((muon.state_dict(), straight.state_dict()), buffer)
        saved.append(buffer.getvalue())
        backward(straight, step)
        muon.step()
    for start, content in enumerate(saved):
        state, weights = torch.load(io.BytesIO(content), weights_only=True)
        net = small(torch.float32)
        net.load_state_dict(weights)
        resumed = make(net)
        resumed.load_state_dict(state)
        for step in range(start, 5):
            backward(net, step)
            resumed.step()
        assert all(map(torch.equal, net.parameters(), straight.parameters()))


def test_without_a_gradient_nothing_moves_and_a_closure_is_called() -> None:
    net = small()
    net.conv.requires_grad_(False)
    before, muon = copy.deepcopy(net.state_dict()), Muon(net.parameters())
    muon.step()
    assert not muon.state and all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert muon.step(lambda: backward(net, 0)).requires_grad
    assert torch.equal(net.conv.weight, before["conv.weight"]) and not torch.equal(net.norm.bias, before["norm.bias"])


@pytest.mark.parametrize(
    "options",
    [{"momentum": 1.0}, {"momentum": -0.1}, {"ns_steps": 0}, {"rest_lr": 0.0}, {"lr": -1.0},
     {"weight_decay": -0.1}, {"rest_momentum": 1.0}, {"rest": "sgd", "rest_momentum": -0.1}],
)  # fmt: skip
def test_bad_arguments(options) -> None:
    with pytest.raises(ValueError) as caught:
        Muon([nn.Parameter(torch.zeros(1))], **options)
    assert "\n" not in str(caught.value)


# Which weights, and their groups


def matrices(net: nn.Module) -> set[str]:
    names = {id(p): name for name, p in net.named_parameters()}
    groups = param_groups(net, 0.1, rest_lr=0.1)
    assert Counter(id(p) for group in groups for p in group["params"]) == Counter(names.keys())
    return {names[id(p)] for group in groups if group["name"] == "all/muon" for p in group["params"]}


def test_hidden_convolutions_and_linear_layers_are_its_matrices() -> None:
    assert matrices(small()) == HIDDEN
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        vit, mobile = timm.create_model("vit_tiny_patch16_224"), TorchvisionModel(3, 5, 32, "mobilenet_v2")
    layers = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert matrices(vit) == {"patch_embed.proj.weight"} | {f"blocks.{i}.{x}.weight" for i in range(12) for x in layers}
    dense = {
        f"{path}.weight"
        for path, module in mobile.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    }
    assert matrices(mobile) == dense and len(dense) < sum(p.ndim == 4 for p in mobile.parameters())


def test_the_groups_are_in_the_table_with_their_rates() -> None:
    net = ConvNet(3, 5, 16, channels=[4, 8])
    groups = param_groups(net, 0.2, {"^head": 5.0}, no_weight_decay=True, rest_lr=0.25)
    rows = group_table(Muon(groups, 0.2, weight_decay=0.1, rest_lr=0.25).param_groups, {})
    assert [(row["group"], row["rate"], row["weight_decay"]) for row in rows] == [
        ("rest/muon", pytest.approx(0.2), 0.1),
        ("rest/no_decay", pytest.approx(0.05), 0.0),
        ("^head", pytest.approx(0.25), 0.1),
        ("^head/no_decay", pytest.approx(0.25), 0.0),
    ]
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in net.parameters())
    shares = [group["lr"] for group in param_groups(net, 0.2, stem_lr=0.1, rest_lr=0.25)]
    assert min(shares) == pytest.approx(0.2 * 0.1 * 0.25) and max(shares) < 0.2  # the head, which has all, is the rest


# On the command line


def fit(cli, *options: str) -> None:
    result = cli("fit", *DIGITS, *SMALL, *MUON, *options)
    assert result.code == 0 and result.err == "", result.err


def weights() -> dict[str, torch.Tensor]:
    return torch.load(LAST, weights_only=True)["state_dict"]


def test_it_trains_with_all_that_goes_with_an_optimizer(cli) -> None:
    choice = ["--model.no_weight_decay=true", "--model.optimizer.weight_decay=0.1", "--trainer.gradient_clip_val=1"]
    fit(cli, *choice, "--model.reference_batch=64", "--model.lr_scaling=sqrt", "--trainer.max_epochs=1")
    with open("runs/digits/version_0/groups.csv") as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    rates = {name: float(row["rate"]) for name, row in rows.items()}
    assert rates.keys() == {"all/muon", "all", "all/no_decay"}
    assert rates["all"] == rates["all/no_decay"] == pytest.approx(0.015 * rates["all/muon"])
    assert all(value.isfinite().all() for value in weights().values())


def test_a_bad_choice_is_an_error_of_one_line(cli) -> None:
    for option, word in (
        ("--model.optimizer.rest=adam", "rest"),
        ("--model.optimizer.momentum=1.5", "momentum of 0 to below 1"),
        ("--model.optimizer.rest_lr=0", "rest_lr above 0"),
        ("--model.no_weight_decay=true", "no weight_decay"),
    ):
        result = cli("fit", *DIGITS, *SMALL, *MUON, option)
        assert result.code == 2 and len(result.err.splitlines()) == 1 and word in result.err, result.err


def test_what_a_resumed_run_may_change() -> None:
    base = {"optimizer.class_path": "project.optim.Muon", "schedule.class_path": "project.optim.Cosine"}
    for key in ("momentum", "rest_lr", "rest_momentum", "weight_decay", "ns_steps", "renormalise", "nesterov"):
        name = f"optimizer.init_args.{key}"
        assert len(check_changes("fit", base | {name: 1}, base | {name: 2})) == 1
    for chosen, key in ((base, "rest"), (base | {"schedule.class_path": "torch.optim.X"}, "rest_lr")):
        name = f"optimizer.init_args.{key}"
        with pytest.raises(UserError, match="cannot be changed for a trained model"):
            check_changes("fit", chosen | {name: 1}, chosen | {name: 2})


def recipe(make) -> Recipe:
    return Recipe(0.2, make, None, 1.0, False, None, None, 0.0, 0.01, None, "none")


def test_a_subclass_is_one_too() -> None:
    class Own(Muon):
        pass

    for make in (Muon, Own):
        groups = recipe(lambda params, lr, make=make: make(params, lr)).optimizer(small(), 1).param_groups
        assert [(group["name"], group["muon"]) for group in groups] == [("all/muon", True), ("all", False)]


def test_a_checkpoint_of_the_classifier_holds_both_states() -> None:
    torch.manual_seed(0)
    model = ImageClassifier(lambda *given: ConvNet(*given, channels=[4]), ["a", "b"], image_size=8, optimizer=Muon)
    optimizer = model.recipe.optimizer(model.net, 1)
    model.net(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    kinds = {frozenset(state) for state in optimizer.state_dict()["state"].values()}
    assert kinds == {frozenset({"momentum_buffer"}), frozenset({"step", "exp_avg", "exp_avg_sq"})}
