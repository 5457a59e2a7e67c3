"""compile_transformer(): from a grammar to a transformer that computes its Inside-Outside algorithm."""

from pathlib import Path

import numpy as np
import torch
from transformers import initialization

from pcfg.compiled.model import InsideOutsideConfig, InsideOutsideTransformer
from pcfg.compiled.sizes import Sizes
from pcfg.devices import Dtype, dtype_name
from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.learning.excess_loss import generative
from pcfg.sampling.sampler import sample
from pcfg.sampling.tokenizer import UNKNOWN, tokenizer
from surgery.files import new_folder
from surgery.quiet import quiet

_SAMPLED = 100  # sentences by which the range of scores is chosen


def compile_transformer(
    grammar: Grammar, *, max_length: int = 20, dtype: Dtype = "float64"
) -> InsideOutsideTransformer:
    """A transformer whose weights are the grammar's probabilities and whose layers compute Inside-Outside, exactly.

    A smoothed lexicon, whose scores aren't probabilities of words, is left out, as in pretraining: the words that the
    grammar has rules for are the model's.

    Args:
        max_length: L, the most words of a sentence, 2 or more: the model has 2 (L - 1) layers.
        dtype: float64 (marginals to about 1e-12) or float32 (to about 1e-5).

    Raises:
        GrammarError: a grammar without nonterminals.
        OptionError: a length below 2, or a model that would not fit into memory.
    """
    if max_length < 2:
        raise OptionError(f"max_length is {max_length}: give 2 words or more")
    grammar = generative(grammar)
    if not grammar.nonterminals:
        raise GrammarError(
            "the grammar has no binary rules: its sentences are single words, and nothing is to be computed"
        )
    wanted = getattr(torch, dtype_name(dtype))
    numbers = tokenizer(grammar).get_vocab()
    Sizes.of(grammar, max_length).check_memory(wanted.itemsize)
    config = InsideOutsideConfig(
        grammar.nonterminals,
        grammar.preterminals,
        max_words=max_length,
        vocab_size=len(numbers),
        mask_token_id=numbers["<mask>"],
        unk_token_id=-1 if UNKNOWN in grammar.words else numbers[UNKNOWN],
        pad_token_id=numbers["<pad>"],
        bos_token_id=numbers["<s>"],
        eos_token_id=numbers["</s>"],
        dtype=wanted,
    )
    with initialization.no_init_weights():  # all are set below
        model = InsideOutsideTransformer(config).to(wanted).eval().requires_grad_(False)
    ids = [numbers[word] for word in grammar.words]
    table, scales = grammar.lexical_table.T, np.zeros(len(numbers))
    tallest = table.max(1)
    scales[ids] = -np.log(np.where(tallest > 0, tallest, 1))
    model.rules.zero_()
    model.rules[grammar.parents.astype(int), grammar.left.astype(int), grammar.right.astype(int)] = torch.from_numpy(
        grammar.rule_probs
    ).to(wanted)
    model.roots.copy_(torch.from_numpy(grammar.start))
    words = np.zeros((len(numbers), len(grammar.preterminals)))
    words[ids], words[numbers["<mask>"]] = table, 1.0
    scales[[*ids, numbers["<mask>"]]] += _shift(grammar, dict(zip(grammar.words, scales[ids], strict=True)), max_length)
    model.words.weight.copy_(torch.from_numpy(words * np.exp(scales)[:, None]))
    model.scales.copy_(torch.from_numpy(scales))
    return model


def _shift(grammar: Grammar, scales: dict[str, float], max_length: int) -> float:
    """What to add to every word's scale so that whole sentences have scores near 1: by sentences that the grammar draws."""
    drawn = [tuple(s) for s in sample(grammar, _SAMPLED, seed=0, max_length=max_length)]
    kept = [sentence for sentence in drawn if len(sentence) > 1] or drawn
    log_z = inside_outside(grammar, kept).log_z.numpy() + [sum(scales[w] for w in s) for s in kept]
    return float(-log_z.sum() / sum(map(len, kept)))


def save(model: InsideOutsideTransformer, grammar: Grammar, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the model, its tokenizer, `slots.json`, `circuit.json` and the grammar into a folder, whole or not at all."""
    with new_folder(Path(folder), overwrite=overwrite, replaces="slots.json") as staged, quiet():
        model.save_pretrained(staged)
        tokenizer(grammar).save_pretrained(staged)
        generative(grammar).save(staged / "grammar.pcfg.json")
    return Path(folder)
