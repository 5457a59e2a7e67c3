"""Training on masked words: batches are put together and masked where the model is, and on a card a step is one launch.

The steps of a small model are thousands of short kernels: launching them takes a card longer than running them. So the
whole of a step (forward, backward, clipping, AdamW) is captured as a CUDA graph, one for each width of a batch.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pcfg.errors import OptionError
from pcfg.sampling.samples import Samples
from surgery.errors import first_line
from surgery.files import replace_bytes
from surgery.jsonfile import parse_json
from surgery.resuming import damaged
from surgery.sync.together import SyncRecipe, Together
from surgery.sync.workers import Workers

STATE = "state.safetensors"
_GROUP = 50  # batches that are sorted by length together
_ROUNDED = 4  # on a card widths are multiples of this, so that few graphs serve all batches
_IGNORED = -100
_CLIP = 1.0
_BETAS, _EPSILON, _DECAY = (0.9, 0.98), 1e-8, 0.01


class Batch(NamedTuple):
    """Masked sentences with padding, on the model's device.

    Attributes:
        input_ids: begin, words or <mask>, end, padding. `labels`: the words under masks, -100 elsewhere.
        attention_mask: added to attention scores; on a CPU None where there is no padding.
    """

    input_ids: Int64[Tensor, "batch width"]
    labels: Int64[Tensor, "batch width"]
    attention_mask: Float[Tensor, "batch 1 1 width"] | None


@dataclass(frozen=True, eq=False)
class Batches:
    """Packed sentences on a device, cut into batches of much the same length, in an order that a seed decides.

    Attributes:
        tokens: of all sentences, one after another. `first`, `length`: of each sentence in the order of training.
        widths: of each batch, the two special tokens included; `padded`: whether it needs a mask for padding.
    """

    tokens: Int32[Tensor, " W"]
    first: Int64[Tensor, " N"]
    length: Int64[Tensor, " N"]
    widths: list[int]
    padded: list[bool]
    batch_size: int
    share: float
    seed: int
    special: dict[str, int]

    @property
    def last_size(self) -> int:
        """Sentences of the last batch, which may be fewer."""
        return len(self.first) - (len(self.widths) - 1) * self.batch_size

    @classmethod
    def of(
        cls,
        drawn: Samples,
        ids: Int64[np.ndarray, " V"],
        words: Any,
        *,
        batch_size: int,
        share: float,
        seed: int,
        device: torch.device,
    ) -> "Batches":
        """Sentences drawn from a grammar.

        Args:
            ids: the token of each of the grammar's words; `words`: the tokenizer, for its special tokens.
            share: of the words that are masked.
        """
        random = np.random.default_rng(seed)
        order, whole = random.permutation(len(drawn)), batch_size * (len(drawn) // batch_size)
        groups = np.array_split(order[:whole], max(1, whole // (_GROUP * batch_size)))
        nearby = np.concatenate([group[np.argsort(drawn.lengths[group], kind="stable")] for group in groups])
        batches = random.permutation(nearby.reshape(-1, batch_size))
        order = np.append(batches.reshape(-1), order[whole:])
        lengths = drawn.lengths[order]
        starts = np.arange(0, len(order), batch_size)
        longest, shortest = np.maximum.reduceat(lengths, starts) + 2, np.minimum.reduceat(lengths, starts) + 2
        padded = shortest < longest
        if device.type == "cuda":
            longest = -(-longest // _ROUNDED) * _ROUNDED
            # Without a mask the library makes one of its own from the CPU, which can't be captured.
            padded = np.ones_like(padded)
        return cls(
            torch.from_numpy(ids.astype(np.int32)[drawn.words]).to(device),
            torch.from_numpy(drawn.offsets[:-1][order]).to(device),
            torch.from_numpy(lengths).to(device),
            longest.tolist(),
            padded.tolist(),
            batch_size,
            share,
            seed,
            {
                "pad": words.pad_token_id,
                "begin": words.bos_token_id,
                "end": words.eos_token_id,
                "mask": words.mask_token_id,
            },
        )

    def __len__(self) -> int:
        return len(self.widths)

    def __getitem__(self, number: int) -> Batch:
        """A batch; its masks are decided by the seed and its number, so that a resumed run masks the same words."""
        rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
        first, length, width = self.first[rows, None], self.length[rows, None], self.widths[number]
        place = torch.arange(width, device=first.device) - 1  # of a word in its sentence; <s> has -1
        inner = (place >= 0) & (place < length)
        ids = self.tokens[torch.where(inner, first + place, 0)].long()
        ids = torch.where(inner, ids, self.special["pad"]).masked_fill(place == -1, self.special["begin"])
        ids = ids.masked_fill(place == length, self.special["end"])
        chance = torch.Generator(first.device).manual_seed(step_seed(self.seed, number))
        masked = inner & (torch.rand(ids.shape, generator=chance, device=ids.device) < self.share)
        added = None
        if self.padded[number]:
            added = torch.zeros(ids.shape, device=ids.device).masked_fill(place > length, -math.inf)[:, None, None]
        return Batch(ids.masked_fill(masked, self.special["mask"]), ids.masked_fill(~masked, _IGNORED), added)


class _Evaluated(TypedDict):
    step: int
    excess: float


class Trainer:
    """AdamW with a linear warm-up and decay on a masked language model; its state can be kept and taken up again.

    Attributes:
        step: how many steps are done, of `steps`; `pace`: how many a second, of those made here.
        reason: why steps aren't captured on a card, where they aren't.
    """

    def __init__(
        self,
        module: Any,
        batches: Batches,
        *,
        rate: float,
        warmup: float,
        workers: Workers | None = None,
        sync: SyncRecipe | None = None,
    ) -> None:
        self.module, self.batches, self.rate = module, batches, rate
        self.step, self.steps, self.pace = 0, len(batches), 0.0
        self.warmup = math.ceil(warmup * self.steps)
        self.device = batches.tokens.device
        self.reason: str | None = None
        self._card = self.device.type == "cuda"
        self._named = dict(module.named_parameters())
        self._optimizer = self._adamw()
        self._seen: set[tuple[int, bool]] = set()
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Batch]] = {}
        self._pool: Any = None
        config = module.config
        self._chance = config.hidden_dropout_prob > 0 or config.attention_probs_dropout_prob > 0
        self.together = None if workers is None else self._join(workers, sync or SyncRecipe())

    def _join(self, workers: Workers, sync: SyncRecipe) -> Together:
        self.reason = "several workers share a step"
        if (last := self.batches.last_size) < workers.count:
            raise OptionError(
                f"the last batch of {last} has nothing for some of {workers.count} workers: make `sentences` a multiple of `batch_size` ({self.batches.batch_size}), or start fewer"
            )
        rates = [self.rate_at(step) for step in range(self.steps)]
        return Together(workers, sync, self._optimizer, rates, warmup=self.warmup)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Put the model into training for the steps made in the block; on a card they run beside the default stream."""
        implementation = self.module.config._attn_implementation
        if self._card:  # the fused kernels add gradients up in an order that changes from run to run
            self.module.set_attn_implementation("eager")
        self.module.train()
        side = torch.cuda.Stream(self.device) if self._card else None
        began, first = time.monotonic(), self.step
        try:
            with torch.cuda.device(self.device) if self._card else nullcontext(), torch.cuda.stream(side):
                yield
        finally:
            if side is not None:
                torch.cuda.current_stream(self.device).wait_stream(side)
            if self.step > first:
                self.pace = round((self.step - first) / (time.monotonic() - began), 1)
            self.module.eval()
            self.module.set_attn_implementation(implementation)

    def advance(self) -> range:
        """Make one step; the numbers of the steps since weights were last the same on all workers, if they now are."""
        before = self.together.last_agreed() if self.together is not None else self.step
        self._make_step()
        same = self.together is None or self.together.last_agreed() == self.step
        return range(before + 1, self.step + 1) if same else range(0)

    def _make_step(self) -> None:
        batch, key = self.batches[self.step], (self.batches.widths[self.step], self.batches.padded[self.step])
        if self._chance:  # dropout's draws follow from the step, so that a resumed run makes the same
            own = () if self.together is None else (self.together.workers.me,)
            torch.manual_seed(step_seed(self.batches.seed, self.step, *own))
        self._set_rate(self.rate_at(self.step))
        if self.together is not None:
            self._work_with_others(batch, self.together)
            return
        whole = len(batch.input_ids) == self.batches.batch_size
        if self._card and whole and self.reason is None and key in self._seen:
            if key not in self._graphs:
                self._capture(key, batch)
            if self.reason is None:
                graph, static = self._graphs[key]
                for mine, theirs in zip(static, batch, strict=True):
                    if mine is not None and theirs is not None:
                        mine.copy_(theirs)
                graph.replay()
                self.step += 1
                return
        self._seen.add(key)
        self.work(batch)
        self.step += 1

    def shared_at(self, steps: Sequence[int]) -> list[int]:
        """The steps at which the weights wanted after some steps were there: of several workers, the ends of their rounds so far."""
        if self.together is None:
            return list(steps)
        ends = [each.step for each in self.together.sync.rounds]
        return sorted({ends[place] for place in np.searchsorted(ends, steps) if place < len(ends)})

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * step / self.warmup
        return self.rate * (self.steps - step) / max(1, self.steps - self.warmup)

    def _work_with_others(self, batch: Batch, together: Together) -> None:
        """Make a step on this worker's part of a batch."""
        masked = (batch.labels != _IGNORED).sum() if together.data_parallel else None
        added = None if batch.attention_mask is None else together.mine(batch.attention_mask)
        loss = self.work(Batch(together.mine(batch.input_ids), together.mine(batch.labels), added), masked)
        self.step += 1
        together.after_step(loss)

    def state_file(self, folder: Path) -> Path:
        """Path of the state after the present step: of several workers, each has its own."""
        return folder / STATE if self.together is None else self.together.file(folder, self.step)

    def save(self, folder: Path, history: list[dict[str, Any]]) -> None:
        """Weights, AdamW's moments, the step and the history so far, in one file."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named.items():
            state = self._optimizer.state[parameter]
            tensors |= {f"weight.{name}": parameter.detach()}
            tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        note = {"step": str(self.step), "history": json.dumps(history)}
        if self.together is not None:
            note["sync"] = json.dumps(self.together.state())
        replace_bytes(self.state_file(folder), save(whole, metadata=note))
        if self.together is not None:
            self.together.sweep(folder, self.step)

    def load(self, folder: Path) -> list[dict[str, Any]]:
        """Set everything to what `save` left, where it left anything, and return the history. Raises StateError for a damaged file."""
        file = folder / STATE if self.together is None else self.together.to_go_on_from(folder)
        if file is None or not file.exists():
            return []
        try:
            with safe_open(file, "pt") as opened, torch.no_grad():
                note = opened.metadata()
                for name, parameter in self._named.items():
                    parameter.copy_(opened.get_tensor(f"weight.{name}"))
                    state = self._optimizer.state[parameter]
                    for key in ("exp_avg", "exp_avg_sq"):
                        state[key].copy_(opened.get_tensor(f"{key}.{name}"))
                    state["step"].fill_(int(note["step"]))
            self.step = int(note["step"])
            if self.together is not None:
                self.together.restore(parse_json(note["sync"]))
            return parse_json(note["history"], list[_Evaluated])
        except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError, OSError, OverflowError) as error:
            raise damaged(file, error) from None

    def _adamw(self) -> torch.optim.AdamW:
        """Weights of matrices decay, biases and norms don't; its state is there from the start, for `load` and for graphs."""
        parameters = list(self._named.values())
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.dim() > 1], "weight_decay": _DECAY},
                {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=_BETAS,
            eps=_EPSILON,
            fused=True,
            capturable=self._card,
        )
        if self._card:  # a graph reads the rate where it is, so that it can change from step to step
            for group in optimizer.param_groups:
                group["lr"] = torch.zeros((), device=self.device)
        for parameter in parameters:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            if self._card:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def work(self, batch: Batch, masked: Tensor | None = None) -> float | None:
        """Forward, backward, clipping and the optimizer's step; waits for nothing but other workers.

        Args:
            masked: number of masked words of the whole batch, where gradients are added up over workers.

        Returns the loss where there are several workers.
        """
        self._optimizer.zero_grad(set_to_none=True)
        logits = self.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        # The mean over the masked words, of which a batch may have none.
        total = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=_IGNORED, reduction="sum")
        count = (batch.labels != _IGNORED).sum() if masked is None else masked
        loss = total / count.clamp_min(1)
        loss.backward()
        told = None if self.together is None else self.together.add_gradients(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(list(self._named.values()), _CLIP)
        self._optimizer.step()
        return told

    def _capture(self, key: tuple[int, bool], batch: Batch) -> None:
        added = None if batch.attention_mask is None else batch.attention_mask.clone()
        static = Batch(batch.input_ids.clone(), batch.labels.clone(), added)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream(self.device)):
                self.work(static)
            self._pool = (
                graph.pool()
            )  # graphs run one after another and keep nothing but the weights: one memory for all
            self._graphs[key] = graph, static
        except RuntimeError as error:  # out of memory, or an operation of a configuration that can't be captured
            self.reason = first_line(error)
            self._graphs.clear()


def step_seed(seed: int, step: int, *more: int) -> int:
    """A seed for one step's random choices, unrelated to those of its neighbours."""
    return int(np.random.SeedSequence((seed, step, *more)).generate_state(1, np.uint64)[0] >> np.uint64(1))
