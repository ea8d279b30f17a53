"""Progress bars: on stderr, only to a terminal, only where asked for."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, Self

__all__ = ["ProgressBar", "progress_bar"]


class ProgressBar(Protocol):
    """What `progress_bar` returns: a context manager that counts."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def update(self, n: int, /) -> object:
        """Count ``n`` more steps."""
        ...


class _NoBar:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def update(self, n: int, /) -> None:
        return None


def progress_bar(
    enabled: bool, total: int, *, description: str, unit: str, initial: int = 0
) -> ProgressBar:
    """Return a progress bar that shows nothing unless enabled and stderr is a terminal.

    Parameters
    ----------
    enabled : bool
        Whether the caller asked for a bar.
    total : int
        Number of steps in all.
    description, unit : str
        What is being done, and the name of one step.
    initial : int
        Steps done before.

    Returns
    -------
    ProgressBar
        To be used in a ``with`` statement.

    Raises
    ------
    ImportError
        A bar was asked for and tqdm is not installed.

    Examples
    --------
    >>> with progress_bar(False, 10, description="score", unit="pair") as bar:
    ...     _ = bar.update(10)
    """
    if not enabled:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'cexnn[cpu]'") from error
    bar: ProgressBar = tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        unit_scale=True,
        file=sys.stderr,
        disable=None,  # tqdm's word for "only to a terminal"
    )
    return bar
