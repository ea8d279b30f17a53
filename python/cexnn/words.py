"""Texts taken apart: into words, and into pieces of words."""

from __future__ import annotations

import re

__all__ = ["STOP_WORDS", "split_pieces", "split_words"]

_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_STOP_WORDS = """
    a an and are as at be been but by can did do does for from had has have he her his how i if
    in into is it its me my no not of on or our she should so some such than that the their them
    then there these they this those to was we were what when where which while who whom why will
    with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def split_words(text: str) -> list[str]:
    """Lowercase words of a text, with snake_case and CamelCase identifiers taken apart.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    list of str
        Runs of letters and runs of digits, in the order of the text.

    Examples
    --------
    >>> split_words("HTTPServer.read_line2")
    ['http', 'server', 'read', 'line', '2']
    """
    return [part.lower() for word in _WORD.findall(text) for part in _CAMEL.split(word)]


def split_pieces(text: str, length: int) -> list[str]:
    """Cut each word of a text, with a space on either side, into runs of so many characters.

    Parameters
    ----------
    text : str
        Any text.
    length : int
        Characters of a piece. A word that is shorter with its spaces is one piece.

    Returns
    -------
    list of str
        Of the words of `split_words`, word after word; pieces overlap.

    Examples
    --------
    >>> split_pieces("I sorted", 4)
    [' i ', ' sor', 'sort', 'orte', 'rted', 'ted ']
    """
    return [
        word[at : at + length]
        for word in (f" {word} " for word in split_words(text))
        for at in range(max(1, len(word) - length + 1))
    ]
