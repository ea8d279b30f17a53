"""The items of the demo: docstrings of the standard library, NumPy and SciPy, as installed."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import itertools
import pkgutil
import re
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cexnn.words import split_words

__all__ = [
    "Item",
    "clean",
    "docstrings",
    "item_text",
    "load_items",
]

MAX_PIECES = 42
"""Length of an item's text in pieces: up to eight letters or digits, or a mark. With a query of
a dozen words, a pair then fits 64 tokens."""

# Not imported: opens windows, browsers or a prompt, prints, is a test, a table or a relic, or
# changes the interpreter; or is another module's implementation under a second name.
_SKIPPED = """
    antigravity this idlelib turtle turtledemo tkinter lib2to3 test tests pydoc_data encodings
    distutils ensurepip readline rlcompleter posixpath ntpath genericpath posix nt sre_compile
    sre_constants sre_parse nturl2path imp asynchat asyncore smtpd xxlimited xxlimited_35 f2py
    testing conftest core compat setup version matlib typing ctypeslib windows_events
    windows_utils popen_spawn_win32 msilib winreg winsound msvcrt site aifc audioop cgi cgitb
    chunk crypt imghdr mailcap nis nntplib ossaudiodev pipes sndhdr spwd sunau telnetlib uu
    xdrlib expatbuilder fftpack mstats mstats_basic mstats_extras bdb curses imaplib mailbox
    wsgiref char rec defchararray lib
