"""What is recalled, and in which order: against a brute-force oracle, and by each filter."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_drafts import (
    ALICE,
    BOB,
    START,
    Clock,
    Compass,
    Scattered,
    draft,
    kv_of,
    open_bank,
    texts,
)

from memlong_agent.embedding import HashEmbedder
from memlong_agent.errors import ConfigError
from memlong_agent.memory import Hit, MemoryBank
from memlong_agent.memory.indexes import OwnerIndexes
from memlong_agent.memory.recall import DEPTH, log_priors, widened
from memlong_agent.storage import Owner, Storage, StoredChunk

READ: dict[str, Any] = {"role": "document", "source": "novel.txt", "session": None}
WORDS = ["amber", "birch", "cedar", "dahlia", "elder", "fern", "gorse", "hazel", "iris", "kelp"]


def filled(bank: MemoryBank, count: int, seed: int = 0) -> list[str]:
    """Alice's notes of four words each, in memories of one to three chunks."""
    rng = np.random.default_rng(seed)
    notes = [f"{' '.join(rng.choice(WORDS, 4))} n{i}" for i in range(count)]
    drafts, left = [], notes
    while left:
        size = int(rng.integers(1, 4))
        drafts.append(draft(*left[:size], session=f"s{len(drafts) % 3}"))
        left = left[size:]
    bank.add(ALICE, drafts)
    return notes


def by_cosine(embedder: Any, query: str, notes: list[str]) -> list[str]:
    """Notes by their fp32 cosine; equal ones in the order of writing."""
    vector = embedder.embed_query(query).astype(np.float64)
    cosines = (embedder.embed_texts(notes).astype(np.float64) @ vector).astype(np.float32)
    return [notes[i] for i in np.lexsort((np.arange(len(notes)), -cosines))]


@pytest.fixture
def bank() -> Iterator[MemoryBank]:
    with open_bank(embedder=Compass(), clock=Clock()) as opened:
        yield opened


def recalled(bank: MemoryBank, query: str = "east", top_k: int = 8, **options: Any) -> list[str]:
    hits = bank.recall(ALICE, query, top_k=top_k, **options)
    return texts(sorted(hits, key=lambda hit: hit.rank))


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("top_k", [1, 8, 40])
def test_dense_order_is_the_brute_force_order(backend: str, top_k: int) -> None:
    embedder = Scattered()
    with open_bank(embedder=embedder, index_backend=backend) as bank:
        notes = filled(bank, 300)
        for query in ("which one", "and now", "once more"):  # no word of theirs is in a note
            expected = by_cosine(embedder, query, notes)[:top_k]
            assert texts(bank.search(ALICE, query, top_k=top_k)) == expected
            assert recalled(bank, query, top_k) == expected


def test_the_order_is_cosine_and_shared_words() -> None:
    """Relevance written out: cosine and a hundredth of the lexical score, 0.3 of it at most."""
    embedder = HashEmbedder()
    with open_bank(embedder=embedder) as bank:
        notes = filled(bank, 300)
        for query in ("kelp iris n7", "n12 n200 birch", "nothing of theirs"):
            cosine = dict(
                zip(notes, embedder.embed_texts(notes) @ embedder.embed_query(query), strict=True)
            )
            relevance = {note: cosine[note] for note in by_cosine(embedder, query, notes)[:32]}
            for hit in bank._storage.search(ALICE, query, depth=DEPTH):
                note = notes[hit.pk - 1]  # keys begin at 1 and follow the notes
                relevance[note] = cosine[note] + min(0.01 * hit.score, 0.3)
            good = [note for note in relevance if cosine[note] >= 0]
            expected = sorted(good, key=lambda note: (-relevance[note], notes.index(note)))[:8]
            found = bank.search(ALICE, query, top_k=8)
            assert texts(found) == expected
            assert [each.score for each in found] == pytest.approx(
                [cosine[note] for note in expected], abs=1e-6
            )


@pytest.mark.parametrize(
    ("question", "said_first"),
    [
        ("What am I afraid of?", True),
        ("what's my dog called", True),
        ("WHERE DO WE PARK", True),
        ("Whose are ours?", True),
        ("What is Pip afraid of?", False),
        ("Tell me what the myna is called.", False),
        ("How was it in Mystic, Iowa?", False),
    ],
)
def test_in_the_first_person_what_was_said_comes_before_what_was_read(
    bank: MemoryBank, question: str, said_first: bool
) -> None:
    bank.add(ALICE, [draft("read @40", **READ), draft("read far @44", **READ), draft("said @42")])
    hits = {hit.chunk.text: hit for hit in bank.recall(ALICE, question, top_k=8)}
    order = sorted(hits, key=lambda text: hits[text].rank)
    assert order == (
        ["said @42", "read @40", "read far @44"]
        if said_first
        else ["read @40", "said @42", "read far @44"]
    )
    priors = [hits[text].log_prior for text in order]
    assert priors[0] == 0.0 > priors[1] > priors[2], "the prior follows the order"
    assert hits["said @42"].score == pytest.approx(np.cos(np.radians(42)), abs=1e-6)


