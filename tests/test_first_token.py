"""Narrowing a graph to the first token: the same outputs, and only where it is right."""

from __future__ import annotations

import numpy as np
import pytest

from cexnn.cross_encoder.first_token import keep_first_token

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'cexnn[cpu]'")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")

N_DIMS, N_HEADS = 8, 2


def graph(body, *, opset=18):
    """Return a model of hidden states x (B, S, 8) and a mask (B, 1, 1, S), ending in y."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]>'
        "tiny (float[B, S, 8] x, float[B, 1, 1, S] mask) => (float[B, D] y) {"
        "zero = Constant <value = int64 {0}> ()"
        "heads = Constant <value_ints = [0, 0, 2, 4]> ()"
        "merged = Constant <value_ints = [0, 0, 8]> ()"
        f"{body} }}"
    )
    generator = np.random.default_rng(0)
    weights = {f"w{j}": (N_DIMS, N_DIMS) for j in range(4)} | {"bias": (N_DIMS,), "gain": (N_DIMS,)}
    for name, shape in weights.items():
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def outputs(model, shapes=((1, 1), (3, 1), (1, 5), (4, 7))):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # not that weights are unused
    session = ort.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],  # as CrossEncoder has it
    )
    results = []
    for n, width in shapes:
        generator = np.random.default_rng(n * width)
        feed = {
            "x": generator.standard_normal((n, width, N_DIMS)).astype(np.float32),
            "mask": np.where(generator.random((n, 1, 1, width)) < 0.3, -1e9, 0).astype(np.float32),
        }
        used = {one.name: feed[one.name] for one in session.get_inputs()}
        results.append(session.run(None, used)[0])
    return results


ATTENTION = (
    "q0 = MatMul (x, w0) q1 = Reshape (q0, heads) q = Transpose <perm = [0, 2, 1, 3]> (q1)"
    "k0 = MatMul (x, w1) k1 = Reshape (k0, heads) k = Transpose <perm = [0, 2, 3, 1]> (k1)"
    "v0 = MatMul (x, w2) v1 = Reshape (v0, heads) v = Transpose <perm = [0, 2, 1, 3]> (v1)"
    "s0 = MatMul (q, k) s1 = Add (s0, mask) p = Softmax <axis = -1> (s1)"
    "c0 = MatMul (p, v) c1 = Transpose <perm = [0, 2, 1, 3]> (c0) c = Reshape (c1, merged)"
    "o = MatMul (c, w3) r = Add (o, x) h = LayerNormalization <axis = -1> (r, gain, bias)"
)
MEAN_NORM = (
    "a = MatMul (x, w0) m = ReduceMean <keepdims = 1> (a, last) d = Sub (a, m) h = Mul (d, d)"
)
FIRST = "y = Gather <axis = 1> (h, zero)"


@pytest.mark.parametrize(
    ("body", "n_narrowed"),
    [
        ("a = MatMul (x, w0) b = Add (a, bias) h = Relu (b)" + FIRST, 1),
        ("a = MatMul (x, w0) b = Erf (a) h0 = MatMul (b, w1) h = Add (h0, a)" + FIRST, 2),
        (ATTENTION + FIRST, 2),  # the query's and the output's weights: keys and values stay whole
        ("last = Constant <value_ints = [-1]> ()" + MEAN_NORM + FIRST, 1),
    ],
    ids=["linear", "residual", "attention", "mean of dimensions"],
)
def test_what_feeds_the_first_token_alone_is_narrowed(body, n_narrowed):
    model = graph(body)
    before = outputs(model)
    n_nodes = len(model.graph.node)

    assert keep_first_token(model) == n_narrowed

    onnx.checker.check_model(model)
    assert any(node.op_type == "Slice" for node in model.graph.node)
    assert len(model.graph.node) <= n_nodes + 4
    for one, other in zip(outputs(model), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul (x, w0) y = ReduceMax <keepdims = 0> (h, one)",
        "h = MatMul (x, w0)" + FIRST.replace("zero", "one"),
        "h = MatMul (x, w0) f = Gather <axis = 1> (h, zero) t = ReduceMean <keepdims = 0> (h, one)"
        "y = Add (f, t)",
        "a = MatMul (x, w0) h = Softmax <axis = 1> (a)" + FIRST,
        "last = Constant <value_ints = [1]> ()" + MEAN_NORM + FIRST,
        "a = MatMul (x, w0) h = CumSum (a, one)" + FIRST,
    ],
    ids=["maximum", "second token", "mean beside", "softmax of tokens", "mean of tokens", "sums"],
)
def test_what_reads_other_tokens_is_left_alone(body):
    model = graph("one = Constant <value_ints = [1]> ()" + body)
    before = model.SerializeToString()
    assert keep_first_token(model) == 0
    assert model.SerializeToString() == before


def test_old_operator_sets_are_left_alone():
    assert keep_first_token(graph("h = MatMul (x, w0)" + FIRST, opset=12)) == 0


def quantised(model):
    """Give the products with weights those of 8 bits; they quantise their left side, too."""
    initializers = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in initializers:
            weights = onnx.numpy_helper.to_array(initializers[node.input[1]])
            scales = np.abs(weights).max(axis=0) / 127
            codes = np.full((N_DIMS, 1, 16), 128, dtype=np.uint8)
            codes[:, 0, :N_DIMS] = np.rint(weights / scales).T + 128
            names = [f"{node.output[0]}/codes", f"{node.output[0]}/scales"]
            for name, array in zip(names, (codes, scales[:, None]), strict=True):
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            inputs, output = [node.input[0], *names], node.output[0]
            options = {"K": N_DIMS, "N": N_DIMS, "bits": 8, "block_size": 16, "accuracy_level": 4}
            node.CopyFrom(
                onnx.helper.make_node(
                    "MatMulNBits", inputs, [output], domain="com.microsoft", **options
                )
            )
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model


def test_quantised_products_come_out_to_the_last_bit():
    shapes = ((2, 1), (3, 2), (1, 6), (4, 7))  # an odd row at the end is computed another way
    model = quantised(graph(ATTENTION + "z = MatMul (h, w0)" + FIRST.replace("(h,", "(z,")))
    before = outputs(model, shapes)
    assert keep_first_token(model) == 2  # of attention's output, and behind it
    ends = [one for one in model.graph.initializer if one.name.startswith("end/")]
    assert [onnx.numpy_helper.to_array(one).tolist() for one in ends] == [[2]]
    for one, other in zip(outputs(model, shapes), before, strict=True):
        np.testing.assert_array_equal(one, other)
