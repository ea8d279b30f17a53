"""The service: an index and its cross-encoder over HTTP. Needs ``pip install 'cexnn[serve]'``.

``app`` puts together what answers which path; ``service`` does what the paths say, with one
``serving`` at a time (a retriever and its engines); ``gate`` is what every request passes.
"""

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
except ImportError as error:
    raise ImportError(
        "the service needs FastAPI and prometheus-client: pip install 'cexnn[serve]'"
    ) from error

from cexnn.service.app import create_app
from cexnn.service.limits import Limits

__all__ = ["Limits", "create_app"]
