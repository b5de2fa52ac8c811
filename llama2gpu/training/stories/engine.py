"""Fills story templates: choices in brackets, slots in braces, shared phrases by name.

A template is text in which `[a|b]` is one of its branches, `{hero}` a word fixed for the whole
story ({Hero} the same with a capital), and `<glad>` one of the phrases of that name. A plot is
a list of lines (an indented line continues the one before):

    $toy, fix = ball; pumped it up | doll; sewed it    words of this plot, chosen together
    $place, in_place = @places                         the same from a list of words.py
    + One way to say it.                               a group of which one line is told
    - Another way to say it.
    ? A sentence told in half of the stories.
    Any other sentence, always told.                   an empty line ends a paragraph
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from llama2gpu.training.stories import plots_friends, plots_home, plots_outside, plots_town, words
from llama2gpu.training.stories.phrases import PHRASES

T = TypeVar("T")

WORDS_PER_STORY = (100, 260)

PHRASE = re.compile(r"<(\w+)>")
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")
#: What tells a thing's color, before its name.
COLOR = re.compile(r"\{(p_color|color)\} (?=[a-z{])")
SPACES = re.compile(r" +")
#: "a" before a vowel that is heard.
ARTICLE = re.compile(r"\b([Aa]) (?=(?:[aeio]|u(?!se|ni)|hour|honest)(?!ne\b|nce\b))")
SENTENCE = re.compile(r'((?:^|(?<!Mr)(?<!Mrs)[.!?] |\." )"?)([a-z])', re.MULTILINE)


class Dice:
    """Choices drawn from `Random.random` alone, whose sequence no Python version changes."""

    def __init__(self, seed: int) -> None:
        self.roll = Random(seed).random

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[int(self.roll() * len(items))]

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self.roll() < probability


@dataclass
class Plot:
    """One parsed plot: its own words, and per paragraph the groups of sentences to pick from."""

    variables: list[tuple[list[str], list[str]]] = field(default_factory=list)
    paragraphs: list[list[list[str]]] = field(default_factory=lambda: [[]])
    animals: bool = True


def logical_lines(text: str) -> Iterator[str]:
    """Lines with their indented continuations joined on."""
    yield from re.sub(r"\n +", " ", text.strip("\n")).split("\n")


def parse_variable(line: str) -> tuple[list[str], list[str]]:
    """`a, b = x; y | z; w` as the names and the options; `@places` is a list of words.py."""
    names, options = (part.strip() for part in line[1:].split("=", 1))
    if options.startswith("@"):
        return names.split(", "), list(getattr(words, options[1:].upper()))
    return names.split(", "), options.split(" | ")


def parse_plot(text: str) -> Plot:
    """A plot from its text, in the notation of the module's docstring."""
    plot = Plot()
    for line in logical_lines(text):
        kind, rest = line[:1], line[1:].strip()
        if kind == "#":
            plot.animals = "(child)" not in line
        elif kind == "$":
            plot.variables.append(parse_variable(line))
        elif kind == "-":
            plot.paragraphs[-1][-1].append(rest)
        elif kind:
            group = ["", rest] if kind == "?" else [rest if kind == "+" else line]
            plot.paragraphs[-1].append(group)
        elif plot.paragraphs[-1]:
            plot.paragraphs.append([])
    return plot


PLOTS = [
    parse_plot(text)
    for module in (plots_friends, plots_home, plots_outside, plots_town)
    for text in module.PLOTS
]


def person(prefix: str, female: bool) -> dict[str, str]:
    """The pronoun slots of one character: {he}, {him}, {his}, {himself} after its prefix."""
    forms = ("she", "her", "her", "herself") if female else ("he", "him", "his", "himself")
    return {prefix + slot: form for slot, form in zip(words.PRONOUNS, forms, strict=True)}


