"""The LSA encoder: its formula, its promises, its file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn.lsa import LsaEncoder, _directions
from cexnn.words import split_pieces

TEXTS = [
    "sort a list of numbers",
    "sort an array in place",
    "open a file for reading",
    "read a file line by line",
    "close the file",
    "sum of an array of numbers",
    "readline reads one line of a file",
]


def test_vectors_are_unit_length_float32_and_contiguous() -> None:
    vectors = LsaEncoder.fit(TEXTS, n_dims=3, min_df=1)(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 3)
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def words_of(text: str) -> list[str]:
    stop_words = {"a", "an", "by", "for", "in", "of", "the"}
    return [word for word in text.split() if word not in stop_words]


def pieces_of(text: str) -> list[str]:
    return split_pieces(text, 4)


@pytest.mark.parametrize(("length", "terms_of"), [(None, words_of), (4, pieces_of)])
def test_is_the_truncated_svd_of_the_weighted_counts(
    length: int | None, terms_of: Callable[[str], list[str]]
) -> None:
    encoder = LsaEncoder.fit(TEXTS, n_dims=4, min_df=1, piece_length=length)
    terms = sorted({term for text in TEXTS for term in terms_of(text)})
    counts = np.array([[terms_of(text).count(term) for term in terms] for text in TEXTS])
    idf = np.log((1 + len(TEXTS)) / (1 + (counts > 0).sum(0))) + 1
    rows = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    right = np.linalg.svd(rows, full_matrices=False)[2][:4]
    wanted = rows @ right.T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = encoder(TEXTS)
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-5)


def test_is_deterministic_signs_included() -> None:
    first = LsaEncoder.fit(TEXTS, n_dims=3, min_df=1)(TEXTS)
    np.testing.assert_allclose(LsaEncoder.fit(TEXTS, n_dims=3, min_df=1)(TEXTS), first, atol=1e-6)
    other_seed = LsaEncoder.fit(TEXTS, n_dims=3, min_df=1, seed=5)(TEXTS)
    np.testing.assert_allclose(other_seed, first, atol=1e-4)


@pytest.mark.parametrize("times", [1, 5])  # fewer texts than words, and more
def test_words_that_repeat_give_the_same_encoder_each_time(times: int) -> None:
    verbs, nouns = ("copy", "delete", "open", "sort"), ("file", "list", "folder", "string", "date")
    texts = [f"{verb} a {noun} {verb}s {noun}s" for verb in verbs for noun in nouns] * times
    texts = texts if times > 1 else texts[::2]  # as many directions as there are: 9 words twice
    options: Any = {"n_dims": 7, "min_df": 1, "piece_length": None}
    first = LsaEncoder.fit(texts, **options)(texts)
    for _ in range(4):
        assert np.array_equal(LsaEncoder.fit(texts, **options)(texts), first)


def test_directions_by_texts_are_those_by_words() -> None:
    rows = csr_array(np.random.default_rng(0).random((20, 12)))
    for matrix in (rows, csr_array(rows.T)):
        found = _directions(matrix, 5, seed=0)
        wanted = np.linalg.svd(matrix.toarray(), full_matrices=False)[2][:5]
        assert np.allclose(np.abs((found * wanted).sum(axis=1)), 1)


def test_related_texts_are_near() -> None:
    encoder = LsaEncoder.fit(TEXTS, n_dims=3, min_df=1)
    similarity = encoder(["reading a file"]) @ encoder(TEXTS).T
    assert set(np.argsort(-similarity[0])[:4]) == {2, 3, 4, 6}


def test_by_pieces_words_of_one_stem_are_near() -> None:
    texts = ["reading lists", "a listed reader", "stop words", "stopping", "an open door", "opened"]
    queries = ["lister", "stopped", "opener"]
    by_words = LsaEncoder.fit(texts, n_dims=3, min_df=1, piece_length=None)
    assert not by_words(queries).any()
    encoder = LsaEncoder.fit(texts, n_dims=3, min_df=1, piece_length=4)
    best = np.argsort(-(encoder(queries) @ encoder(texts).T), axis=1)[:, :2]
    np.testing.assert_array_equal(np.sort(best, axis=1), [[0, 1], [2, 3], [4, 5]])


def test_unknown_words_give_zero() -> None:
    encoder = LsaEncoder.fit(TEXTS, n_dims=2, min_df=1)
    assert not encoder(["xyzzy", ""]).any()
    assert encoder([]).shape == (0, 2)


def test_texts_may_come_from_a_generator() -> None:
    encoder = LsaEncoder.fit((text for text in TEXTS), n_dims=2, min_df=1)
    expected = LsaEncoder.fit(TEXTS, n_dims=2, min_df=1)(TEXTS)
    np.testing.assert_array_equal(encoder(text for text in TEXTS), expected)


def test_one_by_one_gives_the_same() -> None:
    encoder = LsaEncoder.fit(TEXTS, n_dims=3, min_df=1)
    single = np.concatenate([encoder([text]) for text in TEXTS])
    np.testing.assert_allclose(single, encoder(TEXTS), atol=1e-6)


@pytest.mark.parametrize("length", [None, 4])
def test_round_trip(tmp_path: Path, length: int | None) -> None:
    encoder = LsaEncoder.fit(TEXTS, n_dims=3, min_df=1, piece_length=length)
    encoder.save(tmp_path / "lsa.bin")
    loaded = LsaEncoder.load(tmp_path / "lsa.bin")
    assert loaded.n_dims == 3
    np.testing.assert_array_equal(loaded(TEXTS), encoder(TEXTS))


def test_refuses_a_foreign_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no arrays")
    with pytest.raises(ValueError, match="path"):
        LsaEncoder.load(tmp_path / "text")
    np.savez(tmp_path / "other.npz", terms=np.arange(3, dtype=np.uint8))
    with pytest.raises(ValueError, match="path"):
        LsaEncoder.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        LsaEncoder.load(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("texts", "options", "name"),
    [
        ("one string", {}, "texts"),
        (dict.fromkeys(TEXTS), {}, "texts"),
        ([1, 2], {}, "texts[0]"),
        (TEXTS, {"n_dims": 1.5}, "n_dims"),
        (TEXTS, {"n_dims": 0}, "n_dims"),
        (TEXTS, {"n_dims": len(TEXTS), "min_df": 1}, "n_dims"),
        (TEXTS, {"n_dims": 2, "min_df": 0}, "min_df"),
        (TEXTS, {"n_dims": 2, "min_df": 100}, "n_dims"),
        (TEXTS, {"n_dims": 2, "piece_length": 0}, "piece_length"),
        (TEXTS, {"n_dims": 2, "piece_length": 4.0}, "piece_length"),
        (TEXTS, {"n_dims": 2, "min_df": 1, "seed": -1}, "seed"),
    ],
)
def test_bad_input(texts: Any, options: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name}:")):
        LsaEncoder.fit(texts, **options)


def test_beside_other_embeddings_the_dot_products_add_up() -> None:
    encoder = LsaEncoder.fit(TEXTS, n_dims=3, min_df=1)
    rng = np.random.default_rng(0)
    given = rng.normal(size=(len(TEXTS), 5))
    both = encoder.beside(given, TEXTS, weight=0.7)
    assert both.dtype == np.float32
    lengths = np.linalg.norm(given, axis=1)
    words = encoder(TEXTS) @ encoder(TEXTS).T * np.outer(lengths, lengths)
    np.testing.assert_allclose(both @ both.T, given @ given.T + 0.49 * words, atol=1e-5)
    np.testing.assert_array_equal(encoder.beside(given[2:3], TEXTS[2:3], weight=0.7), both[2:3])
    for wrong, options in ((given[1:], {}), (given, {"weight": -1.0})):
        with pytest.raises(ValueError, match="embeddings|weight"):
            encoder.beside(wrong, TEXTS, **options)
