"""Which batch norm follows which layer in a network, and which of the pairs can be one layer. Used by fuse."""

import contextlib
import copy
import io
import logging
import warnings
from collections import Counter

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv2d.default, _ATEN.conv2d.padding, _ATEN.linear.default)
_DROPOUTS = (
    _ATEN.dropout.default,
    _ATEN.feature_dropout.default,
    _ATEN.alpha_dropout.default,
    _ATEN.feature_alpha_dropout.default,
)
_OTHER_LAYERS = {
    "conv1d": "Conv1d",
    "conv3d": "Conv3d",
    "conv_transpose1d": "ConvTranspose1d",
    "conv_transpose2d": "ConvTranspose2d",
    "conv_transpose3d": "ConvTranspose3d",
}
_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Trace:
    """The graph of a network (ATen operations), and whose tensors they use.

    Args:
        net: A network in eval mode, on the CPU.
        images: An example (N, C, H, W), N >= 2. The graph holds for any N >= 2, and for this C, H and W.

    Raises:
        Exception: torch.export cannot follow the forward pass. It raises whatever it stumbled over: RuntimeError, ValueError,
            AssertionError, KeyError, ...
    """

    def __init__(self, net: nn.Module, images: Tensor):
        program = _export(net, images)
        signature = program.graph_signature
        self.net = net
        self.names = {module: name for name, module in net.named_modules()}
        self.owners: dict[
            int, list[str]
        ] = {}  # id of a tensor -> its names; a module that is registered twice counts once
        for module, name in self.names.items():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    self.owners.setdefault(id(tensor), []).append(f"{name}.{key}" if name else key)
        self.slots: dict[
            str, tuple[nn.Module, str]
        ] = {}  # input of the graph -> the module and the attribute that it stands for
        for argument, path in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items():
            above, _, key = path.rpartition(".")
            self.slots[argument] = (net.get_submodule(above), key)
        self.uses: Counter[object] = Counter()
        self.touched: set[nn.Module] = set()
        self.norm_nodes = []
        for node in program.graph.nodes:
            if node.name in self.slots and node.users:
                self.uses[self._identity(node)] += len(node.users)
                self.touched.add(self.slots[node.name][0])
            if node.target is _ATEN.batch_norm.default:
                self.norm_nodes.append(node)

    def norms(self) -> dict[nn.Module, nn.Module | str]:
        """Every norm, in order of execution: the layer that can take it in, or the reason why none can.

        A key is a batch norm, or the module that calls F.batch_norm. Last come the norms that the forward pass never calls.
        """
        calls: dict[nn.Module, list[Node]] = {}
        for node in self.norm_nodes:
            calls.setdefault(self._norm(node), []).append(node)
        found: dict[nn.Module, nn.Module | str] = {}
        for norm, nodes in calls.items():
            again = "it is used more than once" if len(nodes) > 1 else ""
            found[norm] = again or self._objection(norm, nodes[0]) or self._layer(nodes[0])
        for module in self.names:
            if isinstance(module, _BatchNorm) and module not in found:
                hidden = "it runs under autocast, or a gradient mode of its own, inside the forward pass"
                found[module] = hidden if module in self.touched else "the forward pass does not use it"
        return found

    def _norm(self, node: Node) -> nn.Module:
        caller = self._callers(node)[-1]
        if isinstance(caller, _BatchNorm):
            return caller
        owners = [self.slots[arg.name][0] for arg in node.args[1:5] if isinstance(arg, Node) and arg.name in self.slots]
        return owners[0] if owners else caller

    def _objection(self, norm: nn.Module, node: Node) -> str:
        """What keeps the norm itself from being folded, whatever it follows."""
        tensors = dict(zip(("weight", "bias", "running_mean", "running_var"), node.args[1:5], strict=True))
        if norm is not self._callers(node)[-1] or not isinstance(norm, _BatchNorm):
            return "it is a call of the function batch_norm, not a BatchNorm module"
        if tensors["running_mean"] is None or tensors["running_var"] is None:
            return "it has no running statistics"
        if node.args[5]:
            return "it normalizes by the statistics of the batch even in eval mode"
        known = type(norm).forward in _FORWARDS or is_batch_norm_act(norm)
        if not known or "forward" in vars(norm):
            return f"its class, {type(norm).__name__}, has a forward of its own"
        reasons = (self._not_alone(arg, norm, key) for key, arg in tensors.items() if arg is not None)
        return next((f"its {reason}" for reason in reasons if reason), "")

    def _layer(self, norm: Node) -> nn.Module | str:
        """The layer that can take in the norm, or what keeps it from that."""
        path = [norm, norm.args[0]]
        while path[-1].target in _DROPOUTS and not path[-1].args[2] and len(path[-1].users) == 1:
            path.append(path[-1].args[0])
        node = path[-1]
        if node.target not in _LAYERS:
            return _not_a_layer(node)
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        if weight.name not in self.slots:
            return "the weight of the layer before it is computed in the forward pass"
        layer = self.slots[weight.name][0]
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            return f"it follows {type(layer).__name__}, which is no Conv2d or Linear"
        name = self.names[layer]
        if bias is None:
            return f"{name} has a forward of its own that takes no bias"
        if reason := self._not_alone(weight, layer, "weight") or self._not_alone(bias, layer, "bias"):
            return f"{name}: its {reason}"
        if len(node.users) > 1:
            return f"the output of {name} is used elsewhere too"
        if node.target is _ATEN.linear.default and (ndim := node.meta["val"].ndim) != 2:
            return f"{name} gives {ndim}-D outputs; of linear layers, only those with 2-D outputs are folded"
        # Modules around all of the path see no difference; a hook on those within may record or change what folding changes.
        callers = [set(self._callers(step)) for step in path]
        within = set.union(*callers) - set.intersection(*callers)
        if hooked := [module for module in within if any(getattr(module, hooks) for hooks in _HOOKS)]:
            return f"{min(self.names[module] for module in hooked)} has hooks, which folding may disturb"
        return layer

    def _callers(self, node: Node) -> list[nn.Module]:
        """The modules in whose forward the node was traced, from the network to the innermost."""
        stack = node.meta.get("nn_module_stack") or {"": ("", None)}
        return [self.net.get_submodule(path.split("@")[0]) for path, _ in stack.values()]  # a second call is layer1.0@1

    def _not_alone(self, node: Node, owner: nn.Module, key: str) -> str:
        """Empty if the value is this attribute of the owner as it is, with no other owner and no other use."""
        tensor, slot = getattr(owner, key), self.slots.get(node.name)
        if slot != (owner, key) and (slot is None or tensor is None or getattr(*slot) is not tensor):
            return f"{key} is computed in the forward pass"
        names = self.owners.get(id(tensor), [])
        own = f"{self.names[owner]}.{key}" if self.names[owner] else key
        if others := [name for name in names if name != own]:
            return f"{key} is also {others[0]}"
        return f"{key} is used more than once" if self.uses[self._identity(node)] > 1 else ""

    def _identity(self, node: Node) -> object:
        module, key = self.slots[node.name]
        tensor = getattr(module, key)
        return (module, key) if tensor is None else id(tensor)  # None is a bias that only the traced network has


