"""What `Index.build` learns: score map, calibration, factors, variances, rounds, in this order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.als import check_regularization, default_n_factors
from cexnn.checks import LARGEST_SEED, check_choice, check_int, check_matrix, check_matrix_for
from cexnn.embedding_maps import no_map, take_embeddings
from cexnn.gated import import_torch
from cexnn.held_out import choose_form, choose_score_map, starts
from cexnn.item_factors import FORMS, FactorMaker
from cexnn.learned import Learned
from cexnn.prior import embedding_scales, mean_square_norm
from cexnn.query_model import default_query_model
from cexnn.rounds import learn_rounds
from cexnn.score_csr import check_scores, take_rows

__all__ = ["learn"]

FloatArray = NDArray[np.float32]
_Made = tuple[Learned, _core.DeviceArray | None]

HELD_OUT_QUERIES = 100  # at most, and a fifth of the training queries at most
LEAST_QUERIES = 10  # with fewer, the variances are fitted to the same queries as all else
SIMULATED_QUERIES = 64  # at most, to learn the rounds
TRIAL_SHARE = 2  # the trial takes one of so many sweeps; the final factorisation goes on from it
MAX_SCORE = 1e37  # residuals of larger ones are infinite
UNSCORED_SLOPE = 0.4  # score deviations that one deviation of dot products is taken to be worth


@dataclass(frozen=True)
class _Options:
    item_factors: str
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
    item_embeddings: Any,
    query_embeddings: Any,
    item_factors: str,
    n_factors: int | None,
    regularization: float | tuple[float, float] | str,
    n_iterations: int,
    seed: int,
    num_threads: int,
    device: str,
    progress: bool,
) -> _Made:
    """Check the arguments of `Index.build` and learn what they allow; see there.

    The item factors are returned on the CUDA device, too, where they were made there.
    """
    check_int("seed", seed, minimum=0, maximum=LARGEST_SEED)
    check_int("n_iterations", n_iterations, minimum=1)
    check_regularization(regularization)
    check_choice("item_factors", item_factors, ("auto", *FORMS))
    queries, matrix = query_embeddings, None
    items: FloatArray | None = None
    there: _core.DeviceArray | None = None
    if item_embeddings is not None:
        found = check_matrix_for(device, "item_embeddings", item_embeddings)
        there = found if isinstance(found, _core.DeviceArray) else None
        items = found.numpy() if isinstance(found, _core.DeviceArray) else found
        if items.shape[1] == 0:
            raise ValueError("item_embeddings: expected at least one dimension, got none")
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
        if (largest := float(np.abs(matrix.data).max())) > MAX_SCORE:
            raise ValueError(f"scores: expected sizes up to {MAX_SCORE:g}, got {largest:g}")
    if queries is not None and items is not None:
        n_queries = None if matrix is None else matrix.shape[0]
        queries = check_matrix("query_embeddings", queries, rows=n_queries, cols=items.shape[1])
    possible = FORMS if items is not None else ("transductive",)
    if matrix is None:
        possible = ("embeddings",)
    if item_factors not in ("auto", *possible):
        given = "scores" if items is None else "embeddings" if matrix is None else "both"
        raise ValueError(
            f"item_factors: expected 'auto' or one of {possible} from {given} alone, "
            f"got {item_factors!r}"
        )
    if item_factors == "gated":
        if queries is None:
            raise ValueError("query_embeddings: expected for item_factors='gated', got None")
        import_torch()
    options = _Options(
        item_factors, n_factors, regularization, n_iterations, seed, num_threads, device, progress
    )
    if matrix is not None:
        return _from_scores(matrix, queries, items, there, options)
    if items is None:
        raise ValueError("scores: expected scores, item_embeddings or both, got None")
    return _from_embeddings(queries, items, there, np.random.default_rng(seed))


def _from_embeddings(
    queries: FloatArray | None,
    items: FloatArray,
    there: _core.DeviceArray | None,
    rng: np.random.Generator,
) -> _Made:
    """Take the dual encoder's space as it is, for scores standardised query by query."""
    others = items if queries is None else queries
    left = others[rng.integers(len(others), size=10_000)] if len(others) else others
    right = items[rng.integers(len(items), size=len(left))] if len(items) else left
    products = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    spread = float(np.std(products)) if len(products) else 0.0
    slope = UNSCORED_SLOPE / spread if spread > 0 else 1.0
    query_scale, item_scale = embedding_scales(slope, slope, queries, items)
    factors = np.float32(item_scale) * items
    if there is not None:
        there = _core.map_embeddings(there, item_scale, _core.DeviceArray(no_map(items)))
    model = default_query_model(1.0, mean_square_norm(factors), 0.0)
    learned = Learned(
        item_factors=factors,
        item_offsets=np.zeros(len(items), dtype=np.float32),
        mean_query=np.zeros(items.shape[1], dtype=np.float32),
        query_factors=np.zeros((0, items.shape[1]), dtype=np.float32),
        offset_map=np.zeros(0, dtype=np.float32),
        factor_map=no_map(items),
        query_map=no_map(items),
        query_scale=query_scale,
        item_scale=item_scale,
        item_regularization=0.0,
        n_dims=items.shape[1],
        factorised=False,
        in_score_units=False,
        model=model,
        facts={"n_training_scores": 0, "item_factors": "embeddings"},
    )
    return learned, there


