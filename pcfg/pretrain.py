"""Pretraining a masked language model on a grammar's sentences, with transformers' own trainer and collator.

Every masked word becomes <mask>; none is kept or swapped for another. Then the loss has an exact lower bound, and the
model can be held to it: see `excess`.
"""

import json
import math
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset

from pcfg.corpus import tokenizer
from pcfg.errors import MissingPackageError, OptionError, PcfgError
from pcfg.excess import MaskedLoss, MaskedSet, generative, word_ids
from pcfg.files import new_folder, replace_json
from pcfg.grammar import Grammar
from pcfg.sampling import Samples, sample
from pcfg.shards import Progress, claim, fingerprint, silent, versions

SCHEMA = 1
GRAMMAR_FILE = "grammar.pcfg.json"
HELD_OUT = 1 << 62  # sentences from here on are held out: training has the first ones of the same seed
_SAVE_SECONDS = 60.0
_GROUP = 50  # batches that are sorted by length together
_SMALL = 200  # sentences of the evaluations on the way


@dataclass(frozen=True)
class PretrainRecipe:
    """What to train, and how. Raises OptionError for a value out of its range.

    Attributes:
        layers, heads, width: of the RoBERTa encoder; feed-forward layers are four times as wide.
        sentences: drawn for training, each seen once; `max_length` is the most words of one.
        mask: share of the words that are masked.
        rate: peak of the learning rate (AdamW); it rises over the first `warmup` of the steps and falls to 0.
        evaluation: held-out sentences for the final excess loss.
    """

    layers: int = 6
    heads: int = 6
    width: int = 192
    sentences: int = 1_000_000
    max_length: int = 40
    batch_size: int = 64
    rate: float = 1e-3
    warmup: float = 0.05
    mask: float = 0.15
    evaluation: int = 1000

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "sentences", "max_length", "batch_size", "rate", "evaluation"):
            if not getattr(self, name) > 0:
                raise OptionError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if self.width % self.heads:
            raise OptionError(
                f"--width {self.width} isn't a multiple of --heads {self.heads}: each head has an equal part"
            )
        for name in ("mask", "warmup"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(f"--{name} must lie between 0 and 1, not {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A masked language model of a grammar's words, in memory.

    Attributes:
        loss: what it loses at masked words of held-out sentences, beside the optimum.
        report: what was done; `history` is the excess loss on the way.
    """

    grammar: Grammar
    module: Any
    tokenizer: Any
    loss: MaskedLoss
    report: dict[str, Any]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """A Hugging Face folder with its tokenizer, the grammar and `report.json`; it appears whole or not at all."""
        folder = Path(folder).absolute()
        there = folder.exists() and any(folder.iterdir())
        if there and not (overwrite and (folder / GRAMMAR_FILE).exists()):
            raise PcfgError(f"{folder} exists already: name another output")
        whole = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(whole, ignore_errors=True)
        with new_folder(whole) as staged, _quiet():
            self.module.save_pretrained(staged)
            self.tokenizer.save_pretrained(staged)
            self.grammar.save(staged / GRAMMAR_FILE)
            replace_json(staged / "report.json", self.report)
        if there:
            old = folder.with_name(f".{folder.name}.old")
            folder.rename(old)
            whole.rename(folder)
            shutil.rmtree(old)
        else:
            whole.rename(folder)


def pretrain(
    grammar: Grammar,
    recipe: PretrainRecipe | None = None,
    *,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Pretrained:
    """Train a RoBERTa on sentences drawn from a grammar, and hold it to the exact posterior of the masked words.

    Args:
        config: fields of a `RobertaConfig` in place of the recipe's layers, heads and width; the vocabulary, the special
            tokens and, if it is too small, the position table are made to fit the grammar.
        resume: a folder for the trainer's state, saved every minute; a later call with the same arguments goes on from
            there and ends with the same weights; one with others is refused. The caller deletes it.
        progress: called with step, steps and the loss beside the optimum.

    Raises:
        GrammarError: a grammar that makes no sentence within the limit, or sentences without end.
        OptionError: a configuration that isn't a RoBERTa's, or `resume` with the state of another call.
    """
    from transformers import RobertaForMaskedLM, set_seed

    recipe, grammar, began = recipe or PretrainRecipe(), generative(grammar), time.monotonic()
    words, limit = tokenizer(grammar), recipe.max_length
    settings = _config(recipe, config, words)
    call = {"pretrain": asdict(recipe), "config": settings.to_diff_dict(), "seed": seed}
    drawn = sample(grammar, recipe.sentences, seed=seed, max_length=limit)
    held_out = [list(s) for s in sample(grammar, recipe.evaluation, seed=seed, max_length=limit, first=HELD_OUT)]
    small = MaskedSet.draw(grammar, held_out[:_SMALL], seed=seed, share=recipe.mask, device=device, progress=progress)
    set_seed(seed)
    # The trainer makes its folder even where nothing is to be kept.
    with _quiet(), nullcontext(str(resume)) if resume else TemporaryDirectory() as place:
        module = RobertaForMaskedLM(settings)
        trainer = _trainer(module, words, drawn, recipe, seed, device, place)
        if resume:  # once nothing else can be refused, so that a mistake leaves no folder
            claim(Path(resume), {**call, "grammar": fingerprint(grammar)})
        watcher = _watcher(trainer, small, words, progress, keep=bool(resume))
        last = _last_whole(Path(resume)) if resume else None
        trainer.add_callback(watcher)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    module = module.eval()
    masked = MaskedSet.draw(grammar, held_out, seed=seed, share=recipe.mask, device=device, progress=progress)
    loss = masked.measure(module, words)
    asked = {tuple(sentence) for sentence in held_out}
    seen = {found for sentence in drawn if (found := tuple(sentence)) in asked}
    report = {
        "schema": SCHEMA,
        "versions": versions(),
        "call": call,
        "grammar": fingerprint(grammar),
        "parameters": sum(p.numel() for p in module.parameters()),
        "words": len(drawn.words),
        "steps": trainer.state.max_steps,
        "history": [entry for entry in trainer.state.log_history if "excess" in entry],
        "held_out_seen_in_training": sum(tuple(sentence) in seen for sentence in held_out) / len(held_out),
        **loss.to_json(seed),
        "seconds": round(time.monotonic() - began, 1),
    }
    return Pretrained(grammar, module, words, loss, report)


def read_config(path: str | Path) -> dict[str, Any]:
    """A `config.json`, or that of a model folder. Raises OptionError, naming the file, for anything else."""
    path = Path(path).expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OptionError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise OptionError(f"{path} isn't JSON ({error}): name a RoBERTa's config.json") from None
    if not isinstance(found, dict):
        raise OptionError(f"{path} isn't a JSON object: name a RoBERTa's config.json")
    return found


def _config(recipe: PretrainRecipe, given: dict[str, Any] | None, words: Any) -> Any:
    from transformers import RobertaConfig

    fields: dict[str, Any] = {
        "hidden_size": recipe.width,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "intermediate_size": 4 * recipe.width,
        "hidden_dropout_prob": 0.0,  # no sentence is seen twice, so there is nothing to regularise
        "attention_probs_dropout_prob": 0.0,
        "type_vocab_size": 1,
    }
    if given is not None:
        if given.get("model_type", "roberta") != "roberta":
            raise OptionError(f"the configuration is for {given['model_type']}: give one for a RoBERTa")
        fields = {key: value for key, value in given.items() if key not in ("architectures", "transformers_version")}
    needed = recipe.max_length + 3 + words.pad_token_id  # RoBERTa counts positions from the padding's number on
    fields["max_position_embeddings"] = max(needed, fields.get("max_position_embeddings", needed))
    fields |= {"vocab_size": len(words), "pad_token_id": words.pad_token_id}
    fields |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    try:
        return RobertaConfig(**fields)
    except Exception as error:  # the library checks fields in ways of its own
        raise OptionError(f"the configuration isn't a RoBERTa's ({str(error).splitlines()[0]})") from error


class _Sentences(Dataset[dict[str, Any]]):
    """Drawn sentences as token numbers, in the order in which they are trained on: batches of much the same length."""

    def __init__(self, drawn: Samples, ids: Int64[np.ndarray, " V"], words: Any, batch_size: int, seed: int) -> None:
        self.drawn, self.ids = drawn, ids.tolist()
        self.begin, self.end = words.bos_token_id, words.eos_token_id
        random = np.random.default_rng(seed)
        order, whole = random.permutation(len(drawn)), batch_size * (len(drawn) // batch_size)
        groups = np.array_split(order[:whole], max(1, whole // (_GROUP * batch_size)))
        nearby = np.concatenate([group[np.argsort(drawn.lengths[group], kind="stable")] for group in groups])
        batches = random.permutation(nearby.reshape(-1, batch_size))
        self.order = np.append(batches.reshape(-1), order[whole:])

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, place: int) -> dict[str, Any]:
        number = int(self.order[place])
        first, last = self.drawn.offsets[number : number + 2]
        inner = [self.ids[word] for word in self.drawn.words[first:last].tolist()]
        special = [1, *([0] * len(inner)), 1]
        return {"place": place, "input_ids": [self.begin, *inner, self.end], "special_tokens_mask": special}


class _Masker:
    """The library's collator, its chance tied to the place in training, so that a resumed run masks the same words."""

    def __init__(self, collator: Any, seed: int) -> None:
        self.collator, self.seed = collator, seed

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        places = [example.pop("place") for example in examples]
        self.collator.generator = torch.Generator().manual_seed(hash((self.seed, places[0])) % 2**63)
        return self.collator(examples)


def _trainer(
    module: Any, words: Any, drawn: Samples, recipe: PretrainRecipe, seed: int, device: str | None, folder: str
) -> Any:
    from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments

    sentences = _Sentences(drawn, word_ids(drawn.grammar, words), words, recipe.batch_size, seed)
    steps = math.ceil(len(drawn) / recipe.batch_size)
    try:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.rate,
            warmup_steps=math.ceil(recipe.warmup * steps),
            lr_scheduler_type="linear",
            weight_decay=0.01,
            adam_beta2=0.98,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            save_strategy="no",
            save_total_limit=2,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device == "cpu",
            dataloader_pin_memory=False,
            seed=seed,
        )
    except ImportError:
        raise MissingPackageError("accelerate", "probes", "pretraining") from None
    collator = DataCollatorForLanguageModeling(
        words, mlm_probability=recipe.mask, mask_replace_prob=1.0, random_replace_prob=0.0
    )
    trainer = Trainer(model=module, args=arguments, train_dataset=sentences, data_collator=_Masker(collator, seed))
    trainer.remove_callback(PrinterCallback)
    return trainer


def _watcher(trainer: Any, small: MaskedSet, words: Any, progress: Progress, *, keep: bool) -> Any:
    from transformers import TrainerCallback

    optimum = float(small.entropies.mean())

    class Watcher(TrainerCallback):
        """Tells where training is, measures the excess on the way, and has the state saved now and then."""

        saved = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            step, steps = state.global_step, state.max_steps
            if step in {math.ceil(steps * tenth / 10) for tenth in range(1, 11)}:
                module = kwargs["model"]
                module.eval()
                excess = float(small.measure(module, words).excess.mean())
                module.train()
                state.log_history.append({"step": step, "excess": excess})
            found = [entry["excess"] for entry in state.log_history if "excess" in entry]
            how = f"{found[-1]:.3f} nats above the optimum of {optimum:.3f}" if found else "first evaluation at a tenth"
            progress(step, steps, f"pretraining: {how}")
            if keep and time.monotonic() - self.saved > _SAVE_SECONDS and step < steps:
                self.saved, control.should_save = time.monotonic(), True
            return control

    return Watcher()


def _last_whole(folder: Path) -> Path | None:
    """The newest state that was written to its end: the trainer writes this file last."""
    found = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own messages and bars; what matters is checked and raised here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
