"""Which arithmetic holds a sentence: scaled charts where nothing that counts underflows, in float32 or float64, else logs."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Float64, Int64, Num
from torch import Tensor

from pcfg.dense.chart import Outside, Scores
from pcfg.dense.checks import complain
from pcfg.dense.cuda_graphs import Once, Replayed
from pcfg.dense.log_space import LogInside
from pcfg.dense.passes import ROUNDINGS, Passes, Turned, run_parsed, run_passes, run_turned, run_upper


@dataclass(frozen=True, eq=False)
class Scaled:
    """Scaled charts of some sentences of a batch; they may be of more sentences and words, which nobody is told of."""

    rows: Int64[Tensor, " r"]
    run: Once | Replayed
    size: int  # sentences of the charts
    words: int  # of the longest of these sentences
    shared: bool  # whether the sentences share the rules

    @property
    def log_z(self) -> Float64[Tensor, " r"]:
        """Log of the weight of all trees."""
        return self._ask("log_z", lambda found: found.inside.log_z)

    @property
    def spans(self) -> Num[Tensor, "r n n1"]:
        """Posterior of each span of two words or more, by first word and end."""
        return self._ask("spans", lambda found: by_end(_labels(found).sum(3)), self.words, self.words + 1)

    @property
    def labels(self) -> Num[Tensor, "r n n1 N"]:
        """Posterior of each nonterminal over each span, by first word and end."""
        return self._ask("labels", lambda found: by_end(_labels(found)), self.words, self.words + 1)

    @property
    def tags(self) -> Num[Tensor, "r n T"]:
        """Posterior of each preterminal over each word."""
        return self._ask("tags", lambda found: _outside(found).tag_posteriors.transpose(0, 1), self.words)

    @property
    def log_inside(self) -> Float64[Tensor, "r n widths N"]:
        """Log inside scores by first word and width, but for a constant of each width."""

        def logs(found: Passes) -> Tensor:
            return self._cut(found.inside.by_start).double().log() + self._cut(found.inside.scales)[..., None]

        return self.run.read(logs)

    def start_counts(self) -> Num[Tensor, "r S"]:
        """Posterior of each symbol at the root."""
        return self._ask("start", lambda found: _outside(found).start_counts())

    def binary_counts(self, weights: Float[Tensor, " r"] | None) -> Num[Tensor, "*r N S S"]:
        """Expected uses of each rule, summed over sentences times `weights` where they share the rules."""
        if not self.shared:
            return self._ask("rules", lambda found: _outside(found).binary_counts(None))
        if weights is None and self.size == len(self.rows):
            return self.run.ask("rules", lambda found: _outside(found).binary_counts(None), (), _all)
        return self.run.ask("rules", _weighed_rules, (self._weights(weights),), _all)

    def gradients(self, weights: Float[Tensor, " r"], own_start: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Counts of the start, rules and words [r, n, T] times a weight of each sentence, summed where they are shared."""
        rows, words = len(self.rows), self.words

        def cut(found: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            start, rules, tags = found
            return start[:rows] if own_start else start, rules if self.shared else rules[:rows], tags[:rows, :words]

        given = (self._weights(weights),)
        return self.run.ask(("gradients", own_start), partial(_gradients_of, own_start=own_start), given, cut)

    def turned(
        self, scores: Scores, ways: tuple[Tensor, Tensor, Tensor], weights: Float64[Tensor, " r"]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Slopes along `ways` of log Z, and of the counts: of the start, of rules (as `binary_counts`) and of tags."""

        def slopes(found: Turned) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            outside, step, kept = found.outside, found.step, len(self.rows)
            assert outside is not None
            rules = self._counts(outside, weights if self.shared else None)
            counts = (outside.start_counts()[:kept].imag / step, rules.imag / step, self._tags(outside).imag / step)
            return found.slope[:kept].clone(), counts

        return run_turned(scores, ways, True).read(slopes)

    def slopes(self, scores: Scores, ways: tuple[Tensor, Tensor, Tensor]) -> Float64[Tensor, " r"]:
        """Slope of each sentence's log Z along `ways`."""
        return run_turned(scores, ways, False).read(lambda found: found.slope[: len(self.rows)].clone())

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
        return self.run.ask(name, function, (), lambda found: found[place])


def _all(found: Tensor) -> Tensor:
    return found


def _outside(found: Passes) -> Outside:
    assert found.outside is not None
    return found.outside


def _labels(found: Passes) -> Num[Tensor, "B n widths N"]:
    return _outside(found).labels.transpose(0, 1)


def _weighed_rules(found: Passes, weights: Float[Tensor, " B"]) -> Num[Tensor, "N S S"]:
    return _outside(found).binary_counts(weights.to(found.inside.tags.real.dtype))


def _gradients_of(found: Passes, weights: Float[Tensor, " B"], own_start: bool) -> tuple[Tensor, Tensor, Tensor]:
    outside = _outside(found)
    start = outside.start_counts() * weights[:, None]
    tags = outside.tag_posteriors.transpose(0, 1) * weights[:, None, None]
    if found.inside.potentials.binary.dim() == 3:
        rules = _weighed_rules(found, weights)
    else:
        rules = outside.binary_counts(None) * weights[:, None, None, None]
    return start if own_start else start.sum(0), rules, tags


def by_end(by_width: Float[Tensor, "B n widths *N"]) -> Float[Tensor, "B n n1 *N"]:
    """From (first word, width) to (first word, end); 0 for spans of one word or none."""
    n = by_width.shape[1]
    first = torch.arange(n, device=by_width.device)[:, None]
    width = torch.arange(n + 1, device=by_width.device) - first
    found = by_width[:, first, width.clamp(min=0)]
    return found.masked_fill((width < 2).reshape(n, n + 1, *[1] * (by_width.dim() - 3)), 0.0)


class Logs:
    """Sentences of a batch in log-space, one after the other; posteriors are derivatives."""

    def __init__(self, rows: Int64[Tensor, " r"], scores: Scores) -> None:
        self.rows, self.scores = rows, scores
        found = [self._differentiate(row) for row in range(len(rows))]
        self.log_z = torch.stack([log_z for log_z, _, _ in found])
        self._counts = [counts for _, counts, _ in found]
        self.log_inside = torch.stack([chart for _, _, chart in found])
        self.tags = torch.stack([counts[2] for counts in self._counts])
        self.labels = by_end(torch.stack([counts[3] for counts in self._counts]))
        self.spans = self.labels.sum(3)

    def leaves(self, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores of one sentence in float64, and zeros to add to its spans, all to be differentiated by."""
        scores, n, nonterminals = self.scores, self.scores.emissions.shape[1], self.scores.symbols[0]
        start = scores.start[row] if scores.start.dim() == 2 else scores.start
        binary = scores.binary[row] if scores.binary.dim() == 4 else scores.binary
        found = (start, binary, scores.emissions[row], binary.new_zeros(n, n + 1, nonterminals))
        return tuple(x.detach().double().requires_grad_() for x in found)  # type: ignore[return-value]

    def run(self, row: int, leaves: tuple[Tensor, Tensor, Tensor, Tensor]) -> LogInside:
        """The differentiable inside pass of one sentence."""
        length = int(self.scores.lengths[row])
        return LogInside.of(leaves[0], leaves[1], leaves[2][:length], leaves[3][:length])

    def _differentiate(self, row: int) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        leaves = self.leaves(row)
        with torch.enable_grad():
            inside = self.run(row, leaves)
            counts = _gradients(inside.log_z, leaves)
        chart = torch.full_like(leaves[3], -torch.inf, requires_grad=False)
        for width, scores in enumerate(inside.chart):
            chart[: len(scores), width] = scores.detach()
        return inside.log_z.detach(), counts, chart

    def start_counts(self) -> Float64[Tensor, "r S"]:
        """Posterior of each symbol at the root."""
        return torch.stack([counts[0] for counts in self._counts])

    def binary_counts(self, weights: Float[Tensor, " r"] | None) -> Float64[Tensor, "*r N S S"]:
        """Expected uses of each rule, summed over sentences times `weights` where they share the rules."""
        if self.scores.binary.dim() == 4:
            return torch.stack([counts[1] for counts in self._counts])
        shares = [1.0] * len(self.rows) if weights is None else weights.double()
        return sum(share * counts[1] for share, counts in zip(shares, self._counts, strict=True))

    def slopes(self, scores: Scores, ways: tuple[Tensor, Tensor, Tensor]) -> Float64[Tensor, " r"]:
        """Slope of each sentence's log Z along `ways`: its expected counts times them."""
        found = torch.zeros(len(self.rows), dtype=torch.float64, device=self.rows.device)
        for row, counts in enumerate(self._counts):
            for count, way in zip(counts[:3], ways, strict=True):
                found[row] += (count * (way[row] if way.dim() > count.dim() else way).double()).sum()
        return found

    def turned(self, row: int, ways: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Slope of one sentence's log Z along `ways`, and of its counts."""
        leaves = self.leaves(row)[:4]
        with torch.enable_grad():
            counts = _gradients(self.run(row, leaves).log_z, leaves[:3], create_graph=True)
            slope = sum((count * way.double()).sum() for count, way in zip(counts, ways, strict=True))
            return slope.detach(), _gradients(slope, leaves[:3])  # type: ignore[union-attr, arg-type]


def _gradients(value: Tensor, leaves: tuple[Tensor, ...], create_graph: bool = False) -> tuple[Tensor, ...]:
    found = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return tuple(
        torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
    )


def solve(scores: Scores, dtype: torch.dtype, outside: bool) -> list[Scaled | Logs]:
    """Charts in which no sentence has lost anything, the first of dtype, float64 and log-space that holds it.

    Where charts are recorded numbers may be any, GrammarError tells of those that can't be, and padding need not be masked.
    """
    rows = torch.arange(len(scores.lengths), device=scores.lengths.device)
    parts: list[Scaled | Logs] = []
    failed = {}
    for level in dict.fromkeys((dtype, torch.float64)):
        some = scores if len(rows) == len(scores.lengths) else scores.rows(rows)
        run, sound = _attempt(some, level, outside)
        if sound is None:
            parts.append(_scaled(rows, run, some))
            rows = rows[:0]
            break
        failed[level] = int((~sound).sum())
        if failed[level] < len(rows):
            held = scores.rows(rows[sound])
            parts.append(_scaled(rows[sound], _attempt(held, level, outside)[0], held))
        rows = rows[~sound]
    if len(rows):
        parts.append(Logs(rows, scores.rows(rows)))
    if failed:
        levels = " and ".join(f"{count} in {str(level).removeprefix('torch.')}" for level, count in failed.items())
        last = "log-space" if len(rows) else "float64"
        warnings.warn(
            f"Scores of {levels} of {len(scores.lengths)} sentences underflow: promoted, up to {last}, which is slower and exact.",
            RuntimeWarning,
            stacklevel=4,
        )
    return parts


def _scaled(rows: Int64[Tensor, " r"], run: Once | Replayed, scores: Scores) -> Scaled:
    return Scaled(rows, run, run.state.inside.batch, scores.emissions.shape[1], scores.binary.dim() == 3)


@torch.inference_mode()  # some hundred small operations: what autograd would note of each takes as long as they do
def _attempt(scores: Scores, dtype: torch.dtype, outside: bool) -> tuple[Once | Replayed, Bool[Tensor, " B"] | None]:
    """Scaled charts, and which sentences they are proven to hold; None for all of them."""
    run, batch = run_passes(scores, dtype, outside), len(scores.lengths)
    some_doubted, some_wrong, *wrongs = run.read(lambda found: found.some.tolist())  # waits for a card, once a chart
    if wrongs:
        complain(scores, wrongs)
    if not (some_doubted or some_wrong):
        return run, None
    doubted, wrong = run.read(lambda found: (found.doubted[:batch].clone(), found.wrong[:batch].clone()))
    sound = ~doubted
    if some_doubted:
        rows = doubted.nonzero()[:, 0]
        some = scores.rows(rows)
        log_z, empty = run.read(lambda found: (found.inside.log_z[rows], found.inside.total[rows] == 0))
        floor = run.read(lambda found: found.floor)  # of the whole batch, whose entries are the ones in doubt
        upper = run_upper(some, dtype, floor).read(lambda found: found[: len(rows)].clone())
        gap, size = upper - log_z, upper.abs()
        sound[rows] = gap <= ROUNDINGS * torch.finfo(dtype).eps / 2 + 8 * torch.finfo(size.dtype).eps * size
        if bool(empty.any()):
            sound[rows] |= empty & ~run_parsed(some, dtype).read(lambda found: found[: len(rows)].clone())
    if some_wrong:
        sound &= ~wrong
    return run, None if bool(sound.all()) else sound


def merge(
    parts: Sequence[Scaled | Logs],
    tensors: Sequence[Tensor],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float64,
    padding: float = 0.0,
) -> Tensor:
    """What the parts found, in the order of the batch; parts cut to shorter sentences are padded."""
    if len(parts) == 1 and tensors[0].shape == tuple(shape):
        return tensors[0].to(dtype)
    merged = tensors[0].new_full(tuple(shape), padding, dtype=torch.float64)
    for part, tensor in zip(parts, tensors, strict=True):
        place: tuple[Tensor | slice, ...] = (part.rows, *(slice(0, size) for size in tensor.shape[1:]))
        merged[place] = tensor.double()
    return merged.to(dtype)
