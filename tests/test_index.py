"""Building in all three forms, saving and loading."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array

import cexnn
from cexnn import Index, IndexFileError, storage

FORMS = ["scores", "embeddings", "both", "items and scores"]


def build(world, form, **options):
    given = {
        "scores": {"scores": world.scores},
        "embeddings": {"item_embeddings": world.items},
        "both": {
            "scores": world.scores,
            "item_embeddings": world.items,
            "query_embeddings": world.train_queries,
        },
        "items and scores": {"scores": world.scores, "item_embeddings": world.items},
    }[form]
    return Index.build(**{**given, **options})


def search(world, index, scorer, **options):
    queries = world.queries if index.info()["embedding_dims"] else None
    defaults = {"k": 10, "budget": 60, "rounds": 6, "query_embeddings": queries}
    return index.search(scorer, range(world.n_queries), **{**defaults, **options})


@pytest.fixture(scope="module")
def both(world):
    return build(world, "both")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("update", ["calibrated", "least_squares"])
def test_every_form_beats_random_first_items(world, table_scorer, form, update):
    index = build(world, form)
    assert index.n_items == world.n_items
    found = search(world, index, table_scorer(world.table), update=update)
    # 60 of 400 items by chance find 15 %; least squares on factors from scratch, 35 %.
    assert world.recall(found.ids, 10) > 0.3


def test_scores_and_embeddings_together_are_better_than_either(world, table_scorer):
    recalls = {
        form: world.recall(search(world, build(world, form), table_scorer(world.table)).ids, 10)
        for form in FORMS
    }
    assert recalls["both"] >= max(recalls.values()) - 1e-9
    assert recalls["both"] > recalls["embeddings"]


def test_info_says_what_was_learned(world, both):
    info = both.info()
    assert info["n_items"] == world.n_items
    assert info["n_training_scores"] == world.scores.nnz
    assert info["n_training_queries"] == 60
    assert info["slope"] == pytest.approx(1.0, abs=0.15)
    assert info["query_model"]["offset"] == pytest.approx(-3.0, abs=0.5)
    json.dumps(info)
    assert repr(both).startswith(f"<Index: {world.n_items} items (0 removed), {both.n_factors} f")


def test_item_offsets_are_learned(world, both):
    # Each item has 7.5 scores, with deviations of 2 for what is liked and of 3 for the rest.
    assert np.corrcoef(both.item_offsets, world.liked)[0, 1] > 0.75


def test_a_search_opens_with_the_best_without_the_item_offsets_and_with_them_in_turn(world):
    index = build(world, "both")
    index.remove(np.arange(0, world.n_items, 9))
    session = index.session(3, budget=40, rounds=2, query_embeddings=world.queries[:3])
    rows, items = session.ask()
    for row in range(3):
        plain = index.item_factors @ session._priors[row]
        plain[::9] = -np.inf
        orders = [np.argsort(-scores) for scores in (plain, plain + index.item_offsets)]
        assert not np.array_equal(orders[0][:20], orders[1][:20])
        in_turn = dict.fromkeys(np.stack(orders, axis=1).ravel().tolist())
        assert items[rows == row].tolist() == list(in_turn)[:20]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_the_embeddings_does_not_matter(world, table_scorer, both, scale):
    scaled = Index.build(
        world.scores,
        item_embeddings=scale * world.items,
        query_embeddings=scale * world.train_queries,
    )
    a = search(world, both, table_scorer(world.table))
    b = search(world, scaled, table_scorer(world.table), query_embeddings=scale * world.queries)
    assert world.recall(b.ids, 10) == pytest.approx(world.recall(a.ids, 10), abs=0.03)


def test_a_shift_of_the_scores_does_not_matter(world, table_scorer, both):
    shifted = csr_array(world.scores).astype(np.float32)
    shifted.data = shifted.data + np.float32(1000)
    index = Index.build(shifted, item_embeddings=world.items, query_embeddings=world.train_queries)
    a = search(world, both, table_scorer(world.table))
    b = search(world, index, table_scorer(world.table + np.float32(1000)))
    assert world.recall(b.ids, 10) == pytest.approx(world.recall(a.ids, 10), abs=0.03)


def test_scores_beyond_what_single_precision_can_square(world):
    huge = csr_array(world.scores).astype(np.float32)
    huge.data = huge.data * np.float32(1e30)
    assert np.isfinite(Index.build(huge).item_factors).all()


def test_same_seed_same_index_whatever_the_threads(world, both):
    again = build(world, "both", num_threads=5)
    assert np.array_equal(again.item_factors, both.item_factors)
    assert np.array_equal(again.item_offsets, both.item_offsets)
    assert again.info() == both.info()


def test_a_useless_dual_encoder_is_dropped(world, table_scorer):
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2, 500, 12)).astype(np.float32)
    index = Index.build(
        world.scores,
        item_embeddings=noise[0, : world.n_items],
        query_embeddings=noise[1, : len(world.train_queries)],
    )
    assert index.info()["slope"] < 0.1
    ids = search(world, index, table_scorer(world.table), query_embeddings=noise[1, -8:]).ids
    assert world.recall(ids, 10) > 0.3


@pytest.mark.parametrize("n_queries", [1, 2, 5])
def test_a_handful_of_training_queries(world, table_scorer, n_queries):
    part = csr_array(world.scores)[:n_queries]
    index = Index.build(
        part, item_embeddings=world.items, query_embeddings=world.train_queries[:n_queries]
    )
    assert world.recall(search(world, index, table_scorer(world.table)).ids, 10) > 0.4


def test_items_and_queries_never_scored_keep_their_place(world, table_scorer):
    part = csr_array(world.scores)[:, :300]
    wide = csr_array((part.data, part.indices, part.indptr), shape=(60, world.n_items))
    index = Index.build(wide, item_embeddings=world.items, query_embeddings=world.train_queries)
    assert np.isfinite(index.item_factors).all()
    found = search(world, index, table_scorer(world.table))
    assert (found.ids >= 300).any()
    empty_rows = csr_array(
        (part.data, part.indices, np.append(part.indptr, part.indptr[-1])), shape=(61, 300)
    )
    queries = np.vstack([world.train_queries, world.train_queries[:1]])
    index = Index.build(empty_rows, item_embeddings=world.items[:300], query_embeddings=queries)
    assert np.isfinite(index.item_factors).all()


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_constant_scores_and_repeated_items_are_survived(world, table_scorer, value):
    constant = csr_array(world.scores)
    constant.data = np.full_like(constant.data, value)
    items = world.items.copy()
    items[1::2] = items[::2]
    index = Index.build(constant, item_embeddings=items, query_embeddings=world.train_queries)
    scorer = table_scorer(np.full_like(world.table, value))
    assert search(world, index, scorer).n_calls.tolist() == [60] * world.n_queries


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mmap", [True, False])
def test_saved_and_loaded_it_answers_the_same(world, table_scorer, tmp_path, form, mmap):
    index = build(world, form)
    index.save(tmp_path / "items.cexnn")
    loaded = Index.load(tmp_path / "items.cexnn", mmap=mmap, verify=True)
    assert loaded.info() == index.info()
    assert (
        loaded._learned.item_factors.flags.writeable != mmap
    )  # a mapping of the file is read-only
    a = search(world, index, table_scorer(world.table))
    b = search(world, loaded, table_scorer(world.table))
    assert np.array_equal(a.ids, b.ids)
    assert np.array_equal(a.scores, b.scores)


@pytest.fixture
def saved(both, tmp_path):
    path = tmp_path / "items.cexnn"
    both.save(path)
    return path


def test_a_truncated_file(saved):
    whole = saved.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        with pytest.raises(IndexFileError):
            Index.load(saved)


def test_a_foreign_file(tmp_path):
    path = tmp_path / "items.cexnn"
    path.write_bytes(b"PK\x03\x04" + bytes(5000))
    with pytest.raises(IndexFileError, match="not a cexnn"):
        Index.load(path)
    storage.write(path, {"weights": np.ones((2, 2), np.float32)}, {"kind": "something else"})
    with pytest.raises(IndexFileError, match="not an index"):
        Index.load(path)


def test_a_file_that_disagrees_with_itself(both, saved):
    arrays, metadata = storage.read(saved, mmap=False)
    own = {"index": metadata["index"]}
    for name, array in (
        ("item_offsets", np.zeros(3, np.float32)),
        ("mean_query", np.zeros(both.n_factors, np.float64)),
        ("query_map", np.zeros((2, both.n_factors), np.float32)),
        ("item_factors", np.zeros(7, np.float32)),
    ):
        storage.write(saved, {**arrays, name: array}, own)
        with pytest.raises(IndexFileError, match="not an index"):
            Index.load(saved)
    described = json.loads(own["index"])
    model = described["model"]
    crafted = [
        {**described, "query_scale": 10**400},
        {**described, "model": []},
        {**described, "model": {**model, "noise_variance": -1.0}},
        {**described, "model": {**model, "offset": float("nan")}},
    ]
    for text in ("", "{}", "[]", *map(json.dumps, crafted)):
        storage.write(saved, arrays, {"index": text})
        with pytest.raises(IndexFileError, match="not an index"):
            Index.load(saved)


def test_a_flipped_bit_is_found_on_request(saved):
    data = bytearray(saved.read_bytes())
    data[-3] ^= 16
    saved.write_bytes(data)
    Index.load(saved)
    with pytest.raises(IndexFileError):
        Index.load(saved, verify=True)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Index.load(tmp_path / "none.cexnn")


def test_a_killed_save_leaves_the_old_file_whole(both, saved):
    """The process is killed by the first write that goes to the disk in the middle of a save."""
    before = saved.read_bytes()
    script = f"""
        import os, signal
        import numpy as np
        from cexnn import Index
        index = Index.build(item_embeddings=np.ones((200_000, 64), np.float32))
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        index.save({os.fspath(saved)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -9
    assert saved.read_bytes() == before
    assert Index.load(saved, verify=True).n_items == both.n_items


ITEMS = np.ones((3, 2), np.float32)
ONE = coo_array(([1.0], ([0], [0])), shape=(2, 3))
BAD = {
    "scores": [
        {},
        {"scores": np.ones((2, 3))},
        {"scores": coo_array((2, 3), dtype=np.float32)},
        {"scores": ONE, "item_embeddings": np.ones((4, 2), np.float32)},
        {"scores": coo_array(([np.nan], ([0], [0])), shape=(2, 3))},
        {"scores": coo_array(([1.0, 1.0], ([0, 0], [1, 1])), shape=(2, 3))},
    ],
    "item_embeddings": [
        {"item_embeddings": np.ones(3, np.float32)},
        {"item_embeddings": np.ones((3, 2), int)},
        {"item_embeddings": np.array([[1, np.nan]], np.float32)},
        {"item_embeddings": np.array([[1, np.inf]], np.float32)},
    ],
    "query_embeddings": [
        {"scores": ONE, "query_embeddings": ITEMS[:2]},
        {"scores": ONE, "item_embeddings": ITEMS, "query_embeddings": ITEMS},
        {"item_embeddings": ITEMS, "query_embeddings": np.ones((2, 5), np.float32)},
    ],
    "n_factors": [{"item_embeddings": ITEMS, "n_factors": 5}, {"scores": ONE, "n_factors": 0}],
    "regularization": [
        {"scores": ONE, "regularization": -1.0},
        {"scores": ONE, "regularization": "no"},
        {"item_embeddings": ITEMS, "regularization": "no"},
    ],
    "n_iterations": [
        {"scores": ONE, "n_iterations": 0},
        {"item_embeddings": ITEMS, "n_iterations": 0},
    ],
    "seed": [{"scores": ONE, "seed": -1}],
    "device": [{"scores": ONE, "device": "tpu"}],
    "num_threads": [{"scores": ONE, "num_threads": 0}],
}


@pytest.mark.parametrize(
    ("name", "options"), [(n, case) for n, cases in BAD.items() for case in cases]
)
def test_bad_input_names_the_argument(name, options):
    with pytest.raises(ValueError, match=f"^{name}:"):
        Index.build(**options)


def test_embeddings_at_search_must_fit_the_build(world, table_scorer):
    scorer = table_scorer(world.table)
    with pytest.raises(ValueError, match="^query_embeddings:"):
        build(world, "scores").search(
            scorer, range(world.n_queries), query_embeddings=world.queries
        )
    with pytest.raises(ValueError, match="^query_embeddings:"):
        build(world, "embeddings").search(scorer, range(world.n_queries))


def test_embeddings_that_the_build_made_nothing_of_start_as_the_mean_query(world, table_scorer):
    index = Index.build(world.scores, item_embeddings=world.items)

    def search(**given):
        scorer = table_scorer(world.table)
        return index.search(scorer, range(len(world.table)), k=5, budget=20, **given)

    np.testing.assert_array_equal(search(query_embeddings=world.queries).ids, search().ids)


def test_embeddings_far_too_large_are_named(both, world):
    with pytest.raises(ValueError, match="^query_embeddings: expected numbers"):
        both.session(1, query_embeddings=np.full((1, world.items.shape[1]), 3e38, np.float32))


def test_embeddings_without_dimensions_are_refused():
    with pytest.raises(ValueError, match="^item_embeddings: expected at least one dimension"):
        Index.build(item_embeddings=np.zeros((5, 0), dtype=np.float32))


def test_far_too_large_scores_are_refused(world):
    with pytest.raises(ValueError, match=r"^scores: expected sizes up to 1e\+37, got"):
        Index.build(world.scores * 1e36)


@pytest.mark.parametrize("n", [9, 20, 30])
def test_few_queries_have_as_many_factors(world, n):
    assert Index.build(world.scores[:n]).n_factors == n


def test_cuda_without_cuda_is_refused(saved):
    if cexnn.cuda_available():
        pytest.skip("CUDA is available here")
    with pytest.raises(RuntimeError, match="cuda"):
        Index.load(saved, device="cuda")
    with pytest.raises(RuntimeError, match="cuda"):
        Index.build(item_embeddings=ITEMS, device="cuda")
    assert Index.load(saved).device == "cpu"