class Cast:
    """Draws who a story is about, no name twice, and where they live."""

    def __init__(self, dice: Dice, animals: bool) -> None:
        self.dice = dice
        self.animals = animals
        self.taken: set[str] = set()

    def fresh(self, names: Sequence[str]) -> str:
        """A name that nobody in this story has, nor one that begins like it."""
        while (name := self.dice.pick(names))[:2] in self.taken:
            pass
        self.taken.add(name[:2])
        return name

    def hero(self, prefix: str, name: str) -> dict[str, str]:
        """A child or a young animal."""
        female = self.dice.chance(0.5)
        if self.animals:
            kind, names = self.fresh(words.ANIMALS), words.ANIMAL_NAMES[female]
        else:
            kind, names = "girl" if female else "boy", words.CHILD_NAMES[female]
        return {name: self.fresh(names), prefix + "kind": kind, **person(prefix, female)}

    def adult(self) -> dict[str, str]:
        """The grown-up at home and a neighbour with a surname."""
        mom = self.dice.pick(words.PARENTS)
        female = self.dice.chance(0.5)
        title, again = ("Mrs. ", "the old woman") if female else ("Mr. ", "the old man")
        slots = {"mom": mom, "elder": title + self.fresh(words.SURNAMES), "elder_again": again}
        return slots | person("m_", mom in words.FEMALE_PARENTS) | person("e_", female)

    def draw(self) -> dict[str, str]:
        """All slots that every plot may use."""
        slots = {**self.hero("", "hero"), **self.hero("f_", "friend"), **self.adult()}
        slots |= {"petname": self.fresh(words.PET_NAMES), "pet": self.dice.pick(words.PETS)}
        slots |= person("p_", self.dice.chance(0.5))
        home, near = (words.DENS, words.DEN_PLACES) if self.animals else (words.HOMES, words.NEAR)
        slots |= {"home": self.dice.pick(home), "near": self.dice.pick(near)}
        slots |= {"hands": "paws" if self.animals else "hands"}
        lists = {"color": words.COLORS, "trait": words.TRAITS, "hobby": words.HOBBIES}
        lists |= {"p_color": words.FUR, "work": words.WORK, "f_who": words.FRIENDS}
        return slots | {slot: self.dice.pick(options) for slot, options in lists.items()}


class Teller:
    """Tells one plot with one cast."""

    def __init__(self, dice: Dice, plot: Plot, slots: dict[str, str]) -> None:
        self.dice = dice
        self.plot = plot
        self.slots = slots
        self.told: set[str] = set()
        first = self.dice.chance(0.9)
        self.slots["one"] = "one" if first else "that"
        self.slots["open"] = self.fill(self.dice.pick(PHRASES["open" if first else "open_day"]))

    def fill(self, text: str) -> str:
        """The text with phrases, then choices, then slots filled in."""
        while "<" in text:
            text = PHRASE.sub(lambda match: self.dice.pick(PHRASES[match[1]]), text)
        while "[" in text:
            text = CHOICE.sub(lambda match: self.dice.pick(match[1].split("|")), text)
        text = COLOR.sub(self.once, text)
        while "{" in text:
            text = SLOT.sub(lambda match: self.slot(match[1]), text)
        return text

    def once(self, match: re.Match[str]) -> str:
        """A color where it is first told; later a thing goes by its name alone."""
        if match[1] in self.told:
            return ""
        self.told.add(match[1])
        return match[0]

    def slot(self, name: str) -> str:
        """The word of a slot; its name with a capital asks for the word with a capital.

        A slot told before gives what `_again` after its name holds, where there is that.
        """
        key = name[0].lower() + name[1:]
        word = self.slots[key]
        self.slots[key] = self.slots.get(key + "_again", word)
        return word[0].upper() + word[1:] if name[0].isupper() else word

    def tell(self) -> str:
        """The whole story, paragraphs separated by a newline."""
        for names, options in self.plot.variables:
            values = self.fill(self.dice.pick(options)).split(";")
            self.slots |= dict(zip(names, (value.strip() for value in values), strict=True))
        paragraphs = [
            self.fill(" ".join(self.dice.pick(group) for group in groups))
            for groups in self.plot.paragraphs
        ]
        return "\n".join(map(polish, paragraphs))


def polish(text: str) -> str:
    """Single spaces, "an" before vowels, and a capital at the start of every sentence."""
    text = ARTICLE.sub(r"\1n ", SPACES.sub(" ", text).strip())
    return SENTENCE.sub(lambda match: match[1] + match[2].upper(), text)


def generate(seed: int) -> Iterator[str]:
    """An endless stream of stories, the same for the same seed on every platform.

    Each is 100 to 260 words of ASCII in two to five paragraphs, separated by a newline.
    """
    dice = Dice(seed)
    shortest, longest = WORDS_PER_STORY
    while True:
        plot = dice.pick(PLOTS)
        animals = plot.animals and dice.chance(0.3)
        story = Teller(dice, plot, Cast(dice, animals).draw()).tell()
        if shortest <= len(story.split()) <= longest:
            yield story
