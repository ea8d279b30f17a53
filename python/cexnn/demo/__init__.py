"""What ``cexnn demo`` runs on: the docstrings of installed packages and a small cross-encoder."""
