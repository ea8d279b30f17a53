"""Arguments that are no arrays, or hold nothing, are named or taken."""

import numpy as np
import pytest

from cexnn.checks import check_float, check_id_set, check_ids, check_int, check_matrix
from cexnn.device import resolve_num_threads


def test_rows_of_several_lengths_are_named():
    with pytest.raises(ValueError, match="^query_embeddings: expected one array"):
        check_matrix("query_embeddings", [[1.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="^first: expected one array"):
        check_ids("first", [[1], [2, 3]], rows=2, n_items=9)


class WithGradient:
    """Like a tensor of PyTorch that has a gradient, but for DLPack."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


@pytest.mark.parametrize("value", [WithGradient(), [WithGradient(), WithGradient()]])
def test_what_refuses_to_be_an_array_is_named(value):
    with pytest.raises(ValueError, match=r"^ids: expected one array, .*requires grad"):
        check_id_set("ids", value, n_items=9)


@pytest.mark.parametrize("value", ["1", b"1", True, None, [1.0]])
def test_a_text_is_no_number(value):
    with pytest.raises(ValueError, match="^mix: expected a number of at least 0"):
        check_float("mix", value, minimum=0)


def test_no_ids_at_all_need_no_dtype():
    ids = check_ids("first", [[], []], rows=2, n_items=9)
    assert ids.shape == (2, 0)
    assert ids.dtype == np.int32


def test_any_integer_is_a_number_of_threads():
    assert resolve_num_threads(np.int64(2)) == 2
    assert resolve_num_threads(2**40) < 2**31
    for bad in (0, -1, 1.0, True, "2"):
        with pytest.raises(ValueError, match="^num_threads: expected an integer of at least 1"):
            resolve_num_threads(bad)


def test_numbers_that_python_writes_no_digits_of_are_named():
    with pytest.raises(ValueError, match="^k: expected an integer from 1 to .*, got one of 16610"):
        check_int("k", 10**5000, minimum=1)
    with pytest.raises(ValueError, match="^k: expected an integer of at least 1, got one of"):
        check_int("k", -(10**5000), minimum=1)
    with pytest.raises(ValueError, match="^mix: expected a number of at least 0, got one of"):
        check_float("mix", 10**5000, minimum=0)