def is_batch_norm_act(norm: nn.Module) -> bool:
    """Whether it is timm's norm with dropout and activation, told by where its forward is from: timm need not be installed."""
    has_both = isinstance(getattr(norm, "drop", None), nn.Module) and isinstance(getattr(norm, "act", None), nn.Module)
    return has_both and getattr(type(norm).forward, "__module__", "") == "timm.layers.norm_act"


def _not_a_layer(node: Node) -> str:
    if node.op == "placeholder":
        return "its input is the network's, not a layer's output"
    if node.target in _DROPOUTS and node.args[2]:
        return "it follows a dropout that is active even in eval mode"
    if node.target in _DROPOUTS:
        return "the output of the dropout before it is used elsewhere too"
    operation = getattr(node.target, "__name__", str(node.target)).split(".")[0].rstrip("_")
    if operation in _OTHER_LAYERS:
        return f"it follows a {_OTHER_LAYERS[operation]}; only Conv2d and Linear are folded"
    return f"it follows no layer but an operation: {operation}"


def _export(net: nn.Module, images: Tensor) -> ExportedProgram:
    tensors = {id(tensor): tensor for tensor in [*net.parameters(), *net.buffers()]}
    probe = copy.deepcopy(net, tensors)  # shares them; a trace may leave attributes behind
    for layer in probe.modules():
        # With a bias of zeros the graph shows whether the layer's forward would take one.
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)
    any_batch = ShapesCollection()
    any_batch[images] = {0: Dim("batch")}
    disabled = logging.root.manager.disable
    logging.disable()  # what export logs and prints is also in its errors
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(probe, (images,), dynamic_shapes=any_batch, strict=False)
    finally:
        logging.disable(disabled)
