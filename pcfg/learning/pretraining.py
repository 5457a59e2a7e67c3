"""Pretraining a masked language model on a grammar's sentences.

Every masked word becomes <mask>; none is kept or swapped for another. Then the loss has an exact lower bound, and the
model can be held to it: see `excess_loss`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt64
from safetensors import SafetensorError
from torch import Tensor

from pcfg.devices import Device, working_device
from pcfg.errors import OptionError, PcfgError
from pcfg.grammars.grammar import GRAMMAR_FILE, Grammar
from pcfg.learning.excess_loss import MaskedLoss, MaskedSet, generative, word_ids
from pcfg.learning.kept_weights import (
    load_kept,
    resumed_weights,
    save_kept,
    steps_to_keep,
    weights_of,
    with_weights,
    write_weights,
)
from pcfg.learning.masked_lm import Batches, Trainer
from pcfg.learning.pretraining_memory import check_memory, pretrain_need
from pcfg.learning.pretraining_recipe import PretrainRecipe, configured
from pcfg.resuming import PACKAGES, versions
from pcfg.sampling.sampler import sample
from pcfg.sampling.samples import Samples
from pcfg.sampling.tokenizer import tokenizer
from surgery.errors import first_line
from surgery.files import new_folder, replace_json
from surgery.jsonfile import load_json
from surgery.progress import Progress, silent
from surgery.quiet import quiet
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.sync.together import SyncRecipe, resumable_together, shared_call
from surgery.sync.workers import Workers

SCHEMA = 1
REPORT = "report.json"
HELD_OUT = 1 << 62  # sentences from here on are held out: training has the first ones of the same seed
_SAVE_SECONDS = 60.0
_HASHED = 1_000_000  # sentences at once, for memory
_NOT_YET = "first evaluation at a tenth"
_SMALL = 200  # sentences of the evaluations on the way


@dataclass(frozen=True, eq=False)
class Pretrained(Result):
    """A masked language model of a grammar's words, in memory.

    Attributes:
        report: what was done; `history` is the excess loss on the way.
        kept: weights on the way by the number of steps made, on the CPU; `at` gives the model that has them.
    """

    grammar: Grammar
    module: Any
    tokenizer: Any
    report: dict[str, Any]
    kept: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)

    def at(self, step: int) -> Any:
        """The model as it was after a step that was kept, on the device of `module`. Raises OptionError for another step."""
        if step not in self.kept:
            there = ", ".join(map(str, self.kept)) or "none"
            raise OptionError(f"step {step} wasn't kept (there are: {there}): train with `keep`")
        return with_weights(self.module, self.kept[step])

    @cached_property
    def loss(self) -> MaskedLoss:
        """What the model loses at masked words of held-out sentences beside the optimum; measured anew after `load`."""
        call = self.report["call"]
        recipe, seed = PretrainRecipe(**call["pretrain"]), call["seed"]
        held_out = _held_out(self.grammar, recipe, seed)
        return MaskedSet.draw(self.grammar, held_out, seed=seed, share=recipe.mask).measure(self.module, self.tokenizer)

    @property
    def summary(self) -> list[str]:
        """The excess loss, and of how large a model after how much training."""
        excess, report = self.report["excess"], self.report
        value, low, high = (f"{excess[name]:.4g}" for name in ("value", "low", "high"))
        return [
            f"Predictions of masked words lose {value} nats [{low}, {high}] more than the exact posterior, whose loss is {report['optimum']:.4g}.",
            f"The model has {report['parameters']:,} weights and was trained for {number_of(report['steps'], 'step')}.",
        ]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Excess loss in nats with its 95% interval: of all masks, by number of masks in the sentence, by position."""
        groups = [("all", self.report["excess"])]
        groups += [(f"masks in the sentence: {entry['masks']}", entry) for entry in self.report["by_masks"]]
        groups += [(f"position {entry['position']}", entry) for entry in self.report["by_position"]]
        columns = ["value", "low", "high", "count"]
        return ["masks", "excess", "low", "high", "count"], [[name, *map(entry.get, columns)] for name, entry in groups]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """A Hugging Face folder with its tokenizer, the grammar and `report.json`; it appears whole or not at all.

        Weights that were kept on the way are folders of the same kind in `checkpoints/`.
        """
        with new_folder(Path(folder), overwrite=overwrite, replaces=GRAMMAR_FILE) as staged, quiet():
            self.module.save_pretrained(staged)
            self.tokenizer.save_pretrained(staged)
            self.grammar.save(staged / GRAMMAR_FILE)
            replace_json(staged / REPORT, self.report)
            save_kept(staged, self.module, self.tokenizer, self.grammar, self.kept)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Pretrained":
        """What `save` wrote, on the CPU. Raises PcfgError, naming folder or file, for anything else."""
        from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

        folder = Path(folder).expanduser()
        try:
            report = load_json(folder / REPORT, dict[str, Any])
            if not {"call", "excess", "optimum", "by_masks", "by_position"} <= report.keys():
                raise PcfgError(
                    f"{folder / REPORT} isn't a report of pretraining: name a folder that pretraining saved"
                )
            grammar = Grammar.load(folder / GRAMMAR_FILE)
            with quiet():
                module = RobertaForMaskedLM.from_pretrained(
                    folder, local_files_only=True, weights_only=True, trust_remote_code=False
                ).eval()
                words = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                kept = load_kept(folder)
        except (OSError, ValueError, SafetensorError) as error:
            raise PcfgError(f"{folder} isn't a model that pretraining saved ({first_line(error)})") from None
        return cls(grammar, module, words, report, kept)