def test_what_was_said_is_not_lifted_over_the_threshold_and_what_was_read_falls_behind() -> None:
    embedder = Compass()
    embedder.share_of_best = 0.9
    with open_bank(embedder=embedder, clock=Clock()) as bank:
        bank.add(ALICE, [draft("said @61")])  # cos 61 = 0.485, below 0.5
        assert recalled(bank, "my east") == []
        bank.add(ALICE, [draft("said @10"), draft("read @25", **READ)])  # cos 25 = 0.906
        assert recalled(bank, "east") == ["said @10", "read @25"]
        assert recalled(bank, "my east") == ["said @10"], "0.9 of 0.985 and 0.05"


def test_the_reply_so_far_is_searched_for_but_does_not_ask(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("read @40", **READ), draft("said @42"), draft("quagga @40")])
    assert recalled(bank, "east", generated="I think")[0] == "read @40"
    assert recalled(bank, "east", generated="a quagga")[0] == "quagga @40"


def test_in_the_first_person_the_worth_of_what_was_said_is_five_hundredths(
    bank: MemoryBank,
) -> None:
    bank.add(
        ALICE, [draft("read @30", **READ), draft("said @36"), draft("user said @37", role="user")]
    )
    # cos 30 = 0.866, cos 36 = 0.809, cos 37 = 0.799
    assert recalled(bank, "my east") == ["read @30", "said @36", "user said @37"]
    bank.add(ALICE, [draft("said too @34", role="assistant")])  # cos 34 = 0.829
    assert recalled(bank, "my east")[0] == "said too @34"


@pytest.mark.parametrize(
    ("question", "expected", "looked_up"),
    [("east", ["read @10", "read @11"], 2), ("my east", ["said @16", "read @10"], 4)],
)
def test_no_more_is_looked_up_than_may_come_out_on_top(
    bank: MemoryBank,
    monkeypatch: pytest.MonkeyPatch,
    question: str,
    expected: list[str],
    looked_up: int,
) -> None:
    bank.add(ALICE, [draft(f"read @{angle}", **READ) for angle in (10, 11, 12, 40, 41, 42)])
    bank.add(ALICE, [draft("said @16")])  # cos 16 = 0.961, and 0.05: more than cos 10 = 0.985
    asked: list[int] = []
    real = bank._storage.recallable

    def noted(owner: Owner, pks: Sequence[int], **options: Any) -> list[StoredChunk]:
        asked.extend(pks)
        return real(owner, pks, **options)

    monkeypatch.setattr(bank._storage, "recallable", noted)
    assert recalled(bank, question, top_k=2) == expected
    assert len(asked) == looked_up, "of the seven"


def test_what_is_far_behind_the_best_in_cosine_and_words_is_dropped() -> None:
    embedder = Compass()
    embedder.share_of_best = 0.8  # of cos 20 = 0.94: 0.75, the cosine of 41.2 degrees
    with open_bank(embedder=embedder, clock=Clock()) as bank:
        bank.add(ALICE, [draft("best @20"), draft("quagga @42"), draft("okapi @42")])
        assert recalled(bank, "east") == ["best @20"]
        assert recalled(bank, "quagga") == ["best @20", "quagga @42"]


def test_faiss_and_torch_recall_the_same() -> None:
    with (
        open_bank(index_backend="faiss") as one,
        open_bank(index_backend="torch") as other,
    ):
        filled(one, 200, seed=3)
        filled(other, 200, seed=3)
        for query in (*WORDS, "amber n5", "what of the ferns", "n1 n2 n3"):
            mine, theirs = (bank.recall(ALICE, query, top_k=8) for bank in (one, other))
            assert texts(mine) == texts(theirs)
            assert [hit.score for hit in mine] == [hit.score for hit in theirs]


