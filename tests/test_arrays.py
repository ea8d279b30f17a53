"""Arrays of torch and CuPy go in by DLPack, and what comes out can be lent."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import (
    Index,
    PairScorer,
    ScorerError,
    _core,
    factorize,
    recall,
    sample_pairs,
    score_pairs,
)
from cexnn.arrays import on_cuda, to_numpy

CUDA = (2, 0)  # of DLPack's devices
needs_cuda = pytest.mark.skipif(
    not _core.cuda_available(), reason="no CUDA device, or a build without CUDA"
)


class Lender:
    """An array of another library: lends itself by DLPack, and can do nothing else."""

    def __init__(self, array):
        self.array, self.n_lent = array, 0

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        self.n_lent += 1
        return self.array.__dlpack__(**options)


def on_device(array):
    return Lender(_core.DeviceArray(np.ascontiguousarray(array)))


def of_torch(array):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return torch.from_numpy(np.array(array))


LIBRARIES = [
    pytest.param(Lender, id="another library's"),
    pytest.param(of_torch, id="torch's"),
    pytest.param(on_device, id="the device's", marks=needs_cuda),
]


def test_host_arrays_are_used_where_they_lie():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert to_numpy("x", array) is array
    assert np.shares_memory(to_numpy("x", Lender(array)), array)
    tensor = of_torch(array)
    assert np.shares_memory(to_numpy("x", tensor), tensor.numpy())
    assert np.array_equal(to_numpy("x", tensor.T), array.T)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda torch, x: x.requires_grad_(), "detach"),
        (lambda torch, x: x.to(torch.bfloat16), "bfloat16"),
        (lambda torch, x: x.to_sparse(), "layout"),
        (lambda torch, x: x.to("meta"), "meta"),
    ],
    ids=["gradient", "bfloat16", "sparse", "meta"],
)
def test_what_cannot_be_lent_is_named(spoil, message):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = spoil(torch, torch.ones(3, 4))
    with pytest.raises(ValueError, match=f"item_embeddings: .*{message}"):
        Index.build(item_embeddings=tensor, device="cpu")
    index = Index.build(item_embeddings=np.eye(5, dtype=np.float32), device="cpu")
    with pytest.raises(ScorerError, match=message):
        index.search(lambda *pairs: tensor[0], ["q"], first=[[0]], k=1, budget=4, rounds=1)


@pytest.mark.parametrize("lend", LIBRARIES)
def test_a_build_takes_them(world, lend):
    given = {"item_embeddings": world.items, "query_embeddings": world.train_queries}
    plain = Index.build(world.scores, **given, device="cpu")
    lent = Index.build(
        world.scores, **{name: lend(array) for name, array in given.items()}, device="cpu"
    )
    assert np.array_equal(lent.item_factors, plain.item_factors)
    assert lent.info() == plain.info()
    assert lent.add(lend(world.items[:2])).tolist() == [world.n_items, world.n_items + 1]
    lent.remove(lend(np.int32([3, 4])))
    assert lent.n_removed == 2


@pytest.mark.parametrize("lend", LIBRARIES)
def test_a_factorisation_takes_them(device, lend):
    rng = np.random.default_rng(0)
    prior = rng.normal(size=(20, 3)).astype(np.float32)
    scores = csr_array(rng.normal(size=(6, 20)).astype(np.float32))
    plain = factorize(scores, item_prior=prior, regularization=0.1, device=device)
    lent = factorize(scores, item_prior=lend(prior), regularization=0.1, device=device)
    assert np.array_equal(lent.items, plain.items)
    assert np.array_equal(lent.queries, plain.queries)


@pytest.mark.parametrize("lend", LIBRARIES)
def test_a_search_takes_them(world, device, lend):
    index = Index.build(item_embeddings=world.items, device=device)
    first = np.argsort(-(world.queries @ world.items.T), axis=1)[:, :30].astype(np.int32)

    def scorer(queries, rows, items):
        return world.table[rows, items]

    options = {"k": 5, "budget": 30, "rounds": 3}
    plain = index.search(
        scorer, range(world.n_queries), first=first, query_embeddings=world.queries,
        exclude=[1, 2], **options
    )  # fmt: skip
    lent = index.search(
        lambda *pairs: lend(scorer(*pairs)), range(world.n_queries), first=lend(first),
        query_embeddings=lend(world.queries), exclude=lend(np.int64([1, 2])), **options
    )  # fmt: skip
    assert np.array_equal(lent.ids, plain.ids)
    assert np.array_equal(lent.scores, plain.scores)
    assert (lent.scored != plain.scored).nnz == 0


@pytest.mark.parametrize("lend", LIBRARIES)
def test_a_session_is_told_them(lend):
    index = Index.build(item_embeddings=np.eye(5, dtype=np.float32), device="cpu")
    session = index.session(1, k=2, budget=4, rounds=2, first=[[4, 3, 2, 1]])
    while not session.done:
        session.tell(lend(session.ask()[1].astype(np.float32)))
    assert session.result().ids.tolist() == [[4, 3]]


@pytest.mark.parametrize("lend", LIBRARIES)
def test_pairs_are_drawn_and_judged_from_them(lend):
    candidates = np.int32([[1, 2], [3, 4]])
    rows, items = sample_pairs(2, 9, 2, candidates=lend(candidates))
    assert (rows.tolist(), items.tolist()) == ([0, 0, 1, 1], [1, 2, 3, 4])

    def scorer(queries, rows, items):
        return lend(items.astype(np.float32))

    scores = score_pairs(scorer, range(2), lend(rows), lend(items), n_items=9)
    assert scores.data.tolist() == [1, 2, 3, 4]
    assert recall(lend(candidates), lend(np.int32([[1], [5]]))) == 0.5


@pytest.mark.parametrize("lend", LIBRARIES)
def test_scorers_of_text_pairs_may_return_them(lend):
    scorer = PairScorer(lambda pairs: lend(np.arange(float(len(pairs)))), ["a", "b"])
    assert scorer(["q"], np.int32([0, 0]), np.int32([0, 1])).tolist() == [0, 1]


def test_what_comes_out_can_be_lent():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    factors = factorize(csr_array(np.float32([[1, 2], [3, 4]])), 1, regularization=0.1)
    assert torch.from_dlpack(factors.items).data_ptr() == factors.items.ctypes.data
    index = Index.build(item_embeddings=np.eye(5, dtype=np.float32), device="cpu")
    lent = torch.from_dlpack(index.item_factors)
    assert lent.data_ptr() == index.item_factors.ctypes.data
    own = torch.from_dlpack(index.item_factors, copy=True)
    assert own.data_ptr() != lent.data_ptr()
    assert np.array_equal(own.numpy(), index.item_factors)


@needs_cuda
def test_cuda_arrays_come_in_one_transfer_and_as_they_are():
    for dtype in ("float32", "float16", "float64", "int32", "int64", "uint16", "int8"):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        lender = on_device(array)
        assert on_cuda(lender)
        back = to_numpy("x", lender)
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)
        assert lender.n_lent == 1


@needs_cuda
def test_cuda_arrays_are_borrowed_without_a_copy():
    array = _core.DeviceArray(np.arange(6, dtype=np.float32).reshape(2, 3))
    borrowed = _core.DeviceArray.from_dlpack(Lender(array))
    there = "__cuda_array_interface__"
    assert getattr(borrowed, there) == getattr(array, there)
    flat = borrowed.reshape((6,))
    assert getattr(flat.ravel(), there) == getattr(flat, there)
    assert (flat.shape, len(flat), len(borrowed)) == ((6,), 6, 2)
    del array, borrowed
    assert flat.numpy().tolist() == list(range(6))
    with pytest.raises(ValueError, match="as many"):
        flat.reshape((5,))
    with pytest.raises(TypeError, match="len"):
        len(_core.DeviceArray(np.zeros((), dtype=np.float32)))
    with pytest.raises(ValueError, match="on the CUDA device"):
        _core.DeviceArray.from_dlpack(np.zeros(3))


@needs_cuda
def test_cuda_scores_are_appended_row_by_row():
    rng = np.random.default_rng(0)
    for n, a, b in [(1, 0, 1), (3, 0, 5), (3, 4, 5), (300, 7, 1), (0, 2, 2), (2, 3, 0)]:
        ids = [rng.integers(0, 99, (n, size)).astype(np.int32) for size in (a, b)]
        scores = [rng.normal(size=(n, size)).astype(np.float32) for size in (a, b)]
        there = [_core.DeviceArray(x) for x in (ids[0], scores[0], ids[1], scores[1])]
        got = [_core.DeviceArray.empty((n, a + b), dtype) for dtype in ("int32", "float32")]
        _core.append(*there, *got)
        assert np.array_equal(got[0].numpy(), np.concatenate(ids, axis=1))
        assert np.array_equal(got[1].numpy(), np.concatenate(scores, axis=1))
    with pytest.raises(ValueError, match="one for each id"):
        _core.append(there[0], there[1], there[2], there[1], *got)
    with pytest.raises(ValueError, match=r"\(n, a \+ b\)"):
        _core.append(*there, *(_core.DeviceArray.empty((2, 4), d) for d in ("int32", "float32")))
    with pytest.raises(ValueError, match="on the CUDA device"):
        _core.append(ids[0], *there[1:], *got)
    with pytest.raises(ValueError, match="on the CUDA device"):
        _core.append(*there, got[0], scores[0])


@needs_cuda
@pytest.mark.parametrize("n", [0, 1, 255, 256, 1000])
def test_cuda_scores_are_looked_at_where_they_are(n):
    scores = np.linspace(-3.4e38, 3.4e38, n, dtype=np.float32)
    assert _core.all_finite(_core.DeviceArray(scores))
    for bad in (np.nan, np.inf, -np.inf):
        for at in {0, n // 2, n - 1} if n else ():
            spoilt = scores.copy()
            spoilt[at] = bad
            assert not _core.all_finite(_core.DeviceArray(spoilt))
