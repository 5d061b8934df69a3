"""What the results of PyTorch's operators depend on, operator by operator; an operator without a rule is an :class:`Unknown`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchimplicit.private.operators import argument, name, parameters, writes
from torchimplicit.sparsity.dependencies import MOST, Layers, Unknown, gathered, slots_of, together, union
from torchimplicit.sparsity.windows import Convolution


class Call:
    """One call of an operator.

    known : the layers of each tensor among its arguments, by its id.
    results : what it has returned or written that may have a derivative.
    """

    def __init__(self, func: Any, args: Any, kwargs: Any, known: dict[int, Layers], results: Sequence[Tensor]) -> None:
        self.func, self.args, self.kwargs, self.known, self.results = func, args, kwargs, known, results

    def layers(self, tensor: Any) -> Layers:
        return self.known.get(id(tensor), []) if isinstance(tensor, Tensor) else []

    def __getitem__(self, name: str) -> Any:
        """The argument of that name."""
        return argument(self.func, name, self.args, self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among its arguments, the optional and those in lists too."""
        flat = [*self.args, *self.kwargs.values()]
        flat = [leaf for part in flat for leaf in (part if isinstance(part, (list, tuple)) else [part])]
        return [leaf for leaf in flat if isinstance(leaf, Tensor)]

    @property
    def shape(self) -> torch.Size:
        return self.results[0].shape

    @property
    def rule(self) -> Rule | None:
        called = name(self.func)
        return RULES.get(called) or RULES.get(called.removesuffix("_"))

    @property
    def constant(self) -> bool:
        """Whether the results depend on nothing, whatever the arguments do."""
        return self.rule is nothing or (self.rule is difference and of_itself(self))

    def found(self) -> list[Layers]:
        """What each of the results depends on."""
        rule = self.rule
        if rule is None and torch.Tag.pointwise in self.func.tags:
            rule = pointwise
        if rule is None:
            raise Unknown("not known here")
        found = rule(self)
        return [[layer.expand(result.shape) for layer in found] for result in self.results]


Rule = Callable[[Call], Layers]


def pointwise(call: Call) -> Layers:
    """Each entry depends on what the entries in its place do."""
    return union([self for t in call.tensors if (self := call.layers(t))], call.shape)


def difference(call: Call) -> Layers:
    """That of a tensor and itself is 0, or NaN, and has no derivative."""
    return [] if of_itself(call) else pointwise(call)


def of_itself(call: Call) -> bool:
    """Whether a tensor is subtracted from itself."""
    a, b = call["self"], call["other"]
    same = isinstance(b, Tensor) and a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
    return same and call["alpha"] == 1


def nothing(call: Call) -> Layers:
    return []


def moving(*names: str, fill: str | None = None) -> Rule:
    """Data is moved, that of the named arguments: the same is done to their layers. What is filled in depends on nothing."""

    def rule(call: Call) -> Layers:
        given = parameters(call.func)
        values = {each: call[each] for each, _ in given}
        if fill is not None and not isinstance(values.get(fill), (Tensor, type(None))):
            values[fill] = 0
        data = [(each, values[each]) for each in names if isinstance(values.get(each), Tensor)]
        if fill is not None and isinstance(values.get(fill), Tensor):
            data.append((fill, values[fill]))

        def move(*layers: Tensor) -> Tensor:
            now = dict(values)
            for (each, _), layer in zip(data, layers, strict=True):
                now[each] = layer.clone() if writes(call.func) and each == given[0][0] else layer
            keywords = {each: now[each] for each, by_name in given if by_name and each in call.kwargs}
            moved: Tensor = call.func(*(now[each] for each, by_name in given if not by_name), **keywords)
            return moved

        parts = [call.layers(tensor) for _, tensor in data]
        if not any(parts):
            return []
        return together(parts, [tensor.shape for _, tensor in data], move)

    return rule


def copied(call: Call) -> Layers:
    """What is written has the layers of what it is written from."""
    source = call["src"]
    return [layer.expand(call.shape) for layer in call.layers(source)]


def cloned(call: Call) -> Layers:
    return list(call.layers(call["self"]))


def joined(call: Call) -> Layers:
    """Tensors one after the other."""
    tensors = call["tensors"]
    dim = call["dim"]
    join = torch.stack if name(call.func) == "stack" else torch.cat
    parts = [(call.layers(t), t) for t in tensors if t.numel() or t.ndim > 1]
    return together([part for part, _ in parts], [t.shape for _, t in parts], lambda *layers: join([*layers], dim))


def chosen(call: Call) -> Layers:
    """Of two tensors each entry of one."""
    condition = call["condition"]
    a, b = call["self"], call["other"]
    parts = [call.layers(a), call.layers(b)]
    if not any(parts):
        return []
    return together(parts, [a.shape, b.shape], lambda x, y: torch.where(condition, x, y))


