"""For tests: small real checkpoints, words put into a model's mouth, and the storage contract.

Nothing downloads. `StorageContract` needs pytest, which is why it is loaded when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from memlong_agent.testing.checkpoints import Family, preferring, tiny_checkpoint

if TYPE_CHECKING:
    from memlong_agent.testing.contract import StorageContract

__all__ = ["Family", "StorageContract", "preferring", "tiny_checkpoint"]


def __getattr__(name: str) -> Any:
    if name == "StorageContract":
        from memlong_agent.testing.contract import StorageContract

        return StorageContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
