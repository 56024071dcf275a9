"""A face recogniser in ONNX as a torch module through which gradients flow to the pixels.

Reads what ArcFace-like networks are made of (IResNet, MobileFaceNet, small ResNets), from both exporters of
torch and from older frameworks. Unlike onnx2torch it needs no torchvision, and it refuses what it does not
know by name. The operators themselves are in ``onnx_operators``.

Shapes: B batch, D embedding width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from idgen.encoders.base import CropSpec
from idgen.encoders.onnx_operators import OPERATORS, Attributes, UnsupportedSettingError
from idgen.errors import ModelNotFoundError, WeightsError


def read_onnx(path: str | Path, *, weights: bool = True) -> onnx.ModelProto:
    """Parse an ONNX file.

    Args:
        path: the file.
        weights: also read weights that lie in a second file beside it.

    Raises:
        ModelNotFoundError: if the file is missing.
        WeightsError: if it is not an ONNX model, or its second file is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFoundError(f"no such file: {path}")
    try:
        model = onnx.load(path, load_external_data=weights)
    except DecodeError:
        raise WeightsError(f"{path} is not an ONNX model, or it is cut off") from None
    except (onnx.checker.ValidationError, OSError) as error:
        raise WeightsError(
            f"the weights that {path} keeps in a second file cannot be read: {error}"
        ) from None
    if not model.graph.node:
        raise WeightsError(f"{path} is not an ONNX model: it holds no operator")
    return model


class OnnxModule(nn.Module):
    """The graph of an ONNX file, computed by torch operator by operator.

    Weights are frozen buffers, so ``.to(device)`` and ``.to(torch.float64)`` do what they say; numbers that
    only describe shapes stay on the CPU. Weights stored in half precision are computed with in float32.

    Args:
        path: the ONNX file, with one input and one output.

    Raises:
        ModelNotFoundError: if the file is missing.
        WeightsError: if it is not an ONNX model, or holds an operator or a setting that is not supported; the
            message names operator and node.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        model = read_onnx(path)
        self.path = Path(path)
        self._buffer_of: dict[str, str] = {}  # value -> attribute that holds it
        self._shapes: dict[str, Tensor] = {}  # constant integers
        for tensor in model.graph.initializer:
            self._keep(tensor.name, numpy_helper.to_array(tensor))
        self.input_name, self.output_name = self._ends(model.graph)
        self._nodes = self._steps(model.graph.node)
        self._last_use = _last_uses(self._nodes, self.output_name)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The output of the graph.

        Args:
            pixel_values: (B, 3, H, W), normalised as the file expects it. A float type other than float32
                needs the module in the same type.

        Raises:
            WeightsError: if an operator does not fit its inputs; the message names both.
        """
        values: dict[str, Tensor] = {self.input_name: pixel_values}
        for i, node in enumerate(self._nodes):
            values[node.output] = self._run(node, values)
            for name in self._last_use.get(i, ()):
                values.pop(
                    name, None
                )  # a deep network must not hold all its maps where no gradient needs them
        return values[self.output_name]

    def _run(self, node: "_Node", values: dict[str, Tensor]) -> Tensor:
        try:
            return OPERATORS[node.operator](
                [self._value(name, values) for name in node.inputs], node.attributes
            )
        except torch.OutOfMemoryError:  # a RuntimeError that is no fault of the file
            raise
        except (UnsupportedSettingError, RuntimeError, IndexError, TypeError) as error:
            raise WeightsError(f"{self.path}: {node.operator} (node {node.name!r}): {error}") from error

    def _value(self, name: str, values: dict[str, Tensor]) -> Tensor | None:
        if not name:  # an optional input that is left out
            return None
        if name in values:
            return values[name]
        return self._shapes[name] if name in self._shapes else getattr(self, self._buffer_of[name])

    def _is_constant(self, name: str) -> bool:
        return not name or name in self._shapes or name in self._buffer_of

    def _keep(self, name: str, array: np.ndarray) -> None:
        """Remember a constant: floats as a buffer, in float32 at least; integers aside."""
        if not np.issubdtype(array.dtype, np.floating):
            self._shapes[name] = torch.from_numpy(array.astype(np.int64))
            return
        attribute = f"constant_{len(self._buffer_of)}"
        wide = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
        self.register_buffer(attribute, torch.from_numpy(wide))
        self._buffer_of[name] = attribute

    def _ends(self, graph: onnx.GraphProto) -> tuple[str, str]:
        """The one input that is not a weight, and the one output."""
        inputs = [value.name for value in graph.input if not self._is_constant(value.name)]
        if len(inputs) != 1 or len(graph.output) != 1:
            outputs = [value.name for value in graph.output]
            raise WeightsError(f"{self.path} must have one input and one output, got {inputs} and {outputs}")
        return inputs[0], graph.output[0].name

    def _steps(self, nodes: Sequence[onnx.NodeProto]) -> list["_Node"]:
        """The nodes to run; what depends on constants alone is computed here, once."""
        steps = []
        for proto in nodes:
            node = _Node(proto)
            if proto.op_type == "Constant" and not proto.domain:
                self._keep(node.output, self._constant(proto))
                continue
            if node.operator not in OPERATORS or proto.domain not in ("", "ai.onnx"):
                domain = f" of {proto.domain!r}" if proto.domain else ""
                known = ", ".join(sorted(OPERATORS))
                raise WeightsError(
                    f"{self.path}: operator {node.operator!r}{domain} (node {node.name!r}) is not supported; "
                    f"export the network with one of: {known}"
                )
            if all(self._is_constant(name) for name in node.inputs):
                self._keep(node.output, self._run(node, {}).numpy())
                continue
            steps.append(node)
        return steps

    def _constant(self, proto: onnx.NodeProto) -> np.ndarray:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        for name, value in attributes.items():
            if name == "value":
                return numpy_helper.to_array(value)
            if name in ("value_float", "value_floats"):
                return np.asarray(value, dtype=np.float32)
            if name in ("value_int", "value_ints"):
                return np.asarray(value, dtype=np.int64)
        raise WeightsError(
            f"{self.path}: Constant (node {proto.name!r}) of kind {list(attributes)} is not supported"
        )


