"""Searches whose pairs stay on the device find what the others do, score for score."""

import asyncio
from copy import copy
from functools import partial

import numpy as np
import pytest

from cexnn import Index, ScorerError, _core, exact

CUDA = 2  # of DLPack's devices


class Fake:
    """An array of a library like CuPy: takes and lends what lies on the device."""

    def __init__(self, array):
        self._array = _core.DeviceArray(array)

    @staticmethod
    def from_dlpack(lender):
        assert lender.__dlpack_device__() == (CUDA, 0), "the pairs are not on the device"
        return _core.DeviceArray.from_dlpack(lender).numpy()

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()

    def __dlpack__(self, *, stream):
        return self._array.__dlpack__(stream=stream)


class DeviceScorer:
    """Looks scores up in a table, for pairs on the device; ``spoil`` changes what it returns."""

    pairs_device = "cuda"

    def __init__(self, table, spoil=lambda scores, call: Fake(scores)):
        self.table, self.spoil, self.calls = table, spoil, 0

    def __call__(self, queries, rows, items):
        rows, items = Fake.from_dlpack(rows), Fake.from_dlpack(items)
        assert rows.dtype == items.dtype == np.int32
        self.calls += 1
        return self.spoil(self.table[rows, items], self.calls)


@pytest.fixture
def cuda():
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")


@pytest.fixture(scope="module")
def learned(world):
    index = Index.build(
        world.scores,
        item_embeddings=world.items,
        query_embeddings=world.train_queries,
        device="cpu",
    )
    assert index.info()["score_map"] == "identity"
    return index._learned


@pytest.fixture(scope="module")
def mapped(world):
    """The corpus with its scores through a sigmoid, and what was learned of them."""
    squashed = copy(world)
    squashed.scores = world.scores.copy()
    squashed.scores.data = 1 / (1 + np.exp(-2 * squashed.scores.data))
    squashed.table = (1 / (1 + np.exp(-2 * world.table))).astype(np.float32)
    index = Index.build(
        squashed.scores,
        item_embeddings=world.items,
        query_embeddings=world.train_queries,
        device="cpu",
    )
    assert index.info()["score_map"] != "identity"
    return squashed, index._learned


@pytest.fixture(params=["as they are", "mapped", "in units of each row"])
def units(request, world, learned, mapped):
    """Scores that reach the model in either way: the corpus, and what was learned of it."""
    if request.param == "mapped":
        return mapped
    if request.param == "as they are":
        return world, learned
    return world, Index.build(item_embeddings=world.items, device="cpu")._learned


def search(index, scorer, world, **changes):
    options = {"k": 10, "budget": 60, "rounds": 4, "query_embeddings": world.queries, **changes}
    return index.search(scorer, range(world.n_queries), **options)


def plain_scorer(world):
    return lambda queries, rows, items: world.table[rows, items]


def check_equal(result, expected):
    assert np.array_equal(result.ids, expected.ids)
    assert np.array_equal(result.scores, expected.scores, equal_nan=True)
    assert np.array_equal(result.n_calls, expected.n_calls)
    assert np.array_equal(result.complete, expected.complete)
    for name in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(result.scored, name), getattr(expected.scored, name))


