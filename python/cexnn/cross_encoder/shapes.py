"""The few shapes that batches on a device have, so that most are met again.

Between two powers of two lie 8 widths, all multiples of 8, and 4 heights. Filling a batch up to the
next shape adds some 3 to 8 % to its tokens; with fewer shapes it would be more, with more of them
each would be met less often.
"""

from __future__ import annotations

__all__ = ["bucket_rows", "bucket_width", "full_rows"]

_WIDTHS, _LEAST_WIDTH, _HEIGHTS = 8, 8, 4


def bucket_width(longest: int, max_length: int) -> int:
    """Return the columns of a batch whose longest pair has so many tokens.

    Examples
    --------
    >>> [bucket_width(n, max_length=500) for n in (1, 64, 65, 129, 499)]
    [8, 64, 72, 144, 500]
    """
    return min(_rounded_up(longest, _WIDTHS, _LEAST_WIDTH), max_length)


def bucket_rows(n: int, width: int) -> int:
    """Return the rows of a batch of n pairs; with an odd width an even number.

    Examples
    --------
    >>> [bucket_rows(n, width=64) for n in (1, 3, 9, 11, 17, 100)]
    [1, 3, 10, 12, 20, 112]
    """
    rows = _rounded_up(n, _HEIGHTS, 1)
    return rows + rows * width % 2


def full_rows(n: int) -> int:
    """Return the largest number of rows that is no more than n.

    Examples
    --------
    >>> [full_rows(n) for n in (1, 3, 9, 11, 17, 100)]
    [1, 3, 8, 10, 16, 96]
    """
    step = max(1, (1 << (n.bit_length() - 1)) // _HEIGHTS)
    return n // step * step


def _rounded_up(n: int, sizes: int, least: int) -> int:
    """Return the next of so many sizes between two powers of two, all multiples of ``least``."""
    step = max(least, (1 << (n - 1).bit_length()) // (2 * sizes))
    return -(-n // step) * step
