"""What a service takes from its clients: how much of everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from cexnn.checks import check_float, check_int
from cexnn.service.errors import ServiceError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What a service takes from its clients; whoever asks for more gets an error that says so.

    Attributes
    ----------
    max_queries : int
        Queries of a search request.
    max_query_chars, max_document_chars : int
        Characters of a query, and of a document to rerank.
    max_documents : int
        Documents of a rerank request.
    max_k, max_budget : int
        Of a search request.
    max_filter_ids : int
        Ids that a search request excludes, searches among, or opens with for a query.
    max_deadline_ms : float
        The longest deadline, in milliseconds.
    max_body_bytes : int
        Bytes of a request's body.
    body_seconds : float
        Seconds that a request's body may take to arrive.
    max_pending_pairs : int
        Pairs that accepted requests may still cost the cross-encoder, all together; a request
        that does not fit is told to come back later. One alone always fits.

    Raises
    ------
    ValueError
        Not a whole number of at least 1 (for seconds and milliseconds: a positive number).
    """

    max_queries: int = 32
    max_query_chars: int = 4096
    max_document_chars: int = 65536
    max_documents: int = 1000
    max_k: int = 1000
    max_budget: int = 2000
    max_filter_ids: int = 10000
    max_deadline_ms: float = 60000.0
    max_body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    max_pending_pairs: int = 8192

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float):
                check_float(field.name, value, minimum=1e-3)
            else:
                check_int(field.name, value, minimum=1)

    def check_number(self, argument: str, value: float, limit: str) -> None:
        """Refuse a number above the limit of that name.

        Raises
        ------
        ServiceError
            With status 422.
        """
        most = getattr(self, limit)
        if value > most:
            got = f"{value:g}" if value < 1e300 else "a far larger number"  # :g takes no more
            raise ServiceError.invalid(argument, f"expected at most {most:g}, got {got}")

    def check_count(self, argument: str, values: Sequence[object], limit: str) -> None:
        """Refuse more elements than the limit of that name."""
        most = getattr(self, limit)
        if len(values) > most:
            raise ServiceError.invalid(argument, f"expected at most {most}, got {len(values)}")

    def check_text(self, argument: str, text: str, limit: str) -> None:
        """Refuse a text that is blank, or longer than the limit of that name."""
        most = getattr(self, limit)
        if len(text) > most:
            raise ServiceError.invalid(
                argument, f"expected at most {most} characters, got {len(text)}"
            )
        if not text.strip():
            raise ServiceError.invalid(argument, "expected a text, got a blank one")