OPTIONS = [
    {},
    {"rounds": 7},
    {"rounds": 1},
    {"k": 70},
    {"budget": 10_000, "rounds": 6},
    {"update": "least_squares", "mix": 0.3},
    {"query_embeddings": None},
    {"first": np.arange(30)[None].repeat(8, axis=0)},
    {"first": np.arange(30)[None].repeat(8, axis=0), "query_embeddings": None},
    {"stop": "confident", "k": 2, "budget": 300, "rounds": 10},
    {"exclude": [1, 2, 3]},
    {"only": np.arange(100)},
    {"trace": True},
    {"deadline_ms": 1e6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "plain")
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_cuda_pairs_find_the_same(cuda, world, learned, options, device):
    index = Index(learned, device=device)
    scorer = DeviceScorer(world.table)
    found = search(index, scorer, world, **options)
    check_equal(found, search(index, plain_scorer(world), world, **options))
    assert scorer.calls > 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_cuda_pairs_find_the_same_without_scores(cuda, world, dtype):
    index = Index.build(item_embeddings=world.items, device="cuda").astype(dtype)
    found = search(index, DeviceScorer(world.table), world)
    check_equal(found, search(index, plain_scorer(world), world))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rounds": 7},
        {"budget": 10_000, "rounds": 6},
        {"update": "least_squares", "mix": 0.3},
        {"first": np.arange(30)[None].repeat(8, axis=0)},
        {"exclude": [1, 2, 3]},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_cuda_pairs_find_the_same_whatever_the_model_takes_for_scores(cuda, units, options):
    world, learned = units
    index = Index(learned, device="cuda")
    found = search(index, DeviceScorer(world.table), world, **options)
    check_equal(found, search(index, plain_scorer(world), world, **options))


@pytest.mark.parametrize("stop", [None, "confident"])
def test_cuda_pairs_find_the_same_with_a_score_map(cuda, mapped, stop):
    world, learned = mapped
    index = Index(learned, device="cuda")
    options = {"query_embeddings": None, "stop": stop}
    if stop:
        options = {"stop": stop, "k": 2, "budget": 300, "rounds": 10}
    found = search(index, DeviceScorer(world.table), world, **options)
    check_equal(found, search(index, plain_scorer(world), world, **options))


@pytest.mark.parametrize("update", ["calibrated", "least_squares"])
def test_cuda_searches_stay_on_the_device(cuda, units, update):
    world, learned = units
    index = Index(learned, device="cuda")
    scorer = DeviceScorer(world.table)
    options = {"budget": 60, "query_embeddings": world.queries, "update": update}
    session = index.session(8, pairs_device="cuda", **options)
    while not session.done:
        session.tell(scorer(range(8), *session.ask()))
        assert not session._known.counts.any()
    session.result()
    assert session._known.counts.tolist() == [60] * 8


def test_cuda_rounds_bring_no_ids_and_no_scores_across_the_bus(cuda, units, bus):
    world, learned = units
    n = world.n_queries
    options = {"budget": 200, "rounds": 5, "query_embeddings": world.queries}
    crossed = {}
    for pairs_device in ("cuda", "cpu"):
        session = Index(learned, device="cuda").session(n, pairs_device=pairs_device, **options)
        while not session.done:
            asked = bus.bytes_of(session.ask)
            rows, items = (
                np.asarray(part.numpy() if pairs_device == "cuda" else part) for part in asked[2]
            )
            scores = world.table[rows, items]
            there = Fake(scores) if pairs_device == "cuda" else scores
            told = bus.bytes_of(partial(session.tell, there))
            crossed.setdefault(pairs_device, []).append((asked[0] + told[0], asked[1] + told[1]))
    for up, down in crossed["cuda"][2:]:  # the first chooses the opening, the second brings priors
        assert up <= 128 * n
        assert down <= 4 * n + 32
    for up, down in crossed["cpu"][2:]:
        assert up > 8 * 80 * n
        assert down >= 4 * 40 * n


def test_cuda_score_maps_go_to_the_device_once_a_search(cuda, world, learned, mapped, bus):
    crossed = []
    for corpus, known in ((world, learned), mapped):
        session = Index(known, device="cuda").session(
            1, budget=100, pairs_device="cuda", query_embeddings=world.queries[:1]
        )
        crossed.append([])
        while not session.done:
            up, down, asked = bus.bytes_of(session.ask)
            rows, items = (part.numpy() for part in asked)
            told = bus.bytes_of(partial(session.tell, Fake(corpus.table[rows, items])))
            crossed[-1].append((up + told[0], down + told[1]))
    n_knots = len(mapped[1].score_map.knots)
    assert n_knots > 0
    assert crossed[1][0][0] - crossed[0][0][0] == 16 * n_knots
    assert crossed[1][1:] == crossed[0][1:]


def test_cuda_rounds_allocate_nothing(cuda, units, bus):
    world, learned = units
    index = Index(learned, device="cuda")
    options = {"k": 10, "budget": 100, "rounds": 6, "query_embeddings": world.queries}
    for warm in (False, True):  # what rounds of a shape share is allocated in the first search
        session, allocated = index.session(8, pairs_device="cuda", **options), []
        while not session.done:
            rows, items = bus.bytes_of(session.ask)[2]
            allocated.append(bus.allocated)
            scores = Fake(world.table[rows.numpy(), items.numpy()])
            bus.bytes_of(partial(session.tell, scores))
            assert bus.allocated == 0 or not warm
    assert allocated[0] > 0
    assert allocated[1] > 0  # the queries' systems; and the last pairs' rows, where there are fewer
    assert allocated[2:] == [0, 0, 4 * 8 * 16, 0]


def test_cuda_pairs_that_are_kept_stay_as_they_are(cuda, world, learned):
    index = Index(learned, device="cuda")
    options = {"k": 10, "budget": 60, "rounds": 4, "query_embeddings": world.queries}
    session, kept = index.session(8, pairs_device="cuda", **options), []
    while not session.done:
        pairs = session.ask()
        here = [part.numpy() for part in pairs]
        kept.append((pairs, here))
        session.tell(Fake(world.table[tuple(here)]))
    del session
    for pairs, here in kept:
        for there, as_asked in zip(pairs, here, strict=True):
            assert np.array_equal(Fake.from_dlpack(there), as_asked)


def test_cuda_searches_on_an_event_loop(cuda, world, learned):
    index = Index(learned, device="cuda")
    scorer = DeviceScorer(world.table)
    options = {"k": 10, "budget": 60, "rounds": 4, "query_embeddings": world.queries}

    async def ascorer(*pairs):
        return scorer(*pairs)

    ascorer.pairs_device = "cuda"
    expected = search(index, plain_scorer(world), world)
    for one in (scorer, ascorer):
        found = asyncio.run(index.asearch(one, range(world.n_queries), **options))
        check_equal(found, expected)


@pytest.mark.parametrize(
    "returned",
    [
        lambda scores, call: scores,
        lambda scores, call: scores.tolist(),
        lambda scores, call: Fake(scores.astype(np.float64)),
        lambda scores, call: scores.astype(np.float64) if call == 2 else Fake(scores),
    ],
    ids=["numpy", "list", "float64 on the device", "now here now there"],
)
def test_cuda_pairs_may_be_scored_on_the_host(cuda, world, learned, returned):
    index = Index(learned, device="cuda")
    found = search(index, DeviceScorer(world.table, returned), world)
    check_equal(found, search(index, plain_scorer(world), world))


def test_cuda_sessions_are_told_in_pieces(cuda, units):
    world, learned = units
    index = Index(learned, device="cuda")
    options = {"k": 10, "budget": 60, "rounds": 4, "query_embeddings": world.queries}
    session = index.session(world.n_queries, pairs_device="cuda", **options)
    n_told = 0
    while not session.done:
        rows, items = (Fake.from_dlpack(part) for part in session.ask())
        again = session.ask()
        assert np.array_equal(again[1].numpy(), items)
        part = len(rows) if n_told < 150 else 37  # whole rounds first
        session.tell(Fake(world.table[rows, items][:part]))
        n_told += min(part, len(rows))
        assert session.result().n_calls.sum() == n_told
    assert [len(part) for part in session.ask()] == [0, 0]
    check_equal(session.result(), search(index, plain_scorer(world), world))


def test_cuda_sessions_tell_what_is_complete(cuda, world, learned):
    index = Index(learned, device="cuda")
    session = index.session(2, k=1, budget=6, rounds=2, pairs_device="cuda")
    for _ in range(2):
        assert not session.result().complete.any()
        rows, items = (part.numpy() for part in session.ask())
        assert not session.done
        assert not session.result().complete.any()
        session.tell(Fake(world.table[rows, items]))
    assert session.done
    assert session.result().complete.all()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda n: np.zeros(n + 1, np.float32), "at most"),
        (lambda n: np.zeros((n, 1), np.float32), "one dimension"),
        (lambda n: np.full(n, np.nan, np.float32), "finite"),
    ],
    ids=["too many", "two dimensions", "NaN"],
)
@pytest.mark.parametrize("lend", [Fake, np.asarray], ids=["device", "host"])
def test_cuda_sessions_refuse_bad_scores(cuda, world, learned, scores, message, lend):
    index = Index(learned, device="cuda")
    session = index.session(2, k=1, budget=6, rounds=2, pairs_device="cuda")
    rows, items = (part.numpy() for part in session.ask())
    with pytest.raises(ValueError, match=f"scores: .*{message}"):
        session.tell(lend(scores(len(rows))))
    assert np.array_equal(session.ask()[1].numpy(), items)
    session.tell(Fake(world.table[rows, items]))
    assert session.result().n_calls.tolist() == [3, 3]


