"""Where model and bank meet: recall, prefill, decode, remember. Token ids and tensors only."""

from memlong_agent.engine.constraint import Constraint
from memlong_agent.engine.decode import Decoder, LiveWindow
from memlong_agent.engine.encoder import Encoder
from memlong_agent.engine.engine import Engine, Recalled
from memlong_agent.engine.sampling import Sampler

__all__ = ["Constraint", "Decoder", "Encoder", "Engine", "LiveWindow", "Recalled", "Sampler"]
