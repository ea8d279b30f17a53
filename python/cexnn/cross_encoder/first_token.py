"""Of a model's last layer, compute only what the score reads: the first token.

A cross-encoder's head reads the first token of the last hidden states. The other tokens' queries,
attention outputs and feed-forward layers of the last layer never reach the score; exported models
compute them all the same. Here the demand is traced back through the graph: an operation whose
result is only read at position 0 of one axis is given position 0 of its inputs.

With quantised weights (`MatMulNBits`) scores stay the same to the last bit: activations are rounded
to few bits there, so that the least difference would grow. Attention is left whole for that, and
two tokens are kept, as those products take rows in pairs and a last one alone otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cexnn.cross_encoder.graph import QUANTISED, Graph, attribute, read_graph

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["keep_first_token"]

Axis = int | None  # read at position 0 of this axis; None: read whole

_MIN_OPSET = 13
_ELEMENTWISE = [
    *("Add", "Cast", "Div", "Dropout", "Erf", "Exp", "Gelu", "Identity", "IsNaN", "Mul", "Neg"),
    *("Not", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where"),
]
_PRODUCTS = ("MatMul", QUANTISED)
_SUFFIX = "/first"


def keep_first_token(model: ModelProto) -> int:
    """Narrow the operations that feed only the first token; the model's scores stay the same.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place. Weights may be in external data, not loaded.

    Returns
    -------
    int
        Matrix products with weights that now run on the first token of a row, or on the first two.
        0: nothing was changed.
    """
    if not _can_be_traced(model):
        return 0
    graph = read_graph(model)
    plan = _trace(graph)
    n_products: int = sum(
        node.op_type in _PRODUCTS and node.input[1] in graph.constants
        for j, node in enumerate(model.graph.node)
        if j in plan.narrowed
    )
    if n_products:
        _rewrite(graph, plan)
    return n_products


class _Plan(NamedTuple):
    """For nodes by number: the axis of their output that is left with one position."""

    narrowed: dict[int, int]
    inputs: dict[int, list[Axis]]  # what those nodes, and those that read position 0, take
    unused: set[int]


def _can_be_traced(model: ModelProto) -> bool:
    opsets = {one.domain: one.version for one in model.opset_import}
    plain = all(not (a.g.node or a.graphs) for n in model.graph.node for a in n.attribute)
    return plain and opsets.get("", opsets.get("ai.onnx", 0)) >= _MIN_OPSET


def _trace(graph: Graph) -> _Plan:
    """From the outputs back: who needs what of whom."""
    plan = _Plan({}, {}, set())
    demands: defaultdict[str, set[Axis]] = defaultdict(set)
    for output in graph.proto.output:
        demands[output.name].add(None)
    for j, node in reversed(list(enumerate(graph.proto.node))):
        wanted = set().union(*(demands[name] for name in node.output))
        if not wanted:
            plan.unused.add(j)
            continue
        takes: list[Axis] | None = None
        if wanted == {None}:
            takes = _reads_first(graph, node)
        elif len(wanted) == 1 and len(node.output) == 1:
            axis = next(one for one in wanted if one is not None)
            known = node.domain in ("", "ai.onnx") or node.op_type == QUANTISED
            rule = _RULES.get(node.op_type) if known else None
            takes = rule(graph, node, axis) if rule is not None else None
            if takes is not None:
                plan.narrowed[j] = axis
        if takes is not None:
            plan.inputs[j] = takes
        for name, axis_taken in zip(node.input, takes or [None] * len(node.input), strict=True):
            demands[name].add(axis_taken)
    return plan


def _rewrite(graph: Graph, plan: _Plan) -> None:
    """Carry the plan out: slices where narrowed operations begin, the same operations after."""
    from onnx import helper, numpy_helper

    made: list[NodeProto] = []
    narrow = {name for j in plan.narrowed for name in graph.proto.node[j].output}
    slices: set[str] = set()
    for name, value in (("start", 0), ("end", graph.n_kept)):
        constant = numpy_helper.from_array(np.array([value]), f"{name}{_SUFFIX}")
        graph.proto.initializer.append(constant)

    def first_of(name: str, axis: int) -> str:
        first = f"{name}{_SUFFIX}{axis}"
        if first not in slices:
            slices.add(first)
            axes = numpy_helper.from_array(np.array([axis]), f"{first}/axes")
            graph.proto.initializer.append(axes)
            bounds = [f"start{_SUFFIX}", f"end{_SUFFIX}"]
            made.append(helper.make_node("Slice", [name, *bounds, axes.name], [first]))
        return first

    for j, node in enumerate(graph.proto.node):
        if j in plan.unused:
            continue
        if j in plan.narrowed:
            for k, axis in enumerate(plan.inputs[j]):
                if axis is not None and node.input[k] not in narrow:
                    node.input[k] = first_of(node.input[k], axis)
            if node.op_type == "Reshape":
                shape = np.array(_narrow_shape(graph, node))
                node.input[1] = f"{node.output[0]}{_SUFFIX}/shape"
                graph.proto.initializer.append(numpy_helper.from_array(shape, node.input[1]))
                del node.attribute[:]
        made.append(node)
    del graph.proto.value_info[:]  # of the shapes before
    del graph.proto.node[:]
    graph.proto.node.extend(made)


# --- what an operation takes of its inputs so that position 0 of an axis comes out ---


def _reads_first(graph: Graph, node: NodeProto) -> list[Axis] | None:
    """Gather or Slice of position 0 on the axis of the tokens."""
    from onnx import numpy_helper

    def value(k: int) -> list[int] | None:
        tensor = graph.constants.get(node.input[k]) if len(node.input) > k else None
        return None if tensor is None else numpy_helper.to_array(tensor).ravel().tolist()

    if node.op_type not in ("Gather", "Slice") or len(graph.shapes.get(node.input[0], ())) != 3:
        return None
    if node.op_type == "Gather":
        first = attribute(node, "axis", 0) == 1 and value(1) == [0]
    else:
        first = [value(1), value(2), value(3)] == [[0], [1], [1]] and value(4) in (None, [1])
    return [1, *[None] * (len(node.input) - 1)] if first else None


def _elementwise(graph: Graph, node: NodeProto, axis: int) -> list[Axis] | None:
    rank = len(graph.shapes.get(node.output[0], ()))
    takes: list[Axis] = []
    for name in node.input:
        if name and name not in graph.shapes:
            return None
        shape = graph.shapes.get(name, [])
        own = axis - (rank - len(shape))  # shapes are aligned at their ends
        takes.append(own if own >= 0 and shape[own] != 1 else None)
    return takes if rank else None


def _along_last(graph: Graph, node: NodeProto, axis: int) -> list[Axis] | None:
    """Softmax and LayerNormalization over the last axis, another one than `axis`."""
    last = len(graph.shapes.get(node.input[0], ())) - 1
    along = attribute(node, "axis", -1)
    if axis >= last or along not in (-1, last):
        return None
    return [axis, *[None] * (len(node.input) - 1)]


def _mean(graph: Graph, node: NodeProto, axis: int) -> list[Axis] | None:
    from onnx import numpy_helper

    if len(node.input) > 1:
        tensor = graph.constants.get(node.input[1])
        axes = [] if tensor is None else numpy_helper.to_array(tensor).tolist()
    else:
        axes = attribute(node, "axes", [])
    last = len(graph.shapes.get(node.input[0], ())) - 1
    kept = attribute(node, "keepdims", 1) == 1
    if axis >= last or list(axes) not in ([-1], [last]) or not kept:
        return None
    return [axis, *[None] * (len(node.input) - 1)]


def _product(graph: Graph, node: NodeProto, axis: int) -> list[Axis] | None:
    """Rows of a product come from the same rows of its left side."""
    left = len(graph.shapes.get(node.input[0], ()))
    rank = len(graph.shapes.get(node.output[0], ()))
    if left < 2 or axis != rank - 2:
        return None
    if graph.quantised and node.input[1] not in graph.constants:
        return None  # attention rounds otherwise for fewer rows, and what quantises it tells that
    return [left - 2, *[None] * (len(node.input) - 1)]


def _transpose(graph: Graph, node: NodeProto, axis: int) -> list[Axis] | None:
    order = attribute(node, "perm", None)
    return None if order is None else [int(order[axis])]


def _reshape(graph: Graph, node: NodeProto, axis: int) -> list[Axis] | None:
    return None if axis != 1 or _narrow_shape(graph, node) is None else [1, None]


def _narrow_shape(graph: Graph, node: NodeProto) -> list[int] | None:
    """(batch, tokens, heads, n) to (batch, tokens, heads * n), or back, of however many tokens."""
    before, after = (graph.shapes.get(name, []) for name in (node.input[0], node.output[0]))
    if (len(before), len(after)) == (4, 3):
        return [0, 0, -1]
    if (len(before), len(after)) == (3, 4) and isinstance(after[3], int):
        return [0, 0, -1, after[3]]
    return None


_RULES: dict[str, Callable[[Graph, NodeProto, int], list[Axis] | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "LayerNormalization": _along_last,
    "Softmax": _along_last,
    "ReduceMean": _mean,
    **dict.fromkeys(_PRODUCTS, _product),
    "Transpose": _transpose,
    "Reshape": _reshape,
}