@pytest.mark.parametrize("fail_at", [1, 3])
def test_cuda_scorers_that_fail_lose_no_scores(cuda, units, fail_at):
    world, learned = units
    index = Index(learned, device="cuda")

    def spoil(scores, call):
        if call == fail_at:
            raise RuntimeError("out of memory")
        return Fake(scores)

    with pytest.raises(ScorerError, match="120 pairs that starts with query 0, item") as caught:
        search(index, DeviceScorer(world.table, spoil), world)
    session = caught.value.session
    assert session.result().n_calls.tolist() == [15 * (fail_at - 1)] * world.n_queries
    while not session.done:
        rows, items = (Fake.from_dlpack(part) for part in session.ask())
        session.tell(Fake(world.table[rows, items]))
    check_equal(session.result(), search(index, plain_scorer(world), world))


def test_cuda_scores_that_are_not_finite_name_the_pair(cuda, units):
    world, learned = units
    index = Index(learned, device="cuda")

    def spoil(scores, call):
        scores[7 if call == 2 else []] = np.nan
        return Fake(scores)

    with pytest.raises(ScorerError, match="nan for query 0, item") as caught:
        search(index, DeviceScorer(world.table, spoil), world)
    assert caught.value.session.result().n_calls.tolist() == [29] + [30] * (world.n_queries - 1)


