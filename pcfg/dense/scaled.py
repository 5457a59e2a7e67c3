"""Posteriors, counts and derivatives read from scaled charts, without the sentences and words that a batch was padded with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64, Num
from torch import Tensor

from pcfg.dense.chart import Outside, Scores, by_end
from pcfg.dense.cuda_graphs import Once, Replayed
from pcfg.dense.passes import Passes, Turned, run_turned


@dataclass(frozen=True, eq=False)
class Scaled:
    """Scaled charts of some sentences of a batch; on a card they may hold more sentences and words, which answers leave out."""

    rows: Int64[Tensor, " r"]
    run: Once | Replayed
    size: int  # sentences of the charts
    words: int  # of the longest of these sentences
    shared: bool  # whether the sentences share the rules

    @property
    def log_z(self) -> Float64[Tensor, " r"]:
        """Log of the weight of all trees."""
        return self._ask("log_z", lambda passes: passes.inside.log_z)

    @property
    def spans(self) -> Num[Tensor, "r n n1"]:
        """Posterior of each span of two words or more, by first word and end."""
        return self._ask("spans", lambda passes: by_end(_labels(passes).sum(3)), self.words, self.words + 1)

    @property
    def labels(self) -> Num[Tensor, "r n n1 N"]:
        """Posterior of each nonterminal over each span, by first word and end."""
        return self._ask("labels", lambda passes: by_end(_labels(passes)), self.words, self.words + 1)

    @property
    def tags(self) -> Num[Tensor, "r n T"]:
        """Posterior of each preterminal over each word."""
        return self._ask("tags", lambda passes: _outside(passes).tag_posteriors.transpose(0, 1), self.words)

    @property
    def log_inside(self) -> Float64[Tensor, "r n widths N"]:
        """Log inside scores by first word and width, but for a constant of each width."""

        def logs(passes: Passes) -> Tensor:
            return self._cut(passes.inside.by_start).double().log() + self._cut(passes.inside.scales)[..., None]

        return self.run.read(logs)

    def start_counts(self) -> Num[Tensor, "r S"]:
        """Posterior of each symbol at the root."""
        return self._ask("start", lambda passes: _outside(passes).start_counts())

    def binary_counts(self, weights: Float[Tensor, " r"] | None) -> Num[Tensor, "*r N S S"]:
        """Expected uses of each rule, summed over sentences times `weights` where they share the rules."""
        if not self.shared:
            return self._ask("rules", lambda passes: _outside(passes).binary_counts(None))
        if weights is None and self.size == len(self.rows):
            return self.run.ask("rules", lambda passes: _outside(passes).binary_counts(None), (), _all)
        return self.run.ask("rules", _weighed_rules, (self._weights(weights),), _all)

    def gradients(self, weights: Float[Tensor, " r"], own_start: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Counts of the start, rules and words [r, n, T] times a weight of each sentence, summed where they are shared."""
        rows, words = len(self.rows), self.words

        def cut(counts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            start, rules, tags = counts
            return start[:rows] if own_start else start, rules if self.shared else rules[:rows], tags[:rows, :words]

        given = (self._weights(weights),)
        return self.run.ask(("gradients", own_start), partial(_gradients_of, own_start=own_start), given, cut)

    def turned(
        self, scores: Scores, ways: tuple[Tensor, Tensor, Tensor], weights: Float64[Tensor, " r"]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Slopes along `ways` of log Z, and of the counts: of the start, of rules (as `binary_counts`) and of tags."""

        def slopes(turned: Turned) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            outside, step, kept = turned.outside, turned.step, len(self.rows)
            assert outside is not None
            rules = self._counts(outside, weights if self.shared else None)
            counts = (outside.start_counts()[:kept].imag / step, rules.imag / step, self._tags(outside).imag / step)
            return turned.slope[:kept].clone(), counts

        return run_turned(scores, ways, True).read(slopes)

    def slopes(self, scores: Scores, ways: tuple[Tensor, Tensor, Tensor]) -> Float64[Tensor, " r"]:
        """Slope of each sentence's log Z along `ways`."""
        return run_turned(scores, ways, False).read(lambda turned: turned.slope[: len(self.rows)].clone())

    def _cut(self, chart: Num[Tensor, "m B u *N"]) -> Num[Tensor, "r n widths *N"]:
        return chart[: self.words, : len(self.rows), : self.words + 1].transpose(0, 1)

    def _tags(self, outside: Outside) -> Num[Tensor, "r n T"]:
        return outside.tag_posteriors[: self.words, : len(self.rows)].transpose(0, 1)

    def _counts(self, outside: Outside, weights: Float[Tensor, " r"] | None) -> Num[Tensor, "*r N S S"]:
        """Counts of rules without those of the sentences that a batch was padded with."""
        if not self.shared:
            return outside.binary_counts(None)[: len(self.rows)]
        weights = None if weights is None and self.size == len(self.rows) else self._weights(weights)
        return outside.binary_counts(None if weights is None else weights.to(outside.inside.tags.real.dtype))

    def _weights(self, weights: Float[Tensor, " r"] | None) -> Float[Tensor, " m"]:
        """A weight of each sentence of the chart: 0 of those that the batch was padded with."""
        given = torch.ones_like(self.rows, dtype=torch.float64) if weights is None else weights
        more = self.size - len(self.rows)
        return torch.nn.functional.pad(given, (0, more)) if more else given

    def _ask(self, name: str, function: Callable[[Passes], Tensor], *sizes: int) -> Tensor:
        """What the function makes of the passes, cut to the sentences and the first of the words that there are."""
        place = tuple(slice(0, size) for size in (len(self.rows), *sizes))
        return self.run.ask(name, function, (), lambda answer: answer[place])


def _all(answer: Tensor) -> Tensor:
    return answer


def _outside(passes: Passes) -> Outside:
    assert passes.outside is not None
    return passes.outside


def _labels(passes: Passes) -> Num[Tensor, "B n widths N"]:
    return _outside(passes).labels.transpose(0, 1)


def _weighed_rules(passes: Passes, weights: Float[Tensor, " B"]) -> Num[Tensor, "N S S"]:
    return _outside(passes).binary_counts(weights.to(passes.inside.tags.real.dtype))


def _gradients_of(passes: Passes, weights: Float[Tensor, " B"], own_start: bool) -> tuple[Tensor, Tensor, Tensor]:
    outside = _outside(passes)
    start = outside.start_counts() * weights[:, None]
    tags = outside.tag_posteriors.transpose(0, 1) * weights[:, None, None]
    if passes.inside.potentials.binary.dim() == 3:
        rules = _weighed_rules(passes, weights)
    else:
        rules = outside.binary_counts(None) * weights[:, None, None, None]
    return start if own_start else start.sum(0), rules, tags
