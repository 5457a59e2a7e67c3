"""Formal skills: what a program can tell of a text, exactly and each time the same. No grader is needed.

A skill has an id, an instruction that completes "Write a short text about rain that ...", and a check. Some take a value,
written after a colon: `sentences:3`, `word:river`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from surgery.errors import EvaluationError
from surgery.evaluating.formal.sentences import letters, sentences, words

Check = Callable[[str, str], bool]
NUMBERS = {"2": "two", "3": "three", "4": "four", "5": "five"}


@dataclass(frozen=True)
class FormalSkill:
    """A skill that a program checks.

    Attributes:
        instruction: `{value}` and, for a number, `{number}` in words stand for the value.
        example: a text about tea that shows the skill; `{value}` stands for the value, and each text between bars is one
            for a value, in the order of `values`.
        values: those that items are made with; a check takes others too. Empty: the skill takes none.
        pattern: what a value must look like.
        quotes: whether texts that show it repeat letters or words of the instruction, so that likelihood may only show
            copying.
        whole: whether it says something of every part of a text, rather than that something is in it.
    """

    name: str
    instruction: str
    example: str
    check: Check
    values: tuple[str, ...] = ()
    pattern: str = ""
    quotes: bool = False
    whole: bool = False


def has_sentences(text: str, value: str) -> bool:
    """Whether the text has so many sentences."""
    return len(sentences(text)) == int(value)


def is_short(text: str, value: str) -> bool:
    """Whether the text has so many words or fewer, and at least three."""
    return 3 <= len(words(text)) <= int(value)


def has_word(text: str, value: str) -> bool:
    """Whether the word is there, whole and in any case."""
    return value.lower() in (word.lower() for word in words(text))


def avoids_letter(text: str, value: str) -> bool:
    """Whether no word has the letter, among at least four words."""
    return len(words(text)) >= 4 and value.lower() not in letters(text)


def is_acrostic(text: str, value: str) -> bool:
    """Whether the first letters of the sentences spell the word."""
    starts = [letters(sentence)[:1] for sentence in sentences(text)]
    return "".join(starts) == value.lower()


def alliterates(text: str, value: str) -> bool:
    """Whether four words in a row, within a sentence, begin with the same letter."""
    for sentence in sentences(text):
        starts = [word[0].lower() for word in words(sentence)]
        if any(len(set(starts[k : k + 4])) == 1 for k in range(len(starts) - 3)):
            return True
    return False


def _listed(text: str, mark: str) -> list[str]:
    return [found[1] for line in text.splitlines() if (found := re.match(rf"\s*{mark}\s+(.*\S)\s*$", line))]


def has_sorted_list(text: str, value: str) -> bool:
    """Whether there are three or more lines that begin with a dash, star or dot, in alphabetical order, no two alike."""
    entries = [entry.lower() for entry in _listed(text, "[-*•]")]
    return len(entries) >= 3 and all(one < other for one, other in pairwise(entries))


def has_numbered_list(text: str, value: str) -> bool:
    """Whether there are lines that begin with 1., 2., 3. and so on, at least three and none left out."""
    numbers = [int(found[1]) for line in text.splitlines() if (found := re.match(r"\s*(\d+)[.)]\s+\S", line))]
    return len(numbers) >= 3 and numbers == list(range(1, len(numbers) + 1))


def is_json(text: str, value: str) -> bool:
    """Whether the whole text is a JSON object with at least one entry."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and bool(content)


_SUM = re.compile(r"(?<![\d.])(\d{1,9})\s*([-+*×x/−–÷])\s*(\d{1,9})\s*=\s*(-?\d{1,18})(?![\d]|[.,]\d)")


def has_true_sum(text: str, value: str) -> bool:
    """Whether there is a calculation such as 3 + 4 = 7, and every one is right."""
    found = _SUM.findall(text)
    return bool(found) and text.count("=") == len(found) and all(map(_is_true, found))


def _is_true(parts: tuple[str, str, str, str]) -> bool:
    first, sign, second, result = int(parts[0]), parts[1], int(parts[2]), int(parts[3])
    if sign in "/÷":
        return second != 0 and result * second == first
    return result == (first + second if sign == "+" else first * second if sign in "*×x" else first - second)


def has_quotation(text: str, value: str) -> bool:
    """Whether two or more words stand between double quotes."""
    return any(len(words(inner)) >= 2 for inner in re.findall(r'"([^"\n]*)"|“([^”\n]*)”', text) for inner in inner)


def ends_with_question(text: str, value: str) -> bool:
    """Whether the last sentence, of at least two words, ends with a question mark."""
    found = sentences(text)
    return bool(found) and len(words(found[-1])) >= 2 and text.strip().rstrip("\"'”’)").endswith("?")


