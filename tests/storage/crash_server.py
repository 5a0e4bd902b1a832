"""Runs operations on banks in processes that are harmed on the way. A script of test_crash.py.

It imports everything once, opens no bank itself, and forks two children for each line of JSON on
its standard input: a victim, which does one operation under the armed shim (crash_shim.c), and a
clean process, which opens what is left and compares. One line of JSON answers each.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crash_bank import (
    ALICE,
    DAVE,
    EXPORTED,
    Clock,
    State,
    furnish,
    ids_of,
    opened,
    state_of,
    timeless,
)
from crash_operations import Act, Operation
from crash_whole import WHOLE
from crash_writes import WRITES
from memory_drafts import Scattered, draft, open_bank

from memlong_agent.errors import MemLongError, StoreError
from memlong_agent.memory import MemoryBank

OPERATIONS = {**WRITES, **WHOLE}
_PATIENCE_S = 60
_SHOWN = 300
_DAVE = f"{DAVE.kind} {DAVE.name}"
_IN_DOUBT = "Whether this write was kept will show"


def main(library: str, work: Path) -> None:
    logging.disable(logging.ERROR)  # what is left for later is said there, a hundred times
    shim = ctypes.CDLL(library)
    shim.shim_disarm.restype = ctypes.c_char_p
    run = Runner(shim, work)
    gc.freeze()  # a collection in a child would copy the pages that it shares with this process
    for line in sys.stdin:
        order = json.loads(line)
        if "names" in order:
            answer: dict[str, Any] = {"names": list(OPERATIONS)}
        else:
            answer = run.plan(order["plan"]) if "plan" in order else run.harmed(**order)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Runner:
    """Victims and inspectors on copies of one furnished place."""

    def __init__(self, shim: ctypes.CDLL, work: Path) -> None:
        self._shim, self._work = shim, work
        self._allowed: dict[str, dict[str, Any]] = {}
        answer = self._child(lambda: furnish(work / "furnished"))
        assert answer["end"] == "returned", answer

    def plan(self, name: str) -> dict[str, Any]:
        """The letters of the calls that the operation makes, how often it reads the clock, and the
        states it may leave."""
        operation = OPERATIONS[name]
        self._start(name, operation)
        allowed: dict[str, Any] = {
            "before": self._clean(name, None),
            "partly": [self._clean(name, act) for act in operation.partly],
        }
        with self._copy(name) as place:
            ended = self._child(lambda: self._victim(operation, place, Clock(), (0, 0, 0, 0)))
            assert ended["end"] == "returned", ended["value"]
            assert ended["value"]["end"] == "returned", ended["value"]
            allowed["after"] = self._child(lambda: _inspected(operation, place, Clock()))["value"]
        if operation.fresh:
            allowed["before"] = allowed["after"]
        self._allowed[name] = allowed
        return {key: ended["value"][key] for key in ("calls", "readings")}

    def harmed(
        self,
        operation: str,
        fault: Sequence[int] = (0, 0, 0, 0),
        reading: int = 0,
        jumps: Sequence[int] = (0,),
        goes_on: bool = False,
    ) -> dict[str, Any]:
        """One run: how it ended, and what is wrong with what it left (nothing, it is hoped).

        `fault`: number of the call, action, error number, whether it stays. `jumps`: years by which
        the clock is wrong from a reading on. With `goes_on` the victim writes once more before it
        ends.
        """
        chosen, allowed = OPERATIONS[operation], self._allowed[operation]
        clock = Clock(reading, jumps)
        with self._copy(operation) as place:
            ended = self._child(lambda: self._victim(chosen, place, clock, fault, goes_on))
            seen = self._child(lambda: _inspected(chosen, place, Clock(1, jumps[-1:])))
        if reading:
            wrong = _judged_by_the_clock(chosen, allowed, ended, seen)
        else:
            wrong = _judged(chosen, allowed, ended, seen, goes_on)
        value = ended["value"] if isinstance(ended["value"], dict) else {}
        return {"end": value.get("end", ended["end"]), "error": value.get("error"), "wrong": wrong}

    def _start(self, name: str, operation: Operation) -> None:
        """The place that an operation meets."""
        place = self._work / name
        if operation.fresh:
            place.mkdir()
            return
        shutil.copytree(self._work / "furnished", place)
        start = operation.start
        if start is not None:
            answer = self._child(lambda: start(place, Clock()) and None)
            assert answer["end"] == "returned", answer["value"]

    def _clean(self, name: str, act: Act | None) -> State:
        """The state after `act` (None: before the operation) when nothing happens."""
        operation = OPERATIONS[name]
        with self._copy(name) as place:

            def life() -> State:
                if operation.fresh:
                    return {}
                if operation.on_folder is None:
                    with opened(place, Clock(), **operation.options) as bank:
                        for each in (operation.before, act):
                            if each is not None:
                                each(bank)
                return _inspected(operation, place, Clock())

            answer = self._child(life)
        assert answer["end"] == "returned", answer["value"]
        state: State = answer["value"]
        return state

    def _victim(
        self,
        operation: Operation,
        place: Path,
        clock: Clock,
        fault: Sequence[int],
        goes_on: bool = False,
    ) -> dict[str, Any]:
        at, *how = fault

        def begin() -> None:
            clock.start()
            self._shim.shim_arm(os.fsencode(place), ctypes.c_long(at), *how)

        bank, end, said = None, "returned", None
        try:
            bank = operation.prepared(place, clock, begin)
            operation.do(bank, place, clock)
        except MemLongError as exc:
            end, said = "raised", str(exc)
        calls, readings = self._shim.shim_disarm().decode(), clock.readings
        here = None
        if bank is not None and not operation.closes:
            if goes_on:
                _go_on(bank)
            here = state_of(bank)
        # It ends without a close: what only this process knows is lost with it.
        return {"end": end, "error": said, "calls": calls, "readings": readings, "here": here}

    @contextmanager
    def _copy(self, name: str) -> Iterator[Path]:
        place = self._work / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self._work / name, place)
        yield place

    def _child(self, life: Callable[[], Any]) -> dict[str, Any]:
        """Fork, live, answer: {"end": "returned" | "failed" | "-9" | ..., "value": ...}."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _live(life, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            answer: dict[str, Any] = json.loads(text)
            return answer
        return {"end": str(status), "value": None}


