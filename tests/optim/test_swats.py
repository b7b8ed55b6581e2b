"""SWATS against torch's Adam and SGD, bit by bit, and against Algorithm 1 of the paper written in numpy."""

import copy
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR

from project.optim.swats import SWATS

LOOSE = 0.01  # with this switch_tol the runs in float64 below switch by themselves after some steps

Schedule = Callable[[torch.optim.Optimizer], LRScheduler]
CONSTANT = pytest.param(lambda o: LambdaLR(o, lambda step: 1.0), id="constant")
SCHEDULES = [
    CONSTANT,
    pytest.param(lambda o: LambdaLR(o, lambda step: (step % 5) / 4), id="with zeros"),
    pytest.param(lambda o: StepLR(o, 7, 0.3), id="steps"),
    pytest.param(lambda o: CosineAnnealingLR(o, 59), id="cosine to 0"),
]


class Problem:
    """Logistic regression on noisy mini-batches: 3 parameters in one or two groups, the same run each time."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        random = np.random.default_rng(3)
        self.x, self.y = random.normal(size=(200, 6)), random.integers(0, 2, size=200).astype(float)
        self.x[:, 0] += self.y
        shapes = [(6, 4), (4,), (4,)]
        self.params = [nn.Parameter(torch.tensor(random.normal(size=shape) * 0.5, dtype=dtype)) for shape in shapes]

    def groups(self, *rates: float, **options: Any) -> list[dict[str, Any]]:
        cut = [self.params] if len(rates) < 2 else [self.params[:1], self.params[1:]]
        return [{"params": params, "lr": rate, **options} for params, rate in zip(cut, rates or (0.02,), strict=True)]

    def backward(self, step: int) -> Tensor:
        rows = np.random.default_rng(step).integers(0, 200, size=50)
        weight, bias, last = self.params
        x, y = torch.tensor(self.x[rows], dtype=weight.dtype), torch.tensor(self.y[rows], dtype=weight.dtype)
        for p in self.params:
            p.grad = None
        loss = nn.functional.binary_cross_entropy_with_logits(torch.tanh(x @ weight + bias) @ last, y)
        loss.backward()
        return loss

    def run(self, optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int = 60) -> Iterator[int]:
        scheduler = schedule(optimizer)
        for step in range(steps):
            self.backward(step)
            yield step
            scheduler.step()

    def same(self, other: "Problem") -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.params, other.params, strict=True))


def settle(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Lets the first group switch from step 12 on (counted from 0) and the second from step 20."""
    for group, at in zip(optimizer.param_groups, (12, 20), strict=False):
        group["switch_tol"] = 1e6 if step >= at else 0.0


