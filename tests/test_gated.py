"""Item factors by gated networks: `Index.build(item_factors="gated")`."""

import sys

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import Index, IndexFileError, storage
from cexnn.gated import apply_network, import_torch, network_size

torch = pytest.importorskip("torch", reason="needs torch: pip install 'cexnn[torch]'")

N_ITEMS, N_QUERIES, N_DIMS, N_SCORED = 600, 300, 6, 500


class Bent:
    """A cross-encoder that sees a nonlinear function of the items' embeddings."""

    def __init__(self, per_query=30, seed=0):
        rng = np.random.default_rng(seed)
        self.items = rng.normal(size=(N_ITEMS, N_DIMS)).astype(np.float32)
        self.queries = rng.normal(size=(N_QUERIES, N_DIMS)).astype(np.float32)
        seen = self.items + 2 * np.abs(self.items[:, ::-1]) - 1.6
        self.table = (self.queries @ seen.T).astype(np.float32)
        rows = np.repeat(np.arange(N_QUERIES), per_query)
        cols = np.concatenate([rng.permutation(N_SCORED)[:per_query] for _ in range(N_QUERIES)])
        self.scores = csr_array((self.table[rows, cols], (rows, cols)), shape=self.table.shape)

    def build(self, form="gated", n_queries=N_QUERIES, scale=1.0, **options):
        return Index.build(
            self.scores[:n_queries],
            item_embeddings=np.float32(scale) * self.items,
            query_embeddings=self.queries[:n_queries],
            item_factors=form,
            **options,
        )

    def unexplained(self, index, items):
        """Share of the variance of these items' scores that their factors do not explain."""
        factors = index.item_factors[items].astype(np.float64)
        truth = (self.table[:, items] - index.item_offsets[items]).T
        features = np.hstack([factors, np.ones((len(factors), 1))])
        left = truth - features @ np.linalg.lstsq(features, truth, rcond=None)[0]
        return float((left**2).mean() / self.table.var())


@pytest.fixture(scope="module")
def bent():
    return Bent()


@pytest.fixture(scope="module")
def gated(bent):
    return bent.build()


@pytest.fixture
def quick(monkeypatch):
    """Two epochs at most, where it does not matter how good they are."""
    monkeypatch.setattr("cexnn.gated.MAX_EPOCHS", 2)


def test_a_nonlinear_map_is_recovered_for_items_never_scored(bent, gated):
    never = slice(N_SCORED, N_ITEMS)
    assert bent.unexplained(gated, never) < 0.15
    for form in ("embeddings", "inductive", "joined"):
        assert bent.unexplained(bent.build(form), never) > 0.5


def test_the_networks_predict_the_scores_of_items_never_scored(bent, gated):
    learned = gated._learned
    priors = apply_network(learned.query_map, bent.queries)
    found = learned.model.offset + learned.item_offsets + priors @ learned.item_factors.T
    error = (found - bent.table)[:, N_SCORED:]
    assert (error**2).mean() < 0.15 * bent.table.var()


def test_a_search_opens_with_what_the_query_network_expects(bent, gated, table_scorer):
    numbers, best = range(N_QUERIES), bent.table.argmax(axis=1)
    shares = {}
    for form, index in (("gated", gated), ("inductive", bent.build("inductive"))):
        result = index.search(
            table_scorer(bent.table),
            numbers,
            k=1,
            budget=20,
            rounds=1,
            query_embeddings=bent.queries,
        )
        shares[form] = (result.ids[:, 0] == best).mean()
    assert shares["gated"] > shares["inductive"] + 0.2


