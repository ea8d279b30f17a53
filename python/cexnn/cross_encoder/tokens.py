"""Texts to token ids, and what a tokenizer puts around the two texts of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "PairFormat",
    "TokenLists",
    "check_text",
    "load_tokenizer",
    "pair_format",
    "tokenize",
]

_CHUNK = 8192  # texts handed to the tokenizer at once: its own results are large
_PROBES = [("a b", "c"), ("What is this?", "That, 1 of 2."), ("É", "naïve 東京"), ("x", "")]
_PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>", "<|padding|>", "<|endoftext|>")


class TokenLists(NamedTuple):
    """Lists of token ids one after another.

    Attributes
    ----------
    offsets : (n + 1,) int64
        List ``i`` is ``ids[offsets[i] : offsets[i + 1]]``.
    ids : (offsets[n],) int32
        Token ids.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens in each list, (n,) int64."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> TokenLists:
        """Put lists one after another.

        Examples
        --------
        >>> TokenLists.of([[5, 6], [], [7]]).offsets
        array([0, 2, 2, 3])
        """
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(one) for one in lists], out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(offsets[-1]))
        return cls(offsets, ids)


class PairFormat(NamedTuple):
    """What stands around a query and an item: prefix, query, middle, item, suffix, padding.

    Attributes
    ----------
    constants : TokenLists
        Prefix, middle and suffix.
    constant_types : (n_constants,) int32
        Type id of each of their tokens.
    query_type, item_type : int
        Type id of the query's and of the item's tokens.
    pad_id, pad_type : int
        What fills a row up.
    """

    constants: TokenLists
    constant_types: NDArray[np.int32]
    query_type: int
    item_type: int
    pad_id: int
    pad_type: int

    @property
    def n_constants(self) -> int:
        """Number of tokens in a pair of two empty texts."""
        return len(self.constants.ids)


def load_tokenizer(source: Path | bytes) -> Tokenizer:
    """Load a ``tokenizer.json``.

    Parameters
    ----------
    source : Path or bytes
        The file, or what it holds.

    Returns
    -------
    tokenizers.Tokenizer

    Raises
    ------
    ImportError
        The tokenizers library is missing.
    ValueError
        The file is not a tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(
            "CrossEncoder needs the tokenizers library: pip install 'cexnn[cpu]' or 'cexnn[gpu]'"
        ) from error
    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        return Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception
        name = "bytes" if isinstance(source, bytes) else str(source)
        raise ValueError(
            f"tokenizer: expected the content of a tokenizer.json, got {name} ({error})"
        ) from error


def pair_format(tokenizer: Tokenizer) -> PairFormat:
    """Learn from a tokenizer how it lays out a pair; switches its padding and truncation off.

    The layout is read off one encoded pair and then held against several others.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Its post-processor decides about special tokens and type ids.

    Returns
    -------
    PairFormat

    Raises
    ------
    ValueError
        Pairs are not prefix, first text, middle, second text, suffix with fixed tokens around the
        texts.
    """
    padding = tokenizer.padding or {}
    pad_id = padding.get("pad_id")
    if pad_id is None:
        known = (tokenizer.token_to_id(token) for token in _PAD_TOKENS)
        pad_id = next((token for token in known if token is not None), 0)
    tokenizer.no_padding()
    tokenizer.no_truncation()

    encoded = tokenizer.encode(*_PROBES[0])
    first = [j for j, text in enumerate(encoded.sequence_ids) if text == 0]
    second = [j for j, text in enumerate(encoded.sequence_ids) if text == 1]
    if not first or not second or first[-1] > second[0]:
        raise ValueError("tokenizer: expected pairs to hold the first text, then the second")
    spans = [(0, first[0]), (first[-1] + 1, second[0]), (second[-1] + 1, len(encoded.ids))]
    types = list(chain.from_iterable(encoded.type_ids[a:b] for a, b in spans))
    layout = PairFormat(
        constants=TokenLists.of([encoded.ids[a:b] for a, b in spans]),
        constant_types=np.array(types, dtype=np.int32),
        query_type=encoded.type_ids[first[0]],
        item_type=encoded.type_ids[second[0]],
        pad_id=int(pad_id),
        pad_type=int(padding.get("pad_type_id", 0)),
    )
    for pair in _PROBES:
        _check_layout(tokenizer, layout, *pair)
    return layout


def _check_layout(tokenizer: Tokenizer, layout: PairFormat, query: str, item: str) -> None:
    """Hold one pair put together by `layout` against the tokenizer's own."""
    texts = [tokenizer.encode(text, add_special_tokens=False).ids for text in (query, item)]
    begins = layout.constants.offsets
    parts = [layout.constants.ids[a:b].tolist() for a, b in pairwise(begins)]
    kinds = [layout.constant_types[a:b].tolist() for a, b in pairwise(begins)]
    ids = [*parts[0], *texts[0], *parts[1], *texts[1], *parts[2]]
    types = [
        *kinds[0], *[layout.query_type] * len(texts[0]),
        *kinds[1], *[layout.item_type] * len(texts[1]), *kinds[2],
    ]  # fmt: skip
    encoded = tokenizer.encode(query, item)
    if encoded.ids != ids or encoded.type_ids != types:
        raise ValueError(
            "tokenizer: expected fixed tokens around the texts of a pair, "
            f"got {encoded.tokens} for {(query, item)}"
        )


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], *, max_tokens: int, name: str
) -> tuple[TokenLists, NDArray[np.bool_]]:
    """Token ids of texts, without special tokens.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Padding and truncation switched off.
    texts : sequence of str
        What to tokenize.
    max_tokens : int
        Each list is cut to so many tokens.
    name : str
        What to call text ``{}`` in an error, ``"item_texts[{}]"`` say.

    Returns
    -------
    lists : TokenLists
        One list a text.
    cut : (n,) bool
        Whether the text had more tokens.

    Raises
    ------
    ValueError
        A text is not a string, or not valid Unicode.
    """
    lists: list[TokenLists] = []
    cut = np.zeros(len(texts), dtype=np.bool_)
    for start in range(0, len(texts), _CHUNK):
        chunk = [
            check_text(texts[j], name, j) for j in range(start, min(start + _CHUNK, len(texts)))
        ]
        encoded: list[Any] = tokenizer.encode_batch(chunk, add_special_tokens=False)
        ids = [one.ids for one in encoded]
        cut[start : start + len(ids)] = [len(one) > max_tokens for one in ids]
        lists.append(TokenLists.of([one[:max_tokens] for one in ids]))
    return _join(lists), cut


def check_text(text: object, name: str, position: int) -> str:
    """Return `text` if it is a string of valid Unicode, else raise a ValueError that names it."""
    if not isinstance(text, str):
        raise ValueError(f"{name.format(position)}: expected str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name.format(position)}: expected valid Unicode, got a lone surrogate at character "
            f"{error.start}"
        ) from error
    return text


def _join(parts: list[TokenLists]) -> TokenLists:
    if not parts:
        return TokenLists.of([])
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return TokenLists(offsets, np.concatenate([part.ids for part in parts]))
