"""Muon: momentum, orthogonalised, for convolution and linear weights; AdamW or SGD for the rest."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from project.optim.of_torch import step_of_torch


class Muon(Optimizer):
    """Every weight matrix moves by its momentum with all singular values made (nearly) one.

    Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/). With weight W of `rows` and `columns`, gradient G:

        B = momentum * B + G
        W = (1 - lr * weight_decay) * W
        W = W - lr * sqrt(max(1, rows / columns)) * orthogonal(G + momentum * B)        (without nesterov: of B)

    The filters of a convolution are flattened to (out, in * height * width). As in Jordan's airbench94_muon they are
    first given a norm of sqrt(out): where a norm follows, only their direction matters, and lr is the share by which it
    changes in a step. The root makes that true of more rows than columns, of which airbench has none. Linear weights
    keep their norm: nothing says that a norm follows them.

    The rest has torch's AdamW or SGD, at lr * rest_lr. It is what has fewer than two dimensions, and the groups with
    the entry `muon` False, which project.optim.param_groups makes for embeddings, the head and the like.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        renormalise: bool = True,
        rest: Literal["adamw", "sgd"] = "adamw",
        rest_lr: float = 0.015,
        rest_momentum: float = 0.9,
    ) -> None:
        """
        Args:
            params: Parameters, or parameter groups, which may override any of the other arguments.
            lr: Learning rate of the matrices; 0.02 is usual, and up to 0.24 with renormalise.
            momentum: Of the matrices, 0 to below 1; in short trainings 0.6.
            nesterov: Nesterov's momentum, for the matrices and SGD.
            weight_decay: Decoupled, as in AdamW; where rest is sgd, there an L2 penalty. renormalise undoes it.
            ns_steps: Newton-Schulz iterations, 1 or more; 3 are enough for convolutions.
            renormalise: Keep each convolution at a norm of sqrt(out). False where no norm follows, as in VGG.
            rest: Optimizer of biases, norms, embeddings, head and convolutions in groups: adamw or sgd.
            rest_lr: Their share of lr, above 0; usual are 0.015 with adamw and 0.2 with sgd.
            rest_momentum: SGD's momentum, or the first of AdamW's betas; the second is 0.95.

        Raises:
            ValueError: an argument is out of range.
        """
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "renormalise": renormalise,
            "rest": rest,
            "rest_lr": rest_lr,
            "rest_momentum": rest_momentum,
            "muon": True,
        }
        if not 0 <= momentum < 1 or ns_steps < 1 or rest_lr <= 0:
            raise ValueError("Muon needs a momentum of 0 to below 1, ns_steps of 1 or more, and a rest_lr above 0")
        _rest(defaults, [torch.zeros(())])  # checks the other ranges
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            rest, rate, momentum = [], group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.ndim < 2 or not group["muon"]:
                    rest.append(p)
                    continue
                state = self.state[p]
                step = state["momentum_buffer"] = momentum * state.get("momentum_buffer", 0) + p.grad
                if group["nesterov"]:
                    step = p.grad + momentum * step
                # (out, in, H, W) -> (out, H * W * in), as memory is with channels-last: the order of columns is free.
                step = step.movedim(1, -1)
                update = orthogonal(step.flatten(1), group["ns_steps"]).view_as(step).movedim(-1, 1)
                if group["renormalise"] and p.ndim > 2:
                    p.mul_(len(p) ** 0.5 / (p.norm() + 1e-7))
                scale = max(1, len(p) / p[0].numel()) ** 0.5
                p.mul_(1 - rate * group["weight_decay"]).sub_(update, alpha=rate * scale)
            if rest:
                step_of_torch(_rest(group, rest), self.state)
        return loss


def _rest(group: dict, params: list[Tensor]) -> Optimizer:
    rate, momentum = group["lr"] * group["rest_lr"], group["rest_momentum"]
    decay = group["weight_decay"]
    if group["rest"] == "sgd":
        return SGD(params, rate, momentum, weight_decay=decay, nesterov=group["nesterov"] and momentum > 0)
    return AdamW(params, rate, (momentum, 0.95), weight_decay=decay)


def orthogonal(x: Tensor, steps: int) -> Tensor:
    """Nearly the closest orthogonal matrix: after five steps, all but tiny singular values are 0.7 to 1.2.

    Newton-Schulz iterations x = a x + b (x x^T) x + c (x x^T)^2 x, whose coefficients are Jordan et al.'s. As theirs
    in bfloat16, where the processor multiplies in it (by its features, not by a timing); the rounding is 2 or 3 %.

    Args:
        x: (rows, columns).
        steps: Number of iterations.
    """
    x = x / (x.norm() + 1e-7)  # zeros stay zeros
    if x.dtype == torch.float32 and (x.is_cuda or torch.cpu.get_capabilities().get("avx512_bf16")):
        x = x.bfloat16()
    if tall := len(x) > x.size(1):
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT  # of the shorter side
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return x.mT if tall else x
