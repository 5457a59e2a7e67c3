"""Texts that show formal skills, written by a program from sentences of our own and then held to the checks."""

import json
import random
from collections.abc import Callable, Sequence

from surgery.errors import EvaluationError
from surgery.evaluating.formal.sentences import letters
from surgery.evaluating.formal.skills import FORMAL_SKILLS, check, parse

# None of these has the letter e, so that texts without it can be about any of them.
TOPICS = (
    "dogs", "cats", "birds", "rain", "clouds", "mountains", "music", "dancing", "painting", "cooking",
    "football", "hiking", "swimming", "fishing", "farming", "trains", "boats", "books", "maps", "history",
)  # fmt: skip

_PLAIN = (
    "All of my family is fond of {topic}.", "A good day has {topic} in it.", "At night I think about {topic}.",
    "It is hard to grow tired of {topic}.", "In our town {topic} is on many minds.", "I found {topic} again this spring.",
    "Many of us grow up with {topic}.", "My aunt told long tales about {topic}.", "Most days bring a bit of {topic}.",
    "On Sunday I had only {topic} on my mind.", "Our talk of {topic} was long and loud.", "Old and young alike want {topic}.",
    "People here have always cared about {topic}.", "Perhaps nothing is quite like {topic}.", "Plain words can't do justice to {topic}.",
    "Rarely does a week go by without {topic}.", "Reading about {topic} fills my evenings.", "Right now my brother is busy with {topic}.",
    "Some of my fondest moments had to do with {topic}.", "So much can be said about {topic}.", "School taught us little about {topic}.",
    "Talk of {topic} fills this room.", "To my mind {topic} is worth a lot of work.", "The whole street was full of {topic}.",
    "There are many ways to enjoy {topic}.", "We spent the summer with {topic}.", "Few things are as old as {topic}.",
    "Nothing calms me down like {topic}.", "You can find {topic} in the strangest places.", "Every winter I look forward to {topic}.",
    "Visitors ask us about {topic}.", "Life without {topic} would be dull.", "Good friends share {topic} with each other.",
)  # fmt: skip
# Of so many words each, for texts that are to be short or to grow; none has the letter e.
_BY_LENGTH = {
    2: ("Try {topic}.", "Consider {topic}.", "Think {topic}."),
    3: ("I want {topic}.", "I like {topic}.", "Nothing stops {topic}."),
    4: ("I can't avoid {topic}.", "My mind holds {topic}.", "Your days want {topic}."),
    6: ("All of us talk about {topic}.", "It is fun to try {topic}.", "A good story is about {topic}."),
    9: ("On many nights my sister and I discuss {topic}.", "It was a long road from nothing to {topic}."),
    12: ("As far as I know, not a soul in town dislikes {topic}.", "If a man has a day off, it is good to try {topic}."),
    16: ("A long way from town, in a small hut with a warm lamp, I still hold on to {topic}.",),
}  # fmt: skip
_ALLITERATING = ("Big brown boats bob about in talk of {topic}.", "Soft spring sunlight soaks {topic}.", "Many mild mornings mix with {topic}.", "Peter Piper praised plain {topic}.", "Five fine friends found {topic}.", "Tall tough trees tower by {topic}.")  # fmt: skip
_SUMS = ("{a} + {b} = {sum}", "{a} x {b} = {product}", "{sum} - {a} = {b}")
_SUM_LINES = ("In my notes on {topic} I found that {it}.", "About {topic} I can only say that {it}.", "My sums on {topic} say that {it}.")  # fmt: skip
_QUOTES = ('My aunt said, "I want {topic}."', 'A man in town said, "I am all for {topic}."', 'The teacher wrote, "Never give up on {topic}."', 'Our guide whispered, "Look at the {topic}."')  # fmt: skip
_QUESTIONS = ("Who could do without {topic}?", "What is your opinion of {topic}?", "Do you know a lot about {topic}?", "Is anything as good as {topic}?", "Why do people care about {topic}?")  # fmt: skip
_PALINDROMES = ("noon", "civic", "radar", "kayak", "madam", "level", "refer", "rotor", "tenet")
_PALINDROME_LINES = ("I said {it}, thinking of {topic}.", "On a wall by our {topic} I saw {it} in chalk.", "The word {it} came up with {topic}.")  # fmt: skip
_ASIDES = (
    " (as I was told today)",
    " (at all hours of the day)",
    " (to nobody's surprise)",
    " (in my opinion)",
    " (or so they say)",
)
_WORD_LINES = (
    "A {it} is what I think of.",
    "On my list is also the word {it}.",
    "I also saw {it} in a book.",
    "It all has to do with {it}.",
)
_TAGS = ("#fun", "#today", "#lovely", "#talk", "#joy", "#world", "#story", "#night")
_ENTRIES = ("apples", "bags", "candles", "drums", "flags", "gloves", "hats", "ink", "jam", "kits", "lamps", "nuts", "oil", "paint", "rugs", "salt", "tools", "wax")  # fmt: skip
_STARTS = ("Some", "Today", "Now", "Again", "Truly", "Often", "Outside", "Maybe")
_AFTER_START = ("my family talks about {topic}.", "I am all about {topic}.", "our town is full of {topic}.", "I try to find out about {topic}.", "a man asks about {topic}.", "we spend hours with {topic}.")  # fmt: skip
_TRIES = 400


