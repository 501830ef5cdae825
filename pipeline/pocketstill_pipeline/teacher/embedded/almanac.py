"""What the embedded teacher knows of the world: a small almanac of household facts."""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """Something to ask about ("how long ..."), what is so, and why."""

    about: str
    answer: str
    why: str


FACTS: dict[str, tuple[Fact, ...]] = {
    "cooking": (
        Fact("how long an egg boils until it is hard", "about ten minutes", "the yolk sets only near 70 degrees"),
        Fact("how much salt goes into pasta water", "about ten grams a litre", "the pasta takes up only a part of it"),
        Fact("why onions are fried slowly", "to make them sweet", "their sugar browns before their edges burn"),
        Fact("how to keep cut apples white", "with lemon juice", "its acid stops the browning"),
    ),
    "gardening": (
        Fact("when tomatoes are planted outside", "after the last frost", "the young plants die below zero"),
        Fact("how often a lawn is watered", "once a week, and deeply", "deep water makes deep roots"),
        Fact("why compost is turned", "to let air in", "the small creatures in it need oxygen"),
        Fact("which side of a house suits ferns", "the north side", "they want shade and damp soil"),
    ),
    "bicycles": (
        Fact("how hard to pump a touring tyre", "to about four bar", "softer ones roll badly and are cut by the rim"),
        Fact("when to replace a chain", "when it is one percent longer", "a longer one grinds the sprockets down"),
        Fact("why brakes squeal", "because the pads are dirty or too flat", "they stick and slip on the rim"),
        Fact("how high a saddle should be", "so that the heel reaches the pedal", "then the knee stays a little bent"),
    ),
    "sleep": (
        Fact("how many hours grown people sleep", "seven to nine hours", "less is felt in memory and mood"),
        Fact("why screens are bad before bed", "because of their blue light", "it holds back melatonin"),
        Fact("how cool a bedroom should be", "around 18 degrees", "the body has to lose warmth to fall asleep"),
        Fact("when to drink the last coffee", "before two in the afternoon", "half of it is there six hours later"),
    ),
    "money": (
        Fact("how large a reserve should be", "three months of spending", "that covers most times without pay"),
        Fact("which debt to pay first", "the one with the highest interest", "it grows the fastest"),
        Fact("why to compare prices by weight", "as packets differ in size", "small ones may cost more a kilogram"),
        Fact("how inflation touches savings", "they buy less each year", "prices rise and the sum does not"),
    ),
    "weather": (
        Fact("why the wind cools", "because it carries warm air away", "the skin warms a thin layer around it"),
        Fact("how far off a thunderstorm is", "the seconds to the thunder, over three, in kilometres",
             "sound takes three seconds a kilometre"),
        Fact("when fog forms", "when damp air cools at night", "cool air holds less water"),
        Fact("what a falling barometer means", "that rain is likely", "low pressure draws in wet air"),
    ),
    "first aid": (
        Fact("how to cool a burn", "under lukewarm water for ten minutes", "heat goes on working in the skin"),
        Fact("what to do with a nosebleed", "lean forward and pinch the nose", "leaning back has blood be swallowed"),
        Fact("how to hold a sprained ankle", "high and cool", "less blood flows in and it swells less"),
        Fact("when to call an ambulance", "when somebody cannot be woken", "breathing may stop at any time"),
    ),
    "computers": (
        Fact("how long a password should be", "at least fourteen letters", "each one more makes guessing far longer"),
        Fact("why to keep copies in two places", "because one may burn or be stolen", "both at once is unlikely"),
        Fact("when to install updates", "as soon as they come", "holes are used within days of being known"),
        Fact("what a full disk does", "it makes programs fail", "they cannot write what they need for a while"),
    ),
    "music": (
        Fact("how often to tune a piano", "twice a year", "the wood moves with summer and winter"),
        Fact("why singers warm up", "to make the voice supple", "cold vocal folds tire and swell"),
        Fact("how long to practise scales", "ten minutes a day", "little and often stays in the fingers"),
        Fact("what a metronome is for", "for an even beat", "one speeds up at the easy places without it"),
    ),
    "travel": (
        Fact("how early to be at an airport", "two hours before the flight", "the gates close half an hour before"),
        Fact("why to carry water on a train", "because delays are dry", "the shop on board may be shut"),
        Fact("how to beat jet lag", "with daylight in the morning", "light sets the inner clock"),
        Fact("what to pack first", "papers and medicine", "all else can be bought"),
    ),
}  # fmt: skip