# Long: options and what they mean.
def pretrain(
    grammar: Grammar,
    recipe: PretrainRecipe | None = None,
    *,
    config: dict[str, Any] | None = None,
    keep: int = 0,
    seed: int = 0,
    device: Device | None = None,
    resume: str | Path | None = None,
    workers: Workers | None = None,
    sync: SyncRecipe | None = None,
    progress: Progress = silent,
) -> Pretrained:
    """Train a RoBERTa on sentences drawn from a grammar, and hold it to the exact posterior of the masked words.

    Args:
        config: fields of a `RobertaConfig` in place of the recipe's layers, heads and width; the vocabulary, the special
            tokens and, if it is too small, the position table are made to fit the grammar.
        keep: this many checkpoints on the way, at steps that grow by a constant factor, from a hundredth of the way.
        device: default CUDA if there is one. On a CPU the same call gives the same weights, bit for bit; the
            two devices draw other masks.
        resume: a folder for the state, saved every minute; a later call with the same arguments goes on from there and
            ends with the same weights; one with others is refused. The caller deletes it.
        workers: those of a run under torchrun (`surgery.sync`): each takes its part of every batch, and all end with the same
            weights. `sync`: how they share it; by default data parallel.
        progress: called with step, steps and the loss beside the optimum.

    Raises:
        GrammarError: a grammar that makes no sentence within the limit, or sentences without end.
        OptionError: a configuration that isn't a RoBERTa's, `resume` with the state of another call, or more memory than the
            device has free.
    """
    recipe, grammar, began = recipe or PretrainRecipe(), generative(grammar), time.monotonic()
    place = working_device(device)
    words = tokenizer(grammar)
    settings = configured(recipe, config, words)
    wanted = steps_to_keep(math.ceil(recipe.sentences / recipe.batch_size), keep)
    options: dict[str, Any] = {"config": config, "keep": keep, "seed": seed, "device": place}
    check_memory(settings, recipe, lambda: pretrain_need(grammar, recipe, **options), place)
    call = {"pretrain": asdict(recipe), "config": settings.to_diff_dict(), "seed": seed}
    drawn = sample(grammar, recipe.sentences, seed=seed, max_length=recipe.max_length)
    held_out = _held_out(grammar, recipe, seed)
    small = MaskedSet.draw(grammar, held_out[:_SMALL], seed=seed, share=recipe.mask, device=device, progress=progress)
    module = _untrained(settings, seed).to(place)
    ids = word_ids(grammar, words)
    batches = Batches.of(drawn, ids, words, batch_size=recipe.batch_size, share=recipe.mask, seed=seed, device=place)
    trainer = Trainer(module, batches, rate=recipe.rate, warmup=recipe.warmup, workers=workers, sync=sync)
    state = {**call, **_kept(keep), "grammar": grammar.fingerprint, "device": place.type}  # devices draw other masks
    state |= shared_call(workers, sync)
    with resumable_together(resume, state, workers, packages=PACKAGES) as folder, trainer.training():
        history, kept = _train(trainer, small, words, wanted, folder, progress)
    module = module.eval()
    masked = MaskedSet.draw(grammar, held_out, seed=seed, share=recipe.mask, device=device, progress=progress)
    loss = masked.measure(module, words)
    report = {
        **_report_of_training(trainer, call, drawn, history),
        "held_out_seen_in_training": _seen_share(held_out, drawn),
        **loss.to_json(seed),
        "seconds": round(time.monotonic() - began, 1),
    }
    made = Pretrained(grammar, module, words, report, kept)
    made.__dict__["loss"] = loss
    return made


