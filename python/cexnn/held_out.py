"""What a build chooses by training queries that it holds out: score map, form, variances, stray."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn.als import Factors
from cexnn.embedding_maps import no_map, query_priors, take_embeddings
from cexnn.item_factors import FactorMaker
from cexnn.prior import Calibration, calibrate, mean_square_norm
from cexnn.query_model import QueryModel, default_query_model, fit_query_model
from cexnn.score_csr import take_rows
from cexnn.score_map import ScoreMap, logarithmic_tail, normal_scores
from cexnn.stray import USUAL, Stray, fit_stray, left_out_surprises
from cexnn.top_weights import TopWeights, fit_top_weights

__all__ = ["choose_form", "choose_score_map", "starts"]

FloatArray = NDArray[np.float32]

CHOICE_SCORES = 64  # of a held-out query, the same for all that is to be chosen from
SCORE_MAP_QUERIES = 200  # at most, to fit what judges the score map by
SCORE_MAP_SCORES = 48  # of a held-out query
SCORE_MAP_GAIN = 1 / 3  # nats a held-out score; for less, normal scores bring no recall to speak of
TAIL_GAIN = 0.005  # nats a held-out score
QUERY_MAP_GAIN = 1e-3  # nats a held-out score; scores that are noise gain up to 1e-4 by chance


def choose_score_map(
    scores: csr_array,
    queries: FloatArray | None,
    items: FloatArray | None,
    fit: NDArray[np.int64],
    held: NDArray[np.int64],
    seed: int,
) -> ScoreMap:
    """Choose a map of scores by how likely it makes held-out ones.

    Normal scores where they are far more likely for it, the logarithmic tail where they are at all,
    or else the identity. Judged by the calibrated embeddings, or the item offsets alone: no
    factorisation is needed.
    """
    sample = take_rows(scores, fit).data
    rng = np.random.default_rng(seed)
    if len(fit) > SCORE_MAP_QUERIES:
        fit = np.sort(rng.choice(fit, SCORE_MAP_QUERIES, replace=False))
    known = take_rows(scores, fit), take_embeddings(queries, fit)
    told = _thinned(take_rows(scores, held), rng), take_embeddings(queries, held)

    def loss(score_map: ScoreMap) -> float:
        found = _score_map_loss(score_map, known, told, items)
        return found - float(score_map.log_slope(told[0].data).mean())

    identity = ScoreMap()
    plain: float | None = None
    for score_map, least_gain in (
        (normal_scores(sample), SCORE_MAP_GAIN),
        (logarithmic_tail(sample), TAIL_GAIN),
    ):
        if score_map.knots:
            plain = loss(identity) if plain is None else plain
            if plain - loss(score_map) > least_gain:
                return score_map
    return identity


def _thinned(scores: csr_array, rng: np.random.Generator) -> csr_array:
    """Draw the scores that maps are judged by: all of them by the same."""
    picked = [
        np.sort(rng.choice(np.arange(begin, end), SCORE_MAP_SCORES, replace=False))
        if end - begin > SCORE_MAP_SCORES
        else np.arange(begin, end)
        for begin, end in pairwise(scores.indptr)
    ]
    indptr = np.cumsum([0, *map(len, picked)])
    at = np.concatenate(picked)
    return csr_array((scores.data[at], scores.indices[at], indptr), shape=scores.shape)


def _score_map_loss(
    score_map: ScoreMap,
    known: tuple[csr_array, FloatArray | None],
    told: tuple[csr_array, FloatArray | None],
    items: FloatArray | None,
) -> float:
    """Mean negative log likelihood of a held-out score, without a factorisation.

    ``known`` and ``told`` are scores and query embeddings, of the queries to fit to and held out.
    """
    calibration = calibrate(score_map.of(known[0]), known[1], items)
    features = np.zeros((known[0].shape[1], 1), dtype=np.float32)
    if items is not None:
        features = items * np.float32(calibration.item_scale)
    nobody = np.zeros((1, features.shape[1]), dtype=np.float32)
    factors = Factors(nobody, features, (1.0, 1.0), 0.0)
    rows = np.arange(told[0].shape[0])
    return _fit(score_map.of(told[0]), told[1], rows, calibration, factors, no_map(features), 0)[1]


class Choice(NamedTuple):
    """What held-out queries chose.

    Attributes
    ----------
    form : str
        Of the item factors.
    query_mapped : bool
        Whether a map says where a query starts.
    model : QueryModel
    weights : TopWeights
        All 1 without queries held out, and for the gated form: networks are not to be scaled.
    stray : Stray
        The usual without queries held out, and for the gated form.
    """

    form: str
    query_mapped: bool
    model: QueryModel
    weights: TopWeights = TopWeights()
    stray: Stray = USUAL


def choose_form(
    trial: FactorMaker,
    scores: csr_array,
    queries: FloatArray | None,
    held: NDArray[np.int64],
    wanted: str,
    judged: bool,
    seed: int,
) -> Choice:
    """Choose by held-out queries; if not ``judged``, they are the ones that were fitted to."""

    def fit(factors: Factors, query_map: FloatArray, **options: int) -> tuple[QueryModel, float]:
        return _fit(scores, queries, held, trial.calibration, factors, query_map, seed, **options)

    if wanted == "gated":  # its query network is a map already
        factors = trial.make(wanted)
        model, _ = fit(factors, trial.query_map(wanted, factors))
        return Choice(wanted, True, model)
    mappable = judged and queries is not None
    nothing = no_map(trial.make("transductive").items)
    forms = trial.forms() if wanted == "auto" else (wanted,)
    losses = dict.fromkeys(forms, 0.0)
    if len(forms) > 1 or mappable:
        for form in forms:
            losses[form] = fit(trial.make(form), nothing, max_scores=CHOICE_SCORES)[1]
    chosen = min(losses, key=lambda form: losses[form])
    factors, query_map = trial.make(chosen), nothing
    if mappable:
        found = trial.query_map(chosen, factors)
        mapped = fit(factors, found, max_scores=CHOICE_SCORES)[1]
        if losses[chosen] - mapped > QUERY_MAP_GAIN:
            query_map = found
    choice = Choice(chosen, len(query_map) > 0, fit(factors, query_map)[0])
    if not judged:
        return choice
    given = scores, queries, held, trial.calibration, factors, query_map
    weights = fit_top_weights(system[1:] for system in _systems(*given))
    told = (_weighted(*system, weights) for system in _systems(*given))  # anew: all are large
    surprises = left_out_surprises(told, choice.model, CHOICE_SCORES, seed)
    return choice._replace(weights=weights, stray=fit_stray(surprises))


def _fit(
    scores: csr_array,
    queries: FloatArray | None,
    held: NDArray[np.int64],
    calibration: Calibration,
    factors: Factors,
    query_map: FloatArray,
    seed: int,
    **options: int,
) -> tuple[QueryModel, float]:
    """Fit the variances to held-out queries; with the loss, as `fit_query_model` returns it."""
    start = default_query_model(
        calibration.residual_variance, mean_square_norm(factors.items), calibration.offset
    )
    found = _systems(scores, queries, held, calibration, factors, query_map)
    systems = ((features, fits, residuals) for features, fits, _, residuals in found)
    return fit_query_model(start, systems, np.random.default_rng(seed), **options)


def starts(
    queries: FloatArray | None,
    rows: NDArray[np.int64],
    mean_query: FloatArray,
    query_scale: float,
    query_map: FloatArray,
) -> FloatArray:
    """Where the queries of these rows start; without embeddings as the mean query."""
    if queries is None:
        return np.tile(mean_query, (len(rows), 1))
    return query_priors(queries[rows], query_scale, query_map, mean_query)


def _systems(
    scores: csr_array,
    queries: FloatArray | None,
    held: NDArray[np.int64],
    calibration: Calibration,
    factors: Factors,
    query_map: FloatArray,
) -> Iterator[tuple[FloatArray, FloatArray, FloatArray, FloatArray]]:
    """Of each held-out query: its items' factors, the prior's fit, item offsets, residuals."""
    mean_query = factors.queries.mean(axis=0, dtype=np.float64).astype(np.float32)
    priors = starts(queries, held, mean_query, calibration.query_scale, query_map)
    for row, u0 in zip(held, priors, strict=True):
        part = slice(scores.indptr[row], scores.indptr[row + 1])
        ids = scores.indices[part]
        found = factors.items[ids]
        fits = found @ u0
        offsets = calibration.item_offsets[ids]
        expected = np.float32(calibration.offset) + offsets + fits
        yield found, fits, offsets, scores.data[part] - expected


def _weighted(
    factors: FloatArray,
    fits: FloatArray,
    offsets: FloatArray,
    residuals: FloatArray,
    weights: TopWeights,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Of one held-out query: factors, fits, what its scores exceed ``b`` by, expected and in all.

    The expected is what a search expects, with weights; about it the query varies as without.
    """
    expected = np.float32(weights.prior) * fits + np.float32(weights.offsets) * offsets
    return factors, fits, expected, residuals + fits + offsets
