"""Latent semantic analysis: a dual encoder that needs NumPy and SciPy only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from cexnn.checks import LARGEST_SEED, check_float, check_int, check_matrix
from cexnn.items import check_texts
from cexnn.words import STOP_WORDS, split_pieces, split_words

__all__ = ["LsaEncoder"]

SMALL = 512  # texts or terms whose products are taken apart in full


class LsaEncoder:
    """Texts to unit vectors by latent semantic analysis (Deerwester et al., 1990).

    A text is the row ``x`` with ``x_t = (1 + ln tf_t) * idf_t`` over its terms ``t``, where
    ``idf_t = ln((1 + n) / (1 + df_t)) + 1``, scaled to unit length. The encoder is the map
    ``x -> x V / |x V|`` with ``V`` the ``n_dims`` leading right singular vectors of the rows
    of the fitted texts. A text without a single known term becomes the zero vector.

    The terms are pieces of words, four characters each (`split_pieces`): "diabetes" and "diabetic"
    have something in common, as they have for a cross-encoder, which reads pieces itself. Or they
    are whole words (`split_words`), without English stop words such as "the" and "how".

    Make one with `fit` or `load`; it then serves as ``encoder`` of a retriever.

    Examples
    --------
    >>> texts = ["sort a list", "sort an array", "open a file", "read a file"]
    >>> encoder = LsaEncoder.fit(texts, n_dims=2, min_df=1)
    >>> similarity = encoder(["sort"]) @ encoder(texts).T
    >>> bool(similarity[0, 1] > similarity[0, 2])
    True
    """

    def __init__(
        self,
        terms: Sequence[str],
        idf: NDArray[np.float32],
        components: NDArray[np.float32],
        piece_length: int | None = None,
    ) -> None:
        self._columns = {term: column for column, term in enumerate(terms)}
        self._idf = idf
        self._components = components
        self._piece_length = piece_length

    @property
    def n_dims(self) -> int:
        """Length of the vectors."""
        return int(self._components.shape[1])

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        *,
        n_dims: int = 128,
        min_df: int = 2,
        piece_length: int | None = 4,
        seed: int = 0,
    ) -> LsaEncoder:
        """Learn terms, weights and directions from texts.

        Parameters
        ----------
        texts : iterable of str
            The texts, usually the items.
        n_dims : int
            Length of the vectors; below the number of texts and of kept terms.
        min_df : int
            Terms found in fewer texts than this are left out.
        piece_length : int or None
            Of the terms, in characters; None: whole words. Pieces of four find more, also beside
            another encoder (``bench/README.md``), and take two to three times as long.
        seed : int
            Seed of the start vector of the singular value decomposition of many texts.

        Returns
        -------
        LsaEncoder
            The same for the same arguments: signs are fixed too.

        Raises
        ------
        ValueError
            For arguments that do not fit together.
        """
        texts = check_texts("texts", texts)
        n_dims = check_int("n_dims", n_dims, minimum=1)
        min_df = check_int("min_df", min_df, minimum=1)
        if piece_length is not None:
            check_int("piece_length", piece_length, minimum=1)
        seed = check_int("seed", seed, minimum=0, maximum=LARGEST_SEED)
        document_counts = Counter(
            term for text in texts for term in set(_split(text, piece_length))
        )
        frequent = {term for term, count in document_counts.items() if count >= min_df}
        terms = sorted(frequent.difference([] if piece_length else STOP_WORDS))
        limit = min(len(texts), len(terms))
        if n_dims >= limit:
            raise ValueError(
                f"n_dims: expected less than the {len(texts)} texts and the {len(terms)} terms "
                f"found in at least {min_df} of them, got {n_dims}"
            )
        counts = np.array([document_counts[term] for term in terms], np.float64)
        idf = (np.log((1 + len(texts)) / (1 + counts)) + 1).astype(np.float32)
        encoder = cls(terms, idf, np.zeros((len(terms), n_dims), np.float32), piece_length)
        rows = encoder._weigh(texts).astype(np.float64)
        right = _directions(rows, n_dims, seed)
        largest = right[np.arange(n_dims), np.argmax(np.abs(right), axis=1)]
        right *= np.where(largest < 0, -1.0, 1.0)[:, None]
        return cls(terms, idf, np.ascontiguousarray(right.T, np.float32), piece_length)

    def __call__(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Encode texts.

        Parameters
        ----------
        texts : iterable of str
            The texts; a single string is refused.

        Returns
        -------
        ndarray, float32, (n_texts, n_dims)
            Rows of length 1 (0 for a text without a known term), C-contiguous.
        """
        texts = check_texts("texts", texts)
        projected = np.asarray(self._weigh(texts) @ self._components, np.float32)
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        return np.ascontiguousarray(projected / np.where(norms > 0, norms, 1))

    def beside(
        self, embeddings: ArrayLike, texts: Iterable[str], *, weight: float = 0.5
    ) -> NDArray[np.float32]:
        """Put what this encoder says of texts beside another one's embeddings of them.

        Of unit vectors, the dot product of two results is that of the embeddings plus
        ``weight ** 2`` times that of this encoder: words in common count beside what the other
        knows. Do the same for items and queries.

        Parameters
        ----------
        embeddings : (n_texts, d) float
            Of the same texts.
        texts : iterable of str
        weight : float
            Of this encoder; 0 to leave it out.

        Returns
        -------
        (n_texts, d + n_dims) float32
            Each row of ``embeddings``, then this encoder's times ``weight`` and the row's length.

        Raises
        ------
        ValueError
            Not as many finite embeddings as texts, or a negative weight.

        Examples
        --------
        >>> encoder = LsaEncoder.fit(["sort a list", "sort an array", "open a file"], n_dims=1,
        ...                          min_df=1)
        >>> encoder.beside([[3.0, 4.0]], ["sort"]).round(3)
        array([[3. , 4. , 2.5]], dtype=float32)
        """
        words = self(texts)
        given = check_matrix("embeddings", embeddings, rows=len(words))
        weight = check_float("weight", weight, minimum=0)
        lengths = np.linalg.norm(given, axis=1, keepdims=True)
        return np.hstack([given, np.float32(weight) * lengths * words])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the encoder to one file in NumPy's ``.npz`` format.

        Parameters
        ----------
        path : path
            The file, used as it is given.
        """
        terms = np.frombuffer("\n".join(self._columns).encode(), np.uint8)
        length = np.array(self._piece_length or 0)
        with open(path, "wb") as file:
            np.savez_compressed(
                file,
                terms=terms,
                idf=self._idf,
                components=self._components,
                piece_length=length,
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LsaEncoder:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        LsaEncoder
            Encodes exactly as the saved one.

        Raises
        ------
        ValueError
            If the file is not one of an encoder.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                terms = arrays["terms"].tobytes().decode().split("\n")
                idf, components = arrays["idf"], arrays["components"]
                piece_length = int(arrays.get("piece_length", 0)) or None  # none: of older versions
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"path: expected the file of an LsaEncoder, got {path}") from error
        shapes = idf.shape, components.shape[:1], components.ndim
        if shapes != ((len(terms),), (len(terms),), 2):
            raise ValueError(f"path: expected the file of an LsaEncoder, got {path}")
        return cls(terms, idf, components, piece_length)

    def _weigh(self, texts: Sequence[str]) -> csr_array[Any, Any]:
        columns: list[int] = []
        tf: list[int] = []
        starts = [0]
        for text in texts:
            found = (self._columns.get(term) for term in _split(text, self._piece_length))
            counts = sorted(Counter(column for column in found if column is not None).items())
            columns.extend(column for column, _ in counts)
            tf.extend(count for _, count in counts)
            starts.append(len(columns))
        ids, lengths = np.array(columns, np.int32), np.diff(starts)
        weights = (1 + np.log(np.array(tf, np.float32))) * self._idf[ids]
        rows = np.repeat(np.arange(len(texts)), lengths)
        norms = np.sqrt(np.bincount(rows, weights * weights, minlength=len(texts)))
        data = (weights / norms[rows]).astype(np.float32)
        shape = (len(texts), len(self._columns))
        return csr_array((data, ids, np.array(starts, np.int64)), shape=shape)


def _directions(rows: csr_array, n_dims: int, seed: int) -> NDArray[np.float64]:
    """Return the first right singular vectors, (n_dims, n_terms)."""
    if min(rows.shape) > SMALL:
        start = np.random.default_rng(seed).standard_normal(min(rows.shape))
        _, values, right = svds(rows, k=n_dims, v0=start)
        return right[np.argsort(-values, kind="stable")]
    # The iteration runs out of directions where few texts or terms are left, and goes on at random.
    by_term = rows.shape[1] <= rows.shape[0]
    gram = (rows.T @ rows if by_term else rows @ rows.T).toarray()
    squares, vectors = (part[..., ::-1][..., :n_dims] for part in np.linalg.eigh(gram))
    if not by_term:
        lengths = np.sqrt(np.maximum(squares, 1e-12 * squares[0]))  # of none: about none
        vectors = rows.T @ vectors / lengths
    found: NDArray[np.float64] = vectors.T
    return found


def _split(text: str, piece_length: int | None) -> list[str]:
    return split_words(text) if piece_length is None else split_pieces(text, piece_length)
