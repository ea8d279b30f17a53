"""Questions to the demo's items: some written by hand, others derived from docstrings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cexnn.demo.corpus import Item

QUESTIONS: tuple[str, ...] = (
    "how do I count how often each word occurs in a list?",
    "read a csv file with a header row",
    "how to run a shell command and capture its output",
    "solve a system of linear equations",
    "find the position of the largest value in an array",
    "how can I copy a folder with everything in it?",
    "turn a string holding json into python objects",
    "wait for several threads to finish",
    "fit a curve to noisy data points",
    "which function gives the eigenvalues of a symmetric matrix?",
    "get the directory part of a file name",
    "remember results of a function so it is not computed twice",
    "how do I sort an array and get the order of the indices?",
    "download a web page",
    "smooth a noisy signal",
    "difference between two dates in days",
    "pick a random element from a list",
    "how to find the minimum of a function of several variables",
    "test whether two samples have the same mean",
    "compress data before writing it to a file",
    "split text into words with a regular expression",
    "nearest neighbours of a point in space",
    "how do I make all combinations of elements of a list?",
    "numerically integrate a function between two bounds",
    "create a temporary file that is deleted afterwards",
    "join two arrays one after the other",
    "send an email from python",
    "how to measure how long a piece of code takes",
    "shortest path between nodes of a graph",
    "interpolate values between known points",
    "store a large matrix that is mostly zeros",
    "parse command line options",
    "hash a password or a file with sha256",
    "remove whitespace at both ends of a string",
    "how can I get the median while ignoring missing values?",
    "group data into clusters",
)
"""What a programmer might ask; the model was neither trained nor selected on these."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SYNONYM_LINES = """
    return get find give obtain, compute calculate find get, create make build, construct make
    build, remove delete drop, delete remove, retrieve get fetch, string text, directory folder,
    sequence list, iterable list, elements items values, element item value, dictionary dict,
    mapping dict, array list matrix vector, number amount count, convert turn transform change,
    concatenate join combine, determine find_out check, check test see, test check, invoke call
    run, execute run, parse read, mean average, callable function, integer whole_number, insert
    add put, append add, maximum largest biggest highest, minimum smallest lowest, largest
    biggest, terminate stop kill, suspend pause, equal same, unique distinct, specified, given,
    replace swap change, print show display, display show, evaluate compute, estimate guess
    approximate, generate create make, perform do run, write save store, load read open, copy
    duplicate clone, filename file_name, path file_name, exception error, raised thrown, split
    divide break_up, merge combine join, search look_for find, initialize set_up start, wait
    block, matrix array table, vector array, random arbitrary, approximate estimate, associated,
    corresponding matching, specify choose, modify change edit, object thing, argument input,
    arguments inputs, parameters inputs, obtain get, distance how_far, length size, size length,
    identical same, true, multiple several, contains has includes, contained inside, encode
    convert, decode convert read
"""
_SYNONYMS = {
    line.split()[0]: tuple(word.replace("_", " ") for word in line.split()[1:])
    for line in _SYNONYM_LINES.split(",")
}
_STOP = _words("""
    a an the of to in on at for from with by is are be as it its this that these those and or if
    which will can may has have into than
""")
_FILLERS = _words("""
    this is class function method module a an the convenience which it
""")
_BREAKS = _words("""
    that where which when if using with so such in from given for of
""")
_VERBS = _words("""
    add allow append apply approximate assert assign bind block build calculate call cancel cast
    change check clear clip close collect combine compare compile compress compute concatenate
    configure connect construct convert copy count create decode decompress decrease define
    delete deserialize detect determine dispatch display divide draw dump emit enable encode
    estimate evaluate exchange execute expand extract factor fetch fill filter find fit flush
    format gather generate get give group handle identify import increase indicate initialize
    insert integrate interpolate interpret invert invoke iterate join kill limit list load
    locate lock log look make map mark match measure merge minimize modify move multiply
    normalize notify obtain open order override parse perform permute pick plot pop prepare
    print process produce project provide push put query raise read receive record redirect
    reduce register release remove rename repeat replace report represent request reset reshape
    resize resolve restore retrieve return reverse roll rotate round run sample save scale
    schedule search select send separate serialize set shift show shuffle shut simulate skip
    smooth solve sort split stack start stop store strip subtract suspend swap take tell
    terminate test transform translate transpose trim truncate try turn unlock unpack unregister
    update use validate verify visit wait walk warn wrap write yield