"""
# Where the functions of ``os`` and ``os.path`` are made.
_BEHIND = {"posix", "nt", "posixpath", "ntpath", "genericpath", "builtins"}
_RELICS = ("numpy.generic.", "numpy.matrix.", "numpy.chararray.", "numpy.ma.", "numpy.recarray.")
_POINTER = re.compile(
    r"(see|refer to|same as|scalar method|alias|deprecated|this file)\b|.*refer to numpy\."
)
_PIECE = re.compile(r"\w{1,8}|[^\w\s]")
_SIGNATURE = re.compile(r"^[\w.\[\], ]*[\w.]+\s?\(.*\)\s*(->.*|[:.]?)$")
_ROLE = re.compile(r":[\w:]+:`~?\.?([^`<]*?)(\s*<[^>]*>)?`")
_NOISE = re.compile(r"^(\.\. |>>>|[-=~^*]{3,}$|:\w+)")
_HEADER = re.compile(r"^\w[\w ]*\n[-=~]{3,}")


@dataclass(frozen=True)
class Item:
    """One docstring.

    Attributes
    ----------
    id : str
        The qualified name, such as ``"collections.Counter.most_common"``.
    text : str
        The name in words, a colon, and the beginning of the docstring.
    """

    id: str
    text: str


def load_items() -> list[Item]:
    """Read the docstrings that are installed here.

    Returns
    -------
    list of Item
        Several thousand items in the order of their ids. One docstring, one item: the copies
        that packages re-export or inherit are left out, and so are docstrings of a few words.
    """
    items: dict[str, Item] = {}
    for name, docstring in docstrings():
        body = " ".join(lead(docstring))
        enough = len(split_words(body)) >= 7 and not _POINTER.match(body.lower())
        if enough and not name.startswith(_RELICS):
            items.setdefault(body.lower(), Item(name, item_text(name, body)))
    texts = {item.text: item for item in sorted(items.values(), key=lambda item: item.id)}
    return list(texts.values())


def item_text(name: str, body: str) -> str:
    """Show a docstring the way the cross-encoder sees it.

    Parameters
    ----------
    name : str
        Qualified name.
    body : str
        Cleaned text.

    Returns
    -------
    str
        The name in words, a colon and the text, in whole words, `MAX_PIECES` pieces at most.

    Examples
    --------
    >>> item_text("os.path.join", "Join path components.")
    'os path join: Join path components.'
    """
    head = " ".join(dict.fromkeys(split_words(name)))
    words = f"{head}: {body}".split()
    lengths = itertools.accumulate(len(_PIECE.findall(word)) for word in words)
    return " ".join(
        word for word, length in zip(words, lengths, strict=True) if length <= MAX_PIECES
    )


def clean(text: str) -> str:
    r"""Give the plain words of a piece of reStructuredText, on one line.

    Examples
    --------
    >>> clean("Like :func:`~os.stat`, but for\n``path``.")
    'Like os.stat, but for path.'
    """
    return " ".join(_ROLE.sub(r"\1", text).replace("`", "").replace("*", "").split())


def lead(docstring: str) -> list[str]:
    """Paragraphs of a docstring before its first section, cleaned, without signatures.

    Parameters
    ----------
    docstring : str
        As `inspect.cleandoc` returns it.

    Returns
    -------
    list of str
        The paragraphs; none where there is only a signature.
    """
    found: list[str] = []
    for paragraph in docstring.split("\n\n"):
        paragraph = paragraph.strip("\n")
        if _HEADER.match(paragraph):
            break
        lines = [line for line in paragraph.split("\n") if not _NOISE.match(line.strip())]
        if not found:
            while lines and _SIGNATURE.match(lines[0].strip()):
                lines.pop(0)
        text = "" if "+--" in paragraph or "|==" in paragraph else clean(" ".join(lines))
        if text and not text.startswith(("Parameters:", "Args:", "Returns:")):
            found.append(text)
    return found


def docstrings() -> Iterator[tuple[str, str]]:
    """Qualified names and docstrings, one canonical name for each object.

    Yields
    ------
    tuple of str, str
        The shortest public name and the docstring, dedented; shortest names first.
    """
    with _quiet():
        found: dict[int, tuple[str, Any]] = {}
        for module_name, module in _modules():
            for name, thing in _things(module_name, module):
                known = found.get(id(thing))
                if known is None or _rank(name) < _rank(known[0]):
                    found[id(thing)] = name, thing
        documented = [(name, _doc(thing)) for name, thing in found.values()]
        for name, thing in found.values():
            if inspect.isclass(thing):
                documented += [(f"{name}.{key}", doc) for key, doc in _methods(thing)]
    for name, doc in sorted(documented, key=lambda entry: _rank(entry[0])):
        if doc:
            yield name, doc


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    silence = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            yield


def _modules() -> list[tuple[str, types.ModuleType]]:
    modules: list[tuple[str, types.ModuleType]] = []
    names = [*sorted(sys.stdlib_module_names), "os.path", "numpy", "scipy"]
    skipped = frozenset(_SKIPPED.split())
    while names:
        name = names.pop(0)
        last = name.rpartition(".")[2]
        if last.startswith("_") or last in skipped:
            continue
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit):  # not built here, or for another system
            continue
        modules.append((name, module))
        children = pkgutil.iter_modules(getattr(module, "__path__", ()))
        names.extend(sorted(f"{name}.{child.name}" for child in children))
    return modules


def _things(module_name: str, module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    yield module_name, module
    listed = getattr(module, "__all__", None)
    homes = {None, _home(module_name)} | (_BEHIND if listed is not None else set())
    for key in sorted(vars(module) if listed is None else listed):
        thing = getattr(module, key, None)
        if key.startswith("_") or isinstance(thing, types.ModuleType) or not callable(thing):
            continue
        if _home(getattr(thing, "__module__", None)) in homes:
            yield f"{module_name}.{key}".removeprefix("builtins."), thing


def _home(module_name: object) -> str | None:
    if not isinstance(module_name, str):
        return None
    return module_name.partition(".")[0].lstrip("_")


def _doc(thing: Any) -> str:
    doc = getattr(thing, "__doc__", None)
    if not isinstance(doc, str):
        return ""
    own = inspect.isclass(thing) or isinstance(thing, types.ModuleType)
    if not own and doc == getattr(type(thing), "__doc__", None):
        return ""
    return inspect.cleandoc(doc)


def _methods(cls: type) -> Iterator[tuple[str, str]]:
    for key, value in sorted(vars(cls).items()):
        if key.startswith("_") or inspect.isclass(value):
            continue
        function = getattr(value, "__func__", value)
        if inspect.isroutine(function):
            yield key, _doc(function)


def _rank(name: str) -> tuple[int, int, str]:
    return name.count("."), len(name), name