def test_hits_come_in_the_order_of_time_with_their_own_kv(bank: MemoryBank) -> None:
    late = START + timedelta(days=2)
    bank.add(ALICE, [draft("late @1", created_at=late), draft("a @9", "b @5", created_at=START)])
    hits = bank.recall(ALICE, "east", top_k=8)
    assert texts(hits) == ["a @9", "b @5", "late @1"]
    assert [hit.rank for hit in hits] == [2, 1, 0]
    for hit in hits:
        own = kv_of(hit.chunk.text, 8)
        assert torch.equal(hit.kv.keys, own.keys)
        assert torch.equal(hit.kv.values, own.values)


def test_the_prior_of_a_chunk_falls_with_its_distance_from_the_best() -> None:
    assert log_priors([0.25, 0.5, 0.375]) == [-7.0, 0.0, -3.5]
    assert log_priors([0.0, 0.0]) == [0.0, 0.0], "without any, all are alike"
    assert log_priors([]) == []
    assert log_priors([0.5, -0.2]) == [0.0, -14.0], "opposite is no less relevant than unrelated"


def test_cosines_and_shared_words_make_the_prior(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("quagga @40"), draft("okapi @40"), draft("near @10")])

    def priors(query: str) -> dict[str, float]:
        hits = bank.recall(ALICE, query, top_k=8)
        return {hit.chunk.text: hit.log_prior for hit in hits}

    plain = priors("east")
    assert plain["near @10"] == 0.0 > plain["quagga @40"] == plain["okapi @40"]
    worded = priors("east quagga")
    assert plain["okapi @40"] == worded["okapi @40"] < worded["quagga @40"] < 0.0
    many = " ".join(f"quagga{n}" for n in range(20))
    bank.add(ALICE, [draft(f"{many} @59")])
    long = priors(f"east {many}")
    assert max(long, key=long.__getitem__) == "near @10", "many words are worth 0.3 at most"


def test_without_vectors_words_make_the_prior() -> None:
    with open_bank(embedder="lexical") as bank:
        bank.add(ALICE, [draft("a zebra"), draft("an okapi"), draft("okapi and zebra")])
        hits = bank.recall(ALICE, "the zebra and the okapi", top_k=8)
        assert {hit.chunk.text: hit.log_prior < 0 for hit in hits} == {
            "a zebra": True, "an okapi": True, "okapi and zebra": False
        }  # fmt: skip


def test_below_the_threshold_nothing_is_recalled(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("near @59"), draft("far @61"), draft("opposite @180")])
    assert recalled(bank) == ["near @59"]


def test_the_first_lexical_hit_on_a_rare_word_needs_half_the_threshold(bank: MemoryBank) -> None:
    both, one = draft("zebra quagga @70"), draft("zebra @71")
    bank.add(ALICE, [both, one, draft("near @10"), draft("far @70")])
    assert recalled(bank, "zebra quagga") == ["near @10", "zebra quagga @70"]
    scores = {hit.chunk.text: hit.score for hit in bank.recall(ALICE, "zebra quagga", top_k=8)}
    assert scores["zebra quagga @70"] == pytest.approx(np.cos(np.radians(70)), abs=1e-6)


def test_a_common_word_does_not_pass_the_threshold(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft(f"zebra number{i} @70") for i in range(3)])  # rare is two or fewer
    assert recalled(bank, "zebra") == []


def test_a_rare_word_does_not_bring_back_what_points_elsewhere(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("lost quagga"), draft("other quagga @85"), draft("near @10")])
    assert recalled(bank, "east") == ["near @10"]
    assert recalled(bank, "quagga") == ["near @10"]


@pytest.mark.parametrize("answer", [0.0, np.nan])
def test_a_question_of_which_the_embedder_knows_nothing_is_answered_by_words(answer: float) -> None:
    class Speechless(Compass):
        def embed_query(self, text: str) -> Any:
            return np.full(2, answer, np.float32)

    with open_bank(embedder=Speechless()) as bank:
        bank.add(ALICE, [draft("velora @0"), draft("amber @0"), *[draft("filler @0")] * 30])
        assert [recall.text for recall in bank.search(ALICE, "velora?", top_k=8)] == ["velora @0"]
        assert bank.search(ALICE, "unheard", top_k=8) == []


def test_lexical_only_finds_words_and_scores_nothing() -> None:
    with open_bank(embedder="lexical") as bank:
        bank.add(ALICE, [draft("a zebra"), draft("an okapi"), draft("okapi and zebra")])
        hits = bank.recall(ALICE, "the zebra and the okapi", top_k=1)
        assert texts(hits) == ["okapi and zebra"]
        assert hits[0].score == 0.0
        assert bank.recall(ALICE, "quagga", top_k=8) == []


