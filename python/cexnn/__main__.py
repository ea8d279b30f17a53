"""The command ``cexnn``, and ``python -m cexnn``: the command line, or a line on what it lacks."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without its libraries, say on stderr which extra brings them."""
    try:
        from cexnn.cli import main as run
    except ImportError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
