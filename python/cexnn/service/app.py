"""The web application: paths, and what answers them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, params
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from cexnn.retriever import Retriever
from cexnn.service import errors
from cexnn.service.disconnect import ClientLeftError, while_connected
from cexnn.service.errors import ServiceError
from cexnn.service.gate import Gate
from cexnn.service.limits import Limits
from cexnn.service.schemas import (
    ErrorAnswer,
    RankedText,
    RerankAnswer,
    RerankRequest,
    SearchAnswer,
    SearchRequest,
)
from cexnn.service.service import Service

__all__ = ["create_app"]

PAGE = Path(__file__).parent / "page.html"

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "The token is missing or another."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    422: {"model": ErrorAnswer, "description": "The request is not as it should be."},
    500: {"model": ErrorAnswer, "description": "The cross-encoder or the service failed."},
    503: {
        "model": ErrorAnswer,
        "description": "There is enough to do; `Retry-After` says in how many seconds to come "
        "again.",
    },
}

TOKEN_ERRORS: dict[int | str, dict[str, Any]] = {401: ERRORS[401]}

RELOAD_ERRORS: dict[int | str, dict[str, Any]] = {
    401: ERRORS[401],
    403: {"model": ErrorAnswer, "description": "The service has no token."},
    500: {"model": ErrorAnswer, "description": "Loading failed; what was served before goes on."},
    501: {"model": ErrorAnswer, "description": "There is nothing to reload from."},
}

PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)

Reload = Callable[[], Retriever]


def create_app(
    retriever: Retriever,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    reload: Reload | None = None,
    model: str = "cross-encoder",
) -> FastAPI:
    """Make a web application that searches with a retriever.

    Run it with any ASGI server, or mount it into an application of your own:
    ``yours.mount("/search", create_app(retriever))``.

    Parameters
    ----------
    retriever : Retriever
        What searches; its scorer is a `ScoringEngine`, which the service closes when it ends, or
        when another retriever takes the place of this one.
    limits : Limits, optional
        What clients may ask for.
    token : str, optional
        What clients have to send as ``Authorization: Bearer TOKEN``, but for the page, ``/health``
        and ``/ready``. By default anybody may use the service, and ``/reload`` is refused.
    reload : callable, optional
        Returns the retriever, with an engine of its own, that ``POST /reload`` puts in the place
        of the one before; called in a thread. Without it there is nothing to reload.
    model : str
        Name of the cross-encoder, told to clients.

    Returns
    -------
    FastAPI
        ``app.state.service`` is the `Service`. The application's lifespan closes the engine when
        the server has answered what it accepted; where the application is mounted, no lifespan of
        its own runs: ``await app.state.service.close()`` does it, or else the interpreter's end.

    Raises
    ------
    ValueError
        A bad argument, named.

    Examples
    --------
    >>> import numpy as np
    >>> from cexnn import Index, PairScorer, Retriever, ScoringEngine
    >>> texts = ["a red fox", "a blue whale"]
    >>> index = Index.build(item_embeddings=np.eye(2, dtype=np.float32))
    >>> engine = ScoringEngine(PairScorer(lambda pairs: [float(q in i) for q, i in pairs], texts))
    >>> app = create_app(Retriever(index, engine, items=texts))
    >>> app.title
    'cexnn'
    """
    if token is not None and not token.strip():
        raise ValueError("token: expected a text that is not blank, got a blank one")
    service = Service(
        retriever,
        limits=limits or Limits(),
        reload=reload,
        model=model,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="cexnn",
        version=version("cexnn"),
        description="Finds a cross-encoder's best items for a small, fixed number of calls.",
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(
        Gate,
        limits=service.limits,
        token=token,
        metrics=service.metrics,
        handover=service.handover,
    )
    app.add_exception_handler(ServiceError, errors.from_service)
    app.add_exception_handler(RequestValidationError, errors.from_validation)
    app.add_exception_handler(HTTPException, errors.from_http)
    app.add_exception_handler(ClientLeftError, _nobody)
    # The gate is what checks the token; this is how the description tells clients of it.
    bearer = [] if token is None else [Depends(HTTPBearer(auto_error=False))]
    _add_work(app, service, bearer)
    _add_state(app, service, bearer)
    return app


def _add_work(app: FastAPI, service: Service, bearer: Sequence[params.Depends]) -> None:
    """Add the paths that call the cross-encoder."""

    @app.post(
        "/search",
        responses=ERRORS,
        response_model_exclude_unset=True,
        tags=["search"],
        dependencies=bearer,
    )
    async def search(request: Request, body: SearchRequest) -> SearchAnswer:
        """Find each query's best items, by the cross-encoder, for at most `budget` calls."""
        work = service.search(body, request.state.started)
        answer, request.state.found = await while_connected(request, work)
        return answer

    async def rerank(request: Request, body: RerankRequest) -> RerankAnswer | list[RankedText]:
        """Sort texts by the cross-encoder's score for a query, best first.

        Speaks to clients of Cohere's and Jina's services (`documents`, `top_n`,
        `return_documents`) and to those of Text Embeddings Inference (`texts`, `return_text`).
        """
        return await while_connected(request, service.rerank(body))

    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):  # as the base URLs of clients have it
        app.add_api_route(
            path,
            rerank,
            methods=["POST"],
            responses=ERRORS,
            response_model_exclude_unset=True,
            tags=["rerank"],
            dependencies=bearer,
            include_in_schema=path == "/rerank",
        )


def _add_state(app: FastAPI, service: Service, bearer: Sequence[params.Depends]) -> None:
    """Add the paths that tell how the service is, and the one that changes it."""

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(
            PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": PAGE_POLICY}
        )

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Tell that the process is alive."""
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", tags=["state"], responses={503: {"model": ErrorAnswer}})
    async def ready() -> dict[str, str]:
        """Tell whether the index and the cross-encoder are there to be used."""
        if not service.ready:
            raise ServiceError.not_ready()
        return {"status": "ready"}

    @app.get("/info", tags=["state"], responses=TOKEN_ERRORS, dependencies=bearer)
    async def info() -> JSONResponse:
        """Tell what is served: the index, the cross-encoder, the version, the limits."""
        return JSONResponse(service.info())

    @app.get("/metrics", tags=["state"], responses=TOKEN_ERRORS, dependencies=bearer)
    async def metrics() -> Response:
        """Tell what was done, as text for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/reload", tags=["state"], responses=RELOAD_ERRORS, dependencies=bearer)
    async def reload() -> JSONResponse:
        """Load the index anew; requests that are under way end with the one that they began with.

        Refused where the service has no token.
        """
        if not bearer:
            raise ServiceError(
                403, "forbidden", "reloading needs a service that was started with a token"
            )
        await service.reload()
        return JSONResponse(service.info())


def _nobody(request: Request, error: Exception) -> Response:
    """Answer a client that has left: nobody reads it."""
    return Response(status_code=499)