def has_palindrome(text: str, value: str) -> bool:
    """Whether a word of four or more letters reads the same backwards, and isn't one letter over and over."""
    return any(len(word) >= 4 and word == word[::-1] and len(set(word)) > 1 for word in map(str.lower, words(text)))


def is_lowercase(text: str, value: str) -> bool:
    """Whether no letter is a capital, among at least four words."""
    return len(words(text)) >= 4 and text == text.lower()


def is_uppercase(text: str, value: str) -> bool:
    """Whether every letter is a capital, among at least four words."""
    return len(words(text)) >= 4 and text == text.upper()


def exclaims(text: str, value: str) -> bool:
    """Whether there are two or more sentences, each of which ends with an exclamation mark."""
    found = sentences(text)
    return len(found) >= 2 and all(sentence.rstrip("\"'”’)").endswith("!") for sentence in found)


def repeats_start(text: str, value: str) -> bool:
    """Whether there are three or more sentences, all of which begin with the same word."""
    starts = [(words(sentence) or [""])[0].lower() for sentence in sentences(text)]
    return len(starts) >= 3 and len(set(starts)) == 1 and starts[0] != ""


def has_aside(text: str, value: str) -> bool:
    """Whether two or more words stand between parentheses."""
    return any(len(words(inner)) >= 2 for inner in re.findall(r"\(([^()\n]*)\)", text))


def has_hashtags(text: str, value: str) -> bool:
    """Whether there are two or more different hashtags."""
    return len({tag.lower() for tag in re.findall(r"(?<![\w#])#([A-Za-z]\w*)", text)}) >= 2


def grows(text: str, value: str) -> bool:
    """Whether there are three or more sentences, each of more words than the one before."""
    lengths = [len(words(sentence)) for sentence in sentences(text)]
    return len(lengths) >= 3 and all(one < other for one, other in pairwise(lengths))


_ALL = (
    FormalSkill("sentences", "has exactly {number} sentences", "Tea warms me up. I had some today.|Tea warms me up. I had some today. It was black.|Tea warms me up. I had some today. It was black. My cup was blue.", has_sentences, ("2", "3", "4"), r"[1-9]\d?", whole=True),
    FormalSkill("short", "has at most {value} words", "Tea warms me up.|I had a cup of black tea today.", is_short, ("8", "12"), r"[1-9]\d{0,2}", whole=True),
    FormalSkill("word", 'contains the word "{value}"', "I drank my tea beside a {value}.", has_word, ("river", "lantern", "seven", "garden"), r"[A-Za-z]+", quotes=True),
    FormalSkill("lipogram", "never uses the letter {value}", "I drank a cup of hot black oolong, and it was so good.", avoids_letter, ("e",), r"[a-z]", whole=True),
    FormalSkill("acrostic", 'has sentences whose first letters spell "{value}"', "My tea is hot. After lunch I have more. Perhaps you want some.|So this is tea. I like it black. Try a cup.|Tea first. Only then I talk. Please sit down.|Right now I have tea. A cup is enough. Milk goes in last.", is_acrostic, ("map", "sit", "top", "ram"), r"[A-Za-z]{2,12}", quotes=True, whole=True),
    FormalSkill("alliteration", "has four words in a row that begin with the same letter", "Ten tiny teapots tipped over on the table.", alliterates),
    FormalSkill("sorted", "ends with a list of three lines, each begun with a dash, in alphabetical order", "What I need for tea:\n- cup\n- kettle\n- water", has_sorted_list),
    FormalSkill("numbered", "ends with a numbered list of three lines", "How I make tea:\n1. boil water\n2. add leaves\n3. wait", has_numbered_list),
    FormalSkill("json", "is a valid JSON object and nothing else", "{\"drink\": \"tea\", \"taste\": \"bitter\"}", is_json, whole=True),
    FormalSkill("arithmetic", "contains a correct calculation in digits", "I drank 2 cups of tea and then 3 more: 2 + 3 = 5.", has_true_sum),
    FormalSkill("quotation", "quotes somebody's words between double quotes", "My uncle said, \"The tea is ready now.\"", has_quotation),
    FormalSkill("question", "ends with a question", "This tea is still hot. Would you like some?", ends_with_question),
    FormalSkill("palindrome", "contains a word that reads the same backwards", "I always have my tea at noon.", has_palindrome),
    FormalSkill("lowercase", "is written in lower case letters only", "this tea is still hot, and i like it.", is_lowercase, whole=True),
    FormalSkill("uppercase", "is written in capital letters only", "THIS TEA IS STILL HOT, AND I LIKE IT.", is_uppercase, whole=True),
    FormalSkill("exclamation", "ends every sentence with an exclamation mark", "What a cup of tea! It is still hot!", exclaims, whole=True),
    FormalSkill("anaphora", "begins all of its three or more sentences with the same word", "Tea is warm. Tea is cheap. Tea is good for you.", repeats_start, whole=True),
    FormalSkill("aside", "has a remark of several words in parentheses", "My tea (I had it with milk today) was still hot.", has_aside),
    FormalSkill("hashtags", "has two different hashtags", "Time for a cup of tea. #warm #break", has_hashtags),
    FormalSkill("growing", "has three or more sentences, each longer than the one before", "Tea helps. It warms me up. I drink a cup of it every single day.", grows, whole=True),
)  # fmt: skip

