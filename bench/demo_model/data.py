"""Training data of the demo's cross-encoder: docstrings, and queries that they answer."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cexnn.demo import corpus
from cexnn.demo.questions import ask, first_sentence
from cexnn.words import split_words

HELD_OUT_SHARE = 0.15
_SENTENCES = re.compile(r"(?<=[\w)\]'\"]{2}[.;])\s+(?=[A-Z`(])")
_SECTION = re.compile(r"^(?P<title>\w[\w ]*)\n[-=~]{3,}\n", re.MULTILINE)
_SEE_ALSO = re.compile(r"^\s*([\w.]+)\s+(?::|--?)\s+(\S.*)$")


@dataclass
class Doc:
    """A docstring: what the model is shown of it, and what else it says."""

    name: str
    group: str
    body: str
    rest: str
    first: str
    later: list[str]
    described: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """The text of the item."""
        return corpus.item_text(self.name, self.body)

    @property
    def masked(self) -> str:
        """The text of the item without its first sentence; empty if too little is left."""
        return corpus.item_text(self.name, self.rest) if len(self.rest.split()) >= 8 else ""


@dataclass(frozen=True)
class Ask:
    """A query, the number of the document that answers it, and how the query came about."""

    query: str
    doc: int
    kind: str


def group_of(name: str) -> str:
    """Name what is held out together: a module, or a subpackage of NumPy and SciPy."""
    return ".".join(name.split(".")[: 2 if name.startswith(("numpy.", "scipy.")) else 1])


def is_held_out(group: str) -> bool:
    """Whether the group's documents are kept for evaluation."""
    digest = hashlib.sha256(f"held out? {group}".encode()).digest()
    return digest[0] < 256 * HELD_OUT_SHARE


def installed() -> list[tuple[str, str]]:
    """Read the demo's items with their full docstrings."""
    kept = {item.id for item in corpus.load_items()}
    return [(name, doc) for name, doc in corpus.docstrings() if name in kept]


def from_wheels(folder: Path, *, per_wheel: int, seed: int) -> list[tuple[str, str]]:
    """Public docstrings in the sources of wheels, read without importing them."""
    found = []
    for path in sorted(folder.glob("*.whl")):
        entries = list(_parse_wheel(path))
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(entries))[:per_wheel]
        found.extend(entries[number] for number in sorted(chosen))
    return found


def _parse_wheel(path: Path) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(path) as wheel:
        for name in sorted(wheel.namelist()):
            parts = name.removesuffix(".py").split("/")
            if not name.endswith(".py") or any("test" in part for part in parts):
                continue
            try:
                tree = ast.parse(wheel.read(name))
            except (SyntaxError, ValueError):
                continue
            public = [part for part in parts if not part.startswith("_")]
            yield from _walk(tree, ".".join(public))


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented):
        doc = ast.get_docstring(node)
        if doc:
            yield name, doc
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, documented[1:]) and not child.name.startswith("_"):
                yield from _walk(child, f"{name}.{child.name}")


def documents(sources: Iterable[tuple[str, str]]) -> list[Doc]:
    """Take docstrings apart; near-empty and repeated ones are dropped."""
    docs: dict[str, Doc] = {}
    descriptions: list[tuple[str, str, str]] = []
    for name, docstring in sources:
        docstring = inspect.cleandoc(docstring)
        body = " ".join(corpus.lead(docstring))
        sections = _sections(docstring)
        for target, text in _described(docstring, sections.get("See Also", "")):
            descriptions.append((name, target, text))
        if len(split_words(body)) < 5 or body.lower() in docs:
            continue
        first = first_sentence(body)
        shown = corpus.item_text(name, body)
        tail = body[len(shown.partition(": ")[2]) :]
        later = _SENTENCES.split(tail)[1:4] if tail else []
        for title in ("Notes", "Returns"):
            text = corpus.clean(" ".join(sections.get(title, "").split("\n")[title == "Returns" :]))
            later.extend(_SENTENCES.split(text)[:2])
        later = [text for text in later if 5 <= len(split_words(text)) <= 40 and ":" not in text]
        rest = body[len(first) :].strip()
        docs[body.lower()] = Doc(name, group_of(name), body, rest, first, later)
    _attach(list(docs.values()), descriptions)
    said = Counter(text for doc in docs.values() for text in doc.later)
    for doc in docs.values():  # what many docstrings say asks for none of them
        doc.later = [text for text in doc.later if said[text] == 1]
    return list(docs.values())


def _sections(docstring: str) -> dict[str, str]:
    starts = list(_SECTION.finditer(docstring))
    ends = [match.start() for match in starts[1:]] + [len(docstring)]
    return {
        match["title"]: docstring[match.end() : end]
        for match, end in zip(starts, ends, strict=False)
    }


def _described(docstring: str, see_also: str) -> Iterator[tuple[str, str]]:
    for line in see_also.split("\n"):
        match = _SEE_ALSO.match(line)
        if match:
            yield match[1], corpus.clean(match[2])
    if ":toctree:" in docstring or "autosummary" in docstring:  # a package's table of contents
        for line in docstring.split("\n"):
            match = _SEE_ALSO.match(line)
            if match:
                yield match[1], corpus.clean(match[2])


def _attach(docs: list[Doc], descriptions: list[tuple[str, str, str]]) -> None:
    """Give each document what others say of it, unless that repeats its own first sentence."""
    by_name: dict[tuple[str, str], Doc] = {}
    for doc in sorted(docs, key=lambda doc: (doc.name.count("."), doc.name)):
        by_name.setdefault((doc.name.split(".")[0], doc.name.rpartition(".")[2]), doc)
    for source, target, text in descriptions:
        doc = by_name.get((source.split(".")[0], target.rpartition(".")[2]))
        if doc is None or len(split_words(text)) < 3 or text in doc.described:
            continue
        theirs, own = set(split_words(text)), set(split_words(doc.shown))
        if len(theirs & own) <= 0.6 * len(theirs):
            doc.described.append(text)


def queries(docs: list[Doc], n: int, *, seed: int, kinds: dict[str, float]) -> list[Ask]:
    """Draw queries of several kinds.

    ``first``: from the first sentence, the items are shown whole. ``masked``: the same, but
    every item is shown without its first sentence. ``later``: from sentences that the item's
    text does not show. ``described``: from what another docstring says of the item.
    """
    rng = np.random.default_rng(seed)
    able = {
        "first": list(range(len(docs))),
        "masked": [number for number, doc in enumerate(docs) if doc.masked],
        "later": [number for number, doc in enumerate(docs) if doc.later],
        "described": [number for number, doc in enumerate(docs) if doc.described],
    }
    found: list[Ask] = []
    for kind, share in kinds.items():
        chosen: list[int] = []
        while able[kind] and len(chosen) < round(n * share):
            chosen.extend(rng.permutation(able[kind]).tolist())
        for number in chosen[: round(n * share)]:
            doc = docs[number]
            options = {"later": doc.later, "described": doc.described}.get(kind, [doc.first])
            query = ask(options[rng.integers(len(options))], rng)
            if len(query.split()) >= 2:
                found.append(Ask(query, number, kind))
    return [found[number] for number in rng.permutation(len(found))]
