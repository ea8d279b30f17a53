"""What ``cexnn demo`` runs on: the docstrings of installed packages and a small cross-encoder."""

from cexnn.demo.corpus import Item, load_items
from cexnn.demo.questions import QUESTIONS, training_queries
from cexnn.demo.run import MODEL

__all__ = ["MODEL", "QUESTIONS", "Item", "load_items", "training_queries"]
