"""`MemLongRetriever`: a user's memories as LangChain documents.

In: a question, and whose memories. Out: documents with where they come from. Nothing is generated,
counted or written.
"""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from pydantic import Field

from langchain_memlong._pool import in_pool
from langchain_memlong._routing import routed
from langchain_memlong._settings import CONFIG, MemLongPlace
from memlong_agent.errors import ConfigError
from memlong_agent.records import Recall


class MemLongRetriever(MemLongPlace, BaseRetriever):
    """What would be recalled for a question, best first.

    User and session come from the call, the config or the constructor, as for `ChatMemLong`.
    Raises ConfigError when neither is known.
    """

    model_config = CONFIG

    k: int = Field(default=4, ge=1)
    """Most documents; one is a chunk of at most `chunk_tokens` tokens."""
    scope: Literal["owner", "session"] = "owner"
    """`owner` searches all sessions of the user, `session` only the one that is named."""

    def invoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        return super().invoke(input, config, **routed(config, kwargs))

    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        return await super().ainvoke(input, config, **routed(config, kwargs))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> list[Document]:
        return self._found(query, k, session_id, user_id)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
    ) -> list[Document]:
        return await in_pool(self._found, query, k, session_id, user_id)

    def _found(
        self, query: str, k: int | None, session_id: str | None, user_id: str | None
    ) -> list[Document]:
        session, user = session_id or self.session_id, user_id or self.user_id
        if self.scope == "session" and session is None:
            raise ConfigError('scope="session" needs a session. Pass session_id, or scope="owner".')
        memories = self.memlong().memories(user_id=user, session_id=session)
        narrowed = session if self.scope == "session" else None
        found = memories.search(query, top_k=self.k if k is None else k, session_id=narrowed)
        return [_document(recall) for recall in found]


def _document(recall: Recall) -> Document:
    metadata = recall.model_dump(mode="json", exclude={"text", "attention_mass"})
    return Document(
        id=f"{recall.memory_id}-{recall.chunk}", page_content=recall.text, metadata=metadata
    )