def test_cuda_scorers_serve_wherever_pairs_are_scored(cuda, world):
    ids, scores = exact(DeviceScorer(world.table), range(world.n_queries), world.n_items, 5)
    assert np.array_equal(ids, world.exact[:, :5])
    assert np.array_equal(scores, np.take_along_axis(world.table, ids, axis=1))


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_cuda_tensors_of_a_library_are_searched_with(cuda, world, learned, library):
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "torch" and not module.cuda.is_available():
        pytest.skip("torch has no CUDA device here")
    table = module.from_dlpack(_core.DeviceArray(world.table))

    def scorer(queries, rows, items):
        rows, items = module.from_dlpack(rows), module.from_dlpack(items)
        return table[rows, items]

    scorer.pairs_device = "cuda"
    index = Index(learned, device="cuda")
    queries = module.from_dlpack(_core.DeviceArray(world.queries))
    found = search(index, scorer, world, query_embeddings=queries)
    check_equal(found, search(index, plain_scorer(world), world))


def test_pairs_are_wanted_on_a_device_that_there_is(world, learned):
    index = Index(learned, device="cpu")
    scorer = plain_scorer(world)
    scorer.pairs_device = "tpu"
    with pytest.raises(ValueError, match="pairs_device: expected 'cpu' or 'cuda', got 'tpu'"):
        search(index, scorer, world)
    with pytest.raises(ValueError, match="pairs_device: expected 'cpu'"):
        index.session(1, pairs_device="cuda")
    scorer.pairs_device = "cuda"
    if not _core.cuda_available():
        with pytest.raises(RuntimeError, match="pairs_device='cuda'"):
            search(index, scorer, world)
