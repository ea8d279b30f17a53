"""k-nearest-neighbour search with cross-encoders, for a small fixed number of calls."""
