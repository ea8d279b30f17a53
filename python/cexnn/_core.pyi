"""Types of the native core.

Arrays are C-contiguous and of exactly the type given; nothing is converted. ``indptr``,
``indices`` and ``values`` are the three arrays of a CSR matrix with one row a query. ``device`` is
"cpu" or "cuda"; "cuda" where `cuda_available` is false is a RuntimeError.

With "cuda" every array but ``indptr`` may also lie on the device: a `DeviceArray`, or whatever else
lends itself by DLPack, a tensor of torch or an array of CuPy. It is used where it lies. Results are
`DeviceArray` then: those of ``ridge`` if ``factors`` is on the device, of ``update``,
``next_items`` and ``top_items`` if ``indices``, of ``posterior`` if ``items``.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

class _OnDevice(Protocol):
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(self, *, stream: int | None = None) -> Any: ...

_Floats = NDArray[np.float32]
_Ids = NDArray[np.int32]
_Offsets = NDArray[np.int64]
_TokenLists = tuple[_Offsets | _OnDevice, _Ids | _OnDevice]

def instruction_set() -> str: ...
def cuda_available() -> bool: ...
def cuda_free_memory() -> int: ...
def ridge(
    indptr: _Offsets,
    indices: _Ids,
    values: _Floats,
    factors: _Floats,
    prior: _Floats | None,
    regularization: float,
    num_threads: int,
    device: str = "cpu",
) -> _Floats: ...
def pack_pairs(
    queries: _TokenLists,
    items: _TokenLists,
    rows: _Ids | _OnDevice,
    item_ids: _Ids | _OnDevice,
    constants: tuple[_Offsets, _Ids],
    constant_types: _Ids,
    query_type: int,
    item_type: int,
    pad_id: int,
    pad_type: int,
    max_length: int,
    input_ids: NDArray[np.int64] | _OnDevice,
    attention_mask: NDArray[np.int64] | _OnDevice,
    token_type_ids: NDArray[np.int64] | _OnDevice,
    device: str = "cpu",
) -> None: ...
def order_pairs(
    query_offsets: _Offsets | _OnDevice,
    item_offsets: _Offsets | _OnDevice,
    cut_queries: NDArray[np.bool_],
    n_constants: int,
    rows: _Ids | _OnDevice,
    item_ids: _Ids | _OnDevice,
    most: int,
) -> tuple[DeviceArray, DeviceArray, DeviceArray, DeviceArray, _Ids]: ...
def place_logits(logits: _OnDevice, places: _OnDevice, scores: _OnDevice) -> None: ...

class DeviceArray:
    """An array on the CUDA device; ``DeviceArray(array)`` copies NumPy's there, `numpy` back.

    C-contiguous. ``from_dlpack`` borrows another library's, or copies it on the device where it is
    not contiguous; ``ravel``, ``reshape`` and rows (``array[2:5]``) have the same memory.
    ``floats``: as float32, itself if it is. ``take``: some rows, or elements of a vector.
    """

    def __init__(self, array: NDArray[Any]) -> None: ...
    @staticmethod
    def empty(shape: Sequence[int], dtype: DTypeLike) -> DeviceArray: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @staticmethod
    def from_dlpack(array: _OnDevice) -> DeviceArray: ...
    def numpy(self) -> NDArray[Any]: ...
    def ravel(self) -> DeviceArray: ...
    def copy(self) -> DeviceArray: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceArray: ...
    def floats(self) -> DeviceArray: ...
    def take(self, rows: _Ids | _OnDevice) -> DeviceArray: ...
    def reshape(self, shape: Sequence[int]) -> DeviceArray: ...
    def __getitem__(self, rows: slice) -> DeviceArray: ...
    def __len__(self) -> int: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...

def first_distinct(ids: _Ids, n: int) -> _Ids: ...
def list_pairs(ids: _Ids, numbers: _Offsets) -> tuple[_Ids, _Ids]: ...
def append_known(
    ids: _Ids, scores: _Floats, counts: _Offsets, rows: _Ids, items: _Ids, told: _Floats
) -> _Offsets: ...
def known_rows(
    ids: _Ids, scores: _Floats, counts: _Offsets, rows: _Offsets
) -> tuple[_Offsets, _Ids, _Floats]: ...
def known_by_id(ids: _Ids, scores: _Floats, counts: _Offsets) -> tuple[_Offsets, _Ids, _Floats]: ...
def best_known(ids: _Ids, scores: _Floats, counts: _Offsets, k: int) -> tuple[_Ids, _Floats]: ...
def standardise(indptr: _Offsets, scores: _Floats) -> _Floats: ...
def draw_in(indptr: _Offsets, scores: _Floats) -> _Floats: ...
def bend(
    knots: NDArray[np.float64],
    values: NDArray[np.float64],
    scores: NDArray[np.float64],
    straight: bool = False,
) -> _Floats: ...
def standardise_there(scores: _OnDevice, out: _OnDevice) -> None: ...
def draw_in_there(scores: _OnDevice, out: _OnDevice) -> None: ...
def bend_there(
    knots: _OnDevice, values: _OnDevice, straight: bool, scores: _OnDevice, out: _OnDevice
) -> None: ...
def append(
    ids: _OnDevice,
    scores: _OnDevice,
    told_ids: _OnDevice,
    told_scores: _OnDevice,
    ids_out: _OnDevice,
    scores_out: _OnDevice,
) -> None: ...
def all_finite(values: _Floats | _OnDevice, most: float = ...) -> bool: ...
def map_embeddings(embeddings: _OnDevice, scale: float, map: _OnDevice) -> DeviceArray: ...

class AlsSolver:
    def __init__(
        self,
        indptr: _Offsets,
        indices: _Ids,
        values: _Floats,
        n_cols: int,
        row_prior: _Floats | None,
        col_prior: _Floats | _OnDevice | None,
        row_regularization: float,
        col_regularization: float,
        num_threads: int,
        device: str = "cpu",
        cg_steps: int = 0,
    ) -> None: ...
    def in_host_memory(self, n_factors: int) -> bool: ...
    def step(self, row_factors: _Floats | _OnDevice, col_factors: _Floats | _OnDevice) -> None: ...
    def objective(
        self, row_factors: _Floats | _OnDevice, col_factors: _Floats | _OnDevice
    ) -> float: ...

class QueryModel:
    def __init__(
        self,
        *,
        factor_variance: float,
        prior_scale_variance: float,
        shift_variance: float,
        noise_variance: float,
        offset: float,
        centred: bool,
        mix: float,
        item_offsets: bool = True,
    ) -> None: ...
    @property
    def item_offsets(self) -> bool: ...

class SearchState: ...

class Searcher:
    def __init__(
        self,
        item_factors: _Floats,
        item_offsets: _Floats | None,
        compact: NDArray[np.uint16] | NDArray[np.int8] | None = None,
        scales: _Floats | None = None,
        device: str = "cpu",
    ) -> None: ...
    def make_state(self, n_queries: int) -> SearchState: ...
    def keep(self, state: SearchState, queries: _Ids) -> None: ...
    def update(
        self,
        indptr: _Offsets,
        indices: _Ids,
        values: _Floats,
        priors: _Floats | _OnDevice,
        model: QueryModel,
        state: SearchState | None,
        num_threads: int,
    ) -> _Floats: ...
    def top_items(
        self,
        query_factors: _Floats | _OnDevice,
        indptr: _Offsets,
        indices: _Ids,
        k: int,
        num_threads: int,
        ranking: str = "with_offsets",
    ) -> tuple[_Ids, _Floats]: ...
    def posterior(
        self,
        indptr: _Offsets,
        indices: _Ids,
        values: _Floats,
        priors: _Floats | _OnDevice,
        model: QueryModel,
        items: _Ids,
        state: SearchState | None,
        num_threads: int,
    ) -> tuple[_Floats, _Floats]: ...
    def next_items(
        self,
        indptr: _Offsets,
        indices: _Ids,
        values: _Floats,
        priors: _Floats | _OnDevice,
        model: QueryModel,
        state: SearchState | None,
        k: int,
        num_threads: int,
    ) -> tuple[_Ids, _Floats]: ...
    def next_items_into(
        self,
        indptr: _Offsets,
        indices: _Ids | _OnDevice,
        values: _Floats | _OnDevice,
        priors: _Floats | _OnDevice,
        model: QueryModel,
        state: SearchState | None,
        num_threads: int,
        ids_out: _Ids | _OnDevice,
        approx_out: _Floats | _OnDevice,
    ) -> None: ...
