"""Values made of digits and letters: numbers, phones, times, dates, codes, money, measures.

In comes a seeded `random.Random`; out comes one value as a person would write it.
Knows neither the other kinds of values nor what they say.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from memlong_agent.training.words import invented_name, invented_word, last_name, pick, words

UPPER = "ABCDEFGHJKLMNPRSTUVWXYZ"
_MIXED = UPPER + "abcdefghijkmnpqrstuvwxyz23456789"
STREETS = ("Lane", "Street", "Road", "Avenue", "Square", "Alley", "Way", "Court", "Hill", "Row")
_UNITS = {
    "distance": ("kilometers", "miles", "km", "meters", "steps"),
    "weight": ("kilos", "kg", "pounds", "grams", "tons"),
    "height": ("meters", "centimeters", "cm", "feet", "inches"),
    "span": ("minutes", "hours"),
    "years": ("weeks", "months", "years"),
    "duration": ("minutes", "hours", "days", "weeks", "months", "years"),
    "volume": ("liters", "gallons", "cups", "milliliters"),
    "power": ("watts", "kilowatts", "volts", "amps", "horsepower"),
}


def integer(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def digits(rng: random.Random, count: int) -> str:
    return str(integer(rng, 10 ** (count - 1), 10**count - 1))


def letters(rng: random.Random, count: int, letters: str = UPPER) -> str:
    return "".join(pick(rng, letters) for _ in range(count))


def number(rng: random.Random) -> str:
    return digits(rng, integer(rng, 2, 8))


def count(rng: random.Random) -> str:
    return digits(rng, integer(rng, 2, 6))


def phone(rng: random.Random) -> str:
    a, b, c = digits(rng, 3), digits(rng, 3), digits(rng, 4)
    shapes = (f"{a}-{b}-{c}", f"555-{c}", f"({a}) {b}-{c}", f"0{a} {b}{c[:2]}", f"{a} {c}",
              f"+{integer(rng, 20, 99)} {a} {b} {c}", f"0{a}/{c}{b[:2]}", f"{a}{c}")  # fmt: skip
    return pick(rng, shapes)


def time(rng: random.Random) -> str:
    hour, minute = (
        integer(rng, 0, 23),
        integer(rng, 0, 11) * 5 + integer(rng, 0, 1) * integer(rng, 0, 4),
    )
    chance = rng.random()
    if chance < 0.45:
        return f"{hour}:{minute:02d}"
    half = hour % 12 + 1
    if chance < 0.7:
        return f"{half}:{minute:02d} {'am' if hour < 12 else 'pm'}"
    if chance < 0.8:
        return f"{half} {'am' if hour < 12 else 'pm'}"
    names = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    past = pick(rng, ("quarter past", "half past", "ten to", "ten past", "twenty to", "quarter to"))
    return f"{past} {pick(rng, names)}"


def date(rng: random.Random) -> str:
    day, month = integer(rng, 1, 28), integer(rng, 1, 12)
    year, name = integer(rng, 2024, 2039), words("month")[month - 1]
    chance = rng.random()
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day not in (11, 12, 13) else 0, "th")
    if chance < 0.3:
        return f"{day} {name}"
    if chance < 0.5:
        return f"{name} {day}"
    if chance < 0.7:
        return f"{name} {day}{suffix}, {year}"
    if chance < 0.85:
        return f"{day} {name} {year}"
    return f"{year}-{month:02d}-{day:02d}"


def when(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.5:
        return date(rng)
    if chance < 0.75:
        return f"{pick(rng, words('weekday'))} at {time(rng)}"
    part = pick(rng, ("morning", "afternoon", "evening", "noon", "night"))
    if chance < 0.85:
        return f"{pick(rng, words('weekday'))} {part}"
    return date(rng)


def code(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.3:
        return f"{letters(rng, integer(rng, 1, 3))}-{digits(rng, integer(rng, 2, 5))}"
    if chance < 0.5:
        return f"{invented_word(rng)}-{digits(rng, integer(rng, 2, 4))}"
    if chance < 0.6:
        start = f"{integer(rng, 1, 9)}{letters(rng, 1).lower()}"
        return f"{start}-{invented_name(rng)}-{integer(rng, 10, 99)}"
    if chance < 0.75:
        return f"{letters(rng, integer(rng, 1, 3))}{digits(rng, integer(rng, 2, 5))}"
    if chance < 0.85:
        return f"{digits(rng, 2)}-{digits(rng, 2)}-{digits(rng, 2)}"
    return f"{digits(rng, integer(rng, 1, 3))}{letters(rng, integer(rng, 1, 3))}{digits(rng, 1)}"


def password(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.4:
        return (
            f"{letters(rng, integer(rng, 3, 5), _MIXED)}{integer(rng, 0, 9)}-{invented_word(rng)}"
        )
    if chance < 0.6:
        return f"{invented_name(rng)}{digits(rng, integer(rng, 2, 4))}"
    if chance < 0.8:
        return f"{pick(rng, words('color')).split()[-1]}-{invented_word(rng)}-{digits(rng, 2)}"
    return letters(rng, integer(rng, 6, 9), _MIXED)


def pin(rng: random.Random) -> str:
    return digits(rng, 4 if rng.random() < 0.6 else integer(rng, 3, 6))


def money(rng: random.Random) -> str:
    amount = integer(rng, 3, 99) if rng.random() < 0.4 else integer(rng, 100, 9800)
    cents = integer(rng, 10, 99)
    shapes = (
        f"${amount:,}", f"{amount:,} euros", f"{amount:,} dollars", f"€{amount}",
        f"{amount} francs", f"${amount}.{cents}", f"{amount} pounds",
    )  # fmt: skip
    return pick(rng, shapes)


def measure(unit: str) -> Callable[[random.Random], str]:
    names = _UNITS[unit]

    def make(rng: random.Random) -> str:
        chance = rng.random()
        amount = str(integer(rng, 2, 99)) if chance < 0.6 else str(integer(rng, 100, 980))
        if chance > 0.85:
            amount = f"{integer(rng, 1, 60)}.{integer(rng, 1, 9)}"
        return f"{amount} {pick(rng, names)}"

    return make


def spot(rng: random.Random) -> str:
    return (
        f"{letters(rng, 1)}{integer(rng, 1, 99)}"
        if rng.random() < 0.5
        else f"{integer(rng, 1, 60)}{letters(rng, 1)}"
    )


def shoe(rng: random.Random) -> str:
    return f"{integer(rng, 28, 52)}" if rng.random() < 0.6 else f"{integer(rng, 4, 14)}.5"


def size(rng: random.Random) -> str:
    return pick(
        rng, (f"{integer(rng, 28, 52)}", f"{integer(rng, 4, 14)}.5", pick(rng, ("XS", "XL", "XXL")))
    )


def blood(rng: random.Random) -> str:
    return f"{pick(rng, ('A', 'B', 'AB', '0', 'O'))} {pick(rng, ('positive', 'negative'))}"


def age(rng: random.Random) -> str:
    return str(integer(rng, 2, 99))


def year(rng: random.Random) -> str:
    return str(integer(rng, 1740, 2045))


def flight(rng: random.Random) -> str:
    return f"{letters(rng, 2)}{' ' if rng.random() < 0.4 else ''}{digits(rng, integer(rng, 2, 4))}"


def room(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.5:
        return f"room {integer(rng, 2, 990)}"
    if chance < 0.75:
        place = pick(rng, ("hall", "lab", "studio", "suite", "gate"))
        return f"{place} {letters(rng, 1)}{integer(rng, 1, 99)}"
    return f"the {invented_name(rng)} room"


def street(rng: random.Random) -> str:
    return f"{integer(rng, 1, 240)} {last_name(rng)} {pick(rng, STREETS)}"


def stature(rng: random.Random) -> str:
    """How tall a person is."""
    chance = rng.random()
    if chance < 0.4:
        return f"{integer(rng, 142, 208)} {pick(rng, ('cm', 'centimeters'))}"
    if chance < 0.7:
        return f"1.{integer(rng, 42, 99)} meters"
    return f"{integer(rng, 4, 6)} feet {integer(rng, 2, 11)}"