def test_scope_session_and_search_in_a_session(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft(f"{s}{i} @{i}", session=s) for i in range(40) for s in ("s", "t")])
    assert recalled(bank, top_k=4) == ["s0 @0", "t0 @0", "s1 @1", "t1 @1"]
    assert recalled(bank, session="t", top_k=2) == ["s0 @0", "t0 @0"]
    assert recalled(bank, scope="session", session="t", top_k=3) == ["t0 @0", "t1 @1", "t2 @2"]
    assert recalled(bank, scope="session", session="other") == []
    assert texts(bank.search(ALICE, "east", top_k=2, session="t")) == ["t0 @0", "t1 @1"]
    with pytest.raises(ConfigError, match="needs a session"):
        bank.recall(ALICE, "east", top_k=1, scope="session")


def test_scope_session_narrows_the_lexical_arm_too(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("zebra @70", session="s"), draft("zebra @71", session="t")])
    assert recalled(bank, "zebra", scope="session", session="t") == ["zebra @71"]


def test_expired_memories_are_not_recalled() -> None:
    clock = Clock()
    with open_bank(embedder=Compass(), clock=clock) as bank:
        soon = START + timedelta(hours=1)
        bank.add(ALICE, [draft("zebra @1", expires_at=soon), draft("b @2")])
        assert recalled(bank, "zebra") == ["zebra @1", "b @2"]
        clock.now = soon
        assert recalled(bank, "zebra") == ["b @2"]


def test_pending_memories_are_recalled_by_their_turn_only(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("zebra @1", pending="turn-1"), draft("b @2")], turn="turn-1")
    assert recalled(bank, "zebra", turn="turn-1") == ["zebra @1", "b @2"]
    assert recalled(bank, "zebra", turn="turn-2") == ["b @2"]
    assert recalled(bank, "zebra") == ["b @2"]


def test_withheld_memories_are_not_recalled(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("zebra @1", recallable=False), draft("b @2")])
    assert recalled(bank, "zebra") == ["b @2"]


def test_what_is_in_the_prompt_is_not_recalled_and_others_take_its_place(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft(f"zebra {i:03d} @{i // 4}") for i in range(200)])

    def absent(chunk: StoredChunk) -> bool:
        return chunk.text >= "zebra 150"

    expected = [f"zebra {i} @{i // 4}" for i in range(150, 154)]
    assert recalled(bank, "east", 4, absent=absent) == expected
    assert recalled(bank, "east", 4, absent=lambda chunk: False) == []


def test_what_was_said_is_found_behind_much_that_is_in_the_prompt(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft(f"seen @{angle}") for angle in (1, 2, 3)])
    bank.add(ALICE, [draft("read @30", **READ), draft("said @33")])  # cos 0.866, 0.839

    def absent(chunk: StoredChunk) -> bool:
        return not chunk.text.startswith("seen")

    assert recalled(bank, "east", 1, absent=absent) == ["read @30"]
    assert recalled(bank, "my east", 1, absent=absent) == ["said @33"], "the fifth of the nearest"


def test_an_index_that_is_newer_than_the_snapshot_hides_nothing(tmp_path: Path) -> None:
    def add_one_more() -> None:
        bank.add(ALICE, [draft("new @10")])
        assert texts(bank.search(ALICE, "east", top_k=1)) == ["new @10"]

    with open_bank(tmp_path, embedder=Compass(), clock=Clock()) as bank:
        hidden = [draft(f"withheld @{angle}", recallable=False) for angle in (1, 2, 3)]
        bank.add(ALICE, [*hidden, draft("good @20")])
        with bank._storage.snapshot():
            bank._storage.tokens(ALICE)  # it begins with what it reads first
            other = threading.Thread(target=add_one_more)
            other.start()
            other.join()
            assert texts(bank.search(ALICE, "east", top_k=1)) == ["good @20"]


def test_the_lexical_arm_looks_past_what_is_in_the_prompt() -> None:
    with open_bank(embedder="lexical") as bank:
        # 150 of 3,150 chunks share the word (below 5 %); all but the last are in the prompt.
        plain = [draft(*(f"filler{i} x{j}" for j in range(100))) for i in range(30)]
        bank.add(ALICE, [*plain, *(draft(f"zebra note{i}") for i in range(150))])
        found = recalled(bank, "zebra", absent=lambda chunk: chunk.text.endswith("note149"))
        assert found == ["zebra note149"]


def test_a_blank_question_recalls_nothing_and_top_k_is_positive(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("near @1")])
    assert bank.recall(ALICE, " \n", top_k=8) == []
    assert bank.recall(ALICE, " ", generated="of the reply", top_k=8) != []
    assert bank.recall(BOB, "east", top_k=8) == []
    with pytest.raises(ConfigError, match="top_k=0"):
        bank.recall(ALICE, "east", top_k=0)


