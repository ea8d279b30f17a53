import numpy as np
import pytest
import scipy.sparse

from cexnn.score_matrix import check_scores


def sparse(format="coo", dtype=np.float64):
    rows, items, values = [2, 0, 2, 0], [0, 3, 4, 1], [1, -2, 5, 3]
    given = scipy.sparse.coo_array((np.array(values, dtype), (rows, items)), shape=(4, 5))
    return given.asformat(format)


@pytest.mark.parametrize("format", ["csr", "csc", "coo", "lil", "dok", "bsr"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8])
def test_every_format_becomes_canonical(format, dtype):
    given = sparse(format, dtype)
    found = check_scores(given, n_queries=4, n_items=5)
    assert isinstance(found, scipy.sparse.csr_array)
    assert found.data.dtype == np.float32
    assert found.indices.dtype == np.int32
    assert found.indptr.dtype == np.int64
    assert found.indptr.tolist() == [0, 2, 2, 4, 4]
    assert found.indices.tolist() == [1, 3, 0, 4]
    assert found.data.tolist() == [3, -2, 1, 5]
    assert found.has_canonical_format


@pytest.mark.parametrize("format", ["csr", "csc", "coo", "lil", "dok"])
def test_stored_zeros_are_scores(format):
    given = scipy.sparse.csr_array(([0.0, 1.0, 0.0], [2, 0, 1], [0, 1, 3]), shape=(2, 3))
    found = check_scores(given.asformat(format))
    assert found.indices.tolist() == [2, 0, 1]
    assert found.data.tolist() == [0, 1, 0]


def test_formats_with_padding_are_refused_where_zeros_are_ambiguous():
    blocks = scipy.sparse.bsr_array(np.float32([[1, 0], [2, 3]]), blocksize=(2, 2))
    with pytest.raises(ValueError, match="BSR format, which cannot tell zeros from padding"):
        check_scores(blocks)
    diagonal = scipy.sparse.dia_array((np.float32([[1, 0, 2]]), [0]), shape=(3, 3))
    with pytest.raises(ValueError, match="DIA format, which cannot tell zeros from padding"):
        check_scores(diagonal)
    full = scipy.sparse.bsr_array(np.float32([[1, 4], [2, 3]]), blocksize=(2, 2))
    assert check_scores(full).nnz == 4
    whole = scipy.sparse.dia_array((np.float32([[1, 3, 2]]), [0]), shape=(3, 3))
    assert check_scores(whole).data.tolist() == [1, 3, 2]


def test_matrices_of_the_older_kind_and_its_own_result():
    old = scipy.sparse.csr_matrix(sparse("csr"))
    found = check_scores(old)
    assert found.toarray().tolist() == old.toarray().tolist()
    again = check_scores(found)
    assert again.indices.tolist() == found.indices.tolist()
    assert np.shares_memory(again.data, found.data)


def test_unsorted_and_overlong_csr_is_not_changed():
    data = np.float32([5, 1, 3, 99])
    indices = np.int32([4, 0, 2, 77])
    given = scipy.sparse.csr_array((2, 5), dtype=np.float32)
    given.data, given.indices, given.indptr = data, indices, np.int32([0, 2, 3])
    found = check_scores(given)
    assert found.indices.tolist() == [0, 4, 2]
    assert found.data.tolist() == [1, 5, 3]
    assert given.indices is indices
    assert indices.tolist() == [4, 0, 2, 77]
    assert data.tolist() == [5, 1, 3, 99]


def test_empty_matrices():
    for shape in ((0, 0), (3, 4), (0, 4), (3, 0)):
        found = check_scores(scipy.sparse.csr_array(shape))
        assert found.shape == shape
        assert found.indptr.tolist() == [0] * (shape[0] + 1)


def broken_csr(indptr, indices):
    given = scipy.sparse.csr_array((2, 5), dtype=np.float32)
    given.data = np.ones(len(indices), np.float32)
    given.indices, given.indptr = np.int32(indices), np.int32(indptr)
    return given


def holding(*values):
    return scipy.sparse.coo_array((list(values), ([0] * len(values), range(len(values)))), (1, 9))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((2, 3)), r"coo_array\(.* got a dense array of shape \(2, 3\): store the"),
        ([[1.0]], "got list"),
        (None, "got NoneType"),
        (holding(1.0, np.nan), "finite float32 numbers, got nan for query 0, item 1"),
        (holding(np.inf), "got inf"),
        (holding(1e39), r"got 1e\+39"),
        (holding(1j), "expected real numbers, got dtype complex128"),
        (
            scipy.sparse.coo_array(([1.0, 2.0], ([1, 1], [3, 3])), shape=(2, 5)),
            "distinct pairs, got query 1, item 3 more than once",
        ),
        (broken_csr([0, 2, 2], [3, 3]), "query 0, item 3 more than once"),
        (broken_csr([0, 2, 2], [3, 5]), "indices from 0 to 4 on axis 1, got 3 to 5"),
        (broken_csr([0, 2, 2], [3, -1]), "got -1 to 3"),
        (broken_csr([0, 2, 1], [3, 1]), "indptr that does not fit"),
        (broken_csr([1, 2, 2], [3, 1]), "indptr that does not fit"),
        (broken_csr([0, 2, 3], [3, 1]), "indptr that does not fit"),
        (broken_csr([0, 2], [3, 1]), "indptr that does not fit"),
    ],
)
def test_check_scores_refuses(scores, message):
    with pytest.raises(ValueError, match=r"^scores: ") as caught:
        check_scores(scores)
    assert caught.match(message)


def test_check_scores_checks_the_shape():
    with pytest.raises(ValueError, match=r"scores: expected 3 queries \(axis 0\).*\(4, 5\)"):
        check_scores(sparse(), n_queries=3)
    with pytest.raises(ValueError, match=r"scores: expected 6 items \(axis 1\).*\(4, 5\)"):
        check_scores(sparse(), n_items=6)
