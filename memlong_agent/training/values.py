"""Values: what a fact says, in some fifty kinds (names, numbers, codes, times, places, things).

In comes a seeded `random.Random` and the name of a kind; out comes a value as a person would write
it. Open kinds are drawn from far more values than any run uses; closed ones come from `words.txt`.
Knows nothing of facts; `KINDS` is the whole vocabulary of kinds that `attributes.txt` may name.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from memlong_agent.training.numerals import (
    STREETS,
    UPPER,
    age,
    blood,
    code,
    count,
    date,
    flight,
    integer,
    measure,
    money,
    number,
    password,
    phone,
    pin,
    room,
    shoe,
    size,
    spot,
    stature,
    street,
    time,
    when,
    year,
)
from memlong_agent.training.words import (
    Split,
    article,
    first_name,
    invented_name,
    invented_word,
    last_name,
    pick,
    split_value,
    words,
)

SLOT = "slot"  # the kind of the word in the slot, written after it in words.txt: "owner:full"
_VENUE_NOUNS = ("Lantern", "Anchor", "Crown", "Garden", "Kettle", "Mill", "Barrel", "Oak", "Bell")
_TITLE_NOUNS = ("Ferry", "Rooms", "Winter", "Letters", "Bridge", "Orchard", "Silence", "Tide",
                "Clockmaker", "Harbor", "Shadows", "Daughter", "Night", "Map", "River", "Door",
                "Garden", "Island", "Song", "Mirror", "Stranger", "Lighthouse")  # fmt: skip
_TITLE_ADJECTIVES = ("Last", "Quiet", "Seven", "Broken", "Hidden", "Silver", "Burning", "Long",
                     "First", "Empty", "Borrowed", "Wandering", "Crooked", "Endless", "Nine",
                     "Paper", "Blue", "Forgotten", "Second")  # fmt: skip


def full_name(rng: random.Random) -> str:
    return f"{first_name(rng)} {last_name(rng)}"


def person(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.5:
        return first_name(rng)
    if chance < 0.88:
        return full_name(rng)
    if chance < 0.95:
        return f"{pick(rng, words('title'))} {last_name(rng)}"
    return f"{pick(rng, UPPER)}. {pick(rng, UPPER)}. {last_name(rng)}"


def city(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.8:
        return invented_name(rng)
    first = pick(rng, ("Port", "New", "Upper", "Lower", "Saint", "Old", "Bad", "East", "Mount"))
    return f"{first} {invented_word(rng).capitalize()}"


def road(rng: random.Random) -> str:
    return f"{last_name(rng)} {pick(rng, STREETS)}"


def venue(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.4:
        adjective = pick(rng, words("adj")).title()
        noun = pick(rng, _VENUE_NOUNS if chance < 0.2 else words("animal")).title()
        return f"the {adjective} {noun}"
    if chance < 0.6:
        return f"Cafe {invented_name(rng)}"
    if chance < 0.8:
        return f"{last_name(rng)}'s"
    return (
        f"{invented_name(rng)} {pick(rng, ('House', 'Hotel', 'Hall', 'Grill', 'Kitchen', 'Bar'))}"
    )


def _word(*sections: str, own: float = 0.0) -> Callable[[random.Random], str]:
    """A word of the sections; with probability `own` an invented lower-case word instead."""

    def make(rng: random.Random) -> str:
        if own and rng.random() < own:
            return invented_word(rng)
        return pick(rng, words(pick(rng, sections)))

    return make


def color(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.6:
        return pick(rng, words("color"))
    if chance < 0.8:
        return f"{pick(rng, words('color'))} and {pick(rng, words('color'))}"
    stripes = pick(rng, ("stripes", "dots", "checks", "flowers", "stars"))
    return f"{pick(rng, words('color'))} with {pick(rng, words('color'))} {stripes}"


def food(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.5:
        return pick(rng, words("food"))
    if chance < 0.75:
        how = pick(
            rng, ("pickled", "roasted", "smoked", "fried", "candied", "grilled", "raw", "salted")
        )
        return f"{how} {pick(rng, words('food'))}"
    if chance < 0.9:
        return f"{pick(rng, words('food'))} with {pick(rng, words('food'))}"
    return f"{invented_word(rng)} {pick(rng, ('soup', 'pie', 'stew', 'bread', 'cake', 'salad'))}"


def thing(rng: random.Random) -> str:
    """A thing without its article: "copper teapot"."""
    chance = rng.random()
    if chance < 0.25:
        return pick(rng, words("object"))
    adjective = pick(rng, words("adj") if chance < 0.8 else words("material"))
    return f"{adjective} {pick(rng, words('object'))}"


def things(rng: random.Random) -> str:
    """What can be bought, promised, collected: "old stamps", "a tin kite", "dried figs"."""
    chance = rng.random()
    if chance < 0.4:
        noun = thing(rng)
        return f"{article(noun)} {noun}"
    if chance < 0.6:
        return food(rng)
    if chance < 0.8:
        noun = thing(rng)
        return noun if noun.endswith("s") else f"{integer(rng, 2, 40)} {_plural(noun)}"
    return f"{pick(rng, words('adj'))} {_plural(pick(rng, words('animal')))}"


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def where(rng: random.Random) -> str:
    chance = rng.random()
    preposition = pick(rng, words("preposition"))
    if chance < 0.6:
        return f"{preposition} the {thing(rng)}"
    if chance < 0.75:
        return f"{preposition} the {thing(rng)} in the {pick(rng, words('roomword'))}"
    if chance < 0.87:
        return f"in the {pick(rng, words('adj'))} {pick(rng, words('roomword'))}"
    return f"at {last_name(rng)}'s place"


def email(rng: random.Random) -> str:
    user = pick(rng, (invented_word(rng), f"{first_name(rng)}.{last_name(rng)}".lower(),
                      f"{invented_word(rng)}{integer(rng, 1, 99)}"))  # fmt: skip
    return f"{user}@{invented_word(rng)}.{pick(rng, ('com', 'org', 'net', 'io', 'eu'))}"


def handle(rng: random.Random) -> str:
    tail = str(integer(rng, 1, 99)) if rng.random() < 0.5 else f"_{invented_word(rng)}"
    return f"{'@' if rng.random() < 0.6 else ''}{invented_word(rng)}{tail}"


def site(rng: random.Random) -> str:
    name = f"{invented_word(rng)}{pick(rng, ('-', '', ''))}{invented_word(rng)}"
    return f"{name}.{pick(rng, ('com', 'org', 'net'))}"


def title(rng: random.Random) -> str:
    noun, adjective = pick(rng, _TITLE_NOUNS), pick(rng, _TITLE_ADJECTIVES)
    name, color_ = invented_name(rng), pick(rng, words("color")).title()
    shapes = (
        f"The {adjective} {noun}", f"{adjective} {noun}", f"The {noun} of {name}",
        f"{name}'s {noun}", f"{noun} without {pick(rng, _TITLE_NOUNS)}", f"{color_} {noun}",
    )  # fmt: skip
    return pick(rng, shapes)


def company(rng: random.Random) -> str:
    invented, last = invented_name(rng), last_name(rng)
    shapes = (
        f"{invented} {pick(rng, ('Systems', 'Labs', 'Foods', 'Works', 'Group', 'Media'))}",
        f"{last} & {last_name(rng)}",
        invented,
        f"{last} {pick(rng, ('Brothers', 'Logistics', 'Motors', 'Partners'))}",
    )
    return pick(rng, shapes)


def school(rng: random.Random) -> str:
    kinds = ("Primary School", "High School", "College", "Academy", "University", "Elementary")
    return f"{last_name(rng)} {pick(rng, kinds)}"


def team(rng: random.Random) -> str:
    return f"the {city(rng)} {_plural(pick(rng, words('animal'))).title()}"


def car(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.5:
        return f"{pick(rng, words('color')).split()[-1]} {pick(rng, words('carmake'))}"
    if chance < 0.8:
        return f"{pick(rng, words('carmake'))} {invented_name(rng)}"
    return f"{integer(rng, 1968, 2029)} {pick(rng, words('carmake'))}"


def word_(rng: random.Random) -> str:
    return invented_word(rng)


def pet_name(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.7:
        return invented_name(rng)
    if chance < 0.85:
        return pick(rng, words("food")).split()[-1].capitalize()
    return f"{pick(rng, ('Sir', 'Lady', 'Captain', 'Little', 'Old'))} {invented_name(rng)}"


def wildcard(rng: random.Random) -> str:
    """A value of any kind: what stands in a fact about an arbitrary noun."""
    return KINDS[pick(rng, _WILD)](rng)


def label(rng: random.Random) -> str:
    """What an arbitrary thing can be called."""
    return KINDS[pick(rng, _LABELS)](rng)


KINDS: dict[str, Callable[[random.Random], str]] = {
    "name": person, "first": first_name, "full": full_name, "invented": invented_name,
    "city": city, "street": street, "road": road, "venue": venue, "phone": phone, "time": time,
    "date": date, "when": when, "code": code, "password": password, "pin": pin, "money": money,
    "number": number, "age": age, "year": year, "size": size, "blood": blood, "color": color,
    "food": food, "thing": thing, "things": things, "where": where, "room": room, "spot": spot,
    "email": email, "handle": handle, "site": site, "title": title, "company": company,
    "school": school, "team": team, "car": car, "flight": flight, "word": word_, "pet": pet_name,
    "distance": measure("distance"), "weight": measure("weight"), "height": measure("height"),
    "duration": measure("duration"), "span": measure("span"), "volume": measure("volume"),
    "power": measure("power"), "stature": stature, "count": count, "shoe": shoe,
    "years": measure("years"),
    "drink": _word("drink"), "animal": _word("animal"), "plant": _word("plant"),
    "object": _word("object"), "material": _word("material"), "job": _word("profession"),
    "sport": _word("sport"), "instrument": _word("instrument"), "language": _word("language"),
    "country": _word("country"), "hobby": _word("hobby"), "study": _word("subject"),
    "allergen": _word("ailment", "food"), "fear": _word("fear"), "any": wildcard, "label": label,
    SLOT: wildcard,
}  # fmt: skip
_LABELS = ("invented", "invented", "word", "word", "title", "company", "code", "thing", "full",
           "animal", "handle", "plant")  # fmt: skip
_WILD = ("name", "first", "invented", "invented", "city", "street", "venue", "time", "date", "code",
         "code", "password", "money", "number", "number", "color", "food", "thing", "where",
         "title", "company", "word", "word", "distance", "weight", "duration", "animal", "plant",
         "material", "country", "handle", "full")  # fmt: skip


def make_value(rng: random.Random, kind: str, split: Split) -> str:
    """A value of `kind` that belongs to `split`; `""` when 60 tries gave none."""
    return split_value(rng, KINDS[kind], split)
