"""The index: item factors, what a search believes beforehand, and the searches over them."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any, Self

from cexnn import _core
from cexnn.arrays import to_numpy
from cexnn.build import learn
from cexnn.checks import check_choice, check_ids
from cexnn.compact import DTYPES, rounded
from cexnn.device import resolve_device, resolve_num_threads
from cexnn.growth import items_alone
from cexnn.index_growth import GrowingIndex
from cexnn.index_search import SearchableIndex
from cexnn.learned import Learned, read, write
from cexnn.searched import ItemsAsTheyAre

__all__ = ["Index"]


class Index(GrowingIndex, SearchableIndex):
    """Items ready to be searched with a cross-encoder; made by `Index.build` or `Index.load`.

    May be used from several threads. `add` and `remove` change it for the searches that start
    afterwards; those under way go on over the items that they began with.
    """

    def __init__(
        self,
        learned: Learned,
        *,
        device: str = "auto",
        factors: _core.DeviceArray | None = None,
    ) -> None:
        self._items = ItemsAsTheyAre(learned, resolve_device(device), factors=factors)
        self._growing = threading.Lock()

    @classmethod
    def build(
        cls,
        scores: Any = None,
        *,
        item_embeddings: Any = None,
        query_embeddings: Any = None,
        item_factors: str = "auto",
        n_factors: int | None = None,
        regularization: float | tuple[float, float] | str = "auto",
        n_iterations: int = 10,
        seed: int = 0,
        device: str = "auto",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Build an index from training scores, a dual encoder's embeddings, or both.

        With scores alone, they are factorised from scratch. With embeddings alone, the search
        runs in the dual encoder's space as it is. With both, offset, slope and item offsets bring
        the embeddings into cross-encoder units, and the factorisation starts from them and is
        drawn towards them. The form of the item factors and the variances of the search's model
        are those that predict held-out queries best; these also tell how much the embeddings and
        the item offsets count where scores are expected to be high (see `info`). Then the build
        learns how many rounds suit a budget, for ``rounds="auto"``.

        Parameters
        ----------
        scores : (n_queries, n_items) SciPy sparse, optional
            Cross-encoder scores of training pairs, such as `score_pairs` returns, on any
            increasing scale: where it makes held-out scores more likely, the model takes them
            with the best tenth drawn in by logarithm, or as normal scores, here and in `search`
            (``info()["score_map"]``, `cexnn.score_map`).
        item_embeddings : (n_items, n_dims) float, optional
            Of a dual encoder, of any scale; arrays of any library (see `cexnn.arrays`). Those on
            the CUDA device, with ``device="cuda"``, are mapped to factors, factorised and searched
            there. They come to the host once: the index keeps its factors there, to be saved and
            grown, and learns from them there; they do not go up again.
        query_embeddings : (n_queries, n_dims) float, optional
            Of the training queries, the rows of ``scores``. A linear map from them to the queries'
            factors is learned, too, where it predicts held-out queries better.
        item_factors : {"auto", "embeddings", "transductive", "inductive", "joined", "gated"}
            With scores and embeddings: the embeddings in cross-encoder units; the factorisation
            drawn to them, where an item never scored stays in its place; a linear map of the
            embeddings, learned from it; the factorisation drawn to that map; the AXN paper's
            inductive form, a gated network for queries and one for items (`cexnn.gated`).
            ``"auto"`` takes the one of the first four that predicts held-out queries best, with
            fewer than ten queries the first. ``"gated"`` needs ``query_embeddings`` and PyTorch,
            to build only; ``"auto"`` never takes it, so that an index does not depend on what is
            installed. On the data of ``bench/bench_quality.py`` it was level with the linear map,
            and from many scores behind the factorisations, for several times the work.
        n_factors : int, optional
            Of a factorisation from scratch; by default 64, or the smaller side of the scores.
            With embeddings it is their number of dimensions.
        regularization : float, (float, float) or "auto"
            Of queries and items; ``"auto"`` chooses it on held-out scores.
        n_iterations : int
            Sweeps of the factorisation.
        seed : int
            Equal seeds give equal indexes, whatever the number of threads.
        device : {"auto", "cpu", "cuda"}
            Where to build and search.
        num_threads : int, optional
            By default the CPUs this process may use.
        progress : bool
            Progress bars on stderr, if it is a terminal.

        Returns
        -------
        Index

        Raises
        ------
        ValueError
            Bad shapes or values, naming the argument; neither scores nor item embeddings.
        RuntimeError
            ``device="cuda"`` where it is not available.
        ImportError
            ``item_factors="gated"`` without PyTorch (the extra ``torch``), before any work starts.

        Examples
        --------
        >>> import numpy as np
        >>> index = Index.build(item_embeddings=np.eye(3, dtype=np.float32))
        >>> index.n_items, index.n_factors
        (3, 3)
        """
        learned, factors = learn(
            scores,
            item_embeddings=item_embeddings,
            query_embeddings=query_embeddings,
            item_factors=item_factors,
            n_factors=n_factors,
            regularization=regularization,
            n_iterations=n_iterations,
            seed=seed,
            num_threads=resolve_num_threads(num_threads),
            device=resolve_device(device),
            progress=progress,
        )
        return cls(learned, device=device, factors=factors)

    def astype(self, dtype: str) -> Self:
        """Return an index of the same items whose searches scan fewer bytes, in less time.

        A search spends its own time reading the item factors. In half precision that is half the
        bytes, as int8 a quarter. The copy only says where to look: the best by it, some more than
        asked for, are ranked by the factors in single precision, and where their errors leave a
        doubt whether the best are among them, those are scanned instead. So a search finds the
        same. The factors are kept, and saved with the copy; of a mapped file, only such rows are
        touched.

        On x86-64 with AVX2, an index of millions of factors, whatever its type, that is much in use
        by few queries at a time makes itself a copy in four bits after 16 passes, half a byte more
        for each factor, and scans that: what it gives are bounds, and the items whose bounds reach
        the best are ranked by their factors. Making it reads all factors once, of a mapped file,
        too. Each item is rounded by subtractive dither, which makes its errors independent of what
        the item is: it is beyond its bound with a probability of at most 2.3e-11
        (``exp(-7**2 / 2)``). Where four bits leave too many items to look at, they are scanned as
        without, and where that happens often, the copy is dropped.

        Parameters
        ----------
        dtype : {"float32", "float16", "int8"}
            ``"float32"``: no copy.

        Returns
        -------
        Index
            Of its own: `add` and `remove` change one of the two.

        Raises
        ------
        ValueError
            Any other name.

        Examples
        --------
        >>> import numpy as np
        >>> index = Index.build(item_embeddings=np.eye(3, dtype=np.float32)).astype("int8")
        >>> index.dtype, index.item_factors.dtype
        ('int8', dtype('float32'))
        """
        check_choice("dtype", dtype, ("float32", *DTYPES))
        learned = self._learned
        compact = None if dtype == "float32" else rounded(learned.item_factors, dtype)
        changed = replace(learned, compact=compact)
        return type(self)(changed, device=self.device, factors=self._items.factors_there)

    def take(self, ids: Any) -> Self:
        """Return an index of some items alone, numbered anew: the i-th given has the id i.

        So the room of removed items is had back, or a part of the items searched on its own.
        What the build learned is kept.

        Parameters
        ----------
        ids : (n,) int
            Distinct ids of items, at least one. One that was removed stays so.

        Returns
        -------
        Index
            Of its own: `add` and `remove` change one of the two.

        Raises
        ------
        ValueError
            Not distinct integers in one dimension, out of range, or none.

        Examples
        --------
        >>> import numpy as np
        >>> index = Index.build(item_embeddings=np.eye(3, dtype=np.float32)).take([2, 0])
        >>> index.n_items, index.item_factors.argmax(axis=1)
        (2, array([2, 0]))
        """
        array = to_numpy("ids", ids)
        if array.ndim != 1 or len(array) == 0:
            raise ValueError(f"ids: expected one id at least, shape (n,), got shape {array.shape}")
        given = check_ids("ids", array[None], rows=1, n_items=self.n_items)[0]
        if (given < 0).any():
            raise ValueError(f"ids: expected ids from 0 to {self.n_items - 1}, got {ids!r}")
        return type(self)(items_alone(self._learned, given), device=self.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one file, in the safetensors format; see `cexnn.storage`.

        The file is written beside the target and renamed: interrupted, it leaves the old one
        whole.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        write(path, self._learned)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        mmap: bool = True,
        verify: bool = False,
    ) -> Self:
        """Read an index that `save` wrote.

        Parameters
        ----------
        path : path
            The file.
        device : {"auto", "cpu", "cuda"}
            Where to search.
        mmap : bool
            Map the file into memory rather than read it: loading takes no time, and processes
            share the memory.
        verify : bool
            Read everything once and hold it against the checksums.

        Raises
        ------
        IndexFileError
            The file is truncated, damaged, not an index, or of a newer version.
        FileNotFoundError
            There is no such file.
        """
        resolve_device(device)
        return cls(read(path, mmap=mmap, verify=verify), device=device)