def _from_scores(
    scores: csr_array,
    queries: FloatArray | None,
    items: FloatArray | None,
    there: _core.DeviceArray | None,
    options: _Options,
) -> _Made:
    rng = np.random.default_rng(options.seed)
    used = np.flatnonzero(np.diff(scores.indptr))
    fit, held = used, used
    wanted = options.item_factors
    if len(used) >= LEAST_QUERIES:
        n_held = min(HELD_OUT_QUERIES, len(used) // 5)
        shuffled = rng.permutation(used)
        fit, held = np.sort(shuffled[n_held:]), np.sort(shuffled[:n_held])
    elif wanted == "auto" and items is not None:
        wanted = "embeddings"  # with no query to judge by, what has the least to learn
    score_map = choose_score_map(scores, queries, items, fit, held, options.seed)
    scores = score_map.of(scores)
    if items is None and options.n_factors is None:  # of all queries, not of the trial's
        options = replace(options, n_factors=default_n_factors(scores))
    few = max(1, options.n_iterations // TRIAL_SHARE)
    rest = max(1, options.n_iterations - few)
    trial_options = replace(options, n_iterations=few)
    told = take_rows(scores, fit), take_embeddings(queries, fit)
    trial = _maker(*told, items, there, trial_options)
    chosen, query_mapped, model = choose_form(
        trial, scores, queries, held, wanted, queries is not None and fit is not held, options.seed
    )
    options = replace(options, regularization=trial.regularization, n_iterations=rest)
    final = _maker(scores, queries, items, there, options, trial)
    factors = final.make(chosen)
    calibration = final.calibration
    learned = Learned(
        item_factors=factors.items,
        item_offsets=calibration.item_offsets,
        mean_query=factors.queries[used].mean(axis=0, dtype=np.float64).astype(np.float32),
        query_factors=factors.queries,
        offset_map=calibration.offset_map,
        factor_map=final.factor_map(chosen),
        query_map=final.query_map(chosen, factors) if query_mapped else no_map(factors.items),
        query_scale=calibration.query_scale,
        item_scale=calibration.item_scale,
        item_regularization=final.regularization[1],
        n_dims=None if items is None else items.shape[1],
        factorised=chosen in ("transductive", "joined"),
        in_score_units=True,
        model=replace(model, offset=calibration.offset),
        score_map=score_map,
        facts={
            "n_training_scores": len(scores.data),
            "n_training_queries": len(used),
            "n_held_out_queries": len(held) if len(used) >= LEAST_QUERIES else 0,
            "item_factors": chosen,
            "query_map": query_mapped,
            **({"n_epochs": final.n_epochs} if chosen == "gated" else {}),
            "regularization": list(final.regularization),
            "slope": calibration.slope,
            "residual_variance": calibration.residual_variance,
        },
    )
    if len(used) >= LEAST_QUERIES:
        learned = _with_rounds(learned, queries, used, rng, options.num_threads)
    return learned, factors.items_there


def _with_rounds(
    learned: Learned,
    queries: FloatArray | None,
    used: NDArray[np.int64],
    rng: np.random.Generator,
    num_threads: int,
) -> Learned:
    """Learn how many rounds suit a budget, for queries such as those of the training."""
    picked = rng.choice(used, min(len(used), SIMULATED_QUERIES), replace=False)
    priors = starts(queries, picked, learned.mean_query, learned.query_scale, learned.query_map)
    rounds = learn_rounds(
        learned.model, learned.item_factors, learned.item_offsets, priors, rng, num_threads
    )
    facts = {**learned.facts, "n_simulated_queries": len(picked) if rounds else 0}
    return replace(learned, rounds=rounds, facts=facts)


def _maker(
    scores: csr_array,
    queries: FloatArray | None,
    items: FloatArray | None,
    there: _core.DeviceArray | None,
    options: _Options,
    before: FactorMaker | None = None,
) -> FactorMaker:
    return FactorMaker(
        scores,
        queries,
        items,
        n_factors=options.n_factors,
        regularization=options.regularization,
        n_iterations=options.n_iterations,
        seed=options.seed,
        num_threads=options.num_threads,
        device=options.device,
        progress=options.progress,
        items_there=there,
        before=before,
    )
