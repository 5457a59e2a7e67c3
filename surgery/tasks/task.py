"""Task: labelled text and the way to put it to a model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Required, TypedDict, TypeVar, runtime_checkable

from surgery.errors import TaskError
from surgery.jsonfile import parse_json
from surgery.tasks.examples import Columns, Example, k_shot, label_text, missing_label, read_examples
from surgery.tasks.labels import known_names, merged, plain
from surgery.tasks.presets import PRESETS, Preset

Source = str | Path | Sequence[Example]


@runtime_checkable
class HasName(Protocol):
    """What is told apart by its name."""

    @property
    def name(self) -> str: ...  # noqa: D102


Named = TypeVar("Named", bound=HasName)


class _Spec(TypedDict, total=False):
    """`Task.spec` as JSON."""

    name: Required[str]
    prompt: Required[str]
    causal_prompt: Required[str]
    words: Required[dict[str, str]]
    phrases: Required[dict[str, str]]
    metric: Literal["accuracy", "f1"]
    max_length: int
    integers: list[str]


@dataclass(frozen=True)
class Task:
    """Task: what "a skill" is to a model, examples, a prompt with label words, and the metric that counts.

    Attributes:
        name: a preset's name, or any other.
        prompt: with `{text}`, `{mask}` and, for pairs, `{text_pair}`; for masked language models.
        causal_prompt: what a causal model continues with the label word.
        words: label -> label word (one token); its order is the order of the labels everywhere.
        phrases: label -> phrase, for sentence encoders.
        metric: `accuracy`, or `f1` of the last label.
        max_length: texts are cut so that the whole prompt has at most this many tokens (or as many as the model takes).
        integers: the labels in the order of the integers that stand for them in datasets and unnamed heads; may be empty.
        train, dev, test: the examples.
    """

    name: str
    prompt: str
    causal_prompt: str
    words: Mapping[str, str]
    phrases: Mapping[str, str]
    metric: Literal["accuracy", "f1"] = "accuracy"
    max_length: int = 128
    integers: tuple[str, ...] = ()
    train: tuple[Example, ...] = ()
    dev: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        check_file_name(self.name)

    # Long: options and what they mean.
    @classmethod
    def load(
        cls,
        name: str,
        *,
        train: Source = (),
        dev: Source = (),
        test: Source = (),
        shots: int | None = None,
        seed: int = 0,
        prompt: str | None = None,
        causal_prompt: str | None = None,
        words: Mapping[str, str] | None = None,
        phrases: Mapping[str, str] | None = None,
        columns: Columns | None = None,
        max_length: int = 128,
    ) -> "Task":
        """A preset, or a task of your own, with its examples.

        Args:
            name: one of the presets (sst2, mr, cr, mpqa, subj, trec, agnews, mnli, snli, qnli, rte, qqp, mrpc), else any
                name: then the labels are `words`' keys, or those of the data.
            train, dev, test: a file, a Hugging Face dataset id (its split of that name), or examples.
            shots: keep this many training examples of each label, drawn by `seed`.
            prompt, causal_prompt, words, phrases, columns: replace the preset's; words and phrases label by label. An empty prompt
                stands for none, and a causal prompt is made of a new prompt only if that ends in its mask.

        Raises:
            TaskError: unreadable or missing examples, an unknown label, one class only, a prompt without its places.
        """
        sources = {"train": train, "dev": dev, "test": test}
        preset = PRESETS.get(name)
        splits = {split: _read(source, split, columns, preset) for split, source in sources.items()}
        if preset:
            words, phrases = (_named(given, preset) for given in (words, phrases))
        if preset and not set(words or ()) <= set(preset.words):
            preset = None  # other labels than the preset's: nothing of it fits but the examples' columns
        own = preset or Preset("{text} It was {mask}.", {}, {})
        labelled = {**own.words, **{label_text(label) or label: word for label, word in (words or {}).items()}}
        labelled = labelled or _labels_of(splits)
        splits = {
            split: _with_labels(rows, list(labelled), own.integers, _where(sources[split], split))
            for split, rows in splits.items()
        }
        task = cls(
            name=name,
            prompt=own.prompt if prompt is None else prompt,
            causal_prompt=causal_prompt
            or (_up_to_mask(prompt) if prompt else own.causal_prompt or _up_to_mask(own.prompt)),
            words=labelled,
            phrases={**{key: f"It is {word}." for key, word in labelled.items()}, **own.phrases, **(phrases or {})},
            metric=own.metric,
            max_length=max_length,
            integers=own.integers,
            **{split: tuple(rows) for split, rows in splits.items()},
        )
        task._check(bool(task.train))
        return replace(task, train=tuple(k_shot(task.train, task.labels, shots, seed))) if shots else task

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of all logits."""
        return tuple(self.words)

    def label_of(self, name: str) -> str | None:
        """The label that a name stands for: itself, in any case, an alias, its number (`1`, `LABEL_1`); None for none."""
        return name if name in self.words else known_names(self.labels, self.integers).get(plain(name))

    def repeated(self, split: Literal["dev", "test"]) -> int:
        """Count the examples of a split that have the texts of a training example, case and spaces aside."""
        known = {_key(example) for example in self.train}
        return sum(_key(example) in known for example in getattr(self, split))

    def targets(self, examples: Iterable[Example]) -> list[int]:
        """Each example's label as a number, [examples]."""
        number = {label: i for i, label in enumerate(self.labels)}
        return [number[example.label] for example in examples]

    def need(self, split: Literal["train", "dev", "test"]) -> tuple[Example, ...]:
        """The examples of a split; raises TaskError when there are none."""
        if not (examples := getattr(self, split)):
            raise TaskError(f"task {self.name} has no {split} examples: give `{split}`")
        return examples

    def spec(self) -> dict[str, Any]:
        """The task without its examples, as JSON."""
        return {
            key: value
            for key, value in asdict(replace(self, train=(), dev=(), test=())).items()
            if key not in ("train", "dev", "test")
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any] | str) -> "Task":
        """The inverse of `spec`; takes its JSON text too."""
        fields = parse_json(spec, _Spec) if isinstance(spec, str) else dict(spec)
        return cls(**{**fields, "integers": tuple(fields.get("integers", ()))})

    def _check(self, has_training: bool) -> None:
        if len(self.words) < 2:
            raise TaskError(f"task {self.name} has one class only ({', '.join(self.words) or 'none'}): two are needed")
        if has_training and len(seen := {example.label for example in self.train}) < 2:
            raise TaskError(
                f"the training examples of task {self.name} are of one class only ({', '.join(seen)}): two are needed"
            )
        if len(set(self.words.values())) < len(self.words):
            clash = next(word for word in self.words.values() if list(self.words.values()).count(word) > 1)
            both = [label for label, word in self.words.items() if word == clash]
            raise TaskError(f"labels {both[0]!r} and {both[1]!r} share the label word {clash!r}: give each its own")
        single = [
            example for examples in (self.train, self.dev, self.test) for example in examples if not example.text_pair
        ]
        if "{text_pair}" in self.prompt + self.causal_prompt and single:
            raise TaskError(
                f"task {self.name} takes pairs, but {single[0].text[:40]!r} has no second text: name its column (`columns` text_pair=NAME)"
            )
        if set(self.phrases) != set(self.words):
            raise TaskError(
                f"phrases are given for {sorted(self.phrases)}, but the labels are {sorted(self.words)}: give one phrase a label"
            )
        if self.prompt and ("{text}" not in self.prompt or self.prompt.count("{mask}") != 1):
            raise TaskError(f"the prompt {self.prompt!r} must hold {{text}} and one {{mask}}")
        if self.causal_prompt and ("{text}" not in self.causal_prompt or "{mask}" in self.causal_prompt):
            raise TaskError(
                f"the causal prompt {self.causal_prompt!r} must hold {{text}} and no {{mask}}: the label word follows its end"
            )


