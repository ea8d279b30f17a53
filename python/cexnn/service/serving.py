"""One index and one cross-encoder as they are served, until a reload puts others in their place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from cexnn.engine import ScoringEngine
from cexnn.retriever import Retriever

__all__ = ["Serving"]


class Serving:
    """A retriever and its engine, with a count of who uses them.

    Parameters
    ----------
    retriever : Retriever
        What searches; its scorer is a `ScoringEngine`.

    Raises
    ------
    ValueError
        Something else.
    """

    def __init__(self, retriever: Retriever) -> None:
        if not isinstance(retriever, Retriever):
            raise ValueError(f"retriever: expected a Retriever, got {type(retriever).__name__}")
        if not isinstance(retriever.scorer, ScoringEngine):
            raise ValueError(
                "retriever: expected one whose scorer is a ScoringEngine, got a "
                f"{type(retriever.scorer).__name__}"
            )
        self.retriever, self.engine = retriever, retriever.scorer
        self._n_users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Hold it open."""
        self._n_users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._n_users -= 1
            if self._n_users == 0:
                self._idle.set()

    async def close(self) -> None:
        """Close the engine, when nobody uses it any more and all that waits is scored."""
        await self._idle.wait()
        await asyncio.to_thread(self.engine.close)
