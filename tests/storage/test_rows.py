"""What rows hold that no call of the room gives out."""

from __future__ import annotations

from bank_making import ALICE, BOB, memory
from sqlalchemy import text

from memlong_agent.storage import RecallMark, Storage


def test_superseded_memories_are_not_recalled(bank: Storage) -> None:
    old, new = bank.add(ALICE, [memory("old"), memory("new")])
    with bank._db.scope(write=True) as conn:
        sql = text("UPDATE memories SET superseded_by = :new WHERE pk = :old")
        conn.execute(sql, {"new": new.pk, "old": old.pk})
    assert bank.get(ALICE, old.id).superseded_by == new.id
    pks = [*old.chunk_pks, *new.chunk_pks]
    assert [each.text for each in bank.recallable(ALICE, pks)] == ["new"]
    bank.delete(ALICE, [new.id])
    assert [each.text for each in bank.recallable(ALICE, pks)] == ["old"]


def test_of_several_marks_of_a_turn_the_last_is_kept(bank: Storage) -> None:
    (stored,) = bank.add(ALICE, [memory("a", "b")])
    (bobs,) = bank.add(BOB, [memory("bob")])
    a = stored.chunk_pks[0]
    bank.record_recalls(ALICE, "t1", [RecallMark(a, 0, 0.9, 0.2), RecallMark(a, 1, 0.8)])
    bank.record_recalls(ALICE, "t1", [RecallMark(a, 2, 0.7), RecallMark(bobs.chunk_pks[0], 0, 1)])
    bank.record_recalls(ALICE, "t2", [RecallMark(a, 0, 0.9), RecallMark(10**6, 1, 0.1)])
    with bank._db.scope() as conn:
        sql = "SELECT turn, chunk_pk, rank, score, attention_mass FROM recalls ORDER BY pk"
        rows = [tuple(row) for row in conn.exec_driver_sql(sql)]
    assert rows == [("t1", a, 2, 0.7, None), ("t2", a, 0, 0.9, None)]
