"""Token ids of pairs to padded model inputs, against a plain definition."""

from __future__ import annotations

import numpy as np
import pytest

from cexnn import _core


def lists(*tokens):
    """Return lists of token ids as offsets and ids."""
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    return offsets, np.array([t for one in tokens for t in one], dtype=np.int32)


def pack_plainly(
    queries, items, rows, item_ids, constants, types, query_type, item_type, pad, max_length, width
):
    """Define what ``pack_pairs`` writes, one pair and one token at a time."""
    prefix, middle, suffix = constants
    prefix_types, middle_types, suffix_types = types
    ids, mask, type_ids = [], [], []
    for row, item_id in zip(rows, item_ids, strict=True):
        query, item = queries[row], items[item_id]
        n_fixed = len(prefix) + len(query) + len(middle) + len(suffix)
        item = item[: max_length - n_fixed]
        tokens = prefix + query + middle + item + suffix
        kinds = prefix_types + [query_type] * len(query) + middle_types
        kinds = kinds + [item_type] * len(item) + suffix_types
        n_padding = width - len(tokens)
        ids.append(tokens + [pad[0]] * n_padding)
        mask.append([1] * len(tokens) + [0] * n_padding)
        type_ids.append(kinds + [pad[1]] * n_padding)
    return [np.array(x, dtype=np.int64).reshape(-1, width) for x in (ids, mask, type_ids)]


def pack(device, queries, items, rows, item_ids, constants, types, max_length, width, changes=None):
    """Call the native function on Python lists; the outputs start as rubbish."""
    outputs = [np.full((len(rows), width), -7, dtype=np.int64) for _ in range(3)]
    arguments = {
        "queries": lists(*queries),
        "items": lists(*items),
        "rows": np.array(rows, dtype=np.int32),
        "item_ids": np.array(item_ids, dtype=np.int32),
        "constants": lists(*constants),
        "constant_types": np.array([t for one in types for t in one], dtype=np.int32),
        "query_type": 0,
        "item_type": 1,
        "pad_id": 3,
        "pad_type": 0,
        "max_length": max_length,
        "input_ids": outputs[0],
        "attention_mask": outputs[1],
        "token_type_ids": outputs[2],
    }
    arguments.update(changes or {})
    _core.pack_pairs(**arguments, device=device)
    return outputs


BERT = ([[101], [102], [102]], [[0], [0], [1]])
ROBERTA = ([[0], [2, 2], [2]], [[0], [0, 0], [0]])
BARE = ([[], [], []], [[], [], []])


