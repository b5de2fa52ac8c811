"""The story corpus: no two stories alike, every one well formed and true to its own names."""

import hashlib
import itertools
import re
import subprocess
import sys

import pytest

from llama2gpu.training.stories import generate, words
from llama2gpu.training.stories.engine import PLOTS, Cast, Dice, Teller, parse_plot, polish
from llama2gpu.training.stories.phrases import PHRASES

NAMES = {
    *itertools.chain(words.BOYS, words.GIRLS, *words.ANIMAL_NAMES, words.PET_NAMES, words.SURNAMES)
}
COMMAND = [sys.executable, "-m", "llama2gpu.training.stories"]


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return list(itertools.islice(generate(7), 20_000))


def names_in(text: str) -> set[str]:
    return NAMES & set(re.findall(r"[A-Z][a-z]+", text))


def ngrams(stories: list[str], n: int) -> set[int]:
    """Hashes of all runs of n words inside a story."""
    split = (story.split() for story in stories)
    return {hash(tuple(all[i : i + n])) for all in split for i in range(len(all) - n + 1)}


def test_no_story_is_told_twice(stories: list[str]) -> None:
    assert len(set(stories)) == len(stories)


def test_long_runs_of_words_repeat_little(stories: list[str]) -> None:
    first, second = ngrams(stories[:2000], 12), ngrams(stories[2000:4000], 12)
    assert len(first & second) / len(second) < 0.20


def test_size(stories: list[str]) -> None:
    assert all(100 <= len(story.split()) <= 260 for story in stories)
    assert all(2 <= len(story.split("\n")) <= 5 for story in stories)
    assert 1300 <= len({*re.findall(r"[a-z]+", " ".join(stories).lower())}) <= 2500


def test_half_begin_with_the_default_prompt(stories: list[str]) -> None:
    share = sum(story.startswith("Once upon a time") for story in stories) / len(stories)
    assert 0.4 < share < 0.6


@pytest.mark.parametrize(
    "wrong",
    [
        r"[^ -~\n]",
        r"[{}<>\[\]|$@+*_;]",
        r"  | [,.!?]|[,.!?]{2}|^ | $|\n\n",
        r"\b[Aa] (?!one\b|once\b|use|uni)[aeiou]",
        r"\b[Aa]n [^aeiouh]",
        r"\b(\w+) (?!that\b)\1\b(?<!had had)",
        r'(?:^|(?<!Mr)(?<!Mrs)\. "?|[!?] (?!"))[a-z]',
        r'[a-z,]" [A-Z](?!\w* )',
        r'(?<![.!?"])$',
    ],
)
def test_nothing_is_malformed(stories: list[str], wrong: str) -> None:
    pattern = re.compile(wrong, re.MULTILINE)
    found = (pattern.search(story) for story in stories)
    assert not [match.string for match in found if match][:3]


def test_quotes_open_and_close(stories: list[str]) -> None:
    for paragraph in itertools.chain.from_iterable(story.split("\n") for story in stories):
        parts = paragraph.split('"')
        assert len(parts) % 2, paragraph
        for quoted in parts[1::2]:
            assert re.fullmatch(r"[A-Za-z].*[,.!?]", quoted), paragraph


def test_late_names_were_introduced(stories: list[str]) -> None:
    for story in stories:
        middle = story.index(" ", len(story) * 2 // 3)
        named = set(re.findall(r"(?:named|called) it (\w+)", story))
        assert names_in(story[middle:]) <= names_in(story[:middle]) | named, story


def test_capitals_inside_a_sentence_are_names(stories: list[str]) -> None:
    known = NAMES | {"I", "Mr", "Mrs", "Snow", "Monday", "Tuesday"}
    known |= {name.capitalize() for name in words.PARENTS}
    inside = re.compile(r"(?<=[a-z,] )[A-Z]\w*")
    assert {word for story in stories for word in inside.findall(story)} <= known


def test_names_of_one_story_begin_differently() -> None:
    for seed in range(200):
        slots = Cast(Dice(seed), animals=bool(seed % 2)).draw()
        names = [slots["hero"], slots["friend"], slots["petname"], slots["elder"].split()[1]]
        assert len({name[:2] for name in names}) == 4


def test_neighbors_are_named_once(stories: list[str]) -> None:
    for story in stories:
        elders = re.findall(r"M(r|rs)\. (?!Snow)\w+", story)
        assert len(elders) <= 1, story
        later = re.search(r"\b[Tt]he old (wo)?man\b", story)
        assert not later or elders == ["rs" if later[1] else "r"], story
        assert "old man" not in story or "old woman" not in story, story


@pytest.mark.parametrize("number", range(len(PLOTS)))
def test_every_plot_fits(number: int) -> None:
    dice = Dice(number)
    for _ in range(50):
        plot = PLOTS[number]
        story = Teller(dice, plot, Cast(dice, plot.animals).draw()).tell()
        assert 100 <= len(story.split()) <= 290


def test_many_plots_and_words() -> None:
    assert len(PLOTS) >= 30
    assert all(len(names) == len(set(names)) for names in (words.BOYS, words.GIRLS))
    assert len({*words.BOYS, *words.GIRLS}) >= 60
    assert {name for text in PHRASES.values() for part in text for name in _named(part)} <= {
        *PHRASES
    }


def _named(text: str) -> list[str]:
    return re.findall(r"<(\w+)>", text)


def test_plot_notation() -> None:
    plot = parse_plot("# x (child)\n$a, b = x; 1 | y; 2\n+ One\n  more.\n- Two.\n? Three.\n\nFour.")
    assert not plot.animals
    assert plot.variables == [(["a", "b"], ["x; 1", "y; 2"])]
    assert plot.paragraphs == [[["One more.", "Two."], ["", "Three."]], [["Four."]]]


def test_polish() -> None:
    text = 'a apple  and a hour. she said, "a unicorn." he met Mr. Hill! "so?" he asked a one.'
    assert polish(text) == (
        'An apple and an hour. She said, "a unicorn." He met Mr. Hill! "So?" he asked a one.'
    )


def test_the_same_stories_everywhere() -> None:
    digest = hashlib.sha256("\n".join(itertools.islice(generate(1), 100)).encode()).hexdigest()
    assert digest == "030e61d177bbc0e1789093693a26d5ea678103858a3b5fc7c7eb4791dd99f904"
    assert next(generate(2)) != next(generate(1))


def test_command() -> None:
    done = subprocess.run(
        [*COMMAND, "--words", "1000", "--seed", "3"], capture_output=True, text=True, check=True
    )
    stories = done.stdout.split("\n<|endoftext|>\n")
    assert stories.pop() == ""
    assert stories == list(itertools.islice(generate(3), len(stories)))
    assert 1000 <= sum(len(story.split()) for story in stories) < 1260


def test_a_reader_may_leave() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
