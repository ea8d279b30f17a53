"""The graph of an ONNX model: its constants, and the shapes of its tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["QUANTISED", "Graph", "attribute", "read_graph"]

QUANTISED = "MatMulNBits"
"""ONNX Runtime's product with weights of few bits, which rounds its left side, too."""

_SMALL = 64  # numbers of a constant that may be a shape


class Graph(NamedTuple):
    """A graph, and what is known of its tensors.

    Attributes
    ----------
    proto : GraphProto
        The graph.
    constants : dict of str to TensorProto
        Its constants, by name.
    shapes : dict of str to list
        Shapes of the tensors, where the graph tells their rank; names for what is not a number.
    quantised : bool
        Whether it has products with quantised weights.
    """

    proto: GraphProto
    constants: dict[str, Any]
    shapes: dict[str, list[int | str]]
    quantised: bool

    @property
    def n_kept(self) -> int:
        """Tokens kept of a row: products with quantised weights take rows in pairs."""
        return 2 if self.quantised else 1


def read_graph(model: ModelProto) -> Graph:
    """Read the graph of a model. Weights may be in external data, not loaded."""
    quantised = any(node.op_type == QUANTISED for node in model.graph.node)
    return Graph(model.graph, _constants(model.graph), _shapes(model), quantised)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return an attribute's value, or the default."""
    from onnx import helper

    found = [helper.get_attribute_value(one) for one in node.attribute if one.name == name]
    return found[0] if found else default


def _constants(graph: GraphProto) -> dict[str, Any]:
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Constant" and node.attribute[0].name == "value_ints":
            ints = np.array(node.attribute[0].ints, dtype=np.int64)
            constants[node.output[0]] = numpy_helper.from_array(ints)
    return constants


def _shapes(model: ModelProto) -> dict[str, list[int | str]]:
    """Shapes of the tensors, where the graph tells their rank; names for what is not a number."""
    from onnx import ModelProto, helper, shape_inference

    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = model.graph.name
    for name in ("node", "input", "output"):
        getattr(bare.graph, name).extend(getattr(model.graph, name))
    for node in bare.graph.node:
        if node.op_type == QUANTISED:  # which the inference does not know: a product of that shape
            sizes = [attribute(node, "K", 0), attribute(node, "N", 0)]
            weights = f"{node.output[0]}/weights"
            kind = _type_of(model, node.input[2])
            bare.graph.input.append(helper.make_tensor_value_info(weights, kind, sizes))
            plain = helper.make_node("MatMul", [node.input[0], weights], node.output)
            node.CopyFrom(plain)
    for tensor in model.graph.initializer:  # weights by their shape alone: they are not copied
        if math.prod(tensor.dims) <= _SMALL:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    inferred = shape_inference.infer_shapes(bare).graph
    shapes: dict[str, list[int | str]] = {t.name: list(t.dims) for t in model.graph.initializer}
    for one in (*inferred.value_info, *inferred.input, *inferred.output):
        kind = one.type.tensor_type
        if kind.HasField("shape"):
            shapes[one.name] = [
                d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim
            ]
    return shapes


def _type_of(model: ModelProto, name: str) -> int:
    """Type of the numbers that scales, and so activations, are in."""
    from onnx import TensorProto

    kinds = [one.data_type for one in model.graph.initializer if one.name == name]
    return int(kinds[0] if kinds else TensorProto.FLOAT)