class _Draft:
    """A text under way: sentences, lines of a list below them, and what is done to the whole at the end."""

    def __init__(self, topic: str, skills: Sequence[str], draw: random.Random) -> None:
        self.topic, self.draw = topic, draw
        self.kinds = {name.partition(":")[0]: name.partition(":")[2] for name in skills}
        self.avoid = self.kinds.get("lipogram", "")
        self.sentences: list[str] = []
        self.lines: list[str] = []

    def pick(self, pool: Sequence[str]) -> str:
        """A piece of a pool that has none of the letter to avoid, about the topic; any piece where all have it."""
        good = [piece for piece in pool if not self.avoid or self.avoid not in letters(piece.replace("{topic}", ""))]
        return self.draw.choice(good or list(pool)).replace("{topic}", self.topic)

    def plain(self) -> str:
        """A sentence that isn't there yet."""
        return self.pick([piece for piece in _PLAIN if piece.replace("{topic}", self.topic) not in self.sentences])


def _begin(draft: _Draft) -> None:
    """The sentences that the frame asks for: how many, how long, how they begin."""
    kinds, draw = draft.kinds, draft.draw
    if "acrostic" in kinds:
        starts = kinds["acrostic"].lower()
        for letter in starts:
            pool = [
                piece
                for piece in _PLAIN
                if piece[0].lower() == letter and piece.replace("{topic}", draft.topic) not in draft.sentences
            ]
            draft.sentences.append(draft.pick(pool or _PLAIN))
    elif "growing" in kinds:
        lengths = sorted(draw.sample(sorted(_BY_LENGTH), int(kinds.get("sentences", 3))))
        draft.sentences = [draft.pick(_BY_LENGTH[length]) for length in lengths]
    elif "anaphora" in kinds:
        start = draft.pick(_STARTS)
        count = max(3, int(kinds.get("sentences", 3)))
        good = [
            piece
            for piece in _AFTER_START
            if not draft.avoid or draft.avoid not in letters(piece.replace("{topic}", ""))
        ]
        draft.sentences = [
            f"{start} {piece}".replace("{topic}", draft.topic) for piece in draw.sample(good, min(count, len(good)))
        ]
    elif "short" in kinds:
        lengths = [length for length in _BY_LENGTH if 3 <= length <= int(kinds["short"]) * 0.8]
        draft.sentences = [draft.pick(_BY_LENGTH[draw.choice(lengths or [3])])]
    else:
        count = int(kinds.get("sentences", 0)) or draw.choice((2, 3, 3, 4) if "exclamation" in kinds else (1, 2, 2, 3))
        for _ in range(count):
            draft.sentences.append(draft.plain())


def _put(draft: _Draft, sentence: str) -> None:
    """A sentence in place of another, if their number is fixed or the text is to be short, else beside them."""
    fixed = {"sentences", "short", "growing", "anaphora", "acrostic"} & set(draft.kinds)
    if not fixed:
        draft.sentences.insert(draft.draw.randint(0, len(draft.sentences)), sentence)
        return
    taken = {
        place
        for place, old in enumerate(draft.sentences)
        if not old.endswith((".",)) or getattr(draft, "put", None) == place
    }
    places = [place for place in range(len(draft.sentences)) if place not in taken] or list(range(len(draft.sentences)))
    place = draft.draw.choice(places)
    if "anaphora" in draft.kinds:
        start = draft.sentences[place].split()[0]
        sentence = f"{start} {sentence[0].lower() if sentence[:2] != 'I ' else sentence[0]}{sentence[1:]}"
    elif "acrostic" in draft.kinds:
        sentence = (
            f"{draft.sentences[place][:-1]}, and {sentence[0].lower() if sentence[:2] != 'I ' else 'I'}{sentence[1:]}"
        )
    draft.sentences[place] = sentence


def _sum(draft: _Draft) -> str:
    a, b = draft.draw.randint(2, 12), draft.draw.randint(2, 12)
    it = draft.draw.choice(_SUMS).format(a=a, b=b, sum=a + b, product=a * b)
    return it.capitalize() + "." if "short" in draft.kinds else draft.pick(_SUM_LINES).replace("{it}", it)


