"""The ONNX operators that face recognisers use, in torch. https://onnx.ai/onnx/operators/ is the reference.

Each function takes the inputs of a node (None where an optional one is left out) and its attributes. Settings
that change the result and are not implemented raise ``UnsupportedSettingError``, never pass.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = dict[str, Any]
Inputs = list[Any]  # Tensor | None each; the schema of an operator says which
Operator = Callable[[Inputs, Attributes], Tensor]
OPERATORS: dict[str, Operator] = {}


class UnsupportedSettingError(ValueError):
    """A node uses a setting of its operator that is not implemented; OnnxModule says which node."""


def _operator(*names: str) -> Callable[[Operator], Operator]:
    def add(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def _padded(inputs: Inputs, count: int) -> Inputs:
    """Inputs with None for the optional ones at the end that a node leaves out."""
    return [*inputs, *[None] * (count - len(inputs))]


def _need(attributes: Attributes, **allowed: object) -> None:
    """Refuse attributes that are set to anything but the value that is implemented."""
    for name, value in allowed.items():
        given = attributes.get(name, value)
        if given != value:
            raise UnsupportedSettingError(f"{name}={given!r} is not supported (only {value!r})")


def _axes(inputs: Inputs, attributes: Attributes) -> list[int]:
    """Axes are an attribute in older files and the second input in newer ones."""
    if len(inputs) > 1 and inputs[1] is not None:
        return inputs[1].flatten().tolist()
    return list(attributes.get("axes", []))


def _window(attributes: Attributes, rank: int) -> tuple[list[int], list[int]]:
    """Strides and symmetric padding of a convolution or pooling over ``rank`` axes."""
    _need(attributes, auto_pad=b"NOTSET")
    pads = list(attributes.get("pads", [0] * 2 * rank))
    if pads[:rank] != pads[rank:]:
        raise UnsupportedSettingError(f"pads={pads} differ before and after")
    return list(attributes.get("strides", [1] * rank)), pads[:rank]


@_operator("Conv")
def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias = _padded(inputs, 3)
    if x.ndim != 4:
        raise UnsupportedSettingError(
            f"only convolutions over two axes are supported, got an input of rank {x.ndim}"
        )
    strides, padding = _window(attributes, 2)
    dilations = attributes.get("dilations", [1, 1])
    return F.conv2d(x, weight, bias, strides, padding, dilations, attributes.get("group", 1))


@_operator("MaxPool")
def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    _need(attributes, storage_order=0, dilations=[1, 1])
    strides, padding = _window(attributes, 2)
    up = bool(attributes.get("ceil_mode", 0))
    return F.max_pool2d(inputs[0], attributes["kernel_shape"], strides, padding, ceil_mode=up)


@_operator("AveragePool")
def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    _need(attributes, dilations=[1, 1])
    strides, padding = _window(attributes, 2)
    counts_pads, up = (bool(attributes.get(name, 0)) for name in ("count_include_pad", "ceil_mode"))
    return F.avg_pool2d(
        inputs[0], attributes["kernel_shape"], strides, padding, ceil_mode=up, count_include_pad=counts_pads
    )


@_operator("GlobalAveragePool")
def _global_average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0].mean(dim=tuple(range(2, inputs[0].ndim)), keepdim=True)


@_operator("BatchNormalization")
def _batch_normalization(inputs: Inputs, attributes: Attributes) -> Tensor:
    _need(attributes, training_mode=0, spatial=1, is_test=1)
    x, scale, bias, mean, variance = inputs
    return F.batch_norm(x, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


@_operator("PRelu")
def _prelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, slope = inputs
    a_channel_each = slope.shape == (x.shape[1], *(1,) * (x.ndim - 2))
    if a_channel_each or slope.numel() == 1:
        return F.prelu(x, slope.flatten())
    return torch.where(x < 0, slope * x, x)


@_operator("Relu")
def _relu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.relu(inputs[0])


@_operator("LeakyRelu")
def _leaky_relu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.leaky_relu(inputs[0], attributes.get("alpha", 0.01))


@_operator("Sigmoid")
def _sigmoid(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0].sigmoid()


@_operator("Sqrt")
def _sqrt(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0].sqrt()


@_operator("Pow")
def _pow(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0] ** inputs[1].to(inputs[0].device)


@_operator("Clip")
def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, low, high = _padded(inputs, 3)
    low = attributes.get("min") if low is None else low  # attributes before opset 11
    high = attributes.get("max") if high is None else high
    return x if low is None and high is None else x.clamp(_number(low), _number(high))


def _number(bound: Tensor | float | None) -> float | None:
    return float(bound) if bound is not None else None


@_operator("Add")
def _add(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0] + inputs[1]


@_operator("Sub")
def _sub(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0] - inputs[1]


@_operator("Mul")
def _mul(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0] * inputs[1]


@_operator("Div")
def _div(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b = inputs
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@_operator("MatMul")
def _matmul(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0] @ inputs[1]


@_operator("Gemm")
def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b, c = _padded(inputs, 3)
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


@_operator("ReduceL2")
def _reduce_l2(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes, keep = _axes(inputs, attributes), bool(attributes.get("keepdims", 1))
    return torch.linalg.vector_norm(inputs[0], dim=axes or None, keepdim=keep)


@_operator("ReduceMean")
def _reduce_mean(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = _axes(inputs, attributes) or list(range(inputs[0].ndim))
    return inputs[0].mean(dim=axes, keepdim=bool(attributes.get("keepdims", 1)))


@_operator("ReduceSum")
def _reduce_sum(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = _axes(inputs, attributes) or list(range(inputs[0].ndim))
    return inputs[0].sum(dim=axes, keepdim=bool(attributes.get("keepdims", 1)))


@_operator("LpNormalization")
def _lp_normalization(inputs: Inputs, attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", -1)
    return inputs[0] / torch.linalg.vector_norm(inputs[0], ord=attributes.get("p", 2), dim=axis, keepdim=True)


@_operator("Identity", "Dropout")
def _identity(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Dropout of a trained network does nothing."""
    return inputs[0]


