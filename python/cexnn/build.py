"""What `Index.build` learns, in its order: calibration, factors, the variances of the search."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn.als import Factors, factorize
from cexnn.checks import check_int, check_matrix
from cexnn.learned import Learned
from cexnn.prior import (
    Calibration,
    QueryModel,
    calibrate,
    default_query_model,
    embedding_scales,
    fit_query_model,
    mean_square_norm,
)
from cexnn.score_csr import check_scores, take_rows

__all__ = ["learn"]

FloatArray = NDArray[np.float32]

HELD_OUT_QUERIES = 100  # at most, and a fifth of the training queries at most
LEAST_QUERIES = 10  # with fewer, the variances are fitted to the same queries as all else
UNSCORED_SLOPE = 0.4  # score deviations that one deviation of dot products is taken to be worth


@dataclass(frozen=True)
class _Options:
    n_factors: int | None
    regularization: float | tuple[float, float] | str
    n_iterations: int
    seed: int
    num_threads: int
    device: str
    progress: bool


def learn(
    scores: Any,
    *,
    item_embeddings: FloatArray | None,
    query_embeddings: FloatArray | None,
    n_factors: int | None,
    regularization: float | tuple[float, float] | str,
    n_iterations: int,
    seed: int,
    num_threads: int,
    device: str,
    progress: bool,
) -> Learned:
    """Check the arguments of `Index.build` and learn what they allow; see there."""
    check_int("seed", seed, minimum=0)
    items, queries, matrix = item_embeddings, query_embeddings, None
    if items is not None:
        items = check_matrix("item_embeddings", items)
        if n_factors is not None and n_factors != items.shape[1]:
            raise ValueError(
                f"n_factors: expected {items.shape[1]}, the embeddings' dimensions, got {n_factors}"
            )
    elif queries is not None:
        raise ValueError("query_embeddings: expected item_embeddings with them, got None")
    if scores is not None:
        matrix = check_scores(scores, n_items=None if items is None else len(items))
        if len(matrix.data) == 0:
            raise ValueError("scores: expected at least one score, got none")
    if queries is not None and items is not None:
        n_queries = None if matrix is None else matrix.shape[0]
        queries = check_matrix("query_embeddings", queries, rows=n_queries, cols=items.shape[1])
    options = _Options(n_factors, regularization, n_iterations, seed, num_threads, device, progress)
    if matrix is not None:
        return _from_scores(matrix, queries, items, options)
    if items is None:
        raise ValueError("scores: expected scores, item_embeddings or both, got None")
    return _from_embeddings(queries, items, np.random.default_rng(seed))


def _from_embeddings(
    queries: FloatArray | None, items: FloatArray, rng: np.random.Generator
) -> Learned:
    """Take the dual encoder's space as it is, for scores standardised query by query."""
    others = items if queries is None else queries
    left = others[rng.integers(len(others), size=10_000)] if len(others) else others
    right = items[rng.integers(len(items), size=len(left))] if len(items) else left
    products = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    spread = float(np.std(products)) if len(products) else 0.0
    slope = UNSCORED_SLOPE / spread if spread > 0 else 1.0
    query_scale, item_scale = embedding_scales(slope, slope, queries, items)
    factors = np.float32(item_scale) * items
    model = default_query_model(1.0, mean_square_norm(factors), 0.0)
    return Learned(
        item_factors=factors,
        item_offsets=np.zeros(len(items), dtype=np.float32),
        mean_query=np.zeros(items.shape[1], dtype=np.float32),
        query_factors=np.zeros((0, items.shape[1]), dtype=np.float32),
        offset_map=np.zeros(0, dtype=np.float32),
        query_scale=query_scale,
        item_scale=item_scale,
        item_regularization=0.0,
        n_dims=items.shape[1],
        factorised=False,
        in_score_units=False,
        model=model,
        facts={"n_training_scores": 0, "item_factors": "embeddings"},
    )


