"""Errors as clients see them: one shape, whatever went wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Self

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

__all__ = ["ServiceError", "from_http", "from_service", "from_validation"]

_NAMES = {404: "not_found", 405: "method_not_allowed"}
_ALTERNATIVES = {
    "str",
    "int",
    "Document",
    "function",
}  # of unions, named in a place beside its fields
_ARGUMENT = re.compile(r"([a-z_]+(?:\[\d+\])*): ")


class ServiceError(Exception):
    """Something that a client is told, as ``{"error": {"type", "message", "argument"}}``.

    Parameters
    ----------
    status : int
        Of HTTP.
    kind : str
        A word for programs: ``"invalid_request"``, ``"busy"``, ...
    message : str
        A sentence for people.
    argument : str, optional
        The part of the request that is at fault.
    retry_after : float, optional
        Seconds after which to try again.
    extra : mapping, optional
        What else to answer, beside the error.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        argument: str | None = None,
        retry_after: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.argument, self.retry_after = argument, retry_after
        self.extra = dict(extra or {})

    @classmethod
    def invalid(cls, argument: str | None, message: str) -> Self:
        """Make the error of a request that is not as it should be: status 422."""
        named = message if argument is None else f"{argument}: {message}"
        return cls(422, "invalid_request", named, argument=argument)

    @classmethod
    def from_value_error(cls, error: ValueError) -> Self:
        """Make the error of what the library says of an argument: "name: expected ..."."""
        message = " ".join(str(error).split())
        named = _ARGUMENT.match(message)
        return cls(422, "invalid_request", message, argument=named and named[1])

    @classmethod
    def not_ready(cls) -> Self:
        """Make the error of a service whose engine is closed: status 503."""
        return cls(503, "not_ready", "the service is shutting down", retry_after=5)

    @classmethod
    def busy(cls, retry_after: float) -> Self:
        """Make the error of a service that has enough to do: status 503."""
        return cls(
            503, "busy", "the service has as much to do as it may take on", retry_after=retry_after
        )

    def response(self) -> JSONResponse:
        """Return the answer of HTTP."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        error = {"type": self.kind, "message": self.message, "argument": self.argument}
        return JSONResponse({"error": error, **self.extra}, self.status, headers)


def from_service(request: Request, error: Exception) -> JSONResponse:
    """Answer a `ServiceError`."""
    assert isinstance(error, ServiceError)
    return error.response()


def from_http(request: Request, error: Exception) -> JSONResponse:
    """Answer what the web framework raises: no such path, another method, a body beyond reading."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # not UTF-8, too deep, a number of thousands of digits
        return ServiceError.invalid("body", "expected JSON, got what cannot be read").response()
    kind = _NAMES.get(error.status_code, "http_error")
    response = ServiceError(error.status_code, kind, str(error.detail)).response()
    response.headers.update(error.headers or {})
    return response


def from_validation(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that is not JSON, or not of the shape that the schema says."""
    assert isinstance(error, RequestValidationError)
    return _invalid(error.errors()[0]).response()


def _invalid(first: dict[str, Any]) -> ServiceError:
    """Say what is wrong with a body, of what Pydantic says first."""
    kind, given, context = first["type"], first.get("input"), first.get("ctx", {})
    if kind == "json_invalid":
        return ServiceError.invalid("body", f"expected JSON: {context.get('error')}")
    if isinstance(given, bytes):
        return ServiceError.invalid("body", "expected the header Content-Type: application/json")
    argument = _argument(first["loc"])
    if kind == "value_error":  # said by a schema of ours
        if argument == "body":
            return ServiceError.from_value_error(context["error"])
        return ServiceError.invalid(argument, str(context["error"]))
    if kind == "missing":
        return ServiceError.invalid(argument, "expected, and missing")
    message = first["msg"][:1].lower() + first["msg"][1:]
    return ServiceError.invalid(argument, f"{message}, got {_shown(given)}")


def _argument(location: tuple[int | str, ...]) -> str:
    """Name a place in the body as Python would: ``queries[3]``."""
    named = ""
    for part in location[1:]:
        if isinstance(part, int):
            named += f"[{part}]"
        elif part.isidentifier() and part not in _ALTERNATIVES:
            part = _short(part)  # the client's own word, where nothing has that name
            named += f".{part}" if named else part
    return named or "body"


def _shown(value: Any) -> str:
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
