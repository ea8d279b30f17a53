"""``cexnn serve``: an index and its cross-encoder over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cexnn.cli.support import FILE, FOLDER, click, device_option, refuse, threads_option
from cexnn.index_folder import read_folder
from cexnn.retriever import Retriever

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["LIMITS", "listen", "serve"]

TOKEN = "CEXNN_TOKEN"
"""The environment variable that may hold the token."""

BACKLOG = 2048

LIMITS = {
    "max_queries": (32, "Queries of a search request."),
    "max_query_chars": (4096, "Characters of a query."),
    "max_k": (1000, "Hits for each query."),
    "max_budget": (2000, "Calls of the cross-encoder for each query."),
    "max_filter_ids": (10000, "Ids that a search request excludes, searches among, or opens with."),
    "max_deadline_ms": (60000.0, "Milliseconds of a deadline."),
    "max_documents": (1000, "Documents of a rerank request."),
    "max_document_chars": (65536, "Characters of a document."),
    "max_body_bytes": (8 << 20, "Bytes of a request."),
    "body_seconds": (30.0, "Seconds that the body of a request may take to arrive."),
    "max_pending_pairs": (
        8192,
        "Pairs that accepted requests may still cost; beyond that they are told to come again.",
    ),
}
"""Options of the limits, their defaults, and what each limits; the same as `service.Limits`."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def limit_options(function: _Function) -> _Function:
    """Add an option for each limit."""
    for name, (default, what) in reversed(LIMITS.items()):
        kind = click.FloatRange(min=1e-3) if isinstance(default, float) else click.IntRange(min=1)
        function = click.option(
            f"--{name.replace('_', '-')}", type=kind, default=default, show_default=True, help=what
        )(function)
    return function


@click.command(short_help="Serve an index over HTTP.")
@click.argument("index", type=FOLDER)
@click.option(
    "--model",
    help="The cross-encoder: a folder or a repository of the Hugging Face Hub, as for build.  "
    "[default: the one that the index was built with]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen at; 0 for any that is free.",
)
@click.option(
    "--token-file",
    type=FILE,
    help="File with the token that clients have to send as Authorization: Bearer.  "
    f"[default: the environment variable {TOKEN}, or no token]",
)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(min=1),
    help="Tokens of a batch of the model at most, padding included.  [default: by the threads]",
)
@click.option(
    "--max-wait-ms",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Milliseconds that pairs wait for others' to fill a batch, while the model is idle.",
)
@click.option(
    "--cache-pairs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Scores to keep, so that a repeated question costs nothing.",
)
@limit_options
@click.option(
    "--grace-seconds",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Seconds to answer what was accepted, once told to stop.",
)
@click.option("--access-log/--no-access-log", default=False, help="Whether to log each request.")
@device_option
@threads_option
def serve(
    index: Path,
    model: str | None,
    host: str,
    port: int,
    token_file: str | None,
    max_batch_tokens: int | None,
    max_wait_ms: float,
    cache_pairs: int,
    grace_seconds: int,
    access_log: bool,
    device: str,
    num_threads: int | None,
    **limits: Any,
) -> None:
    """Serve the folder INDEX, which "cexnn build" wrote, over HTTP.

    POST /search and /rerank, GET /health, /ready, /info and /metrics, and a page to try it at /.
    POST /reload, with the token, reads INDEX again without dropping a request. SIGTERM and Ctrl-C
    end it when all that was accepted is answered. How slowly a client may send a request's head is
    not limited: where strangers can connect, put a reverse proxy in front that does. Needs
    pip install 'cexnn[serve]'.
    """
    from cexnn.service import Limits, create_app

    def load() -> Retriever:
        return _open(
            index,
            model,
            device,
            num_threads,
            max_batch_tokens=max_batch_tokens,
            max_wait_ms=max_wait_ms,
            cache_pairs=cache_pairs,
        )

    token = _token(token_file)
    retriever = load()
    name = model or read_folder(index).settings.model
    app = create_app(
        retriever,
        limits=Limits(**limits),
        token=token,
        reload=load,
        model=Path(name).name if Path(name).is_dir() else name,
    )
    listening = listen(host, port)
    address = f"http://{_shown(host)}:{listening.getsockname()[1]}"
    click.echo(f"cexnn serves {retriever.index.n_items:,} items at {address}", err=True)
    _run(app, listening, grace_seconds=grace_seconds, access_log=access_log)


def _open(
    index: Path, model: str | None, device: str, num_threads: int | None, **engine_options: Any
) -> Retriever:
    """Read an index and load its cross-encoder, or another."""
    folder = read_folder(index, device=device)
    if model is not None:
        folder = replace(folder, settings=replace(folder.settings, model=model))
    return Retriever.from_content(
        folder, device=device, num_threads=num_threads, engine=engine_options
    )


def _token(path: str | None) -> str | None:
    """Read the token from its file, or from the environment."""
    if path is None:
        token = os.environ.get(TOKEN)
        where = TOKEN
    else:
        token = Path(path).read_text(encoding="utf-8")
        where = f"--token-file: {path}"
    if token is None:
        return None
    if len(token.split()) != 1 or not token.isascii():
        raise refuse(f"{where}: expected a token in ASCII without blanks in it")
    return token.strip()


def listen(host: str, port: int) -> socket.socket:
    """Listen at an address, or say why not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise refuse(f"--host, --port: cannot listen at {_shown(host)}:{port}: {error}") from error
    # Inherited by connections; without it an answer waits 40 ms for the client's word on its head.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _run(app: FastAPI, listening: socket.socket, *, grace_seconds: int, access_log: bool) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted is answered, and the exit code is 0."""
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError("serving needs uvicorn: pip install 'cexnn[serve]'") from error

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="on",
            log_level="info" if access_log else "warning",
            access_log=access_log,
            server_header=False,
            ws="none",  # nothing here speaks it
            timeout_graceful_shutdown=grace_seconds,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn sends itself the signal that ended it
        signal.signal(number, _end)
    server.run(sockets=[listening])


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)
