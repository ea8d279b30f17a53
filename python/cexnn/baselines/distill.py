"""Distillation: a dual encoder taught the cross-encoder's scores, then retrieve and rerank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cexnn.baselines.first_stage import retrieve_and_rerank
from cexnn.baselines.map_fitting import Lesson, fit_map
from cexnn.baselines.paper import fit_scale
from cexnn.checks import LARGEST_SEED, check_float, check_int, check_matrix
from cexnn.score_csr import check_scores, take_rows
from cexnn.scorer import Scorer, check_call
from cexnn.search import SearchResult

__all__ = ["Distilled", "distill"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Distilled:
    """A dual encoder whose dot products follow the cross-encoder; made by `Distilled.fit`.

    Attributes
    ----------
    query_map : (n_dims + 1, n_dims) float32
        What a query's embedding, with a 1 after it, is multiplied by.
    item_embeddings : (n_items, n_dims) float32
        The dual encoder's, as they are: a map of the items, too, would come to the same products.
    n_calls : int
        Scores that it was fitted to.
    seconds : float
        What fitting took, without the scores.
    n_steps : int
        Steps of the minimisation up to the map that was kept.
    """

    query_map: FloatArray
    item_embeddings: FloatArray
    n_calls: int
    seconds: float
    n_steps: int

    @classmethod
    def fit(
        cls,
        scores: Any,
        *,
        query_embeddings: FloatArray,
        item_embeddings: FloatArray,
        temperature: float = 2.0,
        regularization: float = 1e-5,
        held_out_share: float = 0.1,
        patience: int = 10,
        max_steps: int = 500,
        seed: int = 0,
    ) -> Self:
        """Fit a map of the queries' embeddings to the cross-encoder's training scores.

        It lowers the mean over training queries of the cross-entropy, over the items that were
        scored for the query,

            - sum_i softmax(y / temperature)_i  log softmax(([e_q, 1] W) . e_i)_i

        plus ``regularization`` times the squared distance of ``W`` from its start, by L-BFGS. It
        starts from the dual encoder's own dot products: ``W`` is the identity times the slope that
        `fit_scale` finds, and a row of zeros. The last row is a preference among the items that
        all queries share. The ``W`` of the step with the lowest cross-entropy on held-out queries
        is kept.

        Parameters
        ----------
        scores : (n_queries, n_items) SciPy sparse
            Cross-encoder scores of training pairs, such as `score_pairs` returns. Queries with
            fewer than two count in ``n_calls`` but teach nothing.
        query_embeddings : (n_queries, n_dims) float
            The dual encoder's, of the training queries.
        item_embeddings : (n_items, n_dims) float
            Its embeddings of the items.
        temperature : float
            Above 0, in score units. A high one spreads the weight over more of a query's items.
        regularization : float
            At least 0.
        held_out_share : float
            Share of the queries that choose the step, at least one; above 0, below 1.
        patience : int
            Steps without a better one after which it stops.
        max_steps : int
            Steps at most.
        seed : int
            Of the choice of the held-out queries.

        Returns
        -------
        Distilled

        Raises
        ------
        ValueError
            Bad shapes or values, naming the argument; fewer than two queries with two scores;
            scores that do not rise with the dual encoder's dot products.

        Examples
        --------
        The cross-encoder prefers item 0, which the dual encoder does not.

        >>> import numpy as np, scipy.sparse
        >>> items = np.float32([[1, 0], [0, 1], [1, 1]])
        >>> queries = np.float32([[1, 0], [0, 1], [1, 1]])
        >>> scores = scipy.sparse.csr_array(queries @ items.T + np.float32([3, 1, 0]))
        >>> distilled = Distilled.fit(scores, query_embeddings=queries, item_embeddings=items)
        >>> np.argmax(queries @ items.T, axis=1)
        array([0, 1, 2])
        >>> np.argmax(distilled.embed(queries) @ items.T, axis=1)
        array([0, 0, 0])
        """
        items = check_matrix("item_embeddings", item_embeddings)
        matrix = check_scores(scores, n_items=len(items))
        queries = check_matrix(
            "query_embeddings", query_embeddings, rows=matrix.shape[0], cols=items.shape[1]
        )
        temperature = _check_open("temperature", temperature, np.inf)
        penalty = check_float("regularization", regularization, minimum=0)
        share = _check_open("held_out_share", held_out_share, 1.0)
        patience = check_int("patience", patience, minimum=1)
        max_steps = check_int("max_steps", max_steps, minimum=1)
        generator = np.random.default_rng(check_int("seed", seed, minimum=0, maximum=LARGEST_SEED))
        start = time.perf_counter()
        slope = fit_scale(matrix, query_factors=queries, item_factors=items).slope
        teaching = generator.permutation(np.flatnonzero(np.diff(matrix.indptr) >= 2))
        if len(teaching) < 2:
            raise ValueError(
                f"scores: expected at least two queries with two scores, got {len(teaching)}"
            )
        n_held = min(len(teaching) - 1, max(1, round(share * len(teaching))))
        held, fitted = (
            Lesson.of(take_rows(matrix, np.sort(rows)), queries[np.sort(rows)], temperature)
            for rows in (teaching[:n_held], teaching[n_held:])
        )
        initial = np.zeros((items.shape[1] + 1, items.shape[1]))
        np.fill_diagonal(initial, slope / temperature)
        best, n_steps = fit_map(fitted, held, items, initial, penalty, patience, max_steps)
        query_map = best.astype(np.float32)
        return cls(query_map, items, matrix.nnz, time.perf_counter() - start, n_steps)

    def embed(self, query_embeddings: FloatArray) -> FloatArray:
        """Map the dual encoder's embeddings of queries, (n_queries, n_dims) float.

        Returns
        -------
        (n_queries, n_dims) float32
            To be multiplied with ``item_embeddings``.

        Raises
        ------
        ValueError
            Another number of dimensions, NaN or infinity.
        """
        n_dims = self.query_map.shape[1]
        queries = check_matrix("query_embeddings", query_embeddings, cols=n_dims)
        mapped: FloatArray = queries @ self.query_map[:-1] + self.query_map[-1]
        return mapped


def distill(
    scorer: Scorer,
    queries: Sequence[Any],
    *,
    distilled: Distilled,
    query_embeddings: FloatArray,
    k: int = 10,
    budget: int = 100,
    num_threads: int | None = None,
    progress: bool = False,
) -> SearchResult:
    """Retrieve with a dual encoder that was taught the cross-encoder's scores, and rerank.

    Parameters
    ----------
    scorer : Scorer
        Called once, with the pairs of all queries.
    queries : sequence
        Passed on to the scorer.
    distilled : Distilled
        The dual encoder.
    query_embeddings : (n_queries, n_dims) float
        Of ``queries``, by the dual encoder as it was before.
    k, budget, num_threads, progress
        As in `retrieve_and_rerank`.

    Returns
    -------
    SearchResult

    Raises
    ------
    ValueError
        A bad argument, named, before any pair is scored.
    ScorerError
        The scorer failed. Its ``session`` holds every score paid for.

    References
    ----------
    The baseline of Yadav et al., ICLR 2024 (arXiv 2405.03651), which trains all of the encoder by
    the same cross-entropy; here only a map on top of it is trained.

    Examples
    --------
    >>> import numpy as np
    >>> items = np.float32([[1, 0], [0, 1]])
    >>> distilled = Distilled(np.float32([[0, 1], [1, 0], [0, 0]]), items, 0, 0.0, 0)
    >>> table = np.float32([[1, 2]])
    >>> distill(
    ...     lambda queries, rows, items: table[rows, items], ["a query"],
    ...     distilled=distilled, query_embeddings=np.float32([[1, 0]]), k=1, budget=1,
    ... ).ids
    array([[1]], dtype=int32)
    """
    n_queries = check_call(scorer, queries)
    if not isinstance(distilled, Distilled):
        raise ValueError(f"distilled: expected Distilled, got {type(distilled).__name__}")
    n_dims = distilled.query_map.shape[1]
    given = check_matrix("query_embeddings", query_embeddings, rows=n_queries, cols=n_dims)
    return retrieve_and_rerank(
        scorer,
        queries,
        item_embeddings=distilled.item_embeddings,
        query_embeddings=distilled.embed(given),
        k=k,
        budget=budget,
        num_threads=num_threads,
        progress=progress,
    )


def _check_open(name: str, value: Any, maximum: float) -> float:
    """Return a number above 0 and below ``maximum``."""
    number = check_float(name, value, minimum=0, maximum=maximum)
    if not 0 < number < maximum:
        bound = "" if np.isinf(maximum) else f" and below {maximum:g}"
        raise ValueError(f"{name}: expected a number above 0{bound}, got {value!r}")
    return number
