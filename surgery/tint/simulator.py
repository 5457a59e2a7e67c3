"""TinT: forward, backward and descent of an auxiliary model within one forward pass, and the updated model's logits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from surgery.errors import OptionError
from surgery.tint.auxiliary import Auxiliary, Block
from surgery.tint.block import Activations, backward, forward
from surgery.tint.construction.transformer import CONSTANTS, Transformer
from surgery.tint.cuda_graphs import Graphs
from surgery.tint.descent import Descent, DivergedError, Gradients, Learner, check_rate, check_sums
from surgery.tint.inputs import as_ids, as_mask, as_segments
from surgery.tint.modules import Arithmetic, affine, check_mode, cross_entropy, normalise, normalise_backward
from surgery.tint.segments import Plan, check_length, positions_and_visible
from surgery.tint.update import Output, Update

BlockNumbers = str | Sequence[int]  # `all`, numbers, or text such as `0,2,8-11`


class _Pass(NamedTuple):
    """The tensors of a pass before its checks, none of which the CPU has read, so that a CUDA graph can hold it."""

    blocks: tuple[Block, ...]
    losses: Float[Tensor, "steps batch"]
    sums: Float[Tensor, "steps tensors"]
    names: list[tuple[int, str]]
    logits: Float[Tensor, "batch tokens vocabulary"] | None

    def copy(self, before: Sequence[Block]) -> "_Pass":
        """A copy that the graph's next replay doesn't overwrite; the model's own tensors (`before`) are shared."""
        blocks = tuple(
            {name: value if value is old[name] else value.clone() for name, value in block.items()}
            for block, old in zip(self.blocks, before, strict=True)
        )
        logits = None if self.logits is None else self.logits.clone()
        return _Pass(blocks, self.losses.clone(), self.sums.clone(), self.names, logits)


