"""`memlong train`: from nothing to a checkpoint in the memlong layout, resumable at any moment.

Two phases, as in the paper: `base` trains a decoder from scratch, with its facts now in the window,
now in memory; `memory` freezes embeddings and layers 0..m and tunes the layers above and the gates,
from here on partly on what the real embedder retrieves. Both are repeated, shorter and slower, as
warm restarts (Loshchilov & Hutter 2017); what changes from round to round stands in `settings`.
In: settings and an output folder. Out: a plain Hugging Face folder with `memlong.json`,
`training_log.jsonl` and `checkpoint.pt`, from which another round can go on.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memlong_agent.chunking import PREAMBLE
from memlong_agent.errors import ConfigError
from memlong_agent.layout import MemoryLayout
from memlong_agent.model import MemoryModel
from memlong_agent.model.load import write_sidecar
from memlong_agent.training.average import State, load_mean, snapshot
from memlong_agent.training.batches import Batch, Encoder, Row, collate, grouped
from memlong_agent.training.card import write_card
from memlong_agent.training.curriculum import Curriculum
from memlong_agent.training.curve import plot_curve
from memlong_agent.training.dialogues import Sample, make_sample
from memlong_agent.training.everyday import everyday_sample
from memlong_agent.training.initial import add_copy_circuit
from memlong_agent.training.prose import prose_chunks
from memlong_agent.training.settings import (
    PHASES,
    RETRIEVED,
    USER_WEIGHTS,
    Phase,
    TrainSettings,
    of_round,
)
from memlong_agent.training.step import MasterAdamW, answer_hits, freeze, loss_of
from memlong_agent.training.templates import Wordings
from memlong_agent.training.tokenizer import CHAT_TEMPLATE, VOCABULARY, train_tokenizer

_log = logging.getLogger(__name__)
_CHECKPOINT, _LOG = "checkpoint.pt", "training_log.jsonl"
_HEADED = f"{PREAMBLE}[2026-11-20 14:05] User: "
_TOKENIZER_SAMPLES = 12_000
_DEV_ROWS = 96
_Dev = dict[str, Batch]
_POOL = 12  # batches whose rows are sorted by length together


def train(out: Path, settings: TrainSettings, *, threads: int | None = None) -> dict[str, float]:
    """Train into `out`, on from its checkpoint if there is one; returns the last scores."""
    out.mkdir(parents=True, exist_ok=True)
    if threads:
        torch.set_num_threads(threads)
    trainer = Trainer(out, settings)
    for again in range(settings.rounds):
        for phase in PHASES:
            trainer.run(phase, again)
    return trainer.publish()


class Trainer:
    """Model, data and optimizer of one run."""

    def __init__(self, out: Path, settings: TrainSettings) -> None:
        self.out, self.settings = out, settings
        self.prose = prose_chunks(settings.seed)
        self.tokenizer = _tokenizer(out, settings.seed, self.prose)
        self.encoder = Encoder(self.tokenizer, settings.chunk_tokens)
        self.model = new_model(settings, len(self.tokenizer))
        self.done: dict[str, list[int]] = {phase: [0] * settings.rounds for phase in PHASES}
        self._resume: dict[str, Any] = {}
        self._pools: dict[int, list[Sample]] = {}  # by round
        self._averaged: list[State] = []  # of the running round
        checkpoint = out / _CHECKPOINT
        if checkpoint.exists():
            self._resume = torch.load(checkpoint, weights_only=True)
            _check_resumable(out, self._resume, settings)
            for phase, done in self._resume["done"].items():  # of more or fewer rounds, perhaps
                self.done[phase] = [*done, *self.done[phase]][: settings.rounds]
            load_mean(self.model, [self._resume["weights"]])
            self._averaged = self._resume["averaged"]

    def run(self, phase: Phase, again: int) -> None:
        """All remaining steps of a phase in its round `again`."""
        settings, total = self.settings, self.settings.steps(phase, again)
        done = self.done[phase]
        if done[again] >= total:
            return
        optimizer, gates = self._optimizers(phase, again)
        if phase == "base" and not done[again]:
            self._averaged.clear()  # an earlier round's
        dev, started, seen = self._dev(), time.monotonic(), 0.0
        batches = self._batches(phase, again)
        peak = settings.rate(phase, again)
        while done[again] < total:
            step = done[again]
            with sdpa_kernel(SDPBackend.MATH):
                # CPU flash backward takes 13 ms on bf16 chunks of 56 tokens, plain matmuls 1.5 ms.
                loss = loss_of(self.model, next(batches), phase=phase)
                loss.backward()  # type: ignore[no-untyped-call]
            rate = _rate(step, total, settings.warmup_steps)
            norm = optimizer.step(peak * rate)
            if gates is not None:
                gates.step(10 * peak * rate)  # a log-gate moves in units of 1, a weight of 0.02
            done[again] += 1
            if settings.is_averaged(phase, again, done[again]):
                self._averaged.append(snapshot(self.model))
            seen += loss.item()
            if done[again] % settings.check_every == 0 or done[again] == total:
                mean = seen / (((done[again] - 1) % settings.check_every) + 1)
                self._note(phase, again, mean, norm, time.monotonic() - started, dev)
                self._save(phase, again, optimizer, gates)
                seen = 0.0

    def publish(self) -> dict[str, float]:
        """The finished run as a plain Hugging Face folder with its card; its dev scores."""
        last = snapshot(self.model)
        load_mean(self.model, [*self._averaged, last])
        scores = self._scores(self._dev())
        self._write(scores)
        load_mean(self.model, [last])  # from which a further round goes on
        return scores

    def _write(self, scores: dict[str, float]) -> None:
        self.model.lm.generation_config.eos_token_id = self.tokenizer.eos_token_id
        self.model.lm.save_pretrained(self.out)
        self.tokenizer.save_pretrained(self.out)
        write_sidecar(self.out, self.model.layout, self.model.gates, "zero")
        record = {
            "settings": dict(self.settings),
            "scores": scores,
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        (self.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        parameters = sum(parameter.numel() for parameter in self.model.lm.parameters())
        write_card(self.out, parameters, self.model.layout, scores)
        plot_curve(self.out, _LOG)

    def _optimizers(self, phase: Phase, again: int) -> tuple[MasterAdamW, MasterAdamW | None]:
        optimizer = MasterAdamW(freeze(self.model, phase), self.settings.weight_decay)
        gates = None
        for gate in self.model.gates.values():
            gate.requires_grad_(phase == "memory")
            gate.grad = None  # an earlier round's
        if phase == "memory":
            gates = MasterAdamW(self.model.gates.values(), 0.0)  # type: ignore[arg-type]
        if self._resume.get("phase") == [phase, again] and self.done[phase][again]:
            optimizer.restore(self._resume["optimizer"])
            if gates is not None:
                gates.restore(self._resume["gate_optimizer"])
        return optimizer, gates

    def _curriculum(self, phase: Phase, again: int) -> Curriculum:
        user_weight = of_round(USER_WEIGHTS, again)
        encoder = Encoder(self.tokenizer, self.settings.chunk_tokens, user_weight)
        retrieved = self._retrieved(again) if again or phase == "memory" else ()
        return Curriculum(encoder, self.prose, again, retrieved)

    def _retrieved(self, again: int) -> list[Sample]:
        """As many as the longest stretch of the round draws, or as there are; made once."""
        if again not in self._pools:
            from memlong_agent.training.retrieved import retrieved_samples  # needs extra [minilm]

            phases = PHASES if again else PHASES[1:]
            steps = max(self.settings.steps(phase, again) for phase in phases)
            wanted = math.ceil(of_round(RETRIEVED, again) * steps * self.settings.batch_rows)
            seed = self.settings.seed
            self._pools[again] = retrieved_samples(seed, again, self.prose, wanted)
        return self._pools[again]

    def _batches(self, phase: Phase, again: int) -> Iterator[Batch]:
        """Batches of windows of like length, in random order: padding costs as much as text."""
        size, curriculum = self.settings.batch_rows, self._curriculum(phase, again)
        done = self.done[phase]
        # A function of seed, phase, round and step, so that a resumed run sees new rows.
        rng = random.Random(f"{self.settings.seed}-{phase}-{again}-{done[again]}")
        while True:
            rows = [curriculum.row(rng, phase, sum(done)) for _ in range(size * _POOL)]
            rows.sort(key=lambda row: len(row.window))
            groups = list(grouped(rows, size))
            rng.shuffle(groups)
            for group in groups:
                yield self._collate(group)

    def _collate(self, rows: Sequence[Row]) -> Batch:
        return collate(rows, self.encoder.preamble, self.tokenizer.pad_token_id)

    def _dev(self) -> _Dev:
        """Questions with values that training never shows, and but for one set its wordings."""
        found = {}
        sets: tuple[tuple[str, Callable[[random.Random], Sample]], ...] = (
            ("train_wordings", partial(self._dev_sample, "train")),
            ("held_out", partial(self._dev_sample, "held_out")),
            ("everyday", _dev_everyday),
        )
        for name, draw in sets:
            rng = random.Random(f"dev-{name}")
            rows: list[Row] = []
            while len(rows) < _DEV_ROWS:
                sample = draw(rng)
                if sample.memories and any(turn.answer for turn in sample.turns):
                    rows.append(self.encoder.row(sample, rng))
            found[name] = self._collate(rows)
        return found

    def _dev_sample(self, wordings: Wordings, rng: random.Random) -> Sample:
        return make_sample(rng, split="test", wordings=wordings, prose=self.prose)

    def _scores(self, dev: _Dev) -> dict[str, float]:
        scores = {}
        for name, batch in dev.items():
            for memory in (True, False):
                hits = answer_hits(self.model, batch, memory=memory)
                scores[f"{name}_{'on' if memory else 'off'}"] = round(sum(hits) / len(hits), 4)
        return scores

    def _note(
        self, phase: Phase, again: int, loss: float, norm: float, seconds: float, dev: _Dev
    ) -> None:
        step = self.done[phase][again]
        record: dict[str, Any] = {"round": again, "phase": phase, "step": step}
        record |= {"loss": round(loss, 4), "gradient_norm": round(norm, 3)}
        record |= {"seconds": round(seconds, 1), **self._scores(dev)}
        with (self.out / _LOG).open("a") as log:
            log.write(json.dumps(record) + "\n")
        _log.info("%s", json.dumps(record))

    def _save(
        self, phase: Phase, again: int, optimizer: MasterAdamW, gates: MasterAdamW | None
    ) -> None:
        state = {
            "settings": dict(self.settings),
            "done": self.done,
            "phase": [phase, again],
            "weights": snapshot(self.model),
            "averaged": self._averaged,
            "optimizer": optimizer.state(),
            "gate_optimizer": None if gates is None else gates.state(),
        }
        torch.save(state, self.out / f"{_CHECKPOINT}.tmp")
        (self.out / f"{_CHECKPOINT}.tmp").rename(self.out / _CHECKPOINT)


def _dev_everyday(rng: random.Random) -> Sample:
    return everyday_sample(rng, split="test", wordings="held_out", most=3)


def new_model(settings: TrainSettings, vocabulary: int) -> MemoryModel:
    """A random bf16 Llama in the memlong layout, gates at 0."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=2048,
        # Recalled keys stand at 0, so a query at position p matches by those frequencies that have
        # hardly turned by p; a large base leaves more of them.
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype="bfloat16",
    )
    layout = MemoryLayout.memlong(settings.layers)
    gates = {
        layer: torch.nn.Parameter(torch.zeros(settings.heads), requires_grad=False)
        for layer in layout.retrieval_layers
    }
    lm: Any = LlamaForCausalLM(config)
    add_copy_circuit(lm, layout, settings.seed)
    return MemoryModel(lm.to(torch.bfloat16), layout, gates)


