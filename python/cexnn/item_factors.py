"""Item factors from scores and embeddings, in the forms that `Index.build` offers."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.als import Factors, factorize
from cexnn.als_sweeps import Matrix
from cexnn.embedding_maps import no_map
from cexnn.gated import Networks, apply_network, train_networks
from cexnn.prior import Calibration, calibrate, embedding_map
from cexnn.score_csr import check_scores

__all__ = ["FORMS", "FactorMaker"]

FloatArray = NDArray[np.float32]

_Both = tuple[FloatArray, _core.DeviceArray | None]  # the same here, and on the device

FORMS = ("embeddings", "transductive", "inductive", "joined", "gated")


class FactorMaker:
    """Makes item factors of each form from the same scores; what they share is made once.

    - ``"embeddings"``: the dual encoder's space, in cross-encoder units.
    - ``"transductive"``: the factorisation that starts from it and is drawn to it. An item that
      was never scored stays where it was.
    - ``"inductive"``: a linear map of the embeddings that reproduces the factorisation on the
      scored items, applied to all.
    - ``"joined"``: the factorisation drawn to the inductive factors.
    - ``"gated"``: networks of `cexnn.gated` for items and queries, trained on the scores.

    Parameters are those of `Index.build`; without item embeddings the only form is the
    transductive one. With ``items_there``, the item embeddings on the CUDA device, what a scale or
    a map makes of them is made there, and the factorisations take it from there. With ``before``, a
    maker of the same items from some of the scores that has
    made the same form, the factorisations go on from where its own ended.

    References
    ----------
    Yadav et al., ICLR 2024, section 3.2, for the transductive form (there by gradient descent) and
    the gated one.
    """

    def __init__(
        self,
        scores: csr_array,
        queries: FloatArray | None,
        items: FloatArray | None,
        *,
        n_factors: int | None,
        regularization: float | tuple[float, float] | str,
        n_iterations: int,
        seed: int,
        num_threads: int,
        device: str,
        progress: bool,
        items_there: _core.DeviceArray | None = None,
        before: FactorMaker | None = None,
    ) -> None:
        self._scores, self._queries, self._items = scores, queries, items
        self._items_there = items_there
        self._n_factors, self._regularization = n_factors, regularization
        self._n_iterations, self._seed = n_iterations, seed
        self._num_threads, self._device, self._progress = num_threads, device, progress
        self._before = before
        self.calibration: Calibration = calibrate(scores, queries, items)

    def forms(self) -> tuple[str, ...]:
        """Forms that can be made without PyTorch."""
        return FORMS[:-1] if self._items is not None else ("transductive",)

    @property
    def n_dims(self) -> int | None:
        """Of the embeddings; None without."""
        return None if self._items is None else self._items.shape[1]

    @property
    def regularization(self) -> tuple[float, float]:
        """What the factorisation uses for queries and for items."""
        return self._transductive.regularization

    def make(self, form: str) -> Factors:
        """Return query and item factors of one form.

        The queries' are those of a factorisation; in the gated form, what their network says.
        """
        if self._items is None or form == "transductive":
            return self._transductive
        if form == "joined":
            return self._joined
        factors = self._transductive
        if form == "gated":
            assert self._queries is not None
            queries = apply_network(self._networks.queries, self._queries)
            items = apply_network(self._networks.items, self._items)
            return replace(factors, queries=queries, items=items)
        here, there = self._inductive if form == "inductive" else self._prior
        return replace(factors, items=here).with_items_there(there)

    @property
    def n_epochs(self) -> int:
        """How long the networks of the gated form were trained."""
        return self._networks.n_epochs

    def factor_map(self, form: str) -> FloatArray:
        """Map from an item's embedding to its factors; no rows: the embedding, scaled."""
        if form == "gated":
            return self._networks.items
        if self._items is None or form not in ("inductive", "joined"):
            return np.zeros((0, self._transductive.items.shape[1]), dtype=np.float32)
        return self._inductive_map

    def query_map(self, form: str, factors: Factors) -> FloatArray:
        """Map from a query's embedding to its factors of this form; no rows without embeddings."""
        if form == "gated":
            return self._networks.queries
        if self._queries is None:
            return np.zeros((0, factors.queries.shape[1]), dtype=np.float32)
        scale = np.float32(self.calibration.query_scale)
        counts = np.diff(self._scores.indptr).astype(np.float64)
        change = (factors.queries - scale * self._queries).astype(np.float64)
        unit = np.eye(self._queries.shape[1], dtype=np.float32)
        return embedding_map(self._queries, counts, counts[:, None] * change) + scale * unit

    @cached_property
    def _networks(self) -> Networks:
        assert self._queries is not None
        assert self._items is not None
        return train_networks(
            self._residuals(),
            self._queries,
            self._items,
            self.calibration.item_scale,
            seed=self._seed,
            progress=self._progress,
        )

    @cached_property
    def _transductive(self) -> Factors:
        start = None if self._before is None else _items_of(self._before._transductive)
        prior = None if self._items is None else _either(*self._prior)
        return self._factorise(prior, start, self._regularization)

    @cached_property
    def _joined(self) -> Factors:
        start = self._transductive if self._before is None else self._before._joined
        prior = _either(*self._inductive)
        return self._factorise(prior, _items_of(start), self._transductive.regularization)

    @cached_property
    def _prior(self) -> _Both:
        assert self._items is not None
        scale, there = self.calibration.item_scale, None
        if self._items_there is not None:
            nothing = _core.DeviceArray(no_map(self._items))
            there = _core.map_embeddings(self._items_there, scale, nothing)
        return self._items * np.float32(scale), there

    @cached_property
    def _correction(self) -> FloatArray:
        """Map from embeddings to what the factorisation changed of the scored items."""
        assert self._items is not None
        counts = np.bincount(self._scores.indices, minlength=len(self._items)).astype(np.float64)
        change = (self._transductive.items - self._prior[0]).astype(np.float64)
        return embedding_map(self._items, counts, counts[:, None] * change)

    @cached_property
    def _inductive(self) -> _Both:
        assert self._items is not None
        if self._items_there is None:
            return self._prior[0] + self._items @ self._correction, None
        found = _core.DeviceArray(self._inductive_map)
        there = _core.map_embeddings(self._items_there, 1.0, found)
        return there.numpy(), there

    @property
    def _inductive_map(self) -> FloatArray:
        """Map from embeddings to inductive factors."""
        assert self._items is not None
        unit = np.eye(self._items.shape[1], dtype=np.float32)
        return self._correction + np.float32(self.calibration.item_scale) * unit

    def _residuals(self) -> csr_array:
        """Scores less what is not in the factors."""
        residuals = check_scores(self._scores)
        residuals.data = (
            self._scores.data
            - np.float32(self.calibration.offset)
            - self.calibration.item_offsets[self._scores.indices]
        )
        return residuals

    def _factorise(
        self,
        item_prior: Matrix | None,
        item_start: Matrix | None,
        regularization: float | tuple[float, float] | str,
    ) -> Factors:
        prior = None
        if self._queries is not None:
            prior = self._queries * np.float32(self.calibration.query_scale)
        return factorize(
            self._residuals(),
            self._n_factors,
            query_prior=prior,
            item_prior=item_prior,
            item_start=item_start,
            regularization=regularization,
            n_iterations=self._n_iterations,
            seed=self._seed,
            device=self._device,
            num_threads=self._num_threads,
            progress=self._progress,
        )


def _either(here: FloatArray, there: _core.DeviceArray | None) -> Matrix:
    return here if there is None else there


def _items_of(factors: Factors) -> Matrix:
    return _either(factors.items, factors.items_there)