class _Node:
    """One operator of the graph, with its first output; others, like the mask of Dropout, go unused."""

    def __init__(self, proto: onnx.NodeProto) -> None:
        self.operator = proto.op_type
        self.name = proto.name or proto.output[0]
        self.inputs = list(proto.input)
        self.output = proto.output[0]
        self.attributes: Attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}


def _last_uses(nodes: list[_Node], output: str) -> dict[int, list[str]]:
    """Step -> values that nobody reads after it."""
    last = {name: i for i, node in enumerate(nodes) for name in [*node.inputs, node.output]}
    last.pop(output, None)
    uses: dict[int, list[str]] = {}
    for name, i in last.items():
        uses.setdefault(i, []).append(name)
    return uses


def crop_spec(model: onnx.ModelProto) -> CropSpec:
    """The crop a recogniser wants, read from its graph.

    A network that subtracts and scales before its first convolution normalises by itself and wants 0..255
    (older insightface models, and mxnet's); all others want ``(x - 127.5) / 127.5``. insightface goes by the
    *names* of the first eight nodes and misses this in files that were exported by torch.

    Raises:
        WeightsError: if the input is not a batch of square RGB crops of a multiple of 112 pixels, or if the
            constant that is subtracted belongs to neither 0..255 nor 0..1.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    sizes = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    if len(sizes) != 4 or sizes[1] not in (0, 3) or sizes[2] != sizes[3] or sizes[2] % 112:
        shape = [[d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in inputs]
        raise WeightsError(f"not a face recogniser: its input must be (n, 3, 112, 112), got {shape}")
    size_px = sizes[2] or 112
    scale, offset = _first_arithmetic(model.graph, inputs[0].name)
    if (scale, offset) == (1.0, 0.0):
        return CropSpec(size_px=size_px)
    middle = -offset / scale  # the grey that becomes 0
    if middle >= 16:
        return CropSpec(size_px=size_px, mean=0.0, std=1.0)
    if 0.2 <= middle <= 0.8:
        return CropSpec(size_px=size_px, mean=0.0, std=255.0)
    raise WeightsError(
        f"the network subtracts {middle:g} from its pixels, which tells neither 0..255 nor 0..1; "
        "give its `crop`"
    )


def _first_arithmetic(graph: onnx.GraphProto, name: str) -> tuple[float, float]:
    """What happens to the pixels before the first layer, as ``scale * x + offset`` (constants averaged)."""
    known = {t.name: t for t in graph.initializer}
    known |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant" and n.attribute}
    scale, offset = 1.0, 0.0
    for node in graph.node:
        if name not in node.input:
            continue
        if node.op_type in ("Identity", "Cast"):
            name = node.output[0]
            continue
        if node.op_type not in ("Sub", "Mul", "Div") or node.input[1] not in known:
            break
        number = float(numpy_helper.to_array(known[node.input[1]]).mean())
        if node.op_type == "Sub":
            offset -= number
        elif node.op_type == "Mul":
            scale, offset = scale * number, offset * number
        else:
            scale, offset = scale / number, offset / number
        name = node.output[0]
    return scale, offset


class TorchEncoder(nn.Module):
    """Crops in [0, 1] -> unit vectors, differentiable: the torch twin of an encoder."""

    def __init__(self, path: str | Path, crop: CropSpec | None = None) -> None:
        super().__init__()
        self.crop = crop or crop_spec(read_onnx(path, weights=False))
        self.network = OnnxModule(path)

    def forward(self, crops: Tensor) -> Tensor:
        """(B, 3, size, size) RGB in [0, 1] -> (B, D) of unit length."""
        return nn.functional.normalize(self.network(self.crop.pixel_values(crops)).flatten(1), dim=1)


def torch_encoder(path: str | Path, crop: CropSpec | None = None) -> TorchEncoder:
    """The differentiable form of a recogniser's ONNX file, frozen and in evaluation mode.

    Args:
        path: the ONNX file.
        crop: what the network wants, where the file does not show it.

    Raises:
        ModelNotFoundError: if the file is missing.
        WeightsError: if it cannot be read or holds something that is not supported.
    """
    return TorchEncoder(path, crop).eval()