@_operator("Cast")
def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Between float types nothing happens: the module computes in the one type it was moved to."""
    to_float = attributes["to"] in (1, 10, 11, 16)  # FLOAT, FLOAT16, DOUBLE, BFLOAT16 of onnx.TensorProto
    if not to_float:
        return inputs[0].long().cpu()
    return inputs[0] if inputs[0].is_floating_point() else inputs[0].float()


@_operator("DequantizeLinear")
def _dequantize_linear(inputs: Inputs, attributes: Attributes) -> Tensor:
    """``(x - zero) * scale``; a vector of scales belongs to one axis. Whole numbers become floats here."""
    x, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else None
    if attributes.get("block_size", 0):
        raise UnsupportedSettingError("block_size is not supported")
    shape = [1] * x.ndim
    if scale.ndim:
        shape[attributes.get("axis", 1)] = -1
    shifted = x if zero is None else x - zero.reshape(shape if zero.ndim else ())
    return shifted.to(scale.dtype) * scale.reshape(shape if scale.ndim else ())


@_operator("Flatten")
def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@_operator("Reshape")
def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    """A 0 copies the size of the input, unless ``allowzero`` says that it means an empty axis."""
    x, sizes = inputs[0], inputs[1].tolist()
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


@_operator("Transpose")
def _transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    order = attributes.get("perm", list(reversed(range(inputs[0].ndim))))
    return inputs[0].permute(*order)


@_operator("Unsqueeze")
def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axes = inputs[0], _axes(inputs, attributes)
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@_operator("Squeeze")
def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = _axes(inputs, attributes)
    return inputs[0].squeeze(axes) if axes else inputs[0].squeeze()


@_operator("Shape")
def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.tensor(inputs[0].shape[attributes.get("start", 0) : attributes.get("end", None)])


@_operator("Gather")
def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, index = inputs
    axis = attributes.get("axis", 0) % x.ndim
    positions = index.to(x.device).flatten() % x.shape[axis]
    shape = [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]]
    return x.index_select(axis, positions).reshape(shape)


@_operator("Slice")
def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, starts, ends, axes, steps = _padded(inputs, 5)
    starts, ends = starts.tolist(), ends.tolist()
    axes = axes.tolist() if axes is not None else list(range(len(starts)))
    steps = steps.tolist() if steps is not None else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        positions = range(
            *slice(start, end, step).indices(x.shape[axis])
        )  # also backwards, which torch refuses
        x = x.index_select(axis, torch.tensor(positions, dtype=torch.long, device=x.device))
    return x


@_operator("Concat")
def _concat(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.cat(inputs, dim=attributes["axis"])


@_operator("Expand")
def _expand(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Broadcast both ways: a 1 in the wanted shape leaves the axis as it is."""
    return inputs[0].expand(torch.broadcast_shapes(inputs[0].shape, inputs[1].tolist()))
