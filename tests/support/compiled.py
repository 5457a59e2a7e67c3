"""Random grammars, sentences of their words, and compiled transformers held to exact charts."""

import numpy as np
import torch

from pcfg import Grammar
from pcfg.sampling.tokenizer import tokenizer


def grammar_of(seed):
    random = np.random.default_rng(seed)
    sizes = (int(random.integers(1, 5)), int(random.integers(1, 5)), int(random.integers(2, 7)))
    return Grammar.random(*sizes, seed=seed, temperature=float(random.uniform(0, 3)))


def sentences(grammar, lengths, seed=0):
    random = np.random.default_rng(seed)
    return [tuple(random.choice(grammar.words, n)) for n in lengths]


def encoded(grammar, found):
    batch = tokenizer(grammar)([" ".join(sentence) for sentence in found], return_tensors="pt", padding=True)
    return batch["input_ids"], batch["attention_mask"]


def asked(model, grammar, found, **options):
    return model(*encoded(grammar, found), **options)


def check(out, chart, grammar, tolerance):
    there = torch.isfinite(chart.log_z)
    assert torch.equal(torch.isfinite(out.log_z), there)
    assert torch.allclose(out.log_z[there].double(), chart.log_z[there], rtol=0, atol=tolerance * 20)
    for name in ("span_marginals", "label_marginals", "tag_posteriors"):
        ours, theirs = getattr(out, name).double(), getattr(chart, name)
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < tolerance, name
    numbers = tokenizer(grammar).get_vocab()
    columns = [numbers[word] for word in grammar.words]
    for row, posterior in enumerate(chart.word_posteriors()):
        found = out.logits[row, 1 : 1 + len(posterior)].double().exp()
        if there[row]:
            assert np.abs(found[:, columns].numpy() - posterior).max() < tolerance
            assert torch.allclose(found.sum(-1), torch.ones(()).double(), atol=tolerance)


def plain_attention(state, head, places):
    """One head of gated linear attention, with loops over tokens: what it adds, and its scores."""
    out, scores = torch.zeros_like(state), state.new_zeros(*state.shape[:2], state.shape[1])
    for row in range(state.shape[0]):
        for reader in range(state.shape[1]):
            for read in range(state.shape[1]):
                there = places.before[row, reader, read] if head.reads == "before" else places.before[row, read, reader]
                if not there:
                    continue
                query = (head.query @ state[row, reader] + head.query_bias) * head.gate("query", places, row, reader)
                key = (head.key @ state[row, read] + head.key_bias) * head.gate("key", places, row, read)
                value = (head.value @ state[row, read] + head.value_bias) * head.gate("value", places, row, read)
                scores[row, reader, read] = query @ key
                out[row, reader] += head.output @ (
                    head.gate("output", places, row, reader) * (scores[row, reader, read] * value)
                )
    return out, scores
