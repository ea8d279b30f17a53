"""What `Index.build` learns: score map, calibration, factors, variances, rounds, in this order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.als import Factors, check_regularization, default_n_factors
from cexnn.build_inputs import BuildInputs, check_form, check_inputs
from cexnn.checks import LARGEST_SEED, check_choice, check_int
from cexnn.embedding_maps import no_map, take_embeddings
from cexnn.growth import with_training_queries
from cexnn.held_out import Choice, choose_form, choose_score_map, starts
from cexnn.item_factors import FORMS, FactorMaker
from cexnn.learned import Learned
from cexnn.prior import embedding_scales, mean_square_norm
from cexnn.query_model import default_query_model
from cexnn.rounds import learn_rounds
from cexnn.score_csr import take_rows
from cexnn.top_weights import weighted

__all__ = ["learn"]

FloatArray = NDArray[np.float32]
_Made = tuple[Learned, _core.DeviceArray | None]

HELD_OUT_QUERIES = 100  # at most, and a fifth of the training queries at most
LEAST_QUERIES = 10  # with fewer, the variances are fitted to the same queries as all else
SIMULATED_QUERIES = 64  # at most, to learn the rounds
TRIAL_SHARE = 2  # the trial takes one of so many sweeps; the final factorisation goes on from it
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
    given = check_inputs(scores, item_embeddings, query_embeddings, n_factors, device)
    check_form(item_factors, given)
    options = _Options(
        item_factors, n_factors, regularization, n_iterations, seed, num_threads, device, progress
    )
    if given.scores is not None:
        return _from_scores(given.scores, given, options)
    if given.items is None:
        raise ValueError("scores: expected scores, item_embeddings or both, got None")
    return _from_embeddings(given.items, given, np.random.default_rng(seed))


def _from_embeddings(items: FloatArray, given: BuildInputs, rng: np.random.Generator) -> _Made:
    """Take the dual encoder's space as it is, for scores standardised query by query."""
    queries, there = given.queries, given.items_there
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
        query_shifts=np.zeros(0, dtype=np.float32),
        offset_map=np.zeros(0, dtype=np.float32),
        factor_map=no_map(items),
        query_map=no_map(items),
        query_scale=query_scale,
        item_scale=item_scale,
        n_dims=items.shape[1],
        factorised=False,
        in_score_units=False,
        model=model,
        facts={"n_training_scores": 0, "item_factors": "embeddings"},
    )
    return learned, there


def _from_scores(scores: csr_array, given: BuildInputs, options: _Options) -> _Made:
    """Choose by held-out queries in a trial, then learn from all, going on from the trial."""
    queries, items = given.queries, given.items
    rng = np.random.default_rng(options.seed)
    used = np.flatnonzero(np.diff(scores.indptr))
    fit, held = _hold_out(used, rng)
    wanted = options.item_factors
    if fit is held and wanted == "auto" and items is not None:
        wanted = "embeddings"  # with no query to judge by, what has the least to learn
    score_map = choose_score_map(scores, queries, items, fit, held, options.seed)
    scores = score_map.of(scores)
    if items is None and options.n_factors is None:  # of all queries, not of the trial's
        options = replace(options, n_factors=default_n_factors(scores))
    few = max(1, options.n_iterations // TRIAL_SHARE)
    rest = max(1, options.n_iterations - few)
    told = replace(given, scores=take_rows(scores, fit), queries=take_embeddings(queries, fit))
    trial = _maker(told, replace(options, n_iterations=few))
    choice = choose_form(trial, scores, queries, held, wanted, fit is not held, options.seed)
    options = replace(options, regularization=trial.regularization, n_iterations=rest)
    final = _maker(replace(given, scores=scores), options, trial)
    factors = final.make(choice.form)
    learned = weighted(_put_together(final, factors, choice, used), choice.weights)
    learned = with_training_queries(learned, scores, queries, options.num_threads)
    facts = {
        "n_training_scores": len(scores.data),
        "n_training_queries": len(used),
        "n_held_out_queries": 0 if fit is held else len(held),
        **learned.facts,
    }
    learned = replace(learned, score_map=score_map, stray=choice.stray, facts=facts)
    if fit is not held:
        learned = _with_rounds(learned, queries, used, rng, options.num_threads)
    return learned, factors.items_there


def _hold_out(
    used: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return queries to fit to and to judge by: of few, the same ones as the same object."""
    if len(used) < LEAST_QUERIES:
        return used, used
    n_held = min(HELD_OUT_QUERIES, len(used) // 5)
    shuffled = rng.permutation(used)
    return np.sort(shuffled[n_held:]), np.sort(shuffled[:n_held])


def _put_together(
    final: FactorMaker,
    factors: Factors,
    choice: Choice,
    used: NDArray[np.int64],
) -> Learned:
    """Return what an index is made of before weights, score map and rounds."""
    calibration, chosen = final.calibration, choice.form
    query_map = no_map(factors.items)
    if choice.query_mapped:
        query_map = final.query_map(chosen, factors)
    return Learned(
        item_factors=factors.items,
        item_offsets=calibration.item_offsets,
        mean_query=factors.queries[used].mean(axis=0, dtype=np.float64).astype(np.float32),
        query_factors=factors.queries,
        query_shifts=np.zeros(len(factors.queries), dtype=np.float32),
        offset_map=calibration.offset_map,
        factor_map=final.factor_map(chosen),
        query_map=query_map,
        query_scale=calibration.query_scale,
        item_scale=calibration.item_scale,
        n_dims=final.n_dims,
        factorised=chosen in ("transductive", "joined"),
        in_score_units=True,
        model=replace(choice.model, offset=calibration.offset),
        facts={
            "item_factors": chosen,
            "query_map": choice.query_mapped,
            **({"n_epochs": final.n_epochs} if chosen == "gated" else {}),
            "regularization": list(final.regularization),
            "slope": calibration.slope,
            "residual_variance": calibration.residual_variance,
        },
    )


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


def _maker(given: BuildInputs, options: _Options, before: FactorMaker | None = None) -> FactorMaker:
    assert given.scores is not None
    return FactorMaker(
        given.scores,
        given.queries,
        given.items,
        n_factors=options.n_factors,
        regularization=options.regularization,
        n_iterations=options.n_iterations,
        seed=options.seed,
        num_threads=options.num_threads,
        device=options.device,
        progress=options.progress,
        items_there=given.items_there,
        before=before,
    )
