"""The paper's tasks: prompts and label words of Panigrahi et al. (2023), appendix A; phrases for sentence encoders are ours.

`{text}`, `{text_pair}` and `{mask}` stand for the texts and the label word. A causal model predicts the label word after
its prompt, so where the paper's prompt doesn't end with the mask there is a causal one of our own.
"""

from dataclasses import dataclass, field
from typing import Literal

from surgery.tasks.examples import Columns


@dataclass(frozen=True)
class Preset:
    """What a task is, apart from its examples.

    `words` maps each label to its label word, `phrases` to its phrase; `integers` are the labels in the order of the
    integers that stand for them in datasets and in heads that don't name their labels.
    """

    prompt: str
    words: dict[str, str]
    phrases: dict[str, str]
    causal_prompt: str = ""
    metric: Literal["accuracy", "f1"] = "accuracy"
    columns: Columns | None = None
    integers: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)


_POLARITY = {"negative": "terrible", "positive": "great"}
_POLARITY_ALIASES = {"neg": "negative", "pos": "positive"}
_POLARITY_PHRASES = {"negative": "It was terrible.", "positive": "It was great."}
_NLI = {"contradiction": "No", "entailment": "Yes", "neutral": "Maybe"}
_NLI_PHRASES = {
    "contradiction": "The second sentence contradicts the first.",
    "entailment": "The second sentence follows from the first.",
    "neutral": "The second sentence may or may not be true.",
}
_NLI_INTEGERS = ("entailment", "neutral", "contradiction")
_ENTAILS = {"entailment": "Yes", "not_entailment": "No"}
_ENTAILS_PHRASES = {"entailment": "Yes, it follows.", "not_entailment": "No, it doesn't follow."}
_SAME = {"not_equivalent": "No", "equivalent": "Yes"}
_SAME_PHRASES = {"not_equivalent": "They mean different things.", "equivalent": "They mean the same."}

# Note for pairs: a causal model sees both texts and answers a question.
_CAUSAL_NLI = "{text} Question: {text_pair} Yes, no or maybe? Answer:"
_CAUSAL_PAIR = "{text} Question: {text_pair} Yes or no? Answer:"
_CAUSAL_SAME = "{text} {text_pair} Do they mean the same, yes or no? Answer:"


def _polarity() -> Preset:
    return Preset(
        "{text} It was {mask}.",
        _POLARITY,
        _POLARITY_PHRASES,
        causal_prompt="{text} It was",
        aliases=_POLARITY_ALIASES,
        integers=("negative", "positive"),
    )


PRESETS: dict[str, Preset] = {
    "sst2": _polarity(),
    "mr": _polarity(),
    "cr": _polarity(),
    "mpqa": _polarity(),
    "subj": Preset(
        "{text} This is {mask}.",
        {"subjective": "subjective", "objective": "objective"},
        {"subjective": "This is my opinion of the movie.", "objective": "This is what happens in the story."},
        causal_prompt="{text} This is",
        integers=("objective", "subjective"),
    ),
    "trec": Preset(
        "{mask}: {text}",
        {
            "description": "Description",
            "entity": "Entity",
            "abbreviation": "Expression",
            "human": "Human",
            "location": "Location",
            "number": "Number",
        },
        {
            "description": "What is the definition?",
            "entity": "Which thing?",
            "abbreviation": "What does the abbreviation stand for?",
            "human": "Who is it?",
            "location": "Where is it?",
            "number": "How many?",
        },
        causal_prompt="{text} Type:",
        integers=("abbreviation", "entity", "description", "human", "location", "number"),
        aliases={
            "DESC": "description",
            "ENTY": "entity",
            "ABBR": "abbreviation",
            "HUM": "human",
            "LOC": "location",
            "NUM": "number",
        },
    ),
    "agnews": Preset(
        "{mask}: {text}",
        {"World": "World", "Sports": "Sports", "Business": "Business", "Sci/Tech": "Tech"},
        {
            "World": "This is about world politics.",
            "Sports": "This is about sports.",
            "Business": "This is about business.",
            "Sci/Tech": "This is about technology.",
        },
        causal_prompt="{text} Topic:",
        integers=("World", "Sports", "Business", "Sci/Tech"),
    ),
    "mnli": Preset(
        "{text}? {mask}, {text_pair}", _NLI, _NLI_PHRASES, causal_prompt=_CAUSAL_NLI, integers=_NLI_INTEGERS
    ),
    "snli": Preset(
        "{text}? {mask}, {text_pair}", _NLI, _NLI_PHRASES, causal_prompt=_CAUSAL_NLI, integers=_NLI_INTEGERS
    ),
    "qnli": Preset(
        "{text}? {mask}, {text_pair}",
        _ENTAILS,
        _ENTAILS_PHRASES,
        causal_prompt=_CAUSAL_PAIR,
        integers=tuple(_ENTAILS),
        columns=Columns("question", "sentence"),
    ),
    "rte": Preset(
        "{text}? {mask}, {text_pair}", _ENTAILS, _ENTAILS_PHRASES, causal_prompt=_CAUSAL_PAIR, integers=tuple(_ENTAILS)
    ),
    "qqp": Preset(
        "{text} {mask}, {text_pair}",
        {"not_duplicate": "No", "duplicate": "Yes"},
        {"not_duplicate": _SAME_PHRASES["not_equivalent"], "duplicate": _SAME_PHRASES["equivalent"]},
        causal_prompt=_CAUSAL_SAME,
        metric="f1",
        integers=("not_duplicate", "duplicate"),
    ),
    "mrpc": Preset(
        "{text} {mask}, {text_pair}",
        _SAME,
        _SAME_PHRASES,
        causal_prompt=_CAUSAL_SAME,
        metric="f1",
        integers=tuple(_SAME),
    ),
}
