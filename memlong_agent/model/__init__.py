"""The transformers seam: stock checkpoints that can encode chunks and attend to recalled ones.

Nothing is patched and no modeling code is copied. Knows no bank, no owner and no text format.
"""

from memlong_agent.model.load import load_model
from memlong_agent.model.seam import MemoryModel, Placement

__all__ = ["MemoryModel", "Placement", "load_model"]
