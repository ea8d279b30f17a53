"""New items in a built index, and items taken out of it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import Index, storage
from cexnn.embedding_maps import query_priors


def options(world, **changes):
    return {"k": 10, "budget": 60, "rounds": 6, "query_embeddings": world.queries, **changes}


def shortened(world, n, **options):
    return Index.build(
        csr_array(world.scores)[:, :n],
        item_embeddings=world.items[:n],
        query_embeddings=world.train_queries,
        **options,
    )


def late(world, n):
    return csr_array(world.scores)[:, n:]


def test_added_items_are_found_as_if_built_in(world, table_scorer):
    whole = shortened(world, 400)
    index = shortened(world, 320)
    ids = index.add(world.items[320:], late(world, 320))
    assert ids.tolist() == list(range(320, 400))
    assert ids.dtype == np.int32
    a = whole.search(table_scorer(world.table), range(world.n_queries), **options(world))
    b = index.search(table_scorer(world.table), range(world.n_queries), **options(world))
    assert (b.ids >= 320).any()
    assert world.recall(b.ids, 10) == pytest.approx(world.recall(a.ids, 10), abs=0.05)


def test_an_added_item_lands_where_its_scores_say():
    rng = np.random.default_rng(0)
    U, V = rng.normal(size=(80, 4)), rng.normal(size=(60, 4))
    U /= np.linalg.norm(U, axis=1, keepdims=True) / 2  # no query has outliers: no score map
    table = (U @ V.T).astype(np.float32)
    index = Index.build(csr_array(table[:, :50]), n_factors=6, regularization=1e-3)
    assert index.info()["score_map"] == "identity"
    index.add(scores=csr_array(table[:, 50:]))
    found = index.item_offsets + index._learned.query_factors @ index.item_factors.T
    found += index.info()["query_model"]["offset"] + index._learned.query_shifts[:, None]
    assert np.abs(found[:, 50:] - table[:, 50:]).max() < 0.3
    assert np.abs(found[:, :50] - table[:, :50]).max() < 0.3


def test_an_item_without_scores_goes_to_its_embedding(world):
    index = shortened(world, 320)
    before = index.item_factors.copy()
    index.add(world.items[320:])
    assert np.array_equal(index.item_factors[:320], before)
    ratio = index.item_factors[320:] / world.items[320:]
    assert np.allclose(ratio, ratio[0, 0], rtol=1e-4)


def stretched(world):
    """An index of a cross-encoder that sees the embeddings stretched, and likes some places."""
    rows, items = csr_array(world.scores).nonzero()
    ramp = np.linspace(0, 2, world.items.shape[1])
    seen = (world.train_queries[rows] * world.items[items]) @ ramp
    scores = csr_array((seen + 5 * world.items[items] @ (ramp - 1), (rows, items)), shape=(60, 400))
    return Index.build(
        scores,
        item_embeddings=world.items,
        query_embeddings=world.train_queries,
        item_factors="inductive",
        regularization=(1e6, 0.1),  # the queries stay in their places: the items have to move
    )


def test_an_item_without_scores_goes_where_the_maps_say(world):
    index = stretched(world)
    index.add(world.items[:50])
    plain = world.items[:50] * np.float32(index._learned.item_scale)
    assert np.abs(index.item_factors[400:] - plain).max() > 0.1
    assert np.allclose(index.item_factors[400:], index.item_factors[:50], atol=1e-4)
    expected = index._learned.offset_weight * (world.items[:50] @ index._learned.offset_map)
    assert np.abs(expected).max() > 1
    assert np.allclose(index.item_offsets[400:], expected, atol=1e-4)


def test_scores_of_an_added_item_correct_its_offset(world):
    index = stretched(world)
    learned, offset = index._learned, index.info()["query_model"]["offset"]
    above = np.float32([4.0, 6.0, 5.0])  # of three queries, above what its embedding says
    factors = world.items[0] @ learned.factor_map
    expected = offset + learned.offset_weight * (world.items[0] @ learned.offset_map)
    expected = expected + learned.query_shifts[:3] + learned.query_factors[:3] @ factors
    column = csr_array((above + expected, ([0, 1, 2], [0, 0, 0])), shape=(60, 1))
    index.add(world.items[:1], column)
    moved = index.item_offsets[400] / learned.offset_weight - world.items[0] @ learned.offset_map
    assert moved == pytest.approx(15 / (3 + 5), abs=1e-3)


def test_scores_of_new_items_help_where_the_factorisation_fitted_the_old_ones_exactly():
    rng = np.random.default_rng(0)
    items, queries = (rng.normal(size=(n, 48)).astype(np.float32) for n in (400, 120))
    hidden, liked = queries + 0.7 * rng.normal(size=queries.shape), 5 * rng.normal(size=400)
    table = (hidden @ items.T + liked + 2 * rng.normal(size=(120, 400))).astype(np.float32)
    known = rng.random(table.shape) < 0.1  # 40 a query, of 48 dimensions
    rows, cols = np.nonzero(known)
    scores = csr_array((table[known], (rows, cols)), shape=table.shape)
    new = slice(320, 400)

    def error(**options):
        index = Index.build(
            scores[:, :320],
            item_embeddings=items[:320],
            query_embeddings=queries,
            item_factors="transductive",
            regularization=1e-2,
        )
        index.add(items[new], **options)
        learned = index._learned
        found = learned.query_factors @ index.item_factors[new].T + index.item_offsets[new]
        found += learned.model.offset + learned.query_shifts[:, None]
        true = learned.score_map(table[:, new])
        return np.mean((found - true)[~known[:, new]] ** 2) / true.var()

    assert error(scores=scores[:, new]) < 0.55 * error() < 0.3


def test_training_queries_are_where_a_search_would_put_them(world):
    learned = shortened(world, 400)._learned
    model, scores = learned.model, learned.score_map.of(csr_array(world.scores))
    size = np.sqrt(model.shift_variance / model.factor_variance)  # of the feature of all items
    starts = query_priors(
        world.train_queries, learned.query_scale, learned.query_map, learned.mean_query
    )
    for q, start in enumerate(starts[:5]):
        part = slice(scores.indptr[q], scores.indptr[q + 1])
        ids = scores.indices[part]
        features = np.pad(learned.item_factors[ids], ((0, 0), (0, 1)), constant_values=size)
        left = (
            scores.data[part] - model.offset - learned.item_offsets[ids] - features[:, :-1] @ start
        )
        gram = features.T @ features + np.eye(len(start) + 1) * (
            model.noise_variance / model.factor_variance
        )
        found = np.linalg.solve(gram, features.T @ left)
        assert np.allclose(learned.query_factors[q], start + found[:-1], atol=1e-3)
        assert np.isclose(learned.query_shifts[q], size * found[-1], atol=1e-3)


def test_a_file_from_before_queries_had_shifts_takes_new_items(world, tmp_path):
    index = shortened(world, 320)
    index.save(tmp_path / "index")
    arrays, metadata = storage.read(tmp_path / "index", mmap=False)
    assert arrays.pop("query_shifts").shape == (60,)
    storage.write(tmp_path / "index", arrays, {"index": metadata["index"]})
    loaded = Index.load(tmp_path / "index")
    loaded.add(world.items[320:], late(world, 320))
    assert np.isfinite(loaded.item_factors).all()
    assert np.corrcoef(loaded.item_offsets[320:], world.liked[320:])[0, 1] > 0.7


@pytest.mark.parametrize("update", ["calibrated", "least_squares"])
def test_removed_items_are_never_found(world, table_scorer, update):
    index = shortened(world, 400)
    gone = world.exact[:, :3].ravel()
    index.remove(gone)
    index.remove(gone[:1])
    assert index.n_removed == len(set(gone.tolist()))
    assert index.n_items == 400
    first = np.tile(np.unique(gone)[:5], (world.n_queries, 1))
    for given in (None, first):
        scorer = table_scorer(world.table)
        result = index.search(
            scorer,
            range(world.n_queries),
            **options(world, budget=1000, k=400, update=update, first=given),
        )
        assert not scorer.seen[:, gone].any()
        assert result.n_calls.tolist() == [400 - index.n_removed] * world.n_queries


def test_ids_of_others_never_change(world, table_scorer):
    index = shortened(world, 300)
    index.remove([5, 7])
    assert index.add(world.items[300:310]).tolist() == list(range(300, 310))
    index.remove([305])
    result = index.search(
        table_scorer(world.table), range(world.n_queries), **options(world, budget=1000, k=310)
    )
    expected = set(range(310)) - {5, 7, 305}
    assert all(set(row[row >= 0].tolist()) == expected for row in result.ids)


def test_a_search_under_way_keeps_its_items(world):
    index = shortened(world, 300)
    session = index.session(world.n_queries, **options(world))
    rows, items = session.ask()
    session.tell(world.table[rows, items])
    index.remove(range(0, 300, 2))
    index.add(world.items[300:])
    while not session.done:
        rows, items = session.ask()
        session.tell(world.table[rows, items])
    assert session.result().n_calls.tolist() == [60] * world.n_queries


def test_everything_can_be_removed(world, table_scorer):
    index = shortened(world, 50)
    index.remove(range(50))
    result = index.search(table_scorer(world.table), range(world.n_queries), **options(world))
    assert (result.ids == -1).all()


def test_a_grown_index_is_saved_and_loaded(world, table_scorer, tmp_path):
    index = shortened(world, 320)
    index.add(world.items[320:], late(world, 320))
    index.remove([3, 330])
    index.save(tmp_path / "grown")
    loaded = Index.load(tmp_path / "grown", verify=True)
    assert loaded.n_removed == 2
    a = index.search(table_scorer(world.table), range(world.n_queries), **options(world))
    b = loaded.search(table_scorer(world.table), range(world.n_queries), **options(world))
    assert np.array_equal(a.ids, b.ids)
    assert loaded.add(world.items[:1]).tolist() == [400]


def test_bad_items_change_nothing(world):
    index = shortened(world, 320)
    plain = Index.build(item_embeddings=world.items)
    from_scores = Index.build(world.scores)
    for grown, name, arguments in (
        (index, "item_embeddings", ()),
        (index, "item_embeddings", (world.items[:, :3],)),
        (index, "item_embeddings", (np.full((1, 12), np.nan, np.float32),)),
        (index, "item_embeddings", (world.items[:2], late(world, 320))),
        (index, "scores", (None, late(world, 320)[:5])),
        (index, "scores", (None, np.ones((60, 2)))),
        (plain, "scores", (world.items[320:], late(world, 320))),
        (from_scores, "item_embeddings", (world.items,)),
    ):
        before = grown.n_items
        with pytest.raises(ValueError, match=f"^{name}:"):
            grown.add(*arguments)
        assert grown.n_items == before
    for ids in ([320], [-1], [5, -1], [0.5], [[1]], 3, [None, 1]):
        with pytest.raises(ValueError, match="^ids:"):
            index.remove(ids)
    assert index.n_removed == 0


def test_adding_from_several_threads_gives_every_item_its_own_id(world):
    index = shortened(world, 100)
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda part: index.add(world.items[part : part + 5]), range(40)))
    assert sorted(np.concatenate(ids).tolist()) == list(range(100, 300))
    assert index.n_items == 300


def test_factors_cannot_be_changed_from_outside(world):
    index = shortened(world, 50)
    for array in (index.item_factors, index.item_offsets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_transductive_index_takes_new_items_by_their_embeddings_alone(world):
    index = shortened(world, 320, item_factors="transductive")
    twin = index.add(world.items[:1])[0]
    ratio = index.item_factors[twin] / world.items[0]
    assert np.allclose(ratio, ratio[0], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_items_taken_alone_are_searched_as_among_all(world, table_scorer, dtype, tmp_path):
    whole = shortened(world, 400).astype(dtype)
    ids = np.random.default_rng(0).permutation(400)[:150]
    alone = whole.take(ids)
    whole.remove(ids[:5])  # of one of the two
    assert (alone.n_items, alone.n_removed, alone.dtype) == (150, 0, dtype)
    a = shortened(world, 400).search(
        table_scorer(world.table), range(world.n_queries), only=np.sort(ids), **options(world)
    )
    b = alone.search(table_scorer(world.table[:, ids]), range(world.n_queries), **options(world))
    assert np.array_equal(np.sort(ids[b.ids], axis=1), np.sort(a.ids, axis=1))
    alone.save(tmp_path / "alone")
    assert np.array_equal(Index.load(tmp_path / "alone").item_factors, whole.item_factors[ids])
    alone.add(world.items[:2])
    assert alone.n_items == 152


def test_a_removed_item_taken_stays_removed(world):
    index = shortened(world, 400)
    index.remove([7])
    assert index.take([7, 3]).n_removed == 1
    assert index.take(np.flatnonzero(np.arange(400) != 7)).n_removed == 0


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"^ids: expected one id at least, shape \(n,\), got shape \(0,\)"),
        ([[1]], "^ids: expected one id at least"),
        ([1, 1], "^ids: expected each item once"),
        ([1, -1], "^ids: expected ids from 0 to 399"),
        ([400], "^ids: expected"),
        ([1.5], "^ids: expected integer item ids"),
    ],
)
def test_bad_ids_to_take_are_named(world, ids, message):
    with pytest.raises(ValueError, match=message):
        shortened(world, 400).take(ids)
