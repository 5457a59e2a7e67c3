"""The search for a graft: a base model in memory, what products are made from, and what they are held against."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import Model
from surgery.grafting.baselines import BASELINES, load_baseline
from surgery.grafting.budget import candidate_limit
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.grafting.displacement import Displacement
from surgery.grafting.evaluation import Evaluator
from surgery.grafting.growing import grown, nearest
from surgery.grafting.low_rank import low_rank, put_factors
from surgery.grafting.memory_need import displacement_bytes
from surgery.grafting.methods import Evidence, locate
from surgery.grafting.products import LOW_RANK, Product, kept_product
from surgery.grafting.prospects import SHARES, ceiling, is_spread, prospects
from surgery.grafting.rescaling import fisher, refitted, rescaled
from surgery.grafting.task_model import steps_of
from surgery.memory import free_memory
from surgery.progress import Progress
from surgery.tasks.calibration import fit_bias, softmax
from surgery.tasks.examples import Example
from surgery.tasks.gradients import check_gradients
from surgery.tasks.readout import pick_readout
from surgery.tasks.scoring import Score, predict
from surgery.tasks.task import Task

_LOOKED_AT = 128  # examples of the gradient that prospects are told by


class Pair(NamedTuple):
    """A base and its tuned checkpoint that fit together, which weights may move, and the examples that locating looks at."""

    base: Checkpoint
    tuned: Checkpoint
    names: tuple[str, ...]
    movable: int
    train: Sequence[Example]
    resized: list[str]

    @property
    def inputs(self) -> dict[str, str]:
        """What the two are, by content."""
        return {"base": self.base.fingerprint, "tuned": self.tuned.fingerprint}


class Wanted(NamedTuple):
    """Which product a search is to make: `values` or `low_rank`, and the method and its epochs for tuned values."""

    values: str = "tuned"
    low_rank: bool = False
    method: str = "dual-averaging"
    epochs: int | None = None

    @property
    def label(self) -> str:
        """What its points in a report are called."""
        return LOW_RANK if self.low_rank else self.method if self.values == "tuned" else self.values

    @property
    def of_all(self) -> bool:
        """Whether it is made of all movable weights, whatever few of them moved furthest."""
        return self.low_rank or self.values != "tuned"


@dataclass(frozen=True, eq=False)
class Search:
    """A base model in memory, what methods learn from, and what a graft is held against.

    Attributes:
        grafted: the candidates to locate among, for the largest number of weights asked for.
        bias: a constant per label, fitted on the base's scores of the training examples.
        before, after: label scores of base and tuned on the training examples [examples, labels].
    """

    pair: Pair
    task: Task
    wanted: Wanted
    grafted: GraftedModel
    evidence: Evidence
    evaluator: Evaluator
    before: Any
    after: Any
    seed: int
    batch_size: int
    progress: Progress

    @classmethod
    def start(
        cls,
        pair: Pair,
        task: Task,
        model: Model,
        limit: int,
        wanted: Wanted,
        seed: int,
        batch_size: int,
        progress: Progress,
    ) -> "Search":
        """Score the base, which a model holds, with its own weights and with the tuned ones."""
        candidates = Candidates.between(pair.base, pair.tuned, pair.names, limit, model.device)
        readout = pick_readout(model, task)
        rows = readout.encode(pair.train)
        if wanted.method != "movement":  # which looks at distances only
            check_gradients(model, readout, pair.names, rows[0])
        labels = torch.tensor(task.targets(pair.train))
        evaluator = Evaluator(model, readout, task, batch_size, progress)
        evaluator.base = evaluator.score("base")
        before = predict(model, readout, rows, batch_size)
        model.load_weights(pair.tuned)
        evaluator.tuned = evaluator.score("tuned")
        after = predict(model, readout, rows, batch_size)
        model.load_weights(pair.base)
        evidence = Evidence(rows, labels, torch.from_numpy(softmax(after)).float())
        grafted = GraftedModel(model, readout, candidates)
        return cls(pair, task, wanted, grafted, evidence, evaluator, before, after, seed, batch_size, progress)

    @cached_property
    def bias(self) -> Any:
        """A constant per label, fitted on the base's scores of the training examples."""
        return fit_bias(self.before, self.evidence.labels.numpy())

    @cached_property
    def moved(self) -> Displacement:
        """All movable weights, for what isn't made of those that moved furthest."""
        pair = self.pair
        return Displacement(self.grafted.model, self.grafted.readout, pair.base, pair.tuned, pair.names)

    @cached_property
    def information(self) -> tuple[Tensor, int]:
        """The Fisher information of all movable weights, the same for every number of them, and the work that it took."""
        before = self._work()
        return fisher(self.moved, self.evidence, self.seed, self.progress), self._work() - before

    @cached_property
    def grows(self) -> bool:
        """Whether growing is one of the choices: tuning moved most weights, and there is memory to look at all of them."""
        model, pair = self.grafted.model, self.pair
        spread = is_spread(self.grafted.candidates.moved, pair.movable) and self.wanted.method == "dual-averaging"
        return spread and model.agree(free_memory(model.device) > displacement_bytes(pair.movable))

    def prospects(self, k: int) -> dict[str, Any]:
        """What k weights can be expected to gain, before any is located; for a report."""
        movable, moved = self.pair.movable, self.grafted.candidates.moved
        if self.wanted.method == "movement":
            return prospects({}, k, moved, movable)
        sample = self.evidence.sample(self.seed)
        some = sample.take(np.arange(min(_LOOKED_AT, len(sample.rows))))
        if self.wanted.of_all or self.grows:
            saliency = self.moved.saliency(some.rows, some.soft)
        else:
            saliency = -self.grafted.mask_gradient(some.rows, some.soft)
        counts = {max(1, int(share * movable)) for share in SHARES} | {k}
        return prospects(ceiling(saliency, self._won(), sorted(counts)), k, moved, movable)

    def _won(self) -> float:
        """How far the cross-entropy to the tuned model's predictions falls from base to tuned, on all training examples."""
        soft = self.evidence.soft.numpy().astype(np.float64)
        base, tuned = (np.log(np.clip(softmax(logits), 1e-30, None)) for logits in (self.before, self.after))
        return float((soft * (tuned - base)).sum(1).mean())

    def product(self, count: int, state: Path | None) -> Product:
        """What is wanted, of so many numbers; read from the state where it was made before."""
        file, agree = state and state / f"{count}.safetensors", self.grafted.model.agree
        return kept_product(file, self.pair.base, lambda: self._make(count), agree)

    def _make(self, count: int) -> Product:
        wanted = self.wanted
        options: dict[str, Any] = {"seed": self.seed, "progress": self.progress}
        self.restore()
        if wanted.low_rank:
            began = self._work()
            factors = low_rank(self.moved, self.evidence, count, **options)
            return Product(None, factors, steps=steps_of(self._work() - began))
        if wanted.values == "tuned":
            began = self._work()
            return Product(self._located(count), None, steps=steps_of(self._work() - began))
        information, shared = self.information
        began = self._work() - shared
        make = rescaled if wanted.values == "rescaled" else refitted
        support = make(self.moved, self.evidence, count, information=information, **options)
        return Product(support, None, steps=steps_of(self._work() - began))

    def _located(self, count: int) -> Candidates:
        wanted, seed, progress = self.wanted, self.seed, self.progress
        graft = self._wide_enough(count)
        chosen = locate(wanted.method, graft, self.evidence, count, epochs=wanted.epochs, seed=seed, progress=progress)
        support = graft.candidates.subset(chosen)
        if graft is not self.grafted:
            self.grafted.work += graft.work
        if not self.grows:
            return support
        grows = self.moved.support(grown(self.moved, self.evidence, count, seed=seed, progress=progress))
        return nearest(self.moved, self.evidence, [support, grows], seed)

    def _wide_enough(self, count: int) -> GraftedModel:
        """The candidates at hand, or more where so many weights need more to be chosen from."""
        held, limit = self.grafted.candidates, candidate_limit([count])
        if len(held) == held.moved or len(held) >= limit:
            return self.grafted
        model, pair = self.grafted.model, self.pair
        wider = Candidates.between(pair.base, pair.tuned, pair.names, limit, model.device)
        return GraftedModel(model, self.grafted.readout, wider)

    def _work(self) -> int:
        own = self.__dict__.get("moved")  # not made for being asked
        return self.grafted.work + (own.work if own else 0)

    def put(self, made: Product) -> None:
        """Set the model to the base with a product in it."""
        if made.factors is not None:
            put_factors(self.moved, dict(made.factors))
            return
        self.restore()
        assert made.support is not None
        put_parts(self.grafted.model, made.support.parts(torch.arange(len(made.support))))

    def restore(self) -> None:
        """Set the model to the base."""
        self.grafted.model.load_weights(self.pair.base)

    def climb(
        self, ladder: Sequence[int], baselines: bool, state: Path | None
    ) -> tuple[list[dict[str, Any]], dict[int, Product], dict[int, Score]]:
        """Make and score the product at every number of weights; the report's points, and each one's product and score."""
        points, made, scores = [], {}, {}
        for count in ladder:
            made[count] = self.product(count, state)
            self.put(made[count])
            size = len(made[count])
            scores[count] = self.evaluator.score(
                f"graft of {size:,} {'numbers' if self.wanted.low_rank else 'weights'}"
            )
            point = self.evaluator.point(self.wanted.label, size, self.pair.movable, scores[count])
            points.append({**point, "seconds": made[count].seconds, "steps": made[count].steps})
            if baselines:
                points += self._baselines(count, made[count])
        self.restore()
        return points, made, scores

    def _baselines(self, count: int, made: Product) -> list[dict[str, Any]]:
        points, candidates, model = [], self._wide_enough(count).candidates, self.grafted.model
        assert made.support is not None
        for name in BASELINES:
            self.restore()
            size = load_baseline(
                name, model, self.pair.tuned, self.pair.names, candidates, count, made.support, self.seed
            )
            points.append(self.evaluator.point(name, size, self.pair.movable, self.evaluator.score(f"baseline {name}")))
        return points

    def gain_judge(self, state: Path | None) -> tuple[str, Callable[[int], float]]:
        """The examples that a target is judged on, dev or else train, and the gain that a number of weights recovers there."""
        model, readout, task = self.grafted.model, self.grafted.readout, self.task
        split, rows, examples = "train", self.evidence.rows, self.pair.train
        before, after = self.before, self.after
        if task.dev:
            split, rows, examples = "dev", readout.encode(task.dev), task.dev
            before = predict(model, readout, rows, self.batch_size)
            model.load_weights(self.pair.tuned)
            after = predict(model, readout, rows, self.batch_size)
            self.restore()
        targets = np.array(task.targets(examples))

        def value(logits: Any) -> float:
            return Score(task.labels, task.metric, logits, targets).value

        low, high = value(before), value(after)

        def gain(count: int) -> float:
            self.put(self.product(count, state))
            reached = value(predict(model, readout, rows, self.batch_size))
            return (reached - low) / (high - low) if high > low else 0.0

        return (split if high > low else ""), gain


def put_parts(model: Model, parts: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Set some weights of a model: each tensor's places and values."""
    for name, (index, values) in parts.items():
        model.put(name, index, values)
