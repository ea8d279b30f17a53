"""Corpora of public texts for bench_corpora.py, and a cross-encoder's scores of them.

A corpus is a folder: ``texts.json`` (items, tested and training queries), ``pairs.npy`` (which
training pairs are scored), and the checkpoints of `score_pairs` and `exact`, named after the model
that scored. What is there is taken as it is, so a run that was cut short goes on where it ended,
and texts that change with what is installed, or on a mirror, stay those that were scored.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from cexnn import CrossEncoder, LsaEncoder, sample_pairs, score_pairs
from cexnn.demo import load_items, training_queries
from cexnn.evaluate import exact
from cexnn.training import nearest_items

PER_QUERY, MAX_LENGTH = 64, 64  # training pairs, half of them random; tokens of a pair


class Sizes(NamedTuple):
    """How much of a source is taken.

    Of ``n_queries`` the first ``n_tested`` are tested, the others train. ``n_further`` of those
    that come to them where ``n_drawn`` are drawn are tested, too.
    """

    n_items: int
    n_queries: int
    n_tested: int
    n_drawn: int
    n_further: int


class Texts(NamedTuple):
    """What a corpus is made of."""

    items: list[str]
    tested: list[str]
    training: list[str]


@dataclass(frozen=True)
class Scored:
    """A corpus with its scores.

    Attributes
    ----------
    texts : Texts
    table : (n_tested, n_items) float32
        Every score of the tested queries.
    scores : CSR (n_training, n_items) float32
        `PER_QUERY` scores of each training query.
    facts : dict
        Sizes, and SHA-256 of the texts and of the model.
    """

    texts: Texts
    table: np.ndarray
    scores: csr_array
    facts: dict


def parted(items, first, drawn, sizes):
    """Part queries into tested and training ones."""
    known = set(first)
    further = [query for query in drawn if query not in known]
    np.random.default_rng(7).shuffle(further)
    tested = first[: sizes.n_tested] + further[: sizes.n_further]
    texts = Texts(items, tested, first[sizes.n_tested :])
    wanted = (sizes.n_items, sizes.n_tested + sizes.n_further, sizes.n_queries - sizes.n_tested)
    if tuple(map(len, texts)) != wanted:
        raise ValueError(f"source: expected enough for {sizes}, got {tuple(map(len, texts))}")
    return texts


def docstrings(_source, sizes):
    """Docstrings of the demo, and questions made of them."""
    items = load_items()
    some = np.random.default_rng(2).choice(len(items), sizes.n_items, replace=False)
    first, drawn = (training_queries(items, n) for n in (sizes.n_queries, sizes.n_drawn))
    return parted([items[i].text for i in sorted(some)], first, drawn, sizes)


class Synset(NamedTuple):
    """Words of one meaning, its definition, and sentences with one of them."""

    words: list[str]
    definition: str
    examples: list[str]


def synsets_of(folder):
    """Read WordNet's ``data.*`` (its manual page wndb(5WN) says how), by part of speech and id."""
    found = {}
    for part in ("noun", "verb", "adj", "adv"):
        with open(Path(folder) / f"data.{part}", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(" "):  # the licence
                    continue
                head, gloss = line.split(" | ", 1)
                fields = head.split()
                words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                definition = gloss.split('; "')[0].split('"')[0].strip(" ;:")
                if definition:
                    found[fields[2] + fields[0]] = Synset(
                        [word.replace("_", " ").split("(")[0] for word in words],
                        definition,
                        re.findall(r'"([^"]+)"', gloss),
                    )
    return found


def sentences(keys, synsets, senses):
    """Yield queries, a word of four meanings or more and a sentence with it, and their synset."""
    used = set()
    for key in keys:
        for example in synsets[key].examples:
            in_it = (
                w for w in synsets[key].words if re.search(rf"\b{re.escape(w)}", example, re.I)
            )
            word = next(in_it, None)
            if word is None or word in used or not 5 <= len(example.split()) <= 16:
                continue
            if len(senses[word.lower()]) >= 4:
                used.add(word)
                yield f"{word}: {example}", key
                break


def shuffled(rng, rows):
    rows = list(rows)
    rng.shuffle(rows)
    return rows


def wordnet(folder, sizes):
    """Glosses of WordNet, many of them of one word's several meanings; words in sentences."""
    synsets, senses = synsets_of(folder), {}
    for key, synset in synsets.items():
        for word in synset.words:
            senses.setdefault(word.lower(), []).append(key)
    rng = np.random.default_rng(0)
    keys = shuffled(rng, sorted(synsets))
    found = list(sentences(keys, synsets, senses))
    first = shuffled(deepcopy(rng), found[: sizes.n_queries])
    drawn = shuffled(rng, found[: sizes.n_drawn])
    kept = {key for _, key in first}
    for _, key in first:  # the word's other meanings, up to four items of five
        for word in synsets[key].words:
            for other in senses[word.lower()][:5]:
                if len(kept) < 0.8 * sizes.n_items:
                    kept.add(other)
    kept.update([key for key in keys if key not in kept][: sizes.n_items - len(kept)])
    items = [
        f"{', '.join(words[:3])}: {' '.join(definition.split()[:24])}"
        for words, definition, _ in map(synsets.get, sorted(kept))
    ]
    return parted(items, [query for query, _ in first], [query for query, _ in drawn], sizes)


def debian(path, sizes):
    """Long descriptions of Debian's packages; other packages' short ones."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    form = re.compile(r"Package: (\S+)\nDescription-md5: \S+\nDescription-en: (.*)\n((?: .*\n?)*)")
    parts = re.compile(
        r"(lib|golang|python3|node|ruby|r-cran|librust)|.*(dev|doc|dbg|data|common)$"
    )
    found = {}
    for name, short, long in (m.groups() for m in map(form.match, text.split("\n\n")) if m):
        paragraph = " ".join(long.split("\n .\n")[0].split())
        if len(paragraph.split()) >= 25 and not parts.match(name):
            found.setdefault(paragraph[:60], (name, short, paragraph))
    packages = shuffled(np.random.default_rng(1), sorted(found.values()))
    items = [" ".join(long.split()[:48]) for _, _, long in packages[: sizes.n_items]]
    shorts = dict.fromkeys(short for _, short, _ in packages[sizes.n_items :])
    queries = [short for short in shorts if len(short.split()) >= 4]
    return parted(items, queries[: sizes.n_queries], queries[: sizes.n_drawn], sizes)


CORPORA = {
    "docstrings": (docstrings, Sizes(3000, 480, 80, 680, 100)),
    "wordnet": (wordnet, Sizes(2500, 480, 80, 880, 100)),
    "debian": (debian, Sizes(2000, 340, 40, 460, 60)),
}


def replaced(path, data):
    """Write a file that is there whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(data)
    os.replace(scratch, path)


def texts_of(name, folder, source):
    """Read a corpus' texts, or make and keep them; ``source`` is then where they come from."""
    path = folder / "texts.json"
    if not path.exists():
        make, sizes = CORPORA[name]
        if source is None and name != "docstrings":
            raise ValueError(f"{name}: {path} is not there, and no source to make it from is given")
        folder.mkdir(parents=True, exist_ok=True)
        replaced(path, json.dumps(make(source, sizes)._asdict(), indent=0).encode())
    return Texts(**json.loads(path.read_bytes()))


def training_pairs(folder, texts):
    """Read which pairs train, or choose and keep them: nearest by whole words, or random."""
    path = folder / "pairs.npy"
    if not path.exists():
        encoder = LsaEncoder.fit(texts.items, piece_length=None)
        nearest = nearest_items(encoder(texts.items), encoder(texts.training), PER_QUERY)
        sizes = (len(texts.training), len(texts.items), PER_QUERY)
        pairs = sample_pairs(*sizes, candidates=nearest, random_fraction=0.5, seed=0)
        scratch = folder / f".pairs.{os.getpid()}.npy"
        np.save(scratch, np.stack(pairs))
        os.replace(scratch, path)
    return np.load(path)


def scored(name, folder, source, model, progress=False):
    """Make a corpus and score it, or what of it is not in the folder yet.

    Parameters
    ----------
    name : str
        In `CORPORA`.
    folder, source, model : Path
        Of the corpus, of what it is made from, and of the cross-encoder, with ``tokenizer.json``
        beside it.
    progress : bool
        Bars on stderr.

    Returns
    -------
    Scored
    """
    texts = texts_of(name, folder, source)
    n_items = len(texts.items)
    rows, items = training_pairs(folder, texts)
    hashed = hashlib.sha256(model.read_bytes()).hexdigest()
    paths = [folder / f"{what}-{hashed[:12]}.scores" for what in ("training", "tested")]
    encoder = CrossEncoder(model, model.with_name("tokenizer.json"), max_length=MAX_LENGTH)
    scorer = encoder.bind(texts.items)
    options = {"checkpoint": paths[0], "chunk_size": 1024, "progress": progress}
    scores = score_pairs(scorer, texts.training, rows, items, n_items=n_items, **options)
    options = {"checkpoint": paths[1], "progress": progress}
    ids, sorted_scores = exact(scorer, texts.tested, n_items, n_items, **options)
    table = np.empty_like(sorted_scores)
    np.put_along_axis(table, ids, sorted_scores, axis=1)
    facts = {
        **{f"n_{kind}": len(given) for kind, given in texts._asdict().items()},
        "n_scores": scores.nnz,
        "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "model_sha256": hashed,
    }
    return Scored(texts, table, scores, facts)