def algorithm_1(grads: Iterator[list[np.ndarray]], lr: float, tol: float) -> tuple[int, float]:
    """The paper's Algorithm 1 as it stands there, its names and order, up to the switch: (k, Lambda)."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    m, a, lam = 0.0, 0.0, 0.0
    for k, gs in enumerate(grads, 1):
        g = np.concatenate([g.ravel() for g in gs])
        m = beta1 * m + (1 - beta1) * g
        a = beta2 * a + (1 - beta2) * g**2
        p = -lr / (1 - beta1**k) * m / (np.sqrt(a / (1 - beta2**k)) + eps)  # eps after the correction, as torch's Adam
        if p @ g != 0:
            gamma = (p @ p) / -(p @ g)
            lam = beta2 * lam + (1 - beta2) * gamma
            if k > 1 and abs(lam / (1 - beta2**k) - gamma) < tol:
                return k, lam / (1 - beta2**k)
    return 0, math.nan


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_before_the_switch_it_is_torchs_adam(schedule, decay, dtype) -> None:
    ours, torchs = Problem(dtype), Problem(dtype)
    options = {"betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": decay}
    swats = SWATS(ours.groups(0.02, 0.005), switch_tol=0.0, **options)
    adam = torch.optim.Adam(torchs.groups(0.02, 0.005), **options)
    for _ in zip(ours.run(swats, schedule), torchs.run(adam, schedule), strict=True):
        rates = [group["lr"] for group in swats.param_groups]
        swats.step()
        adam.step()
        assert ours.same(torchs)
        assert [group["rate_in_force"] for group in swats.param_groups] == rates
        assert all(group["switch_step"] is None and group["projected_rate"] is None for group in swats.param_groups)


@pytest.mark.parametrize("beta1", [0.9, 0.0])
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_the_switch_it_is_torchs_sgd(schedule, decay, beta1) -> None:
    """A fresh SGD takes over at the group's switch, with its rate set by hand, and is the same to the last bit."""
    ours, torchs = Problem(torch.float32), Problem(torch.float32)
    swats = SWATS(ours.groups(0.02, 0.005), betas=(beta1, 0.999), weight_decay=decay)
    sgds: dict[int, torch.optim.SGD] = {}
    for step in ours.run(swats, schedule):
        settle(swats, step)
        for i, group in enumerate(swats.param_groups):
            if group["switch_step"] is None:
                continue
            theirs = torchs.groups(1.0, 1.0)[i]["params"]
            if i not in sgds:
                sgds[i] = torch.optim.SGD(theirs, momentum=beta1, weight_decay=decay)
                for mine, p in zip(group["params"], theirs, strict=True):
                    p.data.copy_(mine.data)
            for mine, p in zip(group["params"], theirs, strict=True):
                p.grad = mine.grad.clone()
            factor = group["lr"] / (0.02, 0.005)[i]
            sgds[i].param_groups[0]["lr"] = (1 - beta1) * group["projected_rate"] * factor
        swats.step()
        for i, sgd in sgds.items():
            sgd.step()
            assert swats.param_groups[i]["rate_in_force"] == sgd.param_groups[0]["lr"]
            assert all(map(torch.equal, swats.param_groups[i]["params"], sgd.param_groups[0]["params"]))
    assert [12 < group["switch_step"] < 30 for group in swats.param_groups] == [True, True]


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("tol", [0.1, 0.03, LOOSE, 0.003])
def test_the_switch_is_algorithm_1s(tol, decay) -> None:
    problem = Problem()
    swats = SWATS(problem.params, lr=0.02, weight_decay=decay, switch_tol=tol)

    def grads() -> Iterator[list[np.ndarray]]:
        for _ in problem.run(swats, lambda o: StepLR(o, 1000), steps=500):
            yield [(p.grad + decay * p.detach()).numpy() for p in problem.params]
            swats.step()

    found = grads()
    k, rate = algorithm_1(found, 0.02, tol)
    next(found)  # lets SWATS take step k
    group = swats.param_groups[0]
    assert k > 1 and (group["switch_step"], group["projected_rate"]) == (k, pytest.approx(rate, rel=1e-9))


def test_a_whole_run_on_a_quadratic_is_algorithm_1s() -> None:
    """Both phases together with everything in float64 numpy, the weights too: f = sum of c w^2 / 2."""
    c, w, lr, tol = np.array([1.0, 3.0, 0.2]), np.array([2.0, -1.0, 1.5]), 0.05, 0.004
    p = nn.Parameter(torch.tensor(w))
    swats = SWATS([p], lr=lr, switch_tol=tol)
    m, a, v, lam, big, switched = np.zeros(3), np.zeros(3), np.zeros(3), 0.0, 0.0, 0
    for k in range(1, 200):
        p.grad = torch.tensor(c) * p.detach()
        swats.step()
        g = c * w
        if switched:
            v = 0.9 * v + g
            w = w - (1 - 0.9) * big * v
        else:
            m, a = 0.9 * m + 0.1 * g, 0.999 * a + 0.001 * g**2
            step = -lr * (m / (1 - 0.9**k)) / (np.sqrt(a / (1 - 0.999**k)) + 1e-8)
            w = w + step
            gamma = step @ step / -(step @ g)
            lam = 0.999 * lam + 0.001 * gamma
            if k > 1 and abs(lam / (1 - 0.999**k) - gamma) < tol:
                switched, big = k, lam / (1 - 0.999**k)
        assert p.detach().numpy() == pytest.approx(w, rel=1e-9, abs=1e-12)
    assert 1 < switched < 100
    assert swats.param_groups[0]["switch_step"] == switched
    assert swats.param_groups[0]["projected_rate"] == pytest.approx(big)