""")
_ASK = (
    "how do I {}", "how do I {}?", "how to {}", "how can I {}?", "{}", "{}", "{} in python",
    "python {}", "function to {}", "what can I use to {}?", "is there a way to {}?",
    "I want to {}", "which function can {}?", "best way to {}",
)  # fmt: skip
_ASK_NOUN = (
    "{}", "{}", "python {}", "what is there for {}?", "how do I get {}?", "how to use {}",
    "something for {}", "{} in python", "which class is {}?", "where is {}", "how to work with {}",
)  # fmt: skip


def training_queries(items: Sequence[Item], n: int, *, seed: int = 0) -> list[str]:
    """Derive question-like queries from the first sentences of items.

    Parameters
    ----------
    items : sequence of Item
        Where the queries come from; each is used about equally often.
    n : int
        How many queries.
    seed : int
        Seed of the choices.

    Returns
    -------
    list of str
        Distinct queries, none of them the text of an item.

    Raises
    ------
    ValueError
        If the items do not give ``n`` distinct queries.
    """
    rng = np.random.default_rng(seed)
    texts = {item.text for item in items}
    found: dict[str, None] = {}
    for _ in range(2 * (n // max(len(items), 1) + 2)):
        for number in rng.permutation(len(items)):
            if len(found) >= n:
                return list(found)
            sentence = first_sentence(items[number].text.partition(": ")[2])
            query = ask(sentence, rng)
            if query and query not in texts:
                found[query] = None
    if len(found) < n:
        raise ValueError(f"n: expected at most what {len(items)} items can give, got {n}")
    return list(found)


def first_sentence(text: str) -> str:
    """Text up to the first full stop that ends a sentence."""
    return re.split(r"(?<=[\w)\]'\"]{2}[.;])\s+(?=[A-Z`(])", text, maxsplit=1)[0]


def ask(sentence: str, rng: np.random.Generator, *, n_words: int = 14) -> str:
    """Rewrite a sentence of a docstring as a programmer might ask for what it describes.

    The leading verb becomes part of a question, some words are replaced by everyday ones, some
    are dropped, and now and then only the keywords stay.

    Parameters
    ----------
    sentence : str
        One sentence.
    rng : numpy.random.Generator
        Makes the choices.
    n_words : int
        Words of the sentence used at most.

    Returns
    -------
    str
        The query; empty where the sentence holds nothing to ask for.
    """
    clauses = re.sub(r"\s*\([^)]*\)|[\"'“”]|::.*", "", sentence).split(", ")
    tokens = ", ".join(clauses[: rng.integers(1, 3)]).rstrip(" .;:,").lower().split()[:n_words]
    while len(tokens) > 1 and tokens[0] in _FILLERS:
        tokens.pop(0)
    if len(tokens) < 2:
        return ""
    breaks = [place for place, token in enumerate(tokens) if place > 3 and token in _BREAKS]
    if breaks and rng.random() < 0.5:
        tokens = tokens[: breaks[0]]
    tokens[0] = _base_form(tokens[0])
    is_verb = tokens[0] in _VERBS
    tokens = _reword(tokens, rate=rng.choice([0.0, 0.5, 0.9]), rng=rng)
    style = rng.random()
    if style < 0.2:  # keywords only
        tokens = [token for token in tokens if token.strip(",.") not in _STOP]
        if rng.random() < 0.3:
            rng.shuffle(tokens)
        return " ".join(tokens)
    if style < 0.5:
        kept = rng.random(len(tokens)) > 0.2
        kept[0] = True
        tokens = [token for token, keep in zip(tokens, kept, strict=True) if keep]
    templates = _ASK if is_verb else _ASK_NOUN
    return templates[rng.integers(len(templates))].format(" ".join(tokens))


def _base_form(word: str) -> str:
    for base in (word, word.removesuffix("s"), word.removesuffix("es"), word[:-3] + "y"):
        if base in _VERBS:
            return base
    return word


def _reword(tokens: list[str], *, rate: float, rng: np.random.Generator) -> list[str]:
    found = []
    for token in tokens:
        choices = _SYNONYMS.get(token)
        if choices is None or rng.random() >= rate:
            found.append(token)
        elif choices:
            found.append(choices[rng.integers(len(choices))])
    return found