def _tokenizer(out: Path, seed: int, prose: list[str]) -> PreTrainedTokenizerFast:
    if (out / "tokenizer.json").exists():
        saved: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(out))
        saved.chat_template = CHAT_TEMPLATE  # by which windows are made
        return saved
    rng = random.Random(f"{seed}-tokenizer")
    texts = list(prose)
    for _ in range(_TOKENIZER_SAMPLES):
        sample = make_sample(rng, split="train", wordings="train", prose=prose)
        texts += [f"User: {turn.user}\nAssistant: {turn.reply}" for turn in sample.turns]
        texts += [_HEADED + (memory.user or memory.text) for memory in sample.memories]
        texts += [turn.user for turn in everyday_sample(rng, split="train").turns]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    tokenizer.save_pretrained(out)
    return tokenizer


def _rate(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 3 %."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share))


def _check_resumable(out: Path, checkpoint: Mapping[str, Any], settings: TrainSettings) -> None:
    """ConfigError when the run in `out` is of an older version, of another shape or other data."""
    if "weights" not in checkpoint:
        raise ConfigError(
            f"{out} holds a run of an older version of memlong-agent. Use another --out."
        )
    before = checkpoint["settings"]
    for name in ("seed", "hidden_size", "layers", "heads", "feed_forward", "chunk_tokens"):
        now = getattr(settings, name)
        if before[name] != now:
            raise ConfigError(
                f"{out} holds a run with {name}={before[name]}, now {name}={now}. Use the same "
                "value to go on with it, or another --out."
            )