def test_every_group_switches_on_its_own_and_rates_keep_their_ratio() -> None:
    """The same gradients for two groups, one with a tenth of the rate: so is Lambda, if the tolerance is."""
    first, second = (nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    noise = torch.Generator().manual_seed(0)
    swats = SWATS(
        [{"params": [first]}, {"params": [second], "lr": 0.001, "switch_tol": 1e-5}], lr=0.01, switch_tol=1e-4
    )
    for _ in range(300):
        first.grad = torch.randn(5, generator=noise, dtype=torch.float64) + 1
        second.grad = first.grad.clone()
        swats.step()
    one, two = swats.param_groups
    assert one["switch_step"] == two["switch_step"] > 1
    assert one["projected_rate"] == pytest.approx(10 * two["projected_rate"])

    problem = Problem()
    swats = SWATS(problem.groups(0.02, 0.005), switch_tol=LOOSE)
    for _ in problem.run(swats, lambda o: StepLR(o, 1000)):
        swats.step()
    one, two = swats.param_groups
    assert None not in (one["switch_step"], two["switch_step"]) and one["switch_step"] != two["switch_step"]


@pytest.mark.parametrize("factor", [1e-9, 0.01, 1.0, 50.0])
def test_the_projection_does_not_see_the_schedule(factor) -> None:
    """On the same gradients, so that only the rate differs: the same switch, and the rate scaled afterwards."""
    rows = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) + 1
    plain, scaled = (SWATS([nn.Parameter(torch.ones(5))], lr=0.01, switch_tol=1e-4) for _ in range(2))
    scaled.param_groups[0]["lr"] *= factor
    for row in rows:
        for swats in (plain, scaled):
            swats.param_groups[0]["params"][0].grad = row.clone()
            swats.step()
    one, two = plain.param_groups[0], scaled.param_groups[0]
    assert one["switch_step"] and (one["switch_step"], one["projected_rate"]) == (
        two["switch_step"],
        two["projected_rate"],
    )
    assert one["rate_in_force"] == pytest.approx(0.1 * one["projected_rate"])
    assert two["rate_in_force"] == pytest.approx(factor * one["rate_in_force"])


def test_no_switch_and_no_error_in_a_step_at_rate_0() -> None:
    swats = SWATS([p := nn.Parameter(torch.ones(3))], lr=0.01, switch_tol=1e6)  # would switch in step 2
    for rate in (0.0, 0.0, 0.0, 0.01):
        swats.param_groups[0]["lr"] = rate
        p.grad = torch.ones(3)
        assert swats.param_groups[0]["switch_step"] is None
        swats.step()
    assert swats.param_groups[0]["switch_step"] == 4
    before = p.detach().clone()
    swats.param_groups[0]["lr"] = 0.0
    swats.step()
    assert torch.equal(p, before) and swats.param_groups[0]["rate_in_force"] == 0


