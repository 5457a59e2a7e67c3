"""A model of masked words that predicts the exact posterior by a grammar."""

from types import SimpleNamespace

import numpy as np
import torch

from pcfg.inference.masked_words import masked_posteriors
from pcfg.learning.excess_loss import word_ids
from pcfg.sampling.tokenizer import tokenizer


class ExactModule(torch.nn.Module):
    """Logits are log probabilities; a share of a uniform distribution may be mixed in, for words that a grammar rules out."""

    device = torch.device("cpu")

    def __init__(self, grammar, words, uniform=0.0):
        super().__init__()
        self.grammar, self.words, self.uniform = grammar, words, uniform
        self.config = SimpleNamespace()

    def forward(self, input_ids, attention_mask):
        ids = word_ids(self.grammar, self.words)
        names = {int(token): word for token, word in zip(ids, self.grammar.words, strict=True)}
        logits = torch.full((*input_ids.shape, len(self.words)), -torch.inf, dtype=torch.float64)
        for row, tokens in enumerate(input_ids.tolist()):
            inner = [t for t in tokens if t == self.words.mask_token_id or t in names]
            masks = [place for place, t in enumerate(inner) if t == self.words.mask_token_id]
            sentence = [names.get(t, self.grammar.words[0]) for t in inner]
            posterior = masked_posteriors(self.grammar, sentence, masks).words
            posterior = (1 - self.uniform) * posterior + self.uniform / len(names)
            with np.errstate(divide="ignore"):
                for place, probabilities in zip(masks, posterior, strict=True):
                    logits[row, place + 1, torch.from_numpy(ids)] = torch.from_numpy(np.log(probabilities))
        return SimpleNamespace(logits=logits)


def exact_model(grammar, *, uniform=0.0, name="exact", words=None):
    """The optimum as a model. `words`: a tokenizer in place of the grammar's own."""
    words = words or tokenizer(grammar)
    return SimpleNamespace(module=ExactModule(grammar, words, uniform), tokenizer=words, name=name)
