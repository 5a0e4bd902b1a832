"""memlong-agent: persistent key/value memory for local language models."""

__version__ = "0.1.0"