def _kept(keep: int) -> dict[str, int]:
    """What `keep` adds to what identifies a run: nothing where nothing is kept, as in states of earlier versions."""
    return {"keep": keep} if keep else {}


def _held_out(grammar: Grammar, recipe: PretrainRecipe, seed: int) -> list[list[str]]:
    """The sentences to judge the model on, none of those that are drawn for training."""
    return list(sample(grammar, recipe.evaluation, seed=seed, max_length=recipe.max_length, first=HELD_OUT))


def _untrained(settings: Any, seed: int) -> Any:
    """A RoBERTa with random weights, which the seed decides."""
    from transformers import RobertaForMaskedLM, set_seed

    set_seed(seed)
    with quiet():
        return RobertaForMaskedLM(settings)


def _report_of_training(
    trainer: Trainer, call: dict[str, Any], drawn: Samples, history: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "versions": versions(),
        "call": call,
        "grammar": drawn.grammar.fingerprint,
        "parameters": sum(p.numel() for p in trainer.module.parameters()),
        "words": len(drawn.words),
        "steps": trainer.steps,
        "steps_per_second": trainer.pace,
        "not_captured": trainer.reason,
        "history": history,
        **({} if trainer.together is None else {"sync": trainer.together.content()}),
    }


def _train(
    trainer: Trainer, small: MaskedSet, words: Any, wanted: Sequence[int], folder: Path | None, progress: Progress
) -> tuple[list[dict[str, Any]], dict[int, dict[str, Tensor]]]:
    """Make the steps that are left; return the excess loss at each tenth of the way, and the weights at the steps wanted.

    The state is saved every minute, weights that are wanted as soon as they are there: of several workers, at the end of the
    round in which a step falls, when all have the same.
    """
    optimum, steps, together = float(small.entropies.mean()), trainer.steps, trainer.together
    tenths = {math.ceil(steps * tenth / 10) for tenth in range(1, 11)}
    history = [] if folder is None else trainer.load(folder)
    kept = (
        {} if folder is None else resumed_weights(folder, [s for s in trainer.shared_at(wanted) if s <= trainer.step])
    )
    saved = time.monotonic()
    while trainer.step < steps:
        settled = set(trainer.advance())
        if settled.intersection(wanted) and trainer.step < steps:
            kept[trainer.step] = weights_of(trainer.module)
            if folder is not None and (together is None or together.workers.first):
                write_weights(folder, trainer.step, kept[trainer.step])
        if settled & tenths:
            trainer.module.eval()
            excess = float(small.measure(trainer.module, words).excess.mean())
            trainer.module.train()
            if not math.isfinite(excess):
                raise OptionError(f"the loss became {excess} by step {trainer.step:,} of {steps:,}: lower `rate`")
            history.append({"step": trainer.step, "excess": excess})
        how = f"{history[-1]['excess']:.3f} nats above the optimum of {optimum:.3f}" if history else _NOT_YET
        due = time.monotonic() - saved > _SAVE_SECONDS if together is None else together.due_to_save()
        if folder is not None and due and trainer.step < steps:
            trainer.save(folder, history)
            saved = time.monotonic()
        progress(trainer.step, steps, f"pretraining: {how}")
    if together is not None:
        together.finish()
    return history, kept


def _seen_share(held_out: list[list[str]], drawn: Samples) -> float:
    """The share of held-out sentences that are among those trained on; hashes rule most out without word lists."""
    numbers = drawn.grammar.word_numbers
    asked = [np.array([numbers[word] for word in sentence], np.int32) for sentence in held_out]
    bounds = np.append(0, np.cumsum([len(sentence) for sentence in asked]))
    wanted, seen = _hashes(np.concatenate(asked), bounds), set()
    for first in range(0, len(drawn), _HASHED):
        offsets = drawn.offsets[first : first + _HASHED + 1]
        hashes = _hashes(drawn.words[offsets[0] : offsets[-1]], offsets - offsets[0])
        seen |= {tuple(drawn[first + int(number)]) for number in np.flatnonzero(np.isin(hashes, wanted))}
    return sum(tuple(sentence) in seen for sentence in held_out) / len(held_out)


def _hashes(words: Int32[np.ndarray, " W"], offsets: Int64[np.ndarray, " bounds"]) -> UInt64[np.ndarray, " count"]:
    """A number for each sentence, the same for the same words in the same order."""
    places = np.arange(len(words), dtype=np.uint64) - np.repeat(offsets[:-1].astype(np.uint64), np.diff(offsets))
    mixed = (words.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ places * np.uint64(
        0xC2B2AE3D27D4EB4F
    )
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.add.reduceat(mixed ^ (mixed >> np.uint64(32)), offsets[:-1])
