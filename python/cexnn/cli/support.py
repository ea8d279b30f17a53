"""What the commands share: reading files they are given, options, and errors in one line."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from cexnn.beir import QUERIES, qrels_file, read_part, read_split
from cexnn.cross_encoder.hub import find_model_files
from cexnn.index_folder import Settings
from cexnn.scorer import ScorerError
from cexnn.texts import Text, read_texts

try:
    import click
except ImportError as error:
    raise ImportError("the command line needs click: pip install 'cexnn[cpu]'") from error

__all__ = [
    "FILE",
    "FOLDER",
    "STREAM",
    "TEXTS",
    "Commands",
    "check_split",
    "click",
    "device_option",
    "max_length_option",
    "numbers",
    "opened",
    "parse_rounds",
    "read_embeddings",
    "read_queries",
    "read_text_file",
    "refuse",
    "rounds_option",
    "scores_file",
    "split_option",
    "threads_option",
]

TEXTS = click.Path(exists=True, allow_dash=True)
"""A file of texts, a folder in BEIR's format, or "-" for the standard input."""

STREAM = click.Path(exists=True, dir_okay=False, allow_dash=True)
"""A file, or "-" for the standard input."""

FILE = click.Path(exists=True, dir_okay=False)
"""A file."""

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
"""A folder."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


class InputError(click.ClickException):
    """Bad input: one line on stderr, exit code 2."""

    exit_code = 2


def refuse(message: str) -> InputError:
    """Make the error that ends a command: one line on stderr, exit code 2."""
    return InputError(" ".join(message.split()))


class Commands(click.Group):
    """A group whose commands end in one line on stderr where the library raises.

    Exit codes: 2 for bad input, 1 where the cross-encoder failed, 130 for Ctrl-C.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and translate what it raises."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except ScorerError as error:
            raise click.ClickException(" ".join(str(error).split())) from error
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            if isinstance(error, click.exceptions.Exit | click.Abort):
                raise
            raise refuse(str(error)) from error


def numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Read positive whole numbers between commas, as the callback of an option.

    Returns
    -------
    tuple of int
        Ascending and distinct.

    Raises
    ------
    click.BadParameter
        Something else.
    """
    try:
        found = sorted({int(part) for part in value.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise click.BadParameter(
            f"expected whole numbers above 0 between commas, got {value!r}", ctx, param
        )
    return tuple(found)


def rounds_option(function: _Function) -> _Function:
    """Add ``--rounds``; `parse_rounds` reads it."""
    return click.option(
        "--rounds",
        help='Rounds that share the budget: a number, or "auto".  [default: 5, or fewer for a '
        "budget below that]",
    )(function)


def parse_rounds(given: str | None, budget: int) -> int | str:
    """Read ``--rounds``.

    Raises
    ------
    click.ClickException
        Not a number from 1 to the budget, and not "auto".
    """
    if given is None:
        return min(5, budget)
    if given == "auto":
        return given
    if not given.isdecimal() or not 1 <= int(given) <= budget:
        raise refuse(f"--rounds: expected auto or a number from 1 to {budget}, got {given}")
    return int(given)


def split_option(default: str) -> Callable[[_Function], _Function]:
    """Add ``--split``; ``default`` tells people what is taken without it."""
    return click.option(
        "--split",
        help="Of queries in a folder in BEIR's format, take those that qrels/SPLIT.tsv labels.  "
        f"[default: {default}]",
    )


def threads_option(function: _Function) -> _Function:
    """Add ``--threads``."""
    return click.option(
        "--threads",
        "num_threads",
        type=click.IntRange(min=1),
        help="Threads to use.  [default: the CPUs this process may use]",
    )(function)


def device_option(function: _Function) -> _Function:
    """Add ``--device``."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to run: auto takes CUDA for the cross-encoder where ONNX Runtime has it, and "
        "the CPU for the rest.",
    )(function)


def max_length_option(function: _Function) -> _Function:
    """Add ``--max-length``."""
    return click.option(
        "--max-length",
        type=click.IntRange(min=4),
        default=512,
        show_default=True,
        help="Tokens of a pair at most.",
    )(function)


@contextmanager
def opened(path: str) -> Iterator[tuple[BinaryIO, str]]:
    """Open a file that the command line names, "-" being the standard input.

    Yields
    ------
    file, name
        The file, to read bytes, and its name for people.
    """
    if path == "-":
        yield sys.stdin.buffer, "standard input"
    else:
        with open(path, "rb") as file:
            yield file, path


def read_text_file(path: str, part: str) -> list[Text]:
    """Read a file of texts, see `cexnn.texts`, or this part of a folder, see `cexnn.beir`."""
    if os.path.isdir(path):
        return read_part(path, part)
    with opened(path) as (file, name):
        return read_texts(file, name)


def read_queries(path: str, split: str | None) -> list[Text]:
    """Read queries; of a folder in BEIR's format, those of ``--split`` if it is given."""
    check_split(path, split)
    if split is None:
        return read_text_file(path, QUERIES)
    return read_split(path, qrels_file(path, split))[0]


def check_split(path: str, split: str | None) -> None:
    """Refuse ``--split`` where the queries are no folder."""
    if split is not None and not os.path.isdir(path):
        raise refuse(f"--split: expected a folder in BEIR's format for the queries, got {path}")


def read_embeddings(option: str, path: str | os.PathLike[str], n: int) -> NDArray[np.float32]:
    """Read a matrix from NumPy's ``.npy`` format.

    Raises
    ------
    click.ClickException
        Not such a file, or not a matrix of ``n`` rows of finite floating-point numbers. Names the
        option and the file.
    """
    try:
        array = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise refuse(f"{option}: expected a NumPy file (.npy), got {path}: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim != 2:
        got = (
            f"{array.dtype} of shape {array.shape}"
            if isinstance(array, np.ndarray)
            else "several arrays"
        )
        raise refuse(f"{option}: expected a matrix of floating-point numbers in {path}, got {got}")
    if len(array) != n:
        raise refuse(f"{option}: expected {n} rows in {path}, one for each text, got {len(array)}")
    if not np.isfinite(array).all():
        raise refuse(f"{option}: expected finite numbers in {path}, got NaN or infinity")
    return np.ascontiguousarray(array, dtype=np.float32)


def scores_file(
    beside: Path, settings: Settings, items: Sequence[Text], queries: Sequence[Text] = ()
) -> Path:
    """Name a checkpoint after what its scores depend on and it does not know itself."""
    texts = [[text.text for text in side] for side in (items, queries)]
    digest = hashlib.sha256(repr((settings, *texts)).encode())
    for path in find_model_files(settings.model):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return beside.absolute().with_name(f"{beside.name}.{digest.hexdigest()[:12]}.scores")
