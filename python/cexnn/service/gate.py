"""What every request passes: the token, the size of its body, its metrics, the last resort."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cexnn.engine.rate import Handover
from cexnn.service.disconnect import ClientLeftError
from cexnn.service.errors import ServiceError
from cexnn.service.limits import Limits
from cexnn.service.metrics import Metrics

__all__ = ["Gate"]

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/openapi.json"})
"""What needs no token: nothing of the index is told there."""


class Gate:
    """An ASGI middleware around the whole service.

    Refuses who has no token before anything of the request is read, reads the body up to its
    limit, counts and times requests, and turns what nobody caught into an answer.

    Parameters
    ----------
    app : ASGI application
        What it guards.
    limits : Limits
        Of the body.
    token : str or None
        What clients send as ``Authorization: Bearer ...``; None for no token.
    metrics : Metrics
        Where requests are counted.
    handover : Handover
        What learns the time from ``state.found``, the end of a search, until the answer is sent.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        token: str | None,
        metrics: Metrics,
        handover: Handover,
    ) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._handover = handover
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        scope.setdefault("state", {})["started"] = time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_token(scope)
            await self._app(scope, await self._read(scope, receive), noting)
        except ServiceError as error:
            response = error.response()
            response.headers["Connection"] = "close"  # its body was not read
            await response(scope, receive, noting)
        except ClientLeftError:
            pass  # nobody reads an answer
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if status:  # too late for another answer: the server closes the connection
                raise
            failure = ServiceError(500, "internal", "the service failed; its log says why")
            await failure.response()(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, status, time.perf_counter() - start)
            if "found" in scope["state"]:
                self._handover.add(time.monotonic() - scope["state"]["found"])

    def _check_token(self, scope: Scope) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if self._token is None or path in OPEN_PATHS:
            return
        kind, _, given = _header(scope, b"authorization").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
            raise ServiceError(401, "unauthorized", "expected the header Authorization: Bearer")

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body, and return a `receive` that gives it again, and then what comes."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        most = self._limits.max_body_bytes
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                messages = await _messages(receive, most)
        except TimeoutError:
            raise ServiceError(
                408, "timeout", f"the body did not arrive in {self._limits.body_seconds:g} s"
            ) from None
        queue = iter(messages)

        async def again() -> Message:
            message: Message | None = next(queue, None)
            return await receive() if message is None else message

        return again


async def _messages(receive: Receive, most: int) -> list[Message]:
    """Take the messages of a request until its body is whole."""
    messages: list[Message] = []
    n_bytes = 0
    while True:
        message = await receive()
        messages.append(message)
        n_bytes += len(message.get("body", b""))
        if n_bytes > most:
            raise _too_large(most)
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        if not message.get("more_body", False):
            return messages


def _header(scope: Scope, name: bytes) -> bytes:
    headers: list[tuple[bytes, Any]] = scope["headers"]
    return next((bytes(value) for key, value in headers if key == name), b"")


def _too_large(most: int) -> ServiceError:
    return ServiceError(413, "too_large", f"body: expected at most {most} bytes", argument="body")