def test_embeddings_whose_products_say_nothing_by_themselves(bent, table_scorer):
    index = Index.build(
        bent.scores,
        item_embeddings=bent.items,
        query_embeddings=-bent.queries,
        item_factors="gated",
    )
    assert index.info()["slope"] == 0
    assert bent.unexplained(index, slice(N_SCORED, N_ITEMS)) < 0.3
    scorer, options = table_scorer(bent.table), {"budget": 20, "stop": "confident"}
    with pytest.raises(ValueError, match="query_embeddings"):  # the network's word is missing
        index.search(scorer, range(N_QUERIES), **options)
    assert scorer.calls.sum() == 0
    index.search(scorer, range(N_QUERIES), query_embeddings=-bent.queries, **options)


def test_info_says_what_was_trained(gated):
    info = gated.info()
    assert info["item_factors"] == "gated"
    assert 1 <= info["n_epochs"] <= 20
    assert info["n_factors"] == info["embedding_dims"] == N_DIMS


def test_the_network_is_the_papers(bent, gated):
    network = gated._learned.factor_map
    sizes = [2 * N_DIMS**2, 2 * N_DIMS, 2 * N_DIMS**2, N_DIMS, 1, 1, 1]
    assert len(network) == network_size(N_DIMS) == sum(sizes)
    w1, b1, w2, b2, gate, unit, scale = map(
        torch.from_numpy, np.split(network, np.cumsum(sizes)[:-1])
    )
    x = unit * torch.from_numpy(bent.items)
    bent_x = torch.nn.functional.gelu(x @ w1.reshape(N_DIMS, -1) + b1) @ w2.reshape(-1, N_DIMS) + b2
    share = torch.sigmoid(gate)
    expected = scale * (share * bent_x + (1 - share) * x)
    np.testing.assert_allclose(gated.item_factors, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_large_batches_are_mapped_in_pieces(bent, gated):
    network = gated._learned.factor_map
    many = np.tile(bent.items, (20, 1))
    found = apply_network(network, many)
    np.testing.assert_allclose(found, np.tile(gated.item_factors, (20, 1)), rtol=1e-4, atol=1e-5)
    assert apply_network(network, many[:0]).shape == (0, N_DIMS)


def test_equal_seeds_give_equal_indexes_on_any_number_of_threads(bent, quick):
    n_threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(bent.build(n_queries=60, seed=5, num_threads=n).item_factors)
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(n_threads)
    np.testing.assert_array_equal(*found)
    other = bent.build(n_queries=60, seed=6).item_factors
    assert not np.allclose(found[0], other, atol=1e-3)


def test_torchs_own_random_numbers_are_left_alone(bent, quick):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    bent.build(n_queries=30)
    assert torch.equal(torch.rand(3), expected)


def test_embeddings_of_any_scale(bent, quick):
    plain, scaled = (bent.build(n_queries=60, scale=scale) for scale in (1.0, 1000.0))
    products = [index._learned.query_factors @ index.item_factors.T for index in (plain, scaled)]
    np.testing.assert_allclose(*products, atol=0.05 * np.abs(products[0]).max())


def test_new_items_need_no_torch(bent, gated, tmp_path, monkeypatch, table_scorer):
    gated.save(tmp_path / "index")
    monkeypatch.setitem(sys.modules, "torch", None)
    loaded = Index.load(tmp_path / "index", verify=True)
    ids = loaded.add(bent.items[:50])
    np.testing.assert_allclose(
        loaded.item_factors[ids], gated.item_factors[:50], rtol=1e-4, atol=1e-5
    )
    scorer = table_scorer(np.hstack([bent.table, bent.table[:, :50]]))
    options = {"k": 3, "budget": 60, "query_embeddings": bent.queries}
    found = loaded.search(scorer, range(N_QUERIES), **options)
    assert (found.scores[:, 0] >= bent.table.max(axis=1)).mean() > 0.9


def test_scores_of_a_new_item_correct_its_offset_alone(bent, gated, tmp_path):
    gated.save(tmp_path / "index")
    index, learned = Index.load(tmp_path / "index"), gated._learned
    factors = apply_network(learned.factor_map, bent.items[:1])
    expected = learned.model.offset + bent.items[0] @ learned.offset_map
    expected = expected + learned.query_shifts[:3] + learned.query_factors[:3] @ factors[0]
    column = csr_array((expected + 4, ([0, 1, 2], [0, 0, 0])), shape=(N_QUERIES, 1))
    index.add(bent.items[:1], column)
    assert np.allclose(index.item_factors[-1], factors[0], rtol=1e-4, atol=1e-5)
    moved = index.item_offsets[-1] - bent.items[0] @ learned.offset_map
    assert moved == pytest.approx(3 * 4 / (3 + 5), abs=1e-2)


def test_files_from_before_queries_were_mapped(bent, tmp_path):
    bent.build("inductive", n_queries=9).save(tmp_path / "index")
    arrays, metadata = storage.read(tmp_path / "index", mmap=False)
    assert arrays.pop("query_map").shape == (0, N_DIMS)
    storage.write(tmp_path / "index", arrays, {"index": metadata["index"]})
    index = Index.load(tmp_path / "index")
    index.add(bent.items[:5])
    assert np.allclose(index.item_factors[-5:], index.item_factors[:5], atol=1e-4)


def test_a_network_of_another_size_is_refused(gated, tmp_path):
    gated.save(tmp_path / "index")
    arrays, metadata = storage.read(tmp_path / "index", mmap=False)
    for name in ("query_map", "factor_map"):
        for wrong in (arrays[name][:-1], arrays[name].astype(np.float64)):
            storage.write(tmp_path / "index", {**arrays, name: wrong}, {"index": metadata["index"]})
            with pytest.raises(IndexFileError, match=name):
                Index.load(tmp_path / "index")


@pytest.mark.parametrize("n_queries", [1, 2, 9])
def test_few_queries(bent, n_queries, quick):
    index = bent.build(n_queries=n_queries)
    assert np.isfinite(index.item_factors).all()
    if n_queries == 1:  # nothing to hold out: the networks stay at their start
        assert index.info()["n_epochs"] == 0
        plain = index._learned.item_scale * bent.items
        assert np.allclose(index.item_factors, plain, atol=0.02 * np.abs(plain).max())


@pytest.mark.parametrize("of", ["zero", "constant", "huge"])
def test_scores_and_embeddings_that_teach_nothing(bent, of, quick):
    items, scores = bent.items, bent.scores[:40].copy()
    if of == "zero":
        items = np.zeros_like(items)
    elif of == "constant":
        scores.data[:] = 3.0
    else:
        scores.data *= np.float32(1e30)
    index = Index.build(
        scores, item_embeddings=items, query_embeddings=bent.queries[:40], item_factors="gated"
    )
    assert np.isfinite(index.item_factors).all()
    assert np.isfinite(index._learned.query_factors).all()


def test_an_epoch_that_diverges_is_not_kept(bent, monkeypatch):
    monkeypatch.setattr("cexnn.gated.LEARNING_RATES", (1e30, 1e30))
    index = bent.build(n_queries=40)
    assert np.isfinite(index.item_factors).all()
    assert index.info()["n_epochs"] == 0


def test_missing_torch_is_told_before_any_work(bent, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("cexnn.build.FactorMaker", None)  # work would fail otherwise
    with pytest.raises(ImportError, match=r"item_factors='gated'.*cexnn\[torch\]"):
        bent.build()


def test_auto_never_asks_for_torch(bent, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError):
        import_torch()
    assert bent.build("auto").info()["item_factors"] != "gated"


def test_what_it_cannot_do_without(bent):
    with pytest.raises(ValueError, match="^query_embeddings: expected for item_factors='gated'"):
        Index.build(bent.scores, item_embeddings=bent.items, item_factors="gated")
    for given in ({"scores": bent.scores}, {"item_embeddings": bent.items}):
        with pytest.raises(ValueError, match="^item_factors:"):
            Index.build(**given, item_factors="gated")