def test_a_base_rate_of_0_never_switches() -> None:
    swats = SWATS([p := nn.Parameter(torch.ones(3))], lr=0.0, switch_tol=1e6)
    for _ in range(4):
        p.grad = torch.ones(3)
        swats.step()
    assert torch.equal(p, torch.ones(3)) and swats.param_groups[0]["switch_step"] is None


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resumed_at_any_step_it_continues_to_the_same_bit(schedule) -> None:
    straight = Problem(torch.float32)
    swats = SWATS(straight.groups(0.02, 0.005), weight_decay=0.01)
    scheduler, saved = schedule(swats), []
    for step in range(50):
        buffer = io.BytesIO()
        torch.save((swats.state_dict(), scheduler.state_dict(), [p.detach() for p in straight.params]), buffer)
        saved.append(buffer.getvalue())
        straight.backward(step)
        settle(swats, step)
        swats.step()
        scheduler.step()
    end = copy.deepcopy(swats.state_dict())
    switches = [group["switch_step"] for group in swats.param_groups]
    assert 12 < switches[0] < 20 < switches[1] < 30

    for start in (0, 1, 5, 12, 13, 14, 20, 21, 22, 30, 49):
        ours = Problem(torch.float32)
        resumed = SWATS(ours.groups(0.7, 0.7))  # all that matters is in the state dict
        scheduler = schedule(resumed)
        state, schedule_state, weights = torch.load(io.BytesIO(saved[start]), weights_only=True)
        resumed.load_state_dict(state)
        scheduler.load_state_dict(schedule_state)
        for p, weight in zip(ours.params, weights, strict=True):
            p.data.copy_(weight)
        for step in range(start, 50):
            ours.backward(step)
            settle(resumed, step)
            resumed.step()
            scheduler.step()
        assert ours.same(straight)
        assert resumed.state_dict()["param_groups"] == end["param_groups"]


