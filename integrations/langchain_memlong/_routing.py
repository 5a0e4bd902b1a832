"""Whose memory a call uses, and whether it is anybody's turn: what the config says of it.

In: a runnable's config and the call's keyword arguments. Out: the arguments, with `session_id` and
`user_id` where the config names them. A chat model is never given its config by LangChain, so every
public method copies the ids into arguments first; there they show in traces and in cache keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables.config import RunnableConfig, ensure_config

SESSION_KEYS = ("memlong_session_id", "session_id", "thread_id")
USER_KEYS = ("user_id", "langgraph_user_id")


def routed(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` with the ids of `config`; ids that are in `kwargs` already win.

    Inside a chain or a graph the running config is found without being passed.
    """
    configurable: Mapping[str, Any] = ensure_config(config).get("configurable") or {}
    for name, keys in (("session_id", SESSION_KEYS), ("user_id", USER_KEYS)):
        found = next((configurable[key] for key in keys if configurable.get(key)), None)
        if kwargs.get(name) is None and found is not None:
            kwargs = {**kwargs, name: str(found)}
    return kwargs


def routed_turn(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """:func:`routed` for models. What LangChain's own middleware asks them for (a summary, which
    tools to offer) is nobody's turn: it neither reads nor writes, unless `kwargs` say so.
    """
    if (ensure_config(config).get("metadata") or {}).get("lc_source"):
        kwargs = {"memory": False, "write": "off", **kwargs}
    return routed(config, kwargs)
