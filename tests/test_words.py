"""Texts taken apart into words and pieces."""

from __future__ import annotations

import pytest

from cexnn.words import split_pieces, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("snake_case_name", ["snake", "case", "name"]),
        ("CamelCaseName", ["camel", "case", "name"]),
        ("HTTPServer", ["http", "server"]),
        ("float32 and utf-8", ["float", "32", "and", "utf", "8"]),
        ("Größe, naïve", ["größe", "naïve"]),
        ("?!", []),
    ],
)
def test_splits_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("text", "length", "pieces"),
    [
        ("Sorted list", 4, [" sor", "sort", "orte", "rted", "ted ", " lis", "list", "ist "]),
        ("a be cat", 4, [" a ", " be ", " cat", "cat "]),
        ("readLine", 6, [" read ", " line "]),
        ("a be", 3, [" a ", " be", "be "]),
        ("?!", 4, []),
    ],
)
def test_splits_pieces_of_words(text: str, length: int, pieces: list[str]) -> None:
    assert split_pieces(text, length) == pieces