def test_more_than_fifty_can_be_recalled(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft(f"n{i} @1") for i in range(120)])
    assert len(recalled(bank, top_k=100)) == 100


def test_a_chunk_forgotten_between_ranking_and_reading_is_left_out(tmp_path: Path) -> None:
    with open_bank(tmp_path, embedder=Compass()) as bank:
        first = bank.add(ALICE, [draft("first @1"), draft("second @2")]).memories[0]
        left = [first.id]

        def absent(chunk: StoredChunk) -> bool:
            if left and chunk.text == "first @1":  # looked up already, not yet read
                bank.delete(ALICE, [left.pop()], purge=False)  # it is read meanwhile
            return True

        assert recalled(bank, absent=absent) == ["second @2"]


def test_two_banks_on_one_folder_see_each_others_writes(tmp_path: Path) -> None:
    with (
        open_bank(tmp_path, embedder=Compass()) as one,
        open_bank(tmp_path, embedder=Compass()) as other,
    ):
        assert recalled(one) == recalled(other) == []  # both have built their (empty) index
        made = one.add(ALICE, [draft("a @1"), draft("b @2")]).memories
        assert recalled(other) == ["a @1", "b @2"]
        other.delete(ALICE, [made[0].id])
        other.add(ALICE, [draft("c @3")])
        assert recalled(one) == ["b @2", "c @3"]
        one.update(ALICE, made[1].id, draft("b again @4"))
        assert recalled(other) == ["c @3", "b again @4"]
        one.clear(ALICE)
        assert recalled(other) == []


def test_an_index_that_was_put_away_is_built_again(tmp_path: Path) -> None:
    with Storage.open(tmp_path) as storage, open_bank(tmp_path, embedder=Compass()) as bank:
        owners = [ALICE, BOB, *(ALICE.__class__("default", "user", f"u{i}") for i in range(3))]
        for i, owner in enumerate(owners):
            bank.add(owner, [draft(f"n{i} @{i}")])
        indexes = OwnerIndexes(storage, 2, "torch", kept=2)
        east = np.array([1.0, 0.0], np.float32)
        for _ in range(2):
            found = [indexes.of(owner).search(east, 5) for owner in owners]
            assert found == [[1], [2], [3], [4], [5]]
            assert len(indexes) == 2
        assert indexes.of(owners[-1]) is indexes.of(owners[-1])


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_threads_recall_while_others_write(tmp_path: Path, backend: str) -> None:
    failures: list[BaseException] = []
    with open_bank(tmp_path, index_backend=backend) as bank:
        filled(bank, 60)
        stop = threading.Event()

        def read() -> None:
            try:
                while not stop.is_set():
                    check(bank.recall(ALICE, "amber birch n3", top_k=8))
            except BaseException as exc:
                failures.append(exc)

        def check(hits: list[Hit]) -> None:
            assert len(hits) == 8
            for hit in hits:
                assert torch.equal(hit.kv.keys, kv_of(hit.chunk.text, 8).keys)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for each in readers:
            each.start()
        for i in range(25):
            made = bank.add(ALICE, [draft(f"amber birch w{i}")]).memories
            bank.delete(ALICE, [made[0].id])
        stop.set()
        for each in readers:
            each.join()
    assert failures == []


def test_widened_asks_deeper_until_enough_pass() -> None:
    asked: list[int] = []

    def ask(depth: int) -> list[int]:
        asked.append(depth)
        return list(range(1000))[:depth]

    assert widened(ask, lambda ns: [n for n in ns if n % 10 == 9], 4) == [9, 19, 29, 39]
    assert asked == [4, 16, 64]
    assert widened(ask, lambda ns: [n for n in ns if n > 998], 4) == [999]
    assert max(asked) == 1024


def test_the_index_of_another_process_lets_go_of_an_erased_owner(tmp_path: Path) -> None:
    with (
        open_bank(tmp_path, embedder=Compass()) as one,
        open_bank(tmp_path, embedder=Compass()) as other,
    ):
        one.add(ALICE, [draft("a @1"), draft("b @2")])
        assert recalled(other) == ["a @1", "b @2"]
        one.erase(ALICE)
        index, vector = other._finder._indexes.of(ALICE), Compass().embed_query("@1")
        assert index.search(vector, 9) == []
        one.add(ALICE, [draft("c @3")])
        assert recalled(other) == ["c @3"] and len(index.search(vector, 9)) == 1
