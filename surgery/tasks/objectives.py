"""Objectives: the loss of a row by what a model is, one number a row, whose gradients are a row's features."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from surgery.checkpoints.models import Model, run
from surgery.errors import OptionError, SelectionError
from surgery.tasks.examples import Example
from surgery.tasks.readout import Encoded, PhraseReadout, collate, encode_plain, position_limit
from surgery.tasks.rows import Piece, Row
from surgery.tasks.task import Task

LOSSES = ("answer", "text")
_IGNORED = -100
_LABELS = 512  # answers that a sentence encoder's phrases can stand for


class Lesson(NamedTuple):
    """A row as token ids, and what is to be learnt of it.

    Attributes:
        targets: for each token the one that the model is to say there, or -100; for a sentence encoder the answer's number alone.
        answered: tokens of the answer that are left, and that there were.
    """

    tokens: Encoded
    targets: list[int]
    answered: tuple[int, int]

    @classmethod
    def of(cls, ids: list[int], types: list[int], targets: list[int], answered: tuple[int, int]) -> "Lesson":
        """Token ids and their types with targets."""
        return cls(Encoded(ids, types, 0), targets, answered)


@runtime_checkable
class Objective(Protocol):
    """Turns rows into tokens, and a model's run over them into losses."""

    def encode(self, row: Row, where: str = "a row") -> Lesson:
        """Tokens of a row; raises SelectionError for one that has nothing to learn."""

    def losses(self, model: Model, rows: Sequence[Lesson]) -> Float[Tensor, " batch"]:
        """The mean loss of each row's targets."""


@dataclass(frozen=True)
class WordObjective:
    """Tokens of the answer after what comes before (causal models), or masked where they stand (masked models)."""

    tokenizer: Any
    causal: bool
    loss: str
    max_length: int
    whole: bool = False  # whether logits of all places are made, and the targets' taken

    @classmethod
    def of(cls, model: Model, loss: str, max_length: int, *, tried: bool = True) -> "WordObjective":
        """The objective of a language model, tried out; without that, all places' logits are made."""
        if model.kind == "masked" and model.tokenizer.mask_token is None:
            raise SelectionError(
                f"{model.checkpoint} is a masked language model without a mask token: fetch its tokenizer files"
            )
        if model.kind == "masked" and loss == "text":
            raise OptionError("`loss` text is for causal models: a masked one is asked for answers")
        made = cls(model.tokenizer, model.kind == "causal", loss, max_length, whole=not tried)
        return made._tried(model) if tried else made

    def encode(self, row: Row, where: str = "a row") -> Lesson:
        """Token ids cut at the end to `max_length`.

        Raises:
            SelectionError: a row without an answer, or whose answer begins after the cut.
        """
        if self.loss == "answer" and not row.answers:
            raise SelectionError(
                f"{where} has no answer (label, completion or an assistant's turn): add one, or choose `loss` text"
            )
        pieces = row.pieces(self.tokenizer)
        ids, types, learnt = _tokens(self.tokenizer, pieces, special=not row.messages, apart=bool(row.learn))
        if self.loss == "text":
            learnt = [True] * len(ids)
        first = int(self.causal)  # nothing predicts the first token
        left, whole = sum(learnt[first : self.max_length]), sum(learnt[first:])
        if not left:
            needed = next((place for place in range(first, len(ids)) if learnt[place]), 0) + 1
            why = (
                f"begins at token {needed:,}, after the cut at `max_length` {self.max_length}: raise it"
                if needed > 1
                else "has no token"
            )
            raise SelectionError(f"{where}: its answer {why}")
        cut = slice(self.max_length)
        ids, types, learnt = ids[cut], types[cut], learnt[cut]
        targets = [token if counts else _IGNORED for token, counts in zip(ids, learnt, strict=True)]
        if self.causal:
            targets = [*targets[1:], _IGNORED]
        else:
            ids = [self.tokenizer.mask_token_id if counts else token for token, counts in zip(ids, learnt, strict=True)]
        return Lesson.of(ids, types, targets, (left, whole))

    def losses(self, model: Model, rows: Sequence[Lesson]) -> Float[Tensor, " batch"]:
        """Cross-entropy, the mean over a row's targets; the output matrix is applied at these places alone."""
        batch, _ = collate(model, [row.tokens for row in rows])
        learnt = [
            (row, place)
            for row, each in enumerate(rows)
            for place, target in enumerate(each.targets)
            if target != _IGNORED
        ]
        places = tuple(torch.tensor(column, device=model.device) for column in zip(*learnt, strict=True))
        targets = torch.tensor([rows[row].targets[place] for row, place in learnt], device=model.device)
        each = F.cross_entropy(self._logits(model, batch, places).float(), targets, reduction="none")
        counts = torch.tensor([sum(target != _IGNORED for target in row.targets) for row in rows], device=model.device)
        return torch.zeros(len(rows), device=model.device).index_add(0, places[0], each) / counts

    def _logits(
        self, model: Model, batch: dict[str, Tensor], places: tuple[Tensor, ...]
    ) -> Float[Tensor, "places words"]:
        more = {"use_cache": False} if self.causal else {}
        if self.whole:
            return run(model.module, batch | more)[places]
        with _only_at(model.module, places):
            return run(model.module, batch | more)[0]

    def _tried(self, model: Model) -> "WordObjective":
        """Itself, or one that makes all places' logits where making few gives something else."""
        pieces = [[("It was so, was it?", False), (" It was.", True)], [("It", False), (" was", True)]]
        rows = []
        for each in pieces:
            ids, types, learnt = _tokens(self.tokenizer, each, special=True)
            rows.append(
                Lesson.of(
                    ids, types, [token if told else _IGNORED for token, told in zip(ids, learnt, strict=True)], (1, 1)
                )
            )
        whole = replace(self, whole=True)
        with torch.no_grad():
            wanted = whole.losses(model, rows)
            try:
                found = self.losses(model, rows)
            except Exception:  # the matrix isn't called, or not on states [batch, tokens, width]
                return whole
        return self if torch.allclose(found, wanted, rtol=1e-4 if wanted.dtype == torch.float32 else 0.05) else whole


