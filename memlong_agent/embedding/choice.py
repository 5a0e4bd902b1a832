"""The embedder a user chose, or the bank remembers."""

from __future__ import annotations

from memlong_agent.embedding.base import Embedder
from memlong_agent.embedding.sentences import SentenceEmbedder, minilm
from memlong_agent.embedding.words import HashEmbedder, LexicalOnly
from memlong_agent.errors import ConfigError
from memlong_agent.identity import Identity


def resolve_embedder(
    choice: str | Embedder, recorded: Identity | None = None, device: str = "cpu"
) -> Embedder:
    """The embedder a user chose; `recorded` is the one that wrote the bank, if any.

    "auto" is the recorded one, else MiniLM; "minilm", "lexical" and "hash" are themselves; any
    other string is a folder or a model id. A model that differs from the recorded one only by
    where it lies takes the recorded name, so that a moved folder stays the same embedder.
    Raises `ConfigError` when there is nothing to use, saying what to install or pass.
    """
    if not isinstance(choice, str):
        return choice
    if choice == "auto":
        choice = _automatic(recorded)
    if choice == "lexical":
        return LexicalOnly()
    if choice == "hash":
        return HashEmbedder()
    embedder = minilm(device) if choice == "minilm" else SentenceEmbedder(choice, device)
    if recorded and embedder.identity.parts == {**recorded.parts, "embedder": embedder.name}:
        embedder.rename(recorded.parts.get("embedder", embedder.name))
    return embedder


def _automatic(recorded: Identity | None) -> str:
    if recorded is None:
        return "minilm"  # which names its extra when it is not installed
    if "embedder" not in recorded.parts:
        raise ConfigError(
            "The bank was written with an embedder of your own. Pass it as embedder=."
        )
    return recorded.parts["embedder"]
