"""Settings of every test run: offline, quiet tokenizers, two torch threads.

The environment is set before the first import of a Hugging Face library, because these read it
once, when they are imported.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from postgres_server import own_postgres as own_postgres
from postgres_server import postgres as postgres

torch.set_num_threads(2)