@pytest.mark.parametrize("layout", [BERT, ROBERTA, BARE], ids=["bert", "roberta", "bare"])
@pytest.mark.parametrize("max_length", [8, 9, 64])
@pytest.mark.parametrize("extra_width", [0, 5])
def test_packs_as_defined(device, layout, max_length, extra_width):
    generator = np.random.default_rng(max_length)
    constants, types = layout
    n_constants = sum(map(len, constants))
    longest_query = max_length - n_constants
    queries = [
        generator.integers(200, 999, n).tolist()
        for n in (*generator.integers(0, min(longest_query, 20) + 1, 6), 0, min(longest_query, 20))
    ]
    items = [
        generator.integers(200, 999, n).tolist() for n in (*generator.integers(0, 70, 9), 0, 1)
    ]
    rows = generator.integers(0, len(queries), 50).tolist()
    item_ids = generator.integers(0, len(items), 50).tolist()
    totals = [
        n_constants + len(queries[r]) + len(items[i]) for r, i in zip(rows, item_ids, strict=True)
    ]
    width = min(max(totals), max_length) + extra_width

    expected = pack_plainly(
        queries, items, rows, item_ids, constants, types, 5, 6, (3, 4), max_length, width
    )
    got = pack(
        device, queries, items, rows, item_ids, constants, types, max_length, width,
        {"query_type": 5, "item_type": 6, "pad_type": 4},
    )  # fmt: skip

    assert max(totals) > max_length or max_length == 64
    for array, wanted in zip(got, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_many_pairs(device):
    rng = np.random.default_rng(5)
    queries, items = ([rng.integers(200, 999, n).tolist() for n in range(9)] for _ in range(2))
    rows, item_ids = (rng.integers(0, 9, 1999).tolist() for _ in range(2))
    expected = pack_plainly(queries, items, rows, item_ids, *BERT, 0, 1, (3, 0), 16, 19)
    got = pack(device, queries, items, rows, item_ids, *BERT, 16, 19)
    for array, wanted in zip(got, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)
    rows[1000], rows[1500] = 9, -1  # the first of them is named, whichever is met first
    with pytest.raises(ValueError, match="rows: expected a number from 0 to 8, got 9"):
        pack(device, queries, items, rows, item_ids, *BERT, 16, 19)


def pack_on_device(queries, items, rows, item_ids, width):
    """Pack with everything on the device that may lie there."""
    outputs = [_core.DeviceArray.empty((len(rows), width), np.int64) for _ in range(3)]
    changes = {
        "queries": tuple(map(_core.DeviceArray, lists(*queries))),
        "items": tuple(map(_core.DeviceArray, lists(*items))),
        "rows": _core.DeviceArray(np.array(rows, dtype=np.int32)),
        "item_ids": _core.DeviceArray(np.array(item_ids, dtype=np.int32)),
        **dict(zip(("input_ids", "attention_mask", "token_type_ids"), outputs, strict=True)),
    }
    pack("cuda", queries, items, rows, item_ids, *BERT, 16, width, changes)
    return [output.numpy() for output in outputs]


def test_cuda_packs_where_the_tokens_lie():
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    rng = np.random.default_rng(0)
    queries, items = ([rng.integers(200, 999, n).tolist() for n in range(9)] for _ in range(2))
    rows, item_ids = (rng.integers(0, 9, 50).tolist() for _ in range(2))
    expected = pack_plainly(queries, items, rows, item_ids, *BERT, 0, 1, (3, 0), 16, 19)
    got = pack_on_device(queries, items, rows, item_ids, 19)
    for array, wanted in zip(got, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)
    for wrong, message in ((9, "rows: expected a number from 0 to 8, got 9"), (-1, "rows")):
        with pytest.raises(ValueError, match=message):
            pack_on_device(queries, items, [0, 1, wrong], [0, 1, 2], 19)


def test_a_pair_by_hand(device):
    ids, mask, types = pack(device, [[11, 12]], [[21, 22, 23, 24]], [0], [0], *BERT, 8, 10)
    assert ids.tolist() == [[101, 11, 12, 102, 21, 22, 23, 102, 3, 3]]
    assert mask.tolist() == [[1] * 8 + [0, 0]]
    assert types.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize(("n", "n_rows"), [(1, 1), (1, 2), (3, 4), (5, 300)])
def test_the_last_pair_fills_the_rows_that_are_left(device, n, n_rows):
    queries, items = [[11, 12], [13]], [[21], [22, 23], []]
    rows, item_ids = [0, 1, 1, 0, 1][:n], [2, 1, 0, 0, 1][:n]
    outputs = [np.full((n_rows, 8), -7, dtype=np.int64) for _ in range(3)]
    names = ("input_ids", "attention_mask", "token_type_ids")
    changes = dict(zip(names, outputs, strict=True))
    pack(device, queries, items, rows, item_ids, *BERT, 8, 8, changes)
    rows += rows[-1:] * (n_rows - n)
    item_ids += item_ids[-1:] * (n_rows - n)
    expected = pack_plainly(queries, items, rows, item_ids, *BERT, 0, 1, (3, 0), 8, 8)
    for array, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_rows_are_as_many_as_pairs_at_least(device):
    for rows, n_rows in (([0, 0], 1), ([], 1)):
        with pytest.raises(ValueError, match=f"input_ids: expected a row for each of {len(rows)}"):
            pack(
                device, [[1]], [[2]], rows, rows, *BERT, 8, 6,
                {"input_ids": np.empty((n_rows, 6), dtype=np.int64)},
            )  # fmt: skip


def test_no_pairs(device):
    assert pack(device, [[1]], [[2]], [], [], *BERT, 8, 6)[0].shape == (0, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": np.int32([1])}, "rows: expected a number from 0 to 0, got 1"),
        ({"rows": np.int32([-1])}, "rows: expected"),
        ({"item_ids": np.int32([2])}, "item_ids: expected a number from 0 to 1, got 2"),
        ({"item_ids": np.int32([0, 0])}, "item_ids: expected 1 numbers"),
        ({"max_length": 4}, "max_length: query 0 needs 5 tokens without an item, got 4"),
        ({"input_ids": np.empty((1, 5), dtype=np.int64)}, "attention_mask: expected shape"),
        ({"token_type_ids": np.empty((2, 6), dtype=np.int64)}, "token_type_ids: expected shape"),
        ({"items": (np.int64([0, 1, 3]), np.int32([1, 2]))}, "items: expected offsets"),
        ({"items": (np.int64([0, 9, 2]), np.int32([1, 2]))}, "offsets of list 0 do not ascend"),
        ({"queries": (np.int64([]), np.int32([]))}, "queries: expected offsets"),
        ({"constants": lists([101], [102])}, "constants: expected prefix, middle and suffix"),
        ({"constant_types": np.int32([0, 0])}, "constants: expected prefix, middle and suffix"),
    ],
)
def test_wrong_values_are_named(device, changes, message):
    with pytest.raises(ValueError, match=message):
        pack(device, [[11, 12]], [[21], [22]], [0], [0], *BERT, 8, 6, changes)


def test_a_pair_wider_than_the_output_is_refused(device):
    with pytest.raises(ValueError, match="input_ids: pair 1 has 7 tokens, got room for 6"):
        pack(device, [[11, 12]], [[21], [22, 23]], [0, 0], [0, 1], *BERT, 8, 6)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": np.int64([0])},
        {"input_ids": np.empty((1, 6), dtype=np.int32)},
        {"input_ids": np.empty((1, 12), dtype=np.int64)[:, ::2]},
        {"items": (np.int32([0, 1, 2]), np.int32([21, 22]))},
    ],
    ids=["rows int64", "ids int32", "strided", "offsets int32"],
)
def test_arrays_are_never_converted(device, changes):
    with pytest.raises(TypeError):
        pack(device, [[11, 12]], [[21], [22]], [0], [0], *BERT, 8, 6, changes)