def _go_on(bank: MemoryBank) -> None:
    """Write once more; the first try may still feel the fault."""
    life = [draft("Life goes on.")]
    try:
        bank.add(DAVE, life)
    except StoreError:
        bank.add(DAVE, life)


def _live(life: Callable[[], Any], writing: int) -> None:
    signal.alarm(_PATIENCE_S)  # a hang ends with -14
    try:
        answer = {"end": "returned", "value": life()}
    except BaseException:
        answer = {"end": "failed", "value": traceback.format_exc()}
    try:
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
    finally:
        os._exit(0)


def _inspected(operation: Operation, place: Path, clock: Clock) -> State:
    """What a clean process finds; raises for anything that is not whole."""
    bank, finished = operation.finished(place, clock)
    with bank:
        state = state_of(bank)
        bank.recall(ALICE, "What is my dog called?", top_k=8)
        bank._storage._grace_s = 0.0
        bank._storage.sweep()
        problems = bank.verify()
        chunks = sum(each.chunks for each in bank.stats().values())
    assert not problems, problems
    files = [path for path in (place / "bank" / "kv").rglob("*") if path.is_file()]
    assert len(files) == chunks, f"{len(files)} files for {chunks} chunks"
    return {**state, "finished": finished, "exported": _exported(place / EXPORTED)}


def _exported(archive: Path) -> State | None:
    """What an archive holds, if it is there; raises if it is not whole."""
    if not archive.exists():
        return None
    with open_bank(embedder=Scattered(), clock=Clock(), index_backend="torch") as bank:
        bank.archives.restore(archive, "default", tokenize=ids_of, encode=None, progress=None)
        return state_of(bank)


def _judged(
    operation: Operation,
    allowed: dict[str, Any],
    ended: dict[str, Any],
    seen: dict[str, Any],
    goes_on: bool,
) -> list[str]:
    """Sentences for all that is wrong with one run."""
    if seen["end"] != "returned":
        return [f"the bank that is left: {seen['end']} {str(seen['value'])[-_SHOWN:]}"]
    names = _names(seen["value"], allowed)
    if ended["end"] == "-9":
        return [] if names else ["a kill left the bank in between"]
    if ended["end"] != "returned":
        return [f"the process: {ended['end']} {str(ended['value'])[-_SHOWN:]}"]
    value = ended["value"]
    wrong = []
    if value["error"] and _IN_DOUBT in value["error"]:
        return [] if names else ["in doubt, it left the bank in between"]
    if value["here"] is not None:
        if value["here"] != {key: seen["value"][key] for key in value["here"]}:
            wrong.append("the process that went on sees another bank than the next one")
        if goes_on != bool(seen["value"]["owned"].get(_DAVE)):
            wrong.append("what was written after the fault is not there")
    if value["end"] == "returned":
        good = names & ({"after", "partly"} if operation.partly_returned else {"after"})
    elif operation.done_by_error and operation.done_by_error in value["error"]:
        good = names & {"after"}
    else:
        good = names & {"before", "begun"}
    if not good:
        wrong.append(f"it {value['end']} ({value['error']}), but the bank is {names or 'neither'}")
    return wrong


def _judged_by_the_clock(
    operation: Operation, allowed: dict[str, Any], ended: dict[str, Any], seen: dict[str, Any]
) -> list[str]:
    """The same for a run in which only the clock was wrong: that is no reason to fail, and takes
    nothing that does not end by itself."""
    for who in ended, seen:
        if who["end"] != "returned":
            return [f"{who['end']} {str(who['value'])[-_SHOWN:]}"]
    if ended["value"]["end"] != "returned":
        return [f"it raised ({ended['value']['error']})"]
    good = [allowed["after"], *(allowed["partly"] if operation.partly_returned else ())]
    good += [allowed["before"]] if operation.by_the_clock else []
    if timeless(seen["value"]) not in [timeless(state) for state in good]:
        found = [str(timeless(state))[:3000] for state in (seen["value"], allowed["after"])]
        return ["the bank is not as it is under a clock that stands", *found]
    return []


def _names(state: State, allowed: dict[str, Any]) -> set[str]:
    """Which of the states that the operation may leave this is."""
    owned = {name: rows for name, rows in state["owned"].items() if name != _DAVE}
    state = {**state, "owned": owned}
    names = {name for name in ("before", "after") if allowed[name] == state}
    names |= {"partly"} if state in allowed["partly"] else set()
    done = {**state, "finished": False} == allowed["after"]
    return names | ({"begun"} if state["finished"] and done else set())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