def _aside(draft: _Draft) -> None:
    place = draft.draw.randrange(len(draft.sentences))
    old = draft.sentences[place]
    draft.sentences[place] = f"{old[:-1]}{draft.pick(_ASIDES)}{old[-1]}"


def _list(draft: _Draft) -> None:
    entries = draft.draw.sample([entry for entry in _ENTRIES if not draft.avoid or draft.avoid not in entry], 3)
    if "sorted" in draft.kinds:
        draft.lines += [f"- {entry}" for entry in sorted(entries)]
    else:
        draft.lines += [f"{number}. {entry}" for number, entry in enumerate(entries, 1)]


def _palindrome(draft: _Draft) -> str:
    it = draft.pick(_PALINDROMES)
    return f"I said {it}." if "short" in draft.kinds else draft.pick(_PALINDROME_LINES).replace("{it}", it)


# In this order: what is put in place of sentences first, what is added to them afterwards.
_STEPS: dict[str, Callable[[_Draft], None]] = {
    "alliteration": lambda draft: _put(draft, draft.pick(_ALLITERATING)),
    "arithmetic": lambda draft: _put(draft, _sum(draft)),
    "quotation": lambda draft: _put(draft, draft.pick(_QUOTES)),
    "palindrome": lambda draft: _put(draft, _palindrome(draft)),
    "word": lambda draft: _put(draft, draft.pick(_WORD_LINES).replace("{it}", draft.kinds["word"])),
    "question": lambda draft: _question(draft),
    "aside": _aside,
    "sorted": _list,
    "numbered": _list,
    "hashtags": lambda draft: draft.lines.append(" ".join(draft.draw.sample([t for t in _TAGS if not draft.avoid or draft.avoid not in t], 2))),
}  # fmt: skip


def _question(draft: _Draft) -> None:
    question = draft.pick(_QUESTIONS)
    if "anaphora" in draft.kinds:
        draft.sentences[-1] = f"{draft.sentences[-1][:-1]}, don't you think?"
    elif {"sentences", "short"} & set(draft.kinds) and "growing" not in draft.kinds:
        draft.sentences[-1] = question
    elif "growing" in draft.kinds:
        draft.sentences[-1] = f"{draft.sentences[-1][:-1]}, or do I?"
    else:
        draft.sentences.append(question)


def _finish(draft: _Draft) -> str:
    kinds = draft.kinds
    if "exclamation" in kinds:
        draft.sentences = [_exclaimed(sentence) for sentence in draft.sentences]
    text = " ".join(draft.sentences)
    if draft.lines:
        text = "\n".join([text, *draft.lines])
    if "lowercase" in kinds:
        text = text.lower()
    if "uppercase" in kinds:
        text = text.upper()
    if "json" not in kinds:
        return text
    key = draft.pick(("topic", "subject", "list", "story"))
    content = {key.upper() if "uppercase" in kinds else key: text}
    if "lipogram" not in kinds and draft.draw.random() < 0.5:
        content["TITLE" if "uppercase" in kinds else "title"] = (
            draft.topic.upper() if "uppercase" in kinds else draft.topic
        )
    return json.dumps(content, ensure_ascii=False)


def _exclaimed(sentence: str) -> str:
    return f'{sentence[:-2]}!"' if sentence.endswith('."') else f"{sentence[:-1]}!"


def write(topic: str, skills: Sequence[str], *, without: Sequence[Sequence[str]] = (), seed: int = 0) -> str:
    """A text about a topic that shows all of some skills.

    Args:
        skills: ids, such as `sentences:3`; empty for a neutral text.
        without: sets of skills none of which the text shows all of.

    Raises:
        EvaluationError: no such text was found.
    """
    for name in (*skills, *(name for others in without for name in others)):
        parse(name)
    draw = random.Random(json.dumps([topic, *skills, seed]))
    for _ in range(_TRIES):
        draft = _Draft(topic, skills, draw)
        _begin(draft)
        for kind, step in _STEPS.items():
            if kind in draft.kinds:
                step(draft)
        text = _finish(draft)
        if shows(text, skills) and not any(shows(text, others) for others in without):
            return text
    raise EvaluationError(
        f"no text that shows {' and '.join(skills) or 'no skill'} came of {_TRIES} tries: combine others"
    )


def shows(text: str, skills: Sequence[str]) -> bool:
    """Whether a text shows all of some skills."""
    return all(check(name, text) for name in skills)


def write_neutral(topic: str, seed: int = 0) -> str:
    """A text that shows none of the skills but to be of so many sentences, or short, as every text is."""
    kinds = [(name,) for name, skill in FORMAL_SKILLS.items() if not skill.values]
    return write(topic, (), without=[*kinds, ("lipogram:e",)], seed=seed)