def reduced(call: Call) -> Layers:
    """Each entry depends on all along some dimensions."""
    x = call["self"]
    dims = call["dim"]
    dims = list(range(x.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = sorted(d % max(1, x.ndim) for d in dims)
    count = 1
    for d in dims:
        count *= x.shape[d] if x.ndim else 1
    layers = call.layers(x)
    if count > 1 and count * len(layers) > MOST * 4:
        raise Unknown("adds up too many entries")
    if not x.ndim:
        return layers
    found = []
    for layer in layers:
        parts = layer.movedim(dims, list(range(len(dims)))).flatten(0, len(dims) - 1) if dims else layer.unsqueeze(0)
        found += [part.reshape(call.shape) for part in parts.unbind(0)]
    return union([[layer] for layer in found], call.shape) if found else []


def loss(call: Call) -> Layers:
    """The terms of a loss, or what they amount to together."""
    if call["reduction"]:
        raise Unknown("adds up too many entries")
    return pointwise(call)


def along(call: Call) -> Layers:
    """Each entry depends on all that stand beside it along one dimension."""
    x = call["self"] if isinstance(call["self"], Tensor) else call.tensors[0]
    dim = call["dim"]
    parts = []
    for tensor in call.tensors:
        for layer in call.layers(tensor):
            if x.shape[dim] * len(call.layers(tensor)) > MOST:
                raise Unknown("combines too many entries")
            parts += [[entry.unsqueeze(dim)] for entry in layer.unbind(dim)]
    return union(parts, call.shape)


def added_at(call: Call) -> Layers:
    """Entries of one tensor are added to another where an index says."""
    x, dim, index = call["self"], call["dim"], call["index"]
    scatter = "scatter" in name(call.func)
    source = call["src"] if scatter else call["source"]
    parts = [call.layers(x)] if call.layers(x) else []
    if isinstance(source, Tensor) and call.layers(source):
        places = torch.arange(x.numel(), device=x.device).view(x.shape)
        entries = torch.arange(source.numel(), device=x.device).view(source.shape)
        if scatter:
            target = places.gather(dim, index)
            entries = entries[tuple(slice(0, k) for k in index.shape)]
        else:
            target = places.index_select(dim, index)
        slots = slots_of(target, entries, x.numel()).unflatten(-1, x.shape)
        parts.append(gathered(call.layers(source), slots))
    return union(parts, x.shape)


def padded_backward(call: Call) -> Layers:
    """What a border repeats or mirrors is added up where it comes from."""
    x, pad = call["self"], getattr(torch.ops.aten, name(call.func).removesuffix("_backward"))
    target = pad(torch.arange(x.numel(), device=x.device).view(x.shape), call["padding"])
    slots = slots_of(target, torch.arange(target.numel(), device=x.device), x.numel()).unflatten(-1, x.shape)
    return gathered(call.layers(call["grad_output"]), slots)


def put(call: Call) -> Layers:
    """Values are put, or added, where indices say."""
    x, indices, values = call["self"], call["indices"], call["values"]
    if not call["accumulate"]:
        return PUT(call)
    parts = [call.layers(x)] if call.layers(x) else []
    if call.layers(values):
        places = torch.arange(x.numel(), device=x.device).view(x.shape)
        target = torch.ops.aten.index.Tensor(places, indices)
        entries = torch.arange(values.numel(), device=x.device).view(values.shape).expand(target.shape)
        parts.append(gathered(call.layers(values), slots_of(target, entries, x.numel()).unflatten(-1, x.shape)))
    return union(parts, x.shape)


def product(call: Call) -> Layers:
    """Products of matrices and vectors, batches of them too, sparse or dense; where one is constant, its zeros count."""
    *added, a, b = (t for each, _ in parameters(call.func) if each != "out" and isinstance(t := call[each], Tensor))
    shape = call.shape
    parts = [layers for t in added if (layers := call.layers(t))]
    columns = b if b.ndim > 1 else b.unsqueeze(-1)
    rows = a if a.ndim > 1 else a.unsqueeze(0)
    full = torch.Size((*rows.shape[:-1], columns.shape[-1]))
    if call.layers(b):
        layers = [layer if b.ndim > 1 else layer.unsqueeze(-1) for layer in call.layers(b)]
        parts.append([x.reshape(shape) for x in _combined(rows, bool(call.layers(a)), layers, full)])
    if call.layers(a):
        layers = [(layer if a.ndim > 1 else layer.unsqueeze(0)).mT for layer in call.layers(a)]
        turned = torch.Size((*full[:-2], full[-1], full[-2]))
        known = _combined(
            columns.mT if columns.layout == torch.strided else columns.t(), bool(call.layers(b)), layers, turned
        )
        parts.append([x.mT.reshape(shape) for x in known])
    return union(parts, shape)


def _combined(matrix: Tensor, varies: bool, layers: Layers, shape: torch.Size) -> Layers:
    """The layers of ``matrix @ x``, of that shape, from those of x (..., k, l)."""
    k, width = layers[0].shape[-2:]
    if matrix.layout != torch.strided:
        row, column = matrix.to_sparse_coo().coalesce().indices()
    elif varies or matrix.ndim > 2:
        if k > MOST:
            raise Unknown("a product with rows of too many entries")
        ones = torch.ones(shape[-2], k, dtype=torch.bool, device=matrix.device)
        row, column = ones.nonzero().unbind(1)
    else:
        if matrix.numel() and int(matrix.count_nonzero()) > MOST * matrix.shape[0]:
            raise Unknown("a product with a dense matrix")
        row, column = matrix.nonzero().unbind(1)
    slots = slots_of(row, column, shape[-2])  # (s, m)
    found: Layers = []
    for layer in layers:  # rows of layers, whole ones at a time
        padded = torch.cat([layer.new_zeros(*layer.shape[:-2], 1, width), layer], -2)
        found += [padded.index_select(-2, slot).expand(shape) for slot in slots]
        if len(found) > MOST * 4:
            raise Unknown("a product with rows of too many entries")
    return found


def convolution(call: Call) -> Layers:
    """Windows over the input, seen through what is not zero of the weights."""
    x = call["input"]
    if call.layers(call["weight"]):
        raise Unknown("the weights depend on the unknowns")
    parts = [gathered(call.layers(x), _windows(call, x).forward_slots().view(-1, *call.shape))]
    bias = call["bias"]
    if call.layers(bias):
        parts.append([layer.view(-1, *(1,) * (x.ndim - 2)) for layer in call.layers(bias)])
    return union(parts, call.shape)


def convolution_backward(call: Call) -> Layers:
    """That of the input; those of weights add up too much."""
    x = call["input"]
    if not call["output_mask"][0] or any(call["output_mask"][1:]) or call.layers(call["weight"]):
        raise Unknown("adds up too many entries")
    return gathered(call.layers(call["grad_output"]), _windows(call, x).backward_slots().view(-1, *x.shape))


def _windows(call: Call, x: Tensor) -> Convolution:
    if call["transposed"]:
        raise Unknown("a transposed convolution")
    return Convolution(x.shape, *(call[name] for name in ("weight", "stride", "padding", "dilation", "groups")))


def slice_backward(call: Call) -> Layers:
    """The gradient of a part, zeros around it."""
    layers = call.layers(call["grad_output"])
    return [call.func(layer, *call.args[1:], **call.kwargs) for layer in layers]


PUT = moving("self", "values")
PADS = [f"{border}_pad{d}d" for border in ("replication", "reflection") for d in (1, 2, 3)]
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("roll", "flip", "repeat", "index_select", "gather", "index", "take", "tril", "triu", "as_strided_copy", "im2col",
         "expand_copy", "view_copy", "permute_copy", "diag_embed", "pixel_shuffle", "pixel_unshuffle", "masked_select",
         "_reshape_copy", "unfold_copy"),
        moving("self"),
    ),
    "constant_pad_nd": moving("self", fill="value"),
    **dict.fromkeys(PADS, moving("self")),
    **{f"{pad}_backward": padded_backward for pad in PADS},
    **dict.fromkeys(
        ("slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter", "scatter"),
        moving("self", "src", fill="value"),
    ),
    "masked_fill": moving("self", fill="value"),
    "masked_scatter": moving("self", "source"),
    "index_fill": moving("self", fill="value"),
    "index_copy": moving("self", "source"),
    "index_put": put,
    "_index_put_impl": put,
    "_unsafe_index_put": put,
    "_unsafe_index": moving("self"),
    **dict.fromkeys(("slice_backward", "select_backward", "diagonal_backward"), slice_backward),
    **dict.fromkeys(("cat", "stack"), joined),
    "where": chosen,
    "copy": copied,
    **dict.fromkeys(("clone", "_to_copy", "_unsafe_view", "_reshape_alias", "contiguous", "lift_fresh", "alias_copy"), cloned),
    "sub": difference,
    **dict.fromkeys(
        ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
         "new_empty", "new_full", "new_empty_strided", "zero", "fill"),
        nothing,
    ),
    **dict.fromkeys(
        ("sum", "mean", "amax", "amin", "prod", "max", "min", "logsumexp", "linalg_vector_norm", "norm", "var", "std", "nansum"),
        reduced,
    ),
    **dict.fromkeys(
        ("cumsum", "cumprod", "_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data",
         "logcumsumexp"),
        along,
    ),
    **dict.fromkeys(("index_add", "scatter_add", "scatter_reduce", "index_reduce"), added_at),
    **dict.fromkeys(("mm", "bmm", "mv", "addmm", "addmv", "baddbmm", "dot", "vdot", "addbmm", "_sparse_mm", "_sparse_addmm"), product),
    **dict.fromkeys(("mse_loss", "huber_loss", "smooth_l1_loss"), loss),
    "convolution": convolution,
    "convolution_backward": convolution_backward,
    **dict.fromkeys(
        ("threshold_backward", "tanh_backward", "sigmoid_backward", "gelu_backward", "silu_backward", "elu_backward",
         "softplus_backward", "hardtanh_backward", "leaky_relu_backward", "mse_loss_backward", "huber_loss_backward",
         "smooth_l1_loss_backward", "logit_backward", "hardsigmoid_backward", "hardswish_backward", "mish_backward",
         "log_sigmoid_backward", "log_sigmoid_forward", "softshrink_backward", "hardshrink_backward", "nan_to_num",
         "clamp", "clamp_min", "clamp_max", "_conj_physical"),
        pointwise,
    ),
}  # fmt: skip