def test_the_switch_frees_adams_moments() -> None:
    problem = Problem()
    swats = SWATS(problem.params, lr=0.02)
    for step in problem.run(swats, lambda o: StepLR(o, 1000)):
        settle(swats, step)
        switched = swats.param_groups[0]["switch_step"]
        swats.step()
        for p in problem.params:
            if switched:
                assert set(swats.state[p]) == {"momentum_buffer"}
            elif swats.param_groups[0]["switch_step"]:
                assert not swats.state[p]
            else:
                assert set(swats.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
    assert switched


@pytest.mark.parametrize("tol", [0.0, 1e6])
def test_late_gradients(tol) -> None:
    """Frozen parameters start as if new, in either phase (switch_tol 1e6 switches in the second step)."""
    early, late = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    torchs = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    swats = SWATS([early, late], lr=0.01, switch_tol=tol)
    other = torch.optim.Adam(torchs, lr=0.01)
    noise = torch.Generator().manual_seed(1)
    for step in range(10):
        early.grad = torch.randn(4, generator=noise) + 2
        if step >= 5:
            late.grad = torch.randn(4, generator=noise)
        for p, q in zip(torchs, (early, late), strict=True):
            p.grad = None if q.grad is None else q.grad.clone()
        swats.step()
        other.step()
        if tol and step == 1:
            other = torch.optim.SGD(torchs, lr=(1 - 0.9) * swats.param_groups[0]["projected_rate"], momentum=0.9)
        assert torch.equal(early, torchs[0]) and torch.equal(late, torchs[1])
        assert step >= 5 or (late not in swats.state and torch.equal(late, torch.ones(4)))


def test_a_group_without_gradients_does_nothing() -> None:
    early, late = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    swats = SWATS([{"params": [early]}, {"params": [late], "lr": 0.1}], lr=0.01, switch_tol=1e6)
    swats.step()
    untouched = copy.deepcopy(swats.state_dict()["param_groups"][1])
    for _ in range(3):
        early.grad = torch.ones(4)
        swats.step()
    assert swats.state_dict()["param_groups"][1] == untouched and untouched["steps"] == 0
    assert (swats.param_groups[0]["steps"], swats.param_groups[0]["switch_step"]) == (3, 2)
    late.grad = torch.ones(4)
    swats.step()
    swats.step()
    assert (swats.param_groups[1]["steps"], swats.param_groups[1]["switch_step"]) == (2, 2)


def test_a_group_added_later() -> None:
    swats = SWATS([p := nn.Parameter(torch.ones(4))], lr=0.01, switch_tol=1e6)
    for _ in range(3):
        p.grad = torch.ones(4)
        swats.step()
    late = nn.Parameter(torch.ones(4))
    swats.add_param_group({"params": [late], "lr": 0.3, "switch_tol": 0.0})
    late.grad = torch.ones(4)
    swats.step()
    new = swats.param_groups[1]
    assert (new["base_lr"], new["rate_in_force"], new["steps"], new["switch_step"]) == (0.3, 0.3, 1, None)
    assert late.tolist() == pytest.approx([0.7] * 4)


def test_no_switch_to_a_rate_that_is_not_positive_nor_a_lasting_harm_from_odd_gradients() -> None:
    """Ten gradients one way and a small one back: the momentum goes on against it, so p·g is above 0."""
    swats = SWATS([p := nn.Parameter(torch.ones(2))], lr=0.01, betas=(0.9, 0.5), switch_tol=0.0)
    group = swats.param_groups[0]
    for _ in range(10):
        p.grad = torch.ones(2)
        swats.step()
    group["switch_tol"] = 1e6
    p.grad = torch.full((2,), -0.01)
    swats.step()
    assert group["moving_rate"] < 0 and group["switch_step"] is None  # p·g > 0: a negative rate outweighs the rest

    moving = group["moving_rate"]
    p.grad = torch.zeros(2)
    swats.step()
    assert group["moving_rate"] == moving and group["steps"] == 12  # p·g = 0: the step counts, the average stays
    for odd in (math.nan, math.inf):
        swats = SWATS([p := nn.Parameter(torch.ones(2))], switch_tol=1e6)
        for value in (1.0, odd, 1.0):
            p.grad = torch.full((2,), value)
            swats.step()
        assert math.isfinite(swats.param_groups[0]["moving_rate"]) and swats.param_groups[0]["switch_step"] is None


def test_closure() -> None:
    problem = Problem()
    swats = SWATS(problem.params)
    loss = swats.step(lambda: problem.backward(0))
    assert loss.requires_grad and swats.param_groups[0]["steps"] == 1


def test_parameters_of_several_types() -> None:
    """bfloat16, float64 and float32 in one group, with the moments in the parameter's own type and finite rates."""
    params = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.bfloat16, torch.float64, torch.float32)]
    swats = SWATS(params, weight_decay=0.1, switch_tol=1e6)
    for _ in range(4):
        for p in params:
            p.grad = torch.ones_like(p)
        swats.step()
    assert swats.param_groups[0]["switch_step"] == 2
    assert all(swats.state[p]["momentum_buffer"].dtype == p.dtype and p.isfinite().all() for p in params)


def test_bfloat16_parameters_are_projected_in_float32() -> None:
    """The moving rate of a first step, 0.001 * 0.01 * d·d / d·g, from the moments as they are stored."""
    swats = SWATS([p := nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))], lr=0.01)
    p.grad = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    swats.step()
    m, a, g = (tensor.double() for tensor in (swats.state[p]["exp_avg"], swats.state[p]["exp_avg_sq"], p.grad))
    d = m / 0.1 / ((a / 0.001).sqrt() + 1e-8)
    assert swats.param_groups[0]["moving_rate"] == pytest.approx(float(1e-5 * (d @ d) / (d @ g)), rel=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr": -0.1},
        {"lr": math.nan},
        {"betas": (1.0, 0.999)},
        {"betas": (0.9, -0.1)},
        {"eps": -1e-8},
        {"weight_decay": -1.0},
    ],
)
def test_bad_arguments(arguments) -> None:
    with pytest.raises(ValueError, match=r"^Invalid ") as caught:
        SWATS([nn.Parameter(torch.ones(1))], **arguments)
    assert "\n" not in str(caught.value)
