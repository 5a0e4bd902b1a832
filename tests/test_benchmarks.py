"""The shape of `python -m benchmarks`: its help, its names, and the pure functions behind a row.

Nothing here measures anything: a figure depends on the machine, so no figure can fail a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import soak
from benchmarks.__main__ import MEASUREMENTS, SLOW, chosen, main, measured
from benchmarks.rows import Bar, Options, Row, Spread, as_json, as_table, not_measured, row
from benchmarks.rss import growth
from benchmarks.text import paragraphs, sentences
from benchmarks.timing import Pairs, interleaved, timed
from memlong_agent.errors import ConfigError

ROOT = Path(__file__).parents[1]


def test_the_help_names_every_measurement_and_option_without_loading_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['benchmarks', '--help']\n"
        "try:\n"
        "    runpy.run_module('benchmarks', run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for word in (*MEASUREMENTS, "--quick", "--json", "--only", "--device", "--bank-on-disk"):
        assert word in done.stdout


def test_an_unknown_measurement_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "speed"])
    assert ended.value.code == 2
    assert "decode" in capsys.readouterr().err


def test_each_measurement_is_a_file_and_each_file_is_described() -> None:
    assert tuple(MEASUREMENTS) == (
        "decode",
        "ingest",
        "retrieval",
        "encryption",
        "startup",
        "stalls",
        "soak",
        "rss",
    )
    files = (ROOT / "benchmarks").glob("*.py")
    measuring = {each.stem for each in files if "\ndef measure(" in each.read_text()}
    assert measuring == set(MEASUREMENTS)


def test_a_quick_run_leaves_out_what_is_slow_unless_it_is_asked_for() -> None:
    assert chosen(None, quick=False) == list(MEASUREMENTS)
    assert chosen(None, quick=True) == [name for name in MEASUREMENTS if name not in SLOW]
    assert chosen(["rss", "decode"], quick=True) == ["decode", "rss"]


def test_what_this_machine_cannot_measure_is_a_row_that_says_why() -> None:
    def impossible(options: Options) -> list[Row]:
        raise ConfigError("Install it.")

    def broken(options: Options) -> list[Row]:
        raise ZeroDivisionError

    rows = measured("decode", impossible, Options())
    assert rows == [Row("decode", None, "", "", None, None, None, "not measured: Install it.")]
    with pytest.raises(ZeroDivisionError):  # a bug of the benchmark is not a property of a machine
        measured("decode", broken, Options())


@pytest.mark.parametrize(
    ("bar", "value", "met"),
    [
        (Bar("<=", 1.15), 1.15, True),
        (Bar("<=", 1.15), 1.16, False),
        (Bar(">=", 0.9), 0.9, True),
        (Bar(">=", 0.9), 0.89, False),
        (None, 7.0, None),
    ],
)
def test_a_row_is_judged_by_its_median(bar: Bar | None, value: float, met: bool | None) -> None:
    judged = row("x", Spread.of([value, 0.0, 100.0]), "s", bar)
    assert (judged.value, judged.low, judged.high, judged.met) == (value, 0.0, 100.0, met)
    assert judged.bar == ("" if bar is None else f"{bar.sign} {bar.limit}")


def test_pairs_are_timed_in_turn_and_the_warmup_is_not_counted() -> None:
    calls: list[str] = []
    pairs = interleaved(lambda: calls.append("A"), lambda: calls.append("B"), 3, warmup=1)
    assert "".join(calls) == "ABABABAB"
    assert len(pairs.ours_s) == len(pairs.theirs_s) == 3
    assert all(seconds > 0 for seconds in (*pairs.ours_s, *pairs.theirs_s))


def test_a_call_is_timed_until_the_device_has_settled() -> None:
    order: list[str] = []
    timed(lambda: order.append("call"), settle=lambda: order.append("settle"))
    assert order == ["settle", "call", "settle"]


def test_ratios_compare_the_two_of_one_round() -> None:
    pairs = Pairs(ours_s=(2.0, 6.0), theirs_s=(1.0, 12.0))
    assert pairs.slowdowns == [2.0, 0.5]
    assert pairs.speedups == [0.5, 2.0]


def test_rows_are_one_json_object_and_a_table() -> None:
    rows = [
        row("decode", Spread(1.2, 1.0, 1.5), "x stock", Bar("<=", 1.15), "[bold]as it is"),
        not_measured("rss", "no psutil"),
    ]
    found = json.loads(as_json(rows, {"quick": True}))
    assert found["quick"] is True
    assert found["rows"][0] == {
        "name": "decode",
        "value": 1.2,
        "unit": "x stock",
        "bar": "<= 1.15",
        "met": False,
        "low": 1.0,
        "high": 1.5,
        "note": "[bold]as it is",
    }
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(as_table(rows, "title"))
    text = console.export_text()
    for part in ("title", "1.2 x stock", "1..1.5", "<= 1.15", "NO", "[bold]as it is", "no psutil"):
        assert part in text


def test_growth_starts_at_a_fifth_of_the_text() -> None:
    million = 10**6
    samples = [(10, 0), (20, 100 * million), (60, 90 * million), (100, 130 * million)]
    assert growth(samples) == Spread(30.0, -10.0, 30.0)


def test_generated_text_is_the_same_by_seed_and_as_long_as_asked() -> None:
    assert sentences(5, seed=1) == sentences(5, seed=1) != sentences(5, seed=2)
    assert all(len(each.split()) == 9 for each in sentences(50, seed=1))
    pieces = list(paragraphs(200_000, seed=1))
    assert 200_000 <= sum(map(len, pieces)) < 200_000 + len(max(pieces, key=len)) + 1
    assert len(set(pieces)) == len(pieces)


def test_a_short_soak_leaves_a_whole_bank_and_no_open_handle() -> None:
    life = soak.live(rounds=4, added=20, deleted=5, recalled=5)
    assert life.problems == [] and life.memories == [15, 30, 45, 60]
    assert len(set(life.handles)) == 1 and len(life.grown) == 2
