"""Work that ends when nobody waits for its answer any more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

__all__ = ["ClientLeftError", "while_connected"]

Answer = TypeVar("Answer")


class ClientLeftError(Exception):
    """The client closed the connection before its answer."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Await work; cancel it when the client of the request, whose body was read, leaves.

    Raises
    ------
    ClientLeftError
        The client has left; the work has come to its end before this is raised.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        left.cancel()
        task.cancel()
        await asyncio.wait((task, left))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
