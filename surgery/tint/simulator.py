"""TinT: forward, backward and descent of an auxiliary model within one forward pass, and the updated model's logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surgery.errors import OptionError
from surgery.tint.auxiliary import Auxiliary, Block
from surgery.tint.block import Memory, backward, forward
from surgery.tint.descent import Descent, DivergedError, Gradients, Learner, check_rate
from surgery.tint.modules import Arithmetic, affine, cross_entropy, normalise, normalise_backward
from surgery.tint.segments import Plan, check_length, check_tokens, layout

if TYPE_CHECKING:
    from surgery.tint.machine import Machine

Layers = str | Sequence[int]


@dataclass(frozen=True, eq=False)
class Update:
    """The blocks after the inner training.

    Attributes:
        blocks: each block's tensors; those that learnt are [batch, ...], one copy a row.
        losses: the summed loss of each row before each step, [steps, batch].
    """

    auxiliary: Auxiliary
    blocks: tuple[Block, ...]
    losses: Float[Tensor, "steps batch"]

    def parameters(self, row: int = 0) -> dict[str, Tensor]:
        """One row's blocks as parameters of the Hugging Face model, by name."""
        named = dict(self.auxiliary.module.named_parameters(remove_duplicate=False))
        found: dict[str, Tensor] = {}
        for block, before, sites in zip(self.blocks, self.auxiliary.blocks, self.auxiliary.sites, strict=True):
            for name, site in sites.items():
                whole = found.setdefault(site.parameter, named[site.parameter].detach().clone())
                learnt = block[name].dim() > before[name].dim()
                site.view(whole).copy_(block[name][row] if learnt else block[name])
        return found


@dataclass(frozen=True, eq=False)
class Output:
    """What one pass gives.

    Attributes:
        logits: [batch, tokens, vocabulary], with the updated weights.
        update: the updated weights and the losses on the way.
    """

    logits: Float[Tensor, "batch tokens vocabulary"]
    update: Update


