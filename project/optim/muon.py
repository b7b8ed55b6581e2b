"""Muon: momentum, orthogonalised, for convolution and linear weights; AdamW or SGD for the rest."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from project.optim.of_torch import step_of_torch

EPS = 1e-7  # added to norms, so that zeros stay zeros


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
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape if p.ndim > 1 and group["muon"] else "rest"].append(p)
            if "rest" in alike:
                step_of_torch(_rest(group, alike.pop("rest")), self.state)
            for params in alike.values():
                self._muon_step(group, params)
        return loss

    def _muon_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Of weights of one shape: batched products are 1.5 to 2 times as fast on a CPU as one by one."""
        steps, rate = [], group["lr"]
        for p in params:
            buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            buffer.mul_(group["momentum"]).add_(p.grad)
            step = p.grad + group["momentum"] * buffer if group["nesterov"] else buffer
            # (out, in, H, W) -> (out, H, W, in), as memory is with channels-last: the order of columns is free
            steps.append(step.movedim(1, -1))
        stack = torch.stack(steps)
        matrices = stack.flatten(2)  # (N, rows, columns)
        updates = orthogonal(matrices, group["ns_steps"]).view_as(stack).movedim(-1, 2)
        scale = max(1, matrices.size(1) / matrices.size(2)) ** 0.5
        for p, update in zip(params, updates, strict=True):
            if group["renormalise"] and p.ndim > 2:
                p.mul_(len(p) ** 0.5 / (p.norm() + EPS))
            p.mul_(1 - rate * group["weight_decay"]).sub_(update, alpha=rate * scale)


def _rest(group: dict[str, Any], params: list[Tensor]) -> Optimizer:
    rate, momentum = group["lr"] * group["rest_lr"], group["rest_momentum"]
    decay = group["weight_decay"]
    if group["rest"] == "sgd":
        return SGD(params, rate, momentum, weight_decay=decay, nesterov=group["nesterov"])
    return AdamW(params, rate, (momentum, 0.95), weight_decay=decay)


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """Nearly the closest orthogonal matrices: after five steps, all but tiny singular values are 0.7 to 1.2.

    Newton-Schulz iterations x = a x + b (x x^T) x + c (x x^T)^2 x, whose coefficients are Jordan et al.'s. As theirs
    in bfloat16, where the processor multiplies in it: by its features, not by a timing.

    Args:
        matrices: (N, rows, columns).
        steps: Number of iterations.
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + EPS)
    if x.dtype == torch.float32 and (x.is_cuda or torch.cpu.get_capabilities().get("avx512_bf16")):
        x = x.bfloat16()
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT  # of the shorter side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x