@dataclass(frozen=True, eq=False, repr=False)
class TinT:
    """A transformer that fine-tunes a smaller one while it reads (Panigrahi et al. 2024).

    One inner step is gradient descent on the summed next-word loss over pairs of neighbouring training tokens, on the
    weights of the blocks; embeddings, positions, the final norm and the head stay.

    Attributes:
        transformer: the transformer of prefixes and tokens itself, where `materialise` asked for it. Else the same
            arithmetic runs without the zeros of its weight matrices.
    """

    auxiliary: Auxiliary
    arithmetic: Arithmetic
    mode: str
    steps: int
    layers: tuple[int, ...]
    transformer: Transformer | None = None
    _graphs: Graphs = field(default_factory=Graphs, init=False)

    def __repr__(self) -> str:
        shape, how = self.auxiliary.shape, "the transformer itself" if self.transformer else "fast path"
        return f"TinT(mode={self.mode!r}, steps={self.steps}, {len(self.layers)} of {shape.layers} blocks learn, {how})"

    @classmethod
    def build(
        cls,
        model: Any,
        steps: int = 1,
        layers: BlockNumbers = "all",
        mode: str = "paper",
        *,
        scale: float | None = None,
        materialise: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "TinT":
        """Simulate a model: a Hugging Face one, a loaded `Model`, a Checkpoint, a folder or a hub id.

        A folder or hub id is loaded in float32, on CUDA when there is one; a model in memory is simulated as and where it
        is, or, with another `device` or `dtype`, as a copy.

        Args:
            layers: which blocks learn: `all`, numbers, or text such as `0,2,8-11`.
            mode: `paper`; `exact`, which is more than the paper's construction does; `published`, faults included.
            scale: N of differences, for modes that take them; default by dtype.
            materialise: build the transformer itself, zeros and all (GPT-2 and OPT).

        Raises:
            TintError: an architecture that can't be simulated. OptionError: an option out of its range.
        """
        check_steps(steps)
        check_mode(mode)
        auxiliary = Auxiliary.of(model, device=device, dtype=dtype)
        arithmetic = Arithmetic.of(mode, auxiliary.dtype, scale)
        chosen = pick_blocks(layers, auxiliary.shape.layers)
        transformer = None
        if materialise:
            if mode == "paper" and scale is None:  # the transformer's differences have one N for all
                arithmetic = Arithmetic.of(mode, auxiliary.dtype, CONSTANTS[auxiliary.dtype])
            transformer = Transformer.build(auxiliary, arithmetic, chosen)
        return cls(auxiliary, arithmetic, mode, steps, chosen, transformer)

    def __call__(
        self,
        input_ids: Any,
        train_mask: Any,
        lr: float = 1e-4,
        *,
        loss_mask: Any = None,
        segments: Any = None,
        attention_mask: Any = None,
    ) -> Output:
        """Train on the training tokens, and read the whole with the updated weights.

        Ids, masks and segments are [batch, tokens], or one row: tensors on any device, numpy arrays or lists; they are
        moved to the model. The results are on the model's device, as a transformers model's are. On CUDA the same call gives the
        same bits again, and a CPU's to rounding.

        Args:
            input_ids: token ids.
            train_mask: the training tokens; every other token is read only after the update.
            lr: learning rate on the summed loss.
            loss_mask: of the training tokens, those whose prediction is learnt (such as labels alone); default all.
            segments: a number a token: tokens read earlier ones of their own segment, and of segment 0, which all share.
            attention_mask: 0 for padding, wherever it is: nobody reads it and it takes up no position. Padding that comes
                last needs none.

        Raises:
            TintError: ids or masks that can't be used, a mask that leaves nothing to learn or to test, too long a sequence,
                or a descent that became NaN, naming step and tensor.
        """
        check_rate(lr)
        plan = self._plan(
            input_ids, train_mask, loss_mask=loss_mask, segments=segments, attention_mask=attention_mask, whole=False
        )
        if self.transformer is not None:
            out = self.transformer(self.auxiliary, plan, steps=self.steps, lr=lr)
        else:
            done = self._run(plan, lr, read=True)
            assert done.logits is not None, "asked to read"
            out = Output(done.logits, Update(self.auxiliary, done.blocks, done.losses))
        if not bool(torch.isfinite(out.logits).all()):
            raise DivergedError(
                f"after step {self.steps} logits are NaN or infinite: lower the learning rate (now {lr:g})"
            )
        return out

    def update(
        self,
        input_ids: Any,
        train_mask: Any = None,
        lr: float = 1e-4,
        *,
        loss_mask: Any = None,
        segments: Any = None,
        attention_mask: Any = None,
    ) -> Update:
        """Only the inner training, to read many things with afterwards (`hidden`); all tokens train by default."""
        check_rate(lr)
        plan = self._plan(
            input_ids, train_mask, loss_mask=loss_mask, segments=segments, attention_mask=attention_mask, whole=True
        )
        return self.learn(plan, lr)

    def learn(self, plan: Plan, lr: float) -> Update:
        """The inner training on a batch that is put in order already."""
        done = self._run(plan, lr, read=False)
        return Update(self.auxiliary, done.blocks, done.losses)

    def gradients(
        self,
        input_ids: Any,
        train_mask: Any = None,
        *,
        loss_mask: Any = None,
        segments: Any = None,
        attention_mask: Any = None,
    ) -> tuple[Block, ...]:
        """The gradient of each row's summed loss, [batch, ...] by block and name, by this mode's arithmetic.

        Raises:
            TintError: as the pass does; a gradient that is NaN or infinite is named.
        """
        plan = self._plan(
            input_ids, train_mask, loss_mask=loss_mask, segments=segments, attention_mask=attention_mask, whole=True
        )
        gradients = Gradients(self.auxiliary.shape.layers)
        with torch.no_grad():
            self._step(plan, list(self.auxiliary.blocks), gradients)
        gradients.check()
        return gradients.by_block

    def hidden(
        self,
        input_ids: Any,
        blocks: Sequence[Block] | None = None,
        *,
        segments: Any = None,
        attention_mask: Any = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """The final norm's output, with the blocks of an update or the model's own; logits are its product with the head."""
        ids = as_ids(input_ids, self.auxiliary.shape.vocabulary)
        parts, real = as_segments(segments, ids), as_mask(attention_mask, ids, "attention_mask")
        positions, visible = positions_and_visible(ids, parts, real)
        check_length(positions, self.auxiliary.shape.positions)
        device = self.auxiliary.device
        with torch.no_grad():
            return self._read(
                ids.to(device),
                positions.to(device),
                None if visible is None else visible.to(device),
                blocks or self.auxiliary.blocks,
            )

    def _plan(self, input_ids: Any, train_mask: Any, **others: Any) -> Plan:
        return Plan.of(input_ids, train_mask, shape=self.auxiliary.shape, device=self.auxiliary.device, **others)

    def _run(self, plan: Plan, lr: float, *, read: bool) -> _Pass:
        """The pass, by a CUDA graph where that pays, and its checks."""
        inputs = (plan.ids, plan.positions, plan.visible, plan.train_visible, plan.targets, plan.pairs)
        done = self._graphs.run(
            (lr, read, plan.train_tokens),
            partial(self._compute, plan.train_tokens, lr, read),
            inputs,
            lambda replayed: replayed.copy(self.auxiliary.blocks),
            self.auxiliary.bytes,
        )
        check_sums(done.sums, done.names, lr)
        return done

    def _compute(
        self,
        train_tokens: int,
        lr: float,
        read: bool,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor | None,
        train_visible: Tensor | None,
        targets: Tensor,
        pairs: Tensor,
    ) -> _Pass:
        """Steps of descent, and the reading; nothing in it waits for the device, so that a graph can hold it."""
        plan = Plan(ids, positions, visible, train_visible, train_tokens, targets, pairs)
        blocks = [dict(block) for block in self.auxiliary.blocks]
        losses, sums = [], []
        with torch.no_grad():
            for _ in range(self.steps):
                descent = Descent(blocks, lr)
                losses.append(self._step(plan, blocks, descent))
                sums.append(torch.stack(descent.sums))
            logits = None
            if read:
                logits = F.linear(self._read(ids, positions, visible, blocks), self.auxiliary.head)
        return _Pass(tuple(blocks), torch.stack(losses), torch.stack(sums), descent.names, logits)

    def _read(
        self, input_ids: Tensor, positions: Tensor, visible: Tensor | None, blocks: Sequence[Block]
    ) -> Float[Tensor, "batch tokens width"]:
        shape = self.auxiliary.shape
        x = self.auxiliary.embed(input_ids, positions)
        rotation = self.auxiliary.rotation(x, positions)
        for block in blocks:
            x = forward(x, block, shape, rotation, visible)[0]
        return affine(
            normalise(x, shape.norm, shape.epsilon), {f"final.{k}": v for k, v in self.auxiliary.final.items()}, "final"
        )

    def _step(self, plan: Plan, blocks: list[Block], learner: Learner) -> Float[Tensor, " batch"]:
        """Forward over the training tokens, the loss, and backward down to the lowest block that learns."""
        shape, lowest = self.auxiliary.shape, min(self.layers)
        ids, positions = plan.ids[:, : plan.train_tokens], plan.positions[:, : plan.train_tokens]
        x = self.auxiliary.embed(ids, positions)
        rotation = self.auxiliary.rotation(x, positions)
        kept: dict[int, Activations] = {}
        for layer, block in enumerate(blocks):
            x, activations = forward(x, block, shape, rotation, plan.train_visible)
            if layer >= lowest:
                kept[layer] = activations
        gradient, losses = self._loss(x, ids, plan)
        for layer in range(shape.layers - 1, lowest - 1, -1):
            gradient = backward(
                gradient,
                kept.pop(layer),
                layer,
                blocks[layer],
                shape,
                rotation,
                plan.train_visible,
                self.arithmetic,
                learner if layer in self.layers else None,
                inward=layer > lowest,
            )
        return losses

    def _loss(self, x: Tensor, ids: Tensor, plan: Plan) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """The gradient at the last block's output, and each row's summed loss. Only positions that learn are looked at."""
        shape, final = self.auxiliary.shape, self.auxiliary.final
        rows, wanted = x.flatten(0, 1)[plan.pairs], ids.flatten()[plan.pairs + 1]
        normalised = normalise(rows, shape.norm, shape.epsilon)
        hidden = normalised * final["weight"] + final.get("bias", 0)
        losses, at_hidden = cross_entropy(hidden, self.auxiliary.head, wanted)
        gradient, by_place = torch.zeros_like(x), x.new_zeros(ids.shape)
        gradient.view(-1, x.shape[-1])[plan.pairs] = normalise_backward(
            at_hidden * final["weight"], rows, normalised, shape.norm, shape.epsilon, self.arithmetic
        )
        by_place.view(-1)[plan.pairs] = losses
        return gradient, by_place.sum(1)


def check_steps(steps: int) -> None:
    """Raise OptionError for a descent without a step."""
    if steps < 1:
        raise OptionError(f"steps {steps} must be at least 1")


def pick_blocks(layers: BlockNumbers, count: int) -> tuple[int, ...]:
    """The numbers of the blocks that learn, in order; raises OptionError for none, or for one that isn't there."""
    if layers == "all":
        return tuple(range(count))
    if isinstance(layers, str):
        numbers: set[int] = set()
        for part in layers.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdigit() or (dash and not last.isdigit()):
                raise OptionError(f"layers {layers!r} must be all, or numbers and ranges such as 0,2,8-11")
            numbers |= set(range(int(first), int(last or first) + 1))
    else:
        numbers = set(layers)
    if not numbers or min(numbers) < 0 or max(numbers) >= count:
        raise OptionError(f"layers {layers!r} must name some of the model's {count} blocks, 0 to {count - 1}")
    return tuple(sorted(numbers))
