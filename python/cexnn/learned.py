"""What an index is made of, and how it lies in a file."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn import storage
from cexnn.compact import DTYPES, Compact
from cexnn.gated import network_size
from cexnn.query_model import QueryModel
from cexnn.score_map import ScoreMap
from cexnn.storage import IndexFileError
from cexnn.stray import USUAL, Stray

__all__ = ["Learned", "read", "write"]

FloatArray = NDArray[np.float32]

ARRAYS = (
    "item_factors",
    "item_offsets",
    "mean_query",
    "query_factors",
    "query_shifts",
    "offset_map",
    "factor_map",
    "query_map",
)
COMPACT = ("compact_codes", "compact_scales")
NUMBERS = ("query_scale", "item_scale", "offset_weight")
FLAGS = ("factorised", "in_score_units")
PLAIN = ("n_dims", "rounds", "facts")


@dataclass(frozen=True)
class Learned:
    """What an index is made of.

    Attributes
    ----------
    item_factors : (n_items, n_factors) float32
    item_offsets : (n_items,) float32
        Minus infinity: the item was removed.
    mean_query : (n_factors,) float32
        Prior of a query without embedding.
    query_factors : (n_queries, n_factors) float32
        Of the training queries: what the scores of new items are explained by. No rows where
        there were none.
    query_shifts : (n_queries,) float32
        What the training queries' scores are above what is expected of a query's.
    offset_map : (n_dims,) float32
        From an embedding to the item's offset, before `offset_weight`; empty: no map.
    factor_map : float32
        From an embedding to the item's factors, as in `cexnn.embedding_maps`; no rows:
        ``v0 = item_scale * e_i``.
    query_map : float32
        From a query's embedding to its prior; no rows: ``u0 = query_scale * e_q``.
    query_scale, item_scale : float
        Of the embeddings, ``v0 = item_scale * e_i``; their product is the slope.
    n_dims : int or None
        Of the embeddings; None: built without.
    factorised : bool
        Whether an item's own scores moved its factors.
    in_score_units : bool
        Built with scores. Otherwise the model is one of standardised scores.
    model : QueryModel
    score_map : ScoreMap
        From scores to those of the model, where it was built with scores.
    stray : Stray
        How scores stray from what searches expect of them.
    offset_weight : float
        What the items' offsets, once fitted, were multiplied by; see `cexnn.top_weights`.
    rounds : tuple of (budget, rounds)
        The fewest rounds that serve a budget, ascending; empty: nothing to learn them from.
    facts : dict
        What was learned and from how much, as plain values.
    compact : Compact, optional
        The item factors rounded, for searches to scan; by default they scan the factors.
    """

    item_factors: FloatArray
    item_offsets: FloatArray
    mean_query: FloatArray
    query_factors: FloatArray
    query_shifts: FloatArray
    offset_map: FloatArray
    factor_map: FloatArray
    query_map: FloatArray
    query_scale: float
    item_scale: float
    n_dims: int | None
    factorised: bool
    in_score_units: bool
    model: QueryModel
    score_map: ScoreMap = field(default_factory=ScoreMap)
    stray: Stray = USUAL
    offset_weight: float = 1.0
    rounds: tuple[tuple[int, int], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    compact: Compact | None = None


def write(path: str | os.PathLike[str], learned: Learned) -> None:
    """Write to one file, by `cexnn.storage`.

    The arrays are those of `Learned`, by name, with ``compact_codes`` and ``compact_scales`` where
    it has them; all else is JSON under the metadata key ``index``.
    """
    described = {
        **{name: getattr(learned, name) for name in (*NUMBERS, *FLAGS, *PLAIN)},
        "model": asdict(learned.model),
        "score_map": asdict(learned.score_map),
        "stray": learned.stray._asdict(),
    }
    arrays = {name: getattr(learned, name) for name in ARRAYS}
    if learned.compact is not None:
        arrays |= dict(zip(COMPACT, learned.compact, strict=True))
    storage.write(path, arrays, {"index": json.dumps(described)})


def read(path: str | os.PathLike[str], *, mmap: bool, verify: bool) -> Learned:
    """Read what `write` wrote; shapes are checked, values are the checksums' business.

    Raises
    ------
    IndexFileError
        Not such a file, or one that disagrees with itself.
    """
    arrays, metadata = storage.read(path, mmap=mmap, verify=verify)
    try:
        return _together(arrays, json.loads(metadata["index"]))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise IndexFileError(f"{os.fspath(path)}: not an index of cexnn: {error}") from error


def _together(arrays: dict[str, NDArray[Any]], described: dict[str, Any]) -> Learned:
    n_items, n_factors = arrays["item_factors"].shape
    no_map = np.zeros((0, n_factors), dtype=np.float32)
    no_shifts = np.zeros(len(arrays["query_factors"]), dtype=np.float32)
    arrays = {"query_map": no_map, "query_shifts": no_shifts, **arrays}  # the first files have none
    _check_arrays(arrays, n_items, n_factors)
    described = {"offset_weight": 1.0, **described}  # the first files have none
    numbers = {name: float(described[name]) for name in NUMBERS}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError(f"{numbers} are not finite")
    n_dims = described["n_dims"]
    if n_dims is not None and n_dims != n_factors:
        raise ValueError(f"n_dims is {n_dims}")
    parts: dict[str, Any] = {
        **{name: arrays[name] for name in ARRAYS},
        **numbers,
        **{name: bool(described[name]) for name in FLAGS},
    }
    rounds = tuple((int(budget), int(n)) for budget, n in described.get("rounds", []))
    if any(not 1 <= n <= budget for budget, n in rounds) or list(rounds) != sorted(set(rounds)):
        raise ValueError(f"rounds are {rounds}")
    sides = described.get("score_map", {})  # the first files have none
    return Learned(
        **parts,
        n_dims=n_dims,
        model=_checked_model(described["model"]),
        score_map=ScoreMap(**{name: tuple(map(float, side)) for name, side in sides.items()}),
        stray=_checked_stray(described.get("stray", {})),  # the first files have none
        rounds=rounds,
        facts=dict(described["facts"]),
        compact=_checked_compact(arrays, n_items, n_factors),
    )


def _check_arrays(arrays: dict[str, NDArray[Any]], n_items: int, n_factors: int) -> None:
    shapes = {
        "item_factors": (n_items, n_factors),
        "item_offsets": (n_items,),
        "mean_query": (n_factors,),
        "query_factors": (len(arrays["query_factors"]), n_factors),
        "query_shifts": (len(arrays["query_factors"]),),
        "offset_map": (len(arrays["offset_map"]) and n_factors,),
        **{name: _map_shape(arrays[name], n_factors) for name in ("factor_map", "query_map")},
    }
    for name, shape in shapes.items():
        if arrays[name].dtype != np.float32 or arrays[name].shape != shape:
            raise ValueError(f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}")


def _checked_compact(
    arrays: dict[str, NDArray[Any]], n_items: int, n_factors: int
) -> Compact | None:
    if COMPACT[0] not in arrays:
        return None
    compact = Compact(*(arrays[name] for name in COMPACT))
    if (
        compact.dtype not in DTYPES
        or compact.codes.shape != (n_items, n_factors)
        or compact.scales.dtype != np.float32
        or compact.scales.shape != (n_items,)
    ):
        raise ValueError(f"{compact.dtype} of shape {compact.codes.shape} are no compact factors")
    return compact


def _checked_model(described: dict[str, Any]) -> QueryModel:
    model = QueryModel(**{name: float(value) for name, value in described.items()})
    variances = {name: value for name, value in asdict(model).items() if name != "offset"}
    if not math.isfinite(model.offset) or not all(0 <= v < math.inf for v in variances.values()):
        raise ValueError(f"{model} is no model")
    return model


def _checked_stray(described: dict[str, Any]) -> Stray:
    stray = Stray(**{name: float(value) for name, value in described.items()})
    if not (0 <= stray.share <= 1 <= stray.width < math.inf):
        raise ValueError(f"{stray} is no spread of scores")
    return stray


def _map_shape(found: NDArray[Any], n_factors: int) -> tuple[int, ...]:
    """Return the shape that a map of `cexnn.embedding_maps` must have."""
    if found.ndim == 1:
        return (network_size(n_factors),)
    return (len(found) and n_factors, n_factors)
