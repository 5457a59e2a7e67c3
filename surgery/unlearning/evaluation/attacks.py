"""Membership attacks: what tells whoever has a bottleneck that a row was among the forgotten ones.

To add one, write a function that scores suspects, and name it in `ATTACKS`: reports, their tables, legends, figures and
remarks know it then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray

from surgery.progress import Progress
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.eraser import Eraser
from surgery.unlearning.evaluation.likelihood_ratio import likelihood_ratios
from surgery.unlearning.evaluation.roc_area import RocArea
from surgery.unlearning.evaluation.suspects import Suspects, confidences, share_masked
from surgery.unlearning.key_selection import OPEN


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack may use.

    Attributes:
        models: bottlenecks by name, as the report has them; `before`, `after` and `refitted` are always there.
        chain: the edits that lie between `before` and `after`.
        shadows: bottlenecks that an attack may train.
    """

    models: Mapping[str, Bottleneck]
    suspects: Suspects
    chain: Sequence[Eraser]
    shadows: int
    seed: int
    device: torch.device
    progress: Progress

    @cached_property
    def confidences(self) -> dict[str, NDArray]:
        """Log odds of each suspect's own class under each bottleneck, forgotten rows first."""
        pool = self.suspects.both
        return {name: confidences(model, pool, self.device) for name, model in self.models.items()}


# Scores of the suspects, forgotten rows first and higher where one is surer, by the name of the bottleneck attacked.
Scores = dict[str, NDArray]


def loss(given: Attacked) -> Scores:
    """How sure the bottleneck is of a row's own class."""
    return given.confidences


def masked_share(given: Attacked) -> Scores:
    """The share of a row's nearest keys that are masked, for whoever holds the mask."""
    after = given.models["after"]
    if not (after.selector.states != OPEN).any():
        return {}
    return {"after": share_masked(after, given.suspects.both.ids)}


def likelihood_ratio(given: Attacked) -> Scores:
    """How much better its loss fits shadow bottlenecks that learnt and forgot the row than those that never saw it."""
    edit = _how(given.models["before"], given.chain)
    if not given.shadows or edit is None:
        return {}
    return likelihood_ratios(
        given.models["before"],
        given.models["after"].need_training(),
        given.suspects,
        edit,
        {name: given.confidences[name] for name in ("before", "after", "refitted")},
        shadows=given.shadows,
        seed=given.seed,
        device=given.device,
        progress=given.progress,
    )


@dataclass(frozen=True)
class Attack:
    """A membership attack.

    Attributes:
        key: what reports file it under.
        name: what people read.
        scores: of the suspects; no bottleneck where it can't be made.
    """

    key: str
    name: str
    scores: Callable[[Attacked], Scores]

    @property
    def legend(self) -> str:
        """By what it tells, in a sentence."""
        return self.scores.__doc__ or ""


ATTACKS = (
    Attack("loss", "loss", loss),
    Attack("masked_share", "masked share", masked_share),
    Attack("likelihood_ratio", "likelihood ratio", likelihood_ratio),
)


def attack(given: Attacked) -> dict[str, dict[str, Any]]:
    """By bottleneck and attack: the area under the ROC curve, and how it differs from the same on the refitted one."""
    members = len(given.suspects.members)
    area = RocArea(members, len(given.suspects.others), given.seed)
    areas: dict[str, dict[str, Any]] = {}
    for one in ATTACKS:
        scores = one.scores(given)
        for name, score in scores.items():
            measured: dict[str, Any] = area.of(score[:members], score[members:])
            if "refitted" in scores and name != "refitted":
                pairs = [(s[:members], s[members:]) for s in (score, scores["refitted"])]
                measured["against_refitted"] = area.difference(*pairs) | {"beyond": area.beyond(*pairs)}
            areas.setdefault(name, {})[one.key] = measured
    return areas


def _how(before: Bottleneck, chain: Sequence[Eraser]) -> dict[str, Any] | None:
    """How shadows are to forget: as the edits did, as large a share as they masked; None where the edits differ in kind."""
    edits = [eraser.edit for eraser in chain]
    first = {key: edits[0][key] for key in ("via", "rank", "answer")}
    if before.history or any({key: edit[key] for key in first} != first for edit in edits):
        return None
    part, whole = ("examples", "rows") if first["via"] == "examples" else ("masked", "active")
    share = sum(edit[part] or 0 for edit in edits) / max(1, sum(edit[whole] for edit in edits))
    return {**first, "share": min(1.0, share)}
