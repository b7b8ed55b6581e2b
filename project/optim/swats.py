"""SWATS: start with Adam, finish with SGD; the optimizer determines when, and at which learning rate (advice A19)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.optimizer import ParamsT

from project.optim.of_torch import step_of_torch

Group = dict[str, Any]  # a parameter group


class SWATS(Optimizer):
    """Adam until the learning rate of SGD that matches its steps has settled, then SGD with momentum at that rate.

    Algorithm 1 of Keskar & Socher 2017 (arXiv:1712.07628), with weights w, gradient g and p Adam's step number k:

        rate = p·p / (-p·g)                         SGD's step at this rate, projected on p, is p; skipped where p·g = 0
        moving = beta2 * moving + (1 - beta2) * rate
        average = moving / (1 - beta2^k)
        if k > 1 and |average - rate| < switch_tol: continue with SGD, from v = 0
        SGD: v = beta1 * v + g,  w = w - (1 - beta1) * average * v

    Before the switch it is bit by bit `torch.optim.Adam`, afterwards `torch.optim.SGD`. Where the paper leaves room:

    - Every parameter group is projected and switched on its own, which keeps the ratios of layer-wise learning rates.
    - p is taken at the group's initial learning rate, and a schedule scales the projected rate as it would have scaled
      that one: no schedule causes or hides a switch.
    - g contains the weight decay, as it does in both phases' steps.

    Entries of every group: `steps` taken, `switch_step` (the last with Adam) and `projected_rate`, both None until
    then, and `rate_in_force`, the learning rate that the last step used.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        switch_tol: float = 1e-9,
    ) -> None:
        """
        Args:
            params: Parameters, or parameter groups, which may override any of the other arguments.
            lr: Adam's learning rate. SGD's is found, and follows the schedule in proportion.
            betas: Decay of Adam's averages, 0 to below 1; the first is SGD's momentum, the second averages the rate.
            eps: Added to Adam's denominator.
            weight_decay: L2 penalty, added to the gradient (as Adam and SGD do, unlike AdamW).
            switch_tol: How close to its average the rate must be for the switch (the paper's epsilon); 0: no switch.

        Raises:
            ValueError: an argument is out of range.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "switch_tol": switch_tol}
        Adam([torch.zeros(())], lr, betas, eps, weight_decay)  # checks their ranges
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.update(steps=0, moving_rate=0.0, switch_step=None, projected_rate=None)
        group["base_lr"] = group["rate_in_force"] = group["lr"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group that has a gradient."""
        with torch.enable_grad():
            loss = closure() if closure else None
        projections = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            group["steps"] += 1
            if group["switch_step"] is None:
                projections.append((group, self._adam_step(group, params)))
            else:
                self._sgd_step(group, params)
        for group, dots in projections:  # read only now, when all groups are under way on a GPU
            self._project(group, *dots.tolist())
        return loss

    def _adam_step(self, group: Group, params: list[Tensor]) -> Tensor:
        """Adam's step, w -= lr * d. Returns d·d and d·g over all parameters of the group, shape (2)."""
        beta1, beta2 = group["betas"]
        eps, decay = group["eps"], group["weight_decay"]
        grads = [p.grad.add(p, alpha=decay) if decay else p.grad for p in params]  # as before the step
        step_of_torch(Adam(params, group["lr"], group["betas"], eps, decay), self.state)
        group["rate_in_force"] = group["lr"]

        # From the moments, in float32 at least; rounding leaves little of the change of the parameters at a small lr.
        dots = []
        for p, g in zip(params, grads, strict=True):
            state, dtype = self.state[p], torch.promote_types(g.dtype, torch.float32)
            t = state["step"].item()
            root = (state["exp_avg_sq"].to(dtype) / (1 - beta2**t)).sqrt_().add_(eps)
            d = state["exp_avg"].to(dtype) / root.mul_(1 - beta1**t)
            dots += [(d * d).sum(), (d * g).sum()]
        return torch.stack(dots).view(-1, 2).sum(dim=0)

    def _project(self, group: Group, dd: float, dg: float) -> None:
        """The rest of an Adam step: average the projected rate, and switch when it has settled."""
        k, beta2 = group["steps"], group["betas"][1]
        rate = group["base_lr"] * dd / dg if dg else math.nan  # p = -base_lr * d
        if not math.isfinite(rate):
            return  # as in the paper; also where a gradient is not finite, which would spoil the average for good
        moving = group["moving_rate"] = beta2 * group["moving_rate"] + (1 - beta2) * rate
        average = moving / (1 - beta2**k)
        # A negative rate, where momentum points uphill, counts in the average as in the paper; but SGD needs a positive
        # one, which the paper does not discuss. And no switch in a step that a schedule holds at 0.
        if k > 1 and abs(average - rate) < group["switch_tol"] and average > 0 and group["lr"] > 0:
            group.update(switch_step=k, projected_rate=average)
            for p in group["params"]:
                self.state.pop(p, None)  # frees Adam's moments, and v = 0: torch's SGD starts with v = g

    def _sgd_step(self, group: Group, params: list[Tensor]) -> None:
        beta1 = group["betas"][0]
        rate = group["rate_in_force"] = (1 - beta1) * group["projected_rate"] * (group["lr"] / group["base_lr"])
        step_of_torch(SGD(params, rate, beta1, weight_decay=group["weight_decay"]), self.state)
