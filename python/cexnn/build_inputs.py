"""What `Index.build` is given: scores, embeddings or both, checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.checks import check_matrix, check_matrix_for
from cexnn.gated import import_torch
from cexnn.item_factors import FORMS
from cexnn.score_csr import check_scores

__all__ = ["BuildInputs", "check_form", "check_inputs"]

FloatArray = NDArray[np.float32]

MAX_SCORE = 1e37  # residuals of larger ones are infinite


@dataclass(frozen=True)
class BuildInputs:
    """What a build learns from, each of it None where it was not given.

    Attributes
    ----------
    scores : (n_queries, n_items) csr_array
    queries : (n_queries, n_dims) float32
        Their embeddings; of any number of queries where there are no scores.
    items : (n_items, n_dims) float32
        Their embeddings.
    items_there : (n_items, n_dims) float32
        The same on the CUDA device, where they were given there and the build is to run there.
    """

    scores: csr_array | None
    queries: FloatArray | None
    items: FloatArray | None
    items_there: _core.DeviceArray | None


def check_inputs(
    scores: Any, item_embeddings: Any, query_embeddings: Any, n_factors: int | None, device: str
) -> BuildInputs:
    """Check the arrays given to `Index.build`, each by itself and against the others.

    Raises
    ------
    ValueError
        A bad shape or value, or too little to build from, naming the argument.
    """
    items, there = None, None
    if item_embeddings is not None:
        items, there = _check_items(item_embeddings, n_factors, device)
    elif query_embeddings is not None:
        raise ValueError("query_embeddings: expected item_embeddings with them, got None")
    matrix = None if scores is None else _check_scores(scores, items)
    queries = query_embeddings
    if queries is not None and items is not None:
        n_queries = None if matrix is None else matrix.shape[0]
        queries = check_matrix("query_embeddings", queries, rows=n_queries, cols=items.shape[1])
    return BuildInputs(matrix, queries, items, there)


def check_form(item_factors: str, given: BuildInputs) -> None:
    """Check that item factors of this form can be made from what is given.

    Raises
    ------
    ValueError
        They cannot.
    ImportError
        The gated form, without PyTorch.
    """
    possible = FORMS if given.items is not None else ("transductive",)
    if given.scores is None:
        possible = ("embeddings",)
    if item_factors not in ("auto", *possible):
        alone = "scores" if given.items is None else "embeddings"
        raise ValueError(
            f"item_factors: expected 'auto' or one of {possible} from {alone} alone, "
            f"got {item_factors!r}"
        )
    if item_factors == "gated":
        if given.queries is None:
            raise ValueError("query_embeddings: expected for item_factors='gated', got None")
        import_torch()


def _check_items(
    embeddings: Any, n_factors: int | None, device: str
) -> tuple[FloatArray, _core.DeviceArray | None]:
    found = check_matrix_for(device, "item_embeddings", embeddings)
    there = found if isinstance(found, _core.DeviceArray) else None
    items = found.numpy() if isinstance(found, _core.DeviceArray) else found
    if items.shape[1] == 0:
        raise ValueError("item_embeddings: expected at least one dimension, got none")
    if n_factors is not None and n_factors != items.shape[1]:
        raise ValueError(
            f"n_factors: expected {items.shape[1]}, the embeddings' dimensions, got {n_factors}"
        )
    return items, there


def _check_scores(scores: Any, items: FloatArray | None) -> csr_array:
    matrix = check_scores(scores, n_items=None if items is None else len(items))
    if len(matrix.data) == 0:
        raise ValueError("scores: expected at least one score, got none")
    if (largest := float(np.abs(matrix.data).max())) > MAX_SCORE:
        raise ValueError(f"scores: expected sizes up to {MAX_SCORE:g}, got {largest:g}")
    return matrix