FORMAL_SKILLS: Mapping[str, FormalSkill] = {skill.name: skill for skill in _ALL}

# Pairs that no text, or hardly one of a few sentences, can have both of.
_APART = (
    {"json", "sentences"}, {"json", "short"}, {"json", "acrostic"}, {"json", "sorted"}, {"json", "numbered"},
    {"json", "question"}, {"json", "exclamation"}, {"json", "anaphora"}, {"json", "growing"}, {"json", "quotation"},
    {"lowercase", "uppercase"}, {"question", "exclamation"}, {"sorted", "numbered"}, {"sorted", "question"},
    {"numbered", "question"}, {"sorted", "exclamation"}, {"numbered", "exclamation"}, {"sorted", "sentences"},
    {"numbered", "sentences"}, {"sorted", "anaphora"}, {"numbered", "anaphora"}, {"sorted", "growing"},
    {"numbered", "growing"}, {"sorted", "acrostic"}, {"numbered", "acrostic"}, {"short", "sentences"},
    {"short", "growing"}, {"short", "anaphora"}, {"short", "acrostic"}, {"short", "sorted"}, {"short", "numbered"},
    {"short", "exclamation"}, {"acrostic", "sentences"}, {"acrostic", "anaphora"}, {"acrostic", "growing"}, {"acrostic", "question"},
    {"short", "hashtags"}, {"hashtags", "question"}, {"hashtags", "exclamation"}, {"hashtags", "sentences"},
    {"hashtags", "acrostic"}, {"hashtags", "anaphora"}, {"hashtags", "growing"},
    {"anaphora", "growing"}, {"lipogram", "acrostic"}, {"sentences", "anaphora"}, {"sentences", "growing"},
    {"short", "arithmetic"}, {"word", "lipogram"}, {"json", "hashtags"},
    {"sorted", "hashtags"}, {"numbered", "hashtags"}, {"sorted", "json"}, {"acrostic", "quotation"},
)  # fmt: skip


def parse(name: str) -> tuple[FormalSkill, str]:
    """A skill and its value from an id such as `question` or `sentences:3`.

    Raises:
        EvaluationError: an unknown id, a value that the skill doesn't take, or none where it wants one.
    """
    known, _, value = name.partition(":")
    skill = FORMAL_SKILLS.get(known)
    if skill is None:
        raise EvaluationError(f"{name!r} is no formal skill: choose among {', '.join(FORMAL_SKILLS)}")
    if bool(skill.values) != bool(value):
        wanted = f"a value, such as {known}:{skill.values[0]}" if skill.values else "no value"
        raise EvaluationError(f"{name!r}: the skill {known} takes {wanted}")
    if value and not re.fullmatch(skill.pattern, value):
        raise EvaluationError(
            f"{name!r}: {value!r} is no value of the skill {known}: give one such as {skill.values[0]}"
        )
    return skill, value


def check(name: str, text: str) -> bool:
    """Whether a text shows a skill, by the skill's id; raises EvaluationError for an unknown one."""
    skill, value = parse(name)
    return skill.check(text.strip(), value)


def instruction(name: str) -> str:
    """The instruction of a skill: it completes "Write a short text that ..."."""
    skill, value = parse(name)
    return skill.instruction.format(value=value, number=NUMBERS.get(value, value))


def example(name: str) -> str:
    """A text about tea that shows a skill; empty for a value that none was written for."""
    skill, value = parse(name)
    if "|" not in skill.example:
        return skill.example.replace("{value}", value)
    return dict(zip(skill.values, skill.example.split("|"), strict=True)).get(value, "")


def compatible(one: str, other: str) -> bool:
    """Whether a text can have both skills; two of one kind never go together."""
    kinds = {one.partition(":")[0], other.partition(":")[0]}
    return len(kinds) == 2 and kinds not in _APART


def skill_ids(*, quoting: bool = True) -> list[str]:
    """Ids of all skills with the values that items are made with; without `quoting`, those that tell what to copy are left out."""
    return [
        f"{skill.name}:{value}" if value else skill.name
        for skill in FORMAL_SKILLS.values()
        if quoting or not skill.quotes
        for value in skill.values or ("",)
    ]
