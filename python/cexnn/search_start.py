"""The start of a search: its options checked, its priors made, a session over the items."""

from __future__ import annotations

import time
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.arrays import to_cuda
from cexnn.checks import (
    MAX_SIZE,
    check_choice,
    check_float,
    check_ids,
    check_int,
    check_matrix_for,
)
from cexnn.device import resolve_num_threads
from cexnn.device_session import DeviceSession
from cexnn.embedding_maps import query_priors
from cexnn.learned import Learned
from cexnn.schedule import check_stop, resolve_rounds
from cexnn.score_units import MapUnits, RowUnits, Units
from cexnn.search import Priors, Session
from cexnn.searched import ItemsAsTheyAre
from cexnn.trace import SearchTrace

__all__ = ["SearchOptions", "start_session"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]

UPDATES = ("calibrated", "least_squares")

MAX_FACTOR = 1e18  # of a query: its squares stay finite


class SearchOptions(TypedDict, total=False):
    """Options of a search; see `Index.search`."""

    k: int
    budget: int
    rounds: int | str
    query_embeddings: Any
    first: Any
    exclude: Any
    only: Any
    update: str
    mix: float
    stop: str | None
    num_threads: int | None


def start_session(
    items: ItemsAsTheyAre,
    n_queries: int,
    trace: SearchTrace | None,
    *,
    pairs_device: str = "cpu",
    k: int = 10,
    budget: int = 100,
    rounds: int | str = 5,
    query_embeddings: Any = None,
    first: Any = None,
    exclude: Any = None,
    only: Any = None,
    update: str = "calibrated",
    mix: float = 0.0,
    stop: str | None = None,
    num_threads: int | None = None,
) -> Session:
    """Check a search's options and start it; see `Index.search` and `Index.session`."""
    _check_search(items, n_queries, pairs_device, k=k, budget=budget, update=update, mix=mix)
    learned, calibrated = items.learned, update == "calibrated"
    opening = _opening(items, n_queries, first)
    searched = items.searched(only=only, exclude=exclude)
    start = time.perf_counter()
    priors = _priors(items, n_queries, query_embeddings, opened=opening is not None)
    if pairs_device == "cuda":
        priors = to_cuda("priors", priors)
    if trace is not None:
        trace.prior_ms = (time.perf_counter() - start) * 1e3
    model = learned.model.calibrated(item_offsets=searched.has_offsets)
    given, reads = query_embeddings is not None, _reads_embeddings(learned)
    stops = check_stop(
        stop,
        calibrated=calibrated,
        in_score_units=learned.in_score_units,
        fitted_prior=given or not reads,
    )
    return (DeviceSession if pairs_device == "cuda" else Session)(
        searched.searcher,
        model if calibrated else learned.model.least_squares(mix),
        priors,
        n_items=len(learned.item_factors),
        n_searchable=searched.n_items,
        k=k,
        budget=budget,
        rounds=resolve_rounds(rounds, budget, learned.rounds if calibrated else ()),
        first=None if opening is None else searched.allowed(opening),
        units=_units(learned, calibrated=calibrated),
        stop_by=learned.stray if stops else None,
        first_in_turn=calibrated and not (given and reads),
        num_threads=resolve_num_threads(num_threads),
        excluded=searched.excluded,
        trace=trace,
    )


def _check_search(
    items: ItemsAsTheyAre,
    n_queries: int,
    pairs_device: str,
    *,
    k: int,
    budget: int,
    update: str,
    mix: float,
) -> None:
    check_int("n_queries", n_queries, minimum=0)
    check_int("k", k, minimum=1, maximum=MAX_SIZE)
    check_int("budget", budget, minimum=1)
    check_choice("update", update, UPDATES)
    check_float("mix", mix, minimum=0, maximum=1)
    if mix != 0 and update == "calibrated":
        raise ValueError("mix: expected 0 with update='calibrated', which learns it")
    devices = ("cpu", "cuda") if items.device == "cuda" else ("cpu",)
    check_choice("pairs_device", pairs_device, devices)


def _opening(items: ItemsAsTheyAre, n_queries: int, first: Any) -> IdArray | None:
    """Return the ids to open with, checked, without the items that were removed."""
    if first is None:
        return None
    n_items = len(items.learned.item_factors)
    opening = check_ids("first", first, rows=n_queries, n_items=n_items)
    return np.where(np.isin(opening, items.removed), np.int32(-1), opening)


def _reads_embeddings(learned: Learned) -> bool:
    """Tell whether the build could make anything of the queries' embeddings."""
    return learned.query_scale != 0 or len(learned.query_map) > 0


def _units(learned: Learned, *, calibrated: bool) -> Units | None:
    """How scores reach the model: bent to its liking, or as they are but for their units."""
    if not learned.in_score_units:
        return RowUnits(straight=not calibrated)
    if not learned.score_map.knots:
        return None
    return MapUnits(learned.score_map, straight=not calibrated)


def _priors(
    items: ItemsAsTheyAre, n_queries: int, query_embeddings: Any, *, opened: bool
) -> Priors:
    """Query factors before any score is known, (n_queries, n_factors) float32.

    They are made where the embeddings are, if the searches run there.
    """
    learned = items.learned
    if query_embeddings is None:
        if not learned.in_score_units and not opened:
            raise ValueError(
                "query_embeddings: expected for an index built without scores (or items to "
                "open with: first), got None"
            )
        return np.tile(learned.mean_query, (n_queries, 1))
    if learned.n_dims is None:
        raise ValueError("query_embeddings: expected None, the index was built without any")
    given = check_matrix_for(
        items.device, "query_embeddings", query_embeddings, rows=n_queries, cols=learned.n_dims
    )
    found: Priors
    if isinstance(given, _core.DeviceArray):
        if not _reads_embeddings(learned):
            return np.tile(learned.mean_query, (n_queries, 1))
        found = _core.map_embeddings(given, learned.query_scale, items.query_map)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            found = query_priors(given, learned.query_scale, learned.query_map, learned.mean_query)
    if not _core.all_finite(found.ravel(), MAX_FACTOR):
        raise ValueError(
            "query_embeddings: expected numbers of the build's size, got far larger ones"
        )
    return found
