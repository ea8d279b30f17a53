"""The options of an engine, checked; also before there is a model to make one of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from cexnn.checks import check_float, check_int
from cexnn.engine.call_trace import CallTrace

__all__ = ["check_call_options", "check_options"]

_LEAST = {"max_batch_tokens": 1, "max_batch_pairs": 1, "max_queued_pairs": 1, "cache_pairs": 0}
_OPTIONAL = ("max_batch_tokens", "max_batch_pairs")
_NAMES = (*_LEAST, "max_wait_ms", "observer")


def check_options(options: Mapping[str, Any]) -> None:
    """Check options of `ScoringEngine`, as far as no scorer is needed for that.

    Raises
    ------
    ValueError
        An option that there is not, or a bad value; named.
    """
    for name, value in options.items():
        if name not in _NAMES:
            raise ValueError(f"engine: expected options among {', '.join(_NAMES)}, got {name!r}")
        if name in _LEAST and not (name in _OPTIONAL and value is None):
            check_int(name, value, minimum=_LEAST[name])
    check_float("max_wait_ms", options.get("max_wait_ms", 0), minimum=0)
    observer = options.get("observer")
    if observer is not None and not callable(getattr(observer, "on_batch", None)):
        raise ValueError(f"observer: expected one with on_batch, got {type(observer).__name__}")


def check_call_options(deadline: object, trace: object) -> float | None:
    """Check the options of a call of the engine, and return the deadline as a float.

    Raises
    ------
    ValueError
        A deadline that is no number, or a trace that is no `CallTrace`.
    """
    if trace is not None and not isinstance(trace, CallTrace):
        raise ValueError(f"trace: expected a CallTrace, got {type(trace).__name__}")
    if deadline is None:
        return None
    number = isinstance(deadline, Real) and not isinstance(deadline, bool)
    try:
        seconds = float(deadline) if number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        seconds = math.nan
    if math.isnan(seconds):
        raise ValueError(f"deadline: expected seconds of time.monotonic, got {deadline!r}")
    return seconds