@dataclass(frozen=True, eq=False, repr=False)
class TinT:
    """A transformer that fine-tunes a smaller one while it reads (Panigrahi et al. 2024).

    One inner step is gradient descent on the summed next-word loss over pairs of neighbouring training tokens, on the
    weights of the blocks; embeddings, positions, the final norm and the head stay.

    Attributes:
        machine: the transformer of prefixes and tokens itself, where it was asked for; else the same arithmetic without
            its zeros.
    """

    auxiliary: Auxiliary
    arithmetic: Arithmetic
    mode: str
    steps: int
    layers: tuple[int, ...]
    machine: "Machine | None" = None

    def __repr__(self) -> str:
        shape, how = self.auxiliary.shape, "the transformer itself" if self.machine else "fast path"
        return f"TinT(mode={self.mode!r}, steps={self.steps}, {len(self.layers)} of {shape.layers} blocks learn, {how})"

    @classmethod
    def build(
        cls,
        model: Any,
        steps: int = 1,
        layers: Layers = "all",
        mode: str = "paper",
        *,
        scale: float | None = None,
        materialise: bool = False,
        device: str | None = None,
        dtype: str | None = None,
    ) -> "TinT":
        """Simulate a model: a Hugging Face one, a loaded `Model`, a Checkpoint, a folder or a hub id.

        Args:
            layers: which blocks learn: `all`, numbers, or text such as `0,2,8-11`.
            mode: `paper`; `exact`, which is more than the paper's construction does; `published`, faults included.
            scale: N of differences, for modes that take them; default by dtype.
            materialise: build the transformer itself, zeros and all (GPT-2 and OPT).

        Raises:
            TintError: an architecture that can't be simulated. OptionError: an option out of its range.
        """
        if steps < 1:
            raise OptionError(f"steps {steps} must be at least 1")
        auxiliary = Auxiliary.of(model, device=device, dtype=dtype)
        arithmetic = Arithmetic.of(mode, auxiliary.dtype, scale)
        chosen = pick_layers(layers, auxiliary.shape.layers)
        machine = None
        if materialise:
            from surgery.tint.machine import CONSTANTS, Machine

            if mode == "paper" and scale is None:  # the transformer's differences have one N for all
                arithmetic = Arithmetic.of(mode, auxiliary.dtype, CONSTANTS[auxiliary.dtype])
            machine = Machine.build(auxiliary, arithmetic, chosen)
        return cls(auxiliary, arithmetic, mode, steps, chosen, machine)

    def __call__(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        train_mask: Bool[Tensor, "batch tokens"],
        lr: float = 1e-4,
        *,
        loss_mask: Bool[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Output:
        """Train on the training tokens, and read the whole with the updated weights.

        Args:
            train_mask: the training tokens; every other token is read only after the update.
            lr: learning rate on the summed loss.
            loss_mask: of the training tokens, those whose prediction is learnt (such as labels alone); default all.
            segments: a number a token: tokens read earlier ones of their own segment, and of segment 0, which all share.

        Raises:
            TintError: a mask that leaves nothing to learn or to test, too long a sequence, or a descent that became NaN,
                naming step and tensor.
        """
        check_rate(lr)
        plan = self._plan(input_ids, train_mask, loss_mask, segments, whole=False)
        if self.machine is not None:
            out = self.machine(self, input_ids, plan, lr)
        else:
            with torch.no_grad():
                update = self._train(input_ids, plan, lr)
                hidden = self._read(input_ids, plan.positions, plan.visible, update.blocks)
                out = Output(F.linear(hidden, self.auxiliary.head), update)
        if not bool(torch.isfinite(out.logits).all()):
            raise DivergedError(
                f"after step {self.steps} logits are NaN or infinite: lower the learning rate (now {lr:g})"
            )
        return out

    def update(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        train_mask: Bool[Tensor, "batch tokens"] | None = None,
        lr: float = 1e-4,
        *,
        loss_mask: Bool[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Update:
        """Only the inner training, to read many things with afterwards (`hidden`); all tokens train by default."""
        check_rate(lr)
        mask = torch.ones_like(input_ids, dtype=torch.bool) if train_mask is None else train_mask
        plan = self._plan(input_ids, mask, loss_mask, segments, whole=True)
        with torch.no_grad():
            return self._train(input_ids, plan, lr)

    def gradients(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        train_mask: Bool[Tensor, "batch tokens"] | None = None,
        *,
        loss_mask: Bool[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Block, ...]:
        """What one step would move each tensor by, over minus the learning rate: [batch, ...] by block and name.

        Raises:
            TintError: as the pass does; a gradient that is NaN or infinite is named.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if train_mask is None else train_mask
        plan = self._plan(input_ids, mask, loss_mask, segments, whole=True)
        found = Gradients(self.auxiliary.shape.layers)
        with torch.no_grad():
            self._step(input_ids, plan, list(self.auxiliary.blocks), found)
        found.check()
        return found.found

    def hidden(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        blocks: Sequence[Block] | None = None,
        *,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """The final norm's output, with the blocks of an update or the model's own; logits are its product with the head."""
        positions, visible = layout(input_ids, segments)
        check_length(positions, self.auxiliary.shape.positions)
        check_tokens(input_ids, self.auxiliary.shape.vocabulary)
        with torch.no_grad():
            return self._read(input_ids, positions, visible, blocks or self.auxiliary.blocks)

    def _plan(self, input_ids: Tensor, mask: Tensor, loss: Tensor | None, segments: Tensor | None, whole: bool) -> Plan:
        limit = self.auxiliary.shape.positions
        check_tokens(input_ids, self.auxiliary.shape.vocabulary)
        return Plan.of(input_ids, mask, loss_mask=loss, segments=segments, limit=limit, whole=whole)

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

    def _train(self, input_ids: Tensor, plan: Plan, lr: float) -> Update:
        blocks = [dict(block) for block in self.auxiliary.blocks]
        losses = []
        for step in range(1, self.steps + 1):
            descent = Descent(blocks, lr)
            losses.append(self._step(input_ids, plan, blocks, descent))
            descent.check(step)
        return Update(self.auxiliary, tuple(blocks), torch.stack(losses))

    def _step(self, input_ids: Tensor, plan: Plan, blocks: list[Block], learner: Learner) -> Float[Tensor, " batch"]:
        """Forward over the training tokens, the loss, and backward down to the lowest block that learns."""
        shape, lowest = self.auxiliary.shape, min(self.layers)
        ids, positions = input_ids[:, : plan.train_tokens], plan.positions[:, : plan.train_tokens]
        x = self.auxiliary.embed(ids, positions)
        rotation = self.auxiliary.rotation(x, positions)
        memories: dict[int, Memory] = {}
        for layer, block in enumerate(blocks):
            x, memory = forward(x, block, shape, rotation, plan.train_visible)
            if layer >= lowest:
                memories[layer] = memory
        gradient, losses = self._loss(x, ids, plan)
        for layer in range(shape.layers - 1, lowest - 1, -1):
            gradient = backward(
                gradient,
                memories.pop(layer),
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
        chosen = torch.zeros_like(ids, dtype=torch.bool)
        chosen[:, :-1] = plan.targets[:, : ids.shape[1] - 1]
        rows, wanted = x[chosen], ids[:, 1:][chosen[:, :-1]]
        normalised = normalise(rows, shape.norm, shape.epsilon)
        hidden = normalised * final["weight"] + final.get("bias", 0)
        losses, at_hidden = cross_entropy(hidden, self.auxiliary.head, wanted)
        gradient = torch.zeros_like(x)
        gradient[chosen] = normalise_backward(
            at_hidden * final["weight"], rows, normalised, shape.norm, shape.epsilon, self.arithmetic
        )
        owner = torch.arange(len(ids), device=ids.device)[:, None].expand(ids.shape)[chosen]
        return gradient, torch.zeros(len(ids), dtype=x.dtype, device=x.device).index_add_(0, owner, losses)


def pick_layers(layers: Layers, count: int) -> tuple[int, ...]:
    """The blocks' numbers in order; raises OptionError for none, or for one that isn't there."""
    if layers == "all":
        return tuple(range(count))
    if isinstance(layers, str):
        found: set[int] = set()
        for part in layers.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdigit() or (dash and not last.isdigit()):
                raise OptionError(f"layers {layers!r} must be all, or numbers and ranges such as 0,2,8-11")
            found |= set(range(int(first), int(last or first) + 1))
    else:
        found = set(layers)
    if not found or min(found) < 0 or max(found) >= count:
        raise OptionError(f"layers {layers!r} must name some of the model's {count} blocks, 0 to {count - 1}")
    return tuple(sorted(found))