def _from_scores(
    scores: csr_array, queries: FloatArray | None, items: FloatArray | None, options: _Options
) -> Learned:
    rng = np.random.default_rng(options.seed)
    used = np.flatnonzero(np.diff(scores.indptr))
    fit, held = used, used
    if len(used) >= LEAST_QUERIES:
        n_held = min(HELD_OUT_QUERIES, len(used) // 5)
        shuffled = rng.permutation(used)
        fit, held = np.sort(shuffled[n_held:]), np.sort(shuffled[:n_held])
    regularization, model, factorised = _choose(scores, queries, items, fit, held, rng, options)
    calibration = calibrate(scores, queries, items)
    factors = _factorise(scores, queries, items, calibration, regularization, options)
    found = factors.items if factorised or items is None else _prior(items, calibration.item_scale)
    assert found is not None
    mean_query = factors.queries[used].mean(axis=0, dtype=np.float64).astype(np.float32)
    return Learned(
        item_factors=found,
        item_offsets=calibration.item_offsets,
        mean_query=mean_query,
        query_factors=factors.queries,
        offset_map=calibration.offset_map,
        query_scale=calibration.query_scale,
        item_scale=calibration.item_scale,
        item_regularization=factors.regularization[1],
        n_dims=None if items is None else items.shape[1],
        factorised=factorised or items is None,
        in_score_units=True,
        model=QueryModel(**{**vars(model), "offset": calibration.offset}),
        facts={
            "n_training_scores": len(scores.data),
            "n_training_queries": len(used),
            "n_held_out_queries": len(held) if len(used) >= LEAST_QUERIES else 0,
            "item_factors": "factorised" if factorised else "embeddings",
            "regularization": list(factors.regularization),
            "slope": calibration.slope,
            "residual_variance": calibration.residual_variance,
        },
    )


def _choose(
    scores: csr_array,
    queries: FloatArray | None,
    items: FloatArray | None,
    fit: NDArray[np.int64],
    held: NDArray[np.int64],
    rng: np.random.Generator,
    options: _Options,
) -> tuple[tuple[float, float], QueryModel, bool]:
    """Regularisation, variances and whether to factorise, judged on held-out queries."""
    part = take_rows(scores, fit)
    part_queries = None if queries is None else np.ascontiguousarray(queries[fit])
    calibration = calibrate(part, part_queries, items)
    factors = _factorise(part, part_queries, items, calibration, options.regularization, options)
    mean_query = factors.queries.mean(axis=0, dtype=np.float64).astype(np.float32)
    candidates = [(True, factors.items)]
    if items is not None:
        prior = _prior(items, calibration.item_scale)
        assert prior is not None
        candidates.append((False, prior))
    chosen, least = None, math.inf
    for factorised, item_factors in candidates:
        start = default_query_model(
            calibration.residual_variance, mean_square_norm(item_factors), calibration.offset
        )
        systems = _systems(scores, queries, held, calibration, item_factors, mean_query)
        model, loss = fit_query_model(start, systems, rng)
        if chosen is None or loss < least:
            chosen, least = (factors.regularization, model, factorised), loss
    assert chosen is not None
    return chosen


def _prior(embeddings: FloatArray | None, scale: float) -> FloatArray | None:
    return None if embeddings is None else embeddings * np.float32(scale)


def _factorise(
    scores: csr_array,
    queries: FloatArray | None,
    items: FloatArray | None,
    calibration: Calibration,
    regularization: float | tuple[float, float] | str,
    options: _Options,
) -> Factors:
    residual = check_scores(scores)
    residual.data = (
        scores.data - np.float32(calibration.offset) - calibration.item_offsets[scores.indices]
    )
    return factorize(
        residual,
        options.n_factors,
        query_prior=_prior(queries, calibration.query_scale),
        item_prior=_prior(items, calibration.item_scale),
        regularization=regularization,
        n_iterations=options.n_iterations,
        seed=options.seed,
        device=options.device,
        num_threads=options.num_threads,
        progress=options.progress,
    )


def _systems(
    scores: csr_array,
    queries: FloatArray | None,
    held: NDArray[np.int64],
    calibration: Calibration,
    item_factors: FloatArray,
    mean_query: FloatArray,
) -> Iterator[tuple[FloatArray, FloatArray, FloatArray]]:
    """Of each held-out query: the factors of its items, the prior's fit, and the residuals."""
    for row in held:
        part = slice(scores.indptr[row], scores.indptr[row + 1])
        ids = scores.indices[part]
        u0 = mean_query
        if queries is not None:
            u0 = queries[row] * np.float32(calibration.query_scale)
        factors = item_factors[ids]
        fits = factors @ u0
        expected = np.float32(calibration.offset) + calibration.item_offsets[ids] + fits
        yield factors, fits, scores.data[part] - expected
