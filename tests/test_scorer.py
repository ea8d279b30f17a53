"""What scorers may do wrong, and texts that are not in a list."""

import asyncio
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from cexnn import Index
from cexnn.engine import EngineBusyError, ScoringEngine
from cexnn.score_matrix import score_pairs
from cexnn.scorer import EngineClosedError, PairScorer, ScorerError, call_scorer

ROWS, ITEMS = np.int32([0, 0, 1]), np.int32([4, 5, 6])


class WithGradient:
    """Like a tensor of PyTorch that has a gradient."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


class Labelled:
    """Like a Series of pandas whose rows were shuffled: ``[j]`` is the row labelled j."""

    def __init__(self, texts, labels):
        self.iloc = texts
        self.loc = dict(zip(labels, texts, strict=True))

    def __len__(self):
        return len(self.iloc)

    def __getitem__(self, label):
        return self.loc[label]


def test_what_cannot_become_numbers_is_the_scorers_error():
    with pytest.raises(ScorerError, match="numbers, got WithGradient: .*grad") as caught:
        call_scorer(lambda q, r, i: WithGradient(), ["a", "b"], ROWS, ITEMS)
    assert isinstance(caught.value.__cause__.__cause__, RuntimeError)  # its owner's


def test_a_coroutine_is_told_from_numbers():
    async def scorer(queries, rows, items):
        return [0.0] * len(rows)

    with pytest.raises(ScorerError, match="coroutine, which only asearch awaits, .*asyncio.run"):
        call_scorer(scorer, ["a", "b"], ROWS, ITEMS)  # and none is left that was never awaited
    ran = call_scorer(lambda *pairs: asyncio.run(scorer(*pairs)), ["a", "b"], ROWS, ITEMS)
    assert ran.tolist() == [0, 0, 0]


def test_a_function_of_pairs_is_told_how_scorers_are_called():
    with pytest.raises(ScorerError, match=r"called with queries, rows and items; PairScorer"):
        call_scorer(lambda pairs: [0.0] * len(pairs), ["a", "b"], ROWS, ITEMS)
    with pytest.raises(ScorerError) as caught:
        call_scorer(lambda q, r, i: len(1), ["a", "b"], ROWS, ITEMS)
    assert "PairScorer" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [["1", "2", "3"], np.array([b"1", b"2", b"3"]), np.array(["1", 2.0, 3.0], dtype=object)],
)
def test_digits_are_no_numbers(given):
    with pytest.raises(ScorerError, match="must return numbers, got"):
        call_scorer(lambda q, r, i: given, ["a", "b"], ROWS, ITEMS)
    with pytest.raises(ScorerError, match="holds no numbers"):
        call_scorer(PairScorer(lambda pairs: given, ["t"] * 7), ["a", "b"], ROWS, ITEMS)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        ([1.0, np.inf, np.nan], [1, np.nan, np.nan]),
        ([1.0, 1e300, None], [1, np.nan, np.nan]),
        ([1.0, 2.0], None),
        ("abc", None),
        ([1.0, [2.0], 3.0], None),
        (WithGradient(), None),
    ],
)
def test_scores_in_a_scorers_own_error_are_finite_or_nan(given, kept):
    def scorer(queries, rows, items):
        raise ScorerError("broken", row=0, item=4, scores=given)

    with pytest.raises(ScorerError, match="broken") as caught:
        call_scorer(scorer, ["a", "b"], ROWS, ITEMS)
    if kept is None:
        assert caught.value.scores is None
    else:
        np.testing.assert_array_equal(caught.value.scores, np.float32(kept))
        assert caught.value.scores.dtype == np.float32


@pytest.mark.parametrize("given", [lambda n: np.full(n, np.inf), lambda n: "bad"])
def test_a_search_survives_bad_scores_in_a_scorers_own_error(given):
    calls = []

    def scorer(queries, rows, items):
        calls.append(len(rows))
        if len(calls) == 3:
            raise ScorerError("broken", row=0, item=0, scores=given(len(rows)))
        return items.astype(np.float32)

    index = Index.build(item_embeddings=np.eye(20, dtype=np.float32))
    ones = np.ones((1, 20), dtype=np.float32)
    with pytest.raises(ScorerError, match="broken") as caught:
        index.search(scorer, ["a"], budget=12, rounds=4, query_embeddings=ones)
    assert caught.value.session.result().n_calls.tolist() == [6]


def test_texts_are_taken_by_position_not_by_label():
    items = Labelled(["red", "blue", "green"], [2, 1, 0])
    queries = Labelled(["x", "y"], [1, 0])
    asked = []

    def predict(pairs):
        asked.extend(pairs)
        return np.zeros(len(pairs))

    PairScorer(predict, items)(queries, np.int32([0, 1]), np.int32([0, 1]))
    assert asked == [("x", "red"), ("y", "blue")]


def test_a_scorers_error_is_pickled_with_its_scores():
    error = ScorerError("broken", row=1, item=2, scores=np.float32([3, np.nan]))
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.row, copied.item, copied.session) == ("broken", 1, 2, None)
    np.testing.assert_array_equal(copied.scores, error.scores)


def raise_scorer_error(*pairs):
    raise ScorerError("broken", row=0, item=0)


def raise_closed(*pairs):
    raise EngineClosedError


@pytest.mark.parametrize("fail", [raise_scorer_error, raise_closed])
def test_the_error_of_a_search_is_pickled_with_what_was_paid_for(fail):
    calls = []

    def scorer(queries, rows, items):
        calls.append(len(rows))
        return fail() if len(calls) == 3 else items.astype(np.float32)

    index = Index.build(item_embeddings=np.eye(20, dtype=np.float32))
    ones = np.ones((1, 20), dtype=np.float32)
    with pytest.raises((ScorerError, EngineClosedError)) as caught:
        index.search(scorer, ["a"], budget=12, rounds=4, query_embeddings=ones)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert type(copied) is type(caught.value)
    assert copied.session is None
    scored = caught.value.session.result().scored
    assert copied.paid.nnz == 6
    np.testing.assert_array_equal(copied.paid.toarray(), scored.toarray())


def test_a_busy_engine_is_pickled_with_when_to_come_again():
    copied = pickle.loads(pickle.dumps(EngineBusyError(2.5)))
    assert copied.retry_after == 2.5
    assert str(copied) == str(EngineBusyError(2.5))


@pytest.mark.parametrize(
    "use",
    [
        lambda scorer: score_pairs(scorer, ["a"], [0], [0], n_items=1),
        lambda scorer: Index.build(item_embeddings=np.eye(3)).search(scorer, ["a"]),
        ScoringEngine,
    ],
)
def test_what_could_be_made_a_scorer_is_told_how(use):
    for name, hint in (("bind", r"its bind\(item_texts\)"), ("predict", r"PairScorer\(model")):
        with pytest.raises(ValueError, match=f"^scorer: expected a callable, .*: {hint}"):
            use(SimpleNamespace(**{name: print}))
