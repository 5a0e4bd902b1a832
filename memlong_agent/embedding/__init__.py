"""From text to unit vectors, for finding memories.

In: strings. Out: float32 vectors of length 1, an identity (which model made them), and the cosine
below which a memory is not worth recalling. Four embedders: any sentence-transformers model, MiniLM
from its wheel, a hash of words, and none at all. Knows no chunk, no bank and no language model.

Letters: N texts, E embedding dimensions.
"""

from memlong_agent.embedding.base import Embedder, Vectors, points_somewhere
from memlong_agent.embedding.choice import resolve_embedder
from memlong_agent.embedding.sentences import THRESHOLDS, SentenceEmbedder, minilm
from memlong_agent.embedding.words import HashEmbedder, LexicalOnly

__all__ = [
    "THRESHOLDS",
    "Embedder",
    "HashEmbedder",
    "LexicalOnly",
    "SentenceEmbedder",
    "Vectors",
    "minilm",
    "points_somewhere",
    "resolve_embedder",
]
