"""Runs operations on banks in processes that are harmed on the way. A script of test_crash.py.

It imports everything once, opens no bank itself, and forks two children for each line of JSON on
its standard input: a victim, which does one operation under the armed shim (crash_shim.c), and a
clean process, which opens what is left and compares. One line of JSON answers each.
"""

from __future__ import annotations

import ctypes
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

from crash_operations import (
    ALICE,
    DAVE,
    OPERATIONS,
    Act,
    Operation,
    State,
    furnish,
    opened,
    state_of,
)
from memory_drafts import draft

from memlong_agent.errors import MemLongError, StoreError
from memlong_agent.memory import MemoryBank

_PATIENCE_S = 60
_SHOWN = 300
_IN_DOUBT = "Whether this write was kept will show"


def main(library: str, work: Path) -> None:
    logging.disable(logging.ERROR)  # what is left for later is said there, a hundred times
    shim = ctypes.CDLL(library)
    shim.shim_disarm.restype = ctypes.c_char_p
    run = Runner(shim, work)
    for line in sys.stdin:
        order = json.loads(line)
        if "names" in order:
            answer: dict[str, Any] = {"names": list(OPERATIONS)}
        else:
            answer = run.plan(order["plan"]) if "plan" in order else run.harmed(**order)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Runner:
    """Victims and inspectors on copies of one furnished bank."""

    def __init__(self, shim: ctypes.CDLL, work: Path) -> None:
        self._shim, self._work = shim, work
        self._furnished = work / "furnished"
        self._allowed: dict[str, dict[str, Any]] = {}
        answer = self._child(lambda: furnish(self._furnished))
        assert answer["end"] == "returned", answer

    def plan(self, name: str) -> dict[str, Any]:
        """The letters of the calls that the operation makes, and the states it may leave."""
        operation = OPERATIONS[name]
        states: dict[str, Any] = {
            "before": self._clean(operation, None),
            "partly": [self._clean(operation, act) for act in operation.partly],
        }
        with self._copy(operation) as folder:
            answer = self._child(lambda: self._victim(operation, folder, (0, 0, 0, 0), False))
            assert answer["end"] == "returned", answer["value"]
            states["after"] = self._child(lambda: _inspected(folder))["value"]
        if operation.fresh:
            states["before"] = states["after"]
        self._allowed[name] = states
        return {"calls": answer["value"]["calls"]}

    def harmed(self, operation: str, fault: Sequence[int], goes_on: bool) -> dict[str, Any]:
        """One run: how it ended, and what is wrong with what it left (nothing, it is hoped).

        `fault`: number of the call, action, error number, whether it stays. With `goes_on` the
        victim writes once more before it ends.
        """
        chosen, allowed = OPERATIONS[operation], self._allowed[operation]
        with self._copy(chosen) as folder:
            ended = self._child(lambda: self._victim(chosen, folder, fault, goes_on))
            seen = self._child(lambda: _inspected(folder))
        wrong = _judged(chosen, allowed, ended, seen, goes_on)
        value = ended["value"] if isinstance(ended["value"], dict) else {}
        return {"end": value.get("end", ended["end"]), "error": value.get("error"), "wrong": wrong}

    def _clean(self, operation: Operation, act: Act | None) -> State:
        """The state after `act` (None: before the operation) when nothing happens."""
        with self._copy(operation) as folder:

            def life() -> State:
                if operation.fresh:
                    return {}
                with opened(folder, **operation.options) as bank:
                    if operation.before is not None:
                        operation.before(bank)
                    if act is not None:
                        act(bank)
                return _inspected(folder)

            answer = self._child(life)
        assert answer["end"] == "returned", answer["value"]
        state: State = answer["value"]
        return state

    def _victim(
        self, operation: Operation, folder: Path, fault: Sequence[int], goes_on: bool
    ) -> dict[str, Any]:
        at, *how = fault

        def arm() -> None:
            self._shim.shim_arm(os.fsencode(folder), ctypes.c_long(at), *how)

        bank, end, said = None, "returned", None
        try:
            if operation.opens:
                arm()
            bank = opened(folder, **operation.options)
            if operation.before is not None:
                operation.before(bank)
            if not operation.opens:
                arm()
            operation.act(bank)
        except MemLongError as exc:
            end, said = "raised", str(exc)
        calls = self._shim.shim_disarm().decode()
        here = None
        if bank is not None and operation is not OPERATIONS["close"]:
            if goes_on:
                _go_on(bank)
            here = state_of(bank)
        # It ends without a close: what only this process knows is lost with it.
        return {"end": end, "error": said, "calls": calls, "here": here}

    @contextmanager
    def _copy(self, operation: Operation) -> Iterator[Path]:
        folder = self._work / "bank"
        shutil.rmtree(folder, ignore_errors=True)
        if not operation.fresh:
            shutil.copytree(self._furnished, folder)
        yield folder

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


def _inspected(folder: Path) -> State:
    """What a clean process finds; raises for anything that is not whole."""
    with opened(folder) as bank:
        state = state_of(bank)
        bank.recall(ALICE, "What is my dog called?", top_k=8)
        bank._storage._grace_s = 0.0
        bank._storage.sweep()
        problems = bank.verify()
        chunks = sum(each.chunks for each in bank.stats().values())
    assert not problems, problems
    files = [path for path in (folder / "kv").rglob("*") if path.is_file()]
    assert len(files) == chunks, f"{len(files)} files for {chunks} chunks"
    return state


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
    if ended["end"] == "-9":
        return [] if _names(seen["value"], allowed) else ["a kill left the bank in between"]
    if ended["end"] != "returned":
        return [f"the process: {ended['end']} {str(ended['value'])[-_SHOWN:]}"]
    value = ended["value"]
    wrong = []
    if value["error"] and _IN_DOUBT in value["error"]:
        return [] if _names(seen["value"], allowed) else ["in doubt, it left the bank in between"]
    if value["here"] is not None and value["here"] != seen["value"]:
        wrong.append("the process that went on sees another bank than the next one")
    if value["here"] is not None and goes_on != bool(seen["value"].pop("dave")):
        wrong.append("what was written after the fault is not there")
    names = _names(seen["value"], allowed)
    if value["end"] == "returned":
        good = names & ({"after", "partly"} if operation.partly_returned else {"after"})
    elif operation.done_by_error and operation.done_by_error in value["error"]:
        good = names & {"after"}
    else:
        good = names & {"before"}
    if not good:
        wrong.append(f"it {value['end']} ({value['error']}), but the bank is {names or 'neither'}")
    return wrong


def _names(state: State, allowed: dict[str, Any]) -> set[str]:
    """Which of the states that the operation may leave this is."""
    state = {**state, "dave": []}
    names = {name for name in ("before", "after") if allowed[name] == state}
    return names | ({"partly"} if state in allowed["partly"] else set())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