def several(task: Named | Sequence[Named]) -> tuple[Named, ...]:
    """One task or a sequence of them as a tuple; raises TaskError for none, or for two of one name."""
    tasks = tuple(task) if isinstance(task, Sequence) else (task,)
    names = [one.name for one in tasks]
    if not tasks or len(set(names)) < len(names):
        raise TaskError(f"the tasks are {', '.join(names) or 'none'}: name one or more, each once (`tasks`)")
    return tasks


def check_file_name(name: object) -> None:
    """Refuse a task's name that isn't a plain file name, which it is a part of; raises TaskError."""
    text = name if isinstance(name, str) else ""
    plain = text.isprintable() and text.strip(" .") and not re.search(r'[/\\:*?"<>|]', text)
    if not plain or len(text.encode("utf-8", "replace")) > 200:
        raise TaskError(
            f"the task's name {str(name)[:60]!r} can't be part of a file's name: use letters, digits, - and _"
        )


def _read(source: Source, split: str, columns: Columns | None, preset: Preset | None) -> list[Example]:
    """The examples of a split, from a file, a dataset or memory."""
    if not isinstance(source, str | Path):
        return _checked(source, split)
    own = preset.columns if preset else None
    return read_examples(source, columns or own, "validation" if split == "dev" else split, usual_too=columns is None)


def _labels_of(splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """The labels that the examples have, the training examples' names first, each as its own label word."""
    labels = merged([], [example.label for example in splits["train"]])
    every = [example.label for rows in splits.values() for example in rows]
    return {label: label for label in merged(labels, every)}


def _with_labels(rows: Sequence[Example], labels: Sequence[str], integers: Sequence[str], where: str) -> list[Example]:
    names = known_names(labels, integers)
    labelled = []
    for row in rows:
        label = row.label if row.label in labels else names.get(plain(row.label))
        if label is None:
            raise TaskError(
                f"{where}: unknown label {row.label!r}; the task's labels are {', '.join(labels)} (add its word: `words` {row.label}=WORD)"
            )
        labelled.append(row._replace(label=label))
    return labelled


def _named(given: Mapping[str, str] | None, preset: Preset) -> dict[str, str]:
    """A table by label whose keys are the preset's labels where they stand for some."""
    names = known_names(list(preset.words), preset.integers)
    return {names.get(plain(key), key): value for key, value in (given or {}).items()}


def _checked(examples: Iterable[Example], split: str) -> list[Example]:
    """Examples that were given in memory, their labels as those of files."""
    checked = []
    for number, example in enumerate(examples):
        if not (label := label_text(example.label)):
            raise missing_label(f"the {split} examples, number {number}, counted from 0", example.label)
        checked.append(example._replace(label=label))
    return checked


def _key(example: Example) -> tuple[str, ...]:
    return tuple(" ".join(text.lower().split()) for text in (example.text, example.text_pair))


def _up_to_mask(prompt: str) -> str:
    """A causal prompt out of a masked one, when nothing but punctuation follows the mask; else none."""
    before, _, after = prompt.partition("{mask}")
    return before.rstrip() if "{text}" in before and not any(letter.isalnum() for letter in after) else ""


def _where(source: Source, split: str) -> str:
    return str(source) if isinstance(source, str | Path) else f"the {split} examples"