@dataclass(frozen=True)
class PhraseObjective:
    """A sentence encoder's cosines with a phrase for each answer that there is."""

    readout: PhraseReadout
    answers: tuple[str, ...]

    @classmethod
    def of(cls, model: Model, answers: Sequence[str], max_length: int) -> "PhraseObjective":
        """Embed the phrases `It is ANSWER.` with the model as it is.

        Raises:
            SelectionError: no two answers, or more of them than are told apart so.
        """
        if not 2 <= len(answers) <= _LABELS:
            raise SelectionError(
                f"{model.checkpoint} is a sentence encoder, which tells 2 to {_LABELS} different answers apart, and the pool has {len(answers):,}: take a language model"
            )
        phrases = {answer: f"It is {answer}." for answer in answers}
        task = Task("pool", "", "", {answer: answer for answer in answers}, phrases, max_length=max_length)
        return cls(PhraseReadout.of(model, task), tuple(answers))

    def encode(self, row: Row, where: str = "a row") -> Lesson:
        """Token ids as the tokenizer makes them of a text or a pair; raises SelectionError for an answer that the pool doesn't have."""
        if not row.answers:
            raise SelectionError(f"{where} has no answer (label or completion): a sentence encoder can't do without")
        if row.answers not in self.answers:
            raise SelectionError(
                f"{where}: the answer {row.answers[:40]!r} is none of the pool's ({', '.join(self.answers[:8])}), all that a sentence encoder can tell: name it as the pool does, or take a language model"
            )
        text, pair = (row.text, row.pair) if row.text else (row.prompt, "")
        coded = encode_plain(self.readout.tokenizer, [Example(text, pair, "")], self.readout.max_length)[0]
        return Lesson.of(coded.ids, coded.types, [self.answers.index(row.answers)], (1, 1))

    def losses(self, model: Model, rows: Sequence[Lesson]) -> Float[Tensor, " batch"]:
        """Cross-entropy of the answers."""
        batch, places = collate(model, [row.tokens for row in rows])
        targets = torch.tensor([row.targets[0] for row in rows], device=model.device)
        return F.cross_entropy(self.readout.logits(model.module, batch, places), targets, reduction="none")


def pick_objective(
    model: Model, loss: str, max_length: int, answers: Sequence[str], *, tried: bool = True
) -> Objective:
    """The objective that fits a model's kind; `tried`: whether it may run the model.

    Raises:
        OptionError: a loss that isn't known, or not for this kind of model.
        SelectionError: a classifier.
    """
    if loss not in LOSSES:
        raise OptionError(f"`loss` {loss} isn't one of {', '.join(LOSSES)}")
    if model.kind == "classifier":
        raise SelectionError(
            f"{model.checkpoint} is a classifier, whose head knows its own labels alone: take a language model or an encoder"
        )
    length = min(max_length, position_limit(model.module) or max_length)
    if model.kind == "encoder":
        if loss == "text":
            raise OptionError("`loss` text is for causal models: a sentence encoder is asked for answers")
        return PhraseObjective.of(model, answers, length)
    return WordObjective.of(model, loss, length, tried=tried)


def _tokens(
    tokenizer: Any, pieces: Sequence[Piece], special: bool, apart: bool = False
) -> tuple[list[int], list[int], list[bool]]:
    """Token ids and types of pieces, joined or each on its own, and which tokens belong to pieces that are to be learnt."""
    if apart or not tokenizer.is_fast:  # which doesn't say where in the text its tokens lie
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in pieces]
        inner = [token for part in parts for token in part]
        learnt = [told for part, (_, told) in zip(parts, pieces, strict=True) for _ in part]
        ids = tokenizer.build_inputs_with_special_tokens(inner) if special else inner
        before = next((k for k in range(len(ids) - len(inner) + 1) if ids[k : k + len(inner)] == inner), 0)
        marks = [False] * before + learnt + [False] * (len(ids) - before - len(inner))
        return ids, [0] * len(ids), marks
    coded = tokenizer(
        "".join(text for text, _ in pieces),
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    spans, end = [], 0
    for text, told in pieces:
        spans += [(end, end + len(text))] * told
        end += len(text)
    # A token that reaches into an answer is of it, even if it begins with the space before.
    learnt = [
        any(start < stop and stop > first and start < last for first, last in spans)
        for start, stop in coded["offset_mapping"]
    ]
    return coded["input_ids"], coded["token_type_ids"], learnt


@contextmanager
def _only_at(module: nn.Module, places: tuple[Tensor, ...]) -> Iterator[None]:
    """Let a model's output matrix see some places alone, in one row."""

    def at(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][places].unsqueeze(0), *inputs[1:])

    head = module.get_output_embeddings()  # type: ignore[operator]
    handle = None if head is None else head.register_forward_pre_hook(at)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
