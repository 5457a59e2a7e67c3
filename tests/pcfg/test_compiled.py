"""The compiled transformer against exact charts, and against plain linear attention with whole matrices."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from pcfg import Grammar, inside_outside
from pcfg.compiled import compile_transformer, save
from pcfg.compiled.circuit import heads
from pcfg.compiled.matrices import dense_head
from pcfg.compiled.places import Places
from pcfg.sampling.tokenizer import tokenizer
from pcfg.treebanks.trees import Tree
from tests.support.compiled import asked, check, encoded, grammar_of, plain_attention, sentences


@pytest.mark.parametrize("seed", range(20))
def test_all_posteriors_are_the_chart_s(seed):
    """Of sentences of every length up to 20, drawn words, under random grammars with few and many likely rules."""
    grammar = grammar_of(seed)
    model, found = compile_transformer(grammar, max_length=20), sentences(grammar, range(1, 21), seed)
    check(asked(model, grammar, found), inside_outside(grammar, found), grammar, 1e-10)


def test_single_precision():
    grammar = Grammar.random(4, 5, 30, seed=3)
    model = compile_transformer(grammar, max_length=20, dtype="float32")
    found = sentences(grammar, range(1, 21))
    out = asked(model, grammar, found)
    assert out.logits.dtype == torch.float32
    check(out, inside_outside(grammar, found), grammar, 1e-4)


def test_every_slot_holds_its_score():
    """Inside and outside scores of a hand-made grammar, by summing over all trees of a sentence of three words."""
    grammar = Grammar(
        {"S": 1.0},
        {("S", "S", "S"): 0.3, ("S", "A", "S"): 0.3, ("S", "A", "A"): 0.4},
        {("A", "a"): 0.25, ("A", "b"): 0.75},
    )
    model = compile_transformer(grammar, max_length=4)
    numbers = tokenizer(grammar).get_vocab()
    ids = torch.tensor([[numbers[w] for w in ("a", "b", "b")]])
    state = model(ids, output_hidden_states=True).hidden_states[-1][0]
    a, b = 0.25, 0.75
    s = {1: model.scales[numbers["a"]].exp().item(), 2: model.scales[numbers["b"]].exp().item()}
    scale = [s[1], s[2], s[2]]
    inside = state[:, model.slots["inside", "S"]]
    assert inside[2, 1].item() == pytest.approx(0.4 * b * b * scale[1] * scale[2])
    assert inside[1, 0].item() == pytest.approx(0.4 * a * b * scale[0] * scale[1])
    assert inside[2, 0].item() == pytest.approx(0.3 * a * 0.4 * b * b * np.prod(scale))
    assert inside[0].abs().sum() == 0 and inside[2, 2] == 0 and inside[1, 1] == 0
    outside = state[:, model.slots["outside", "S"]]
    assert outside[2, 0].item() == 1
    assert outside[2, 1].item() == pytest.approx(0.3 * a * scale[0])
    tags = state[:, model.slots["outside", "A"]][:, 0]
    assert tags[0].item() == pytest.approx(0.3 * 0.4 * b * b * scale[1] * scale[2])
    assert tags[2].item() == pytest.approx(0.3 * a * 0.4 * b * scale[0] * scale[1])


@pytest.mark.parametrize("seed", range(5))
def test_each_step_completes_one_more_width(seed):
    """After inside step t, spans of up to t + 1 words; after outside step t, of n - t or more; and nothing changes then."""
    grammar, n = grammar_of(seed), 7
    model = compile_transformer(grammar, max_length=n)
    states = asked(model, grammar, sentences(grammar, [n], seed), output_hidden_states=True).hidden_states
    states = [state[0, 1 : n + 1] for state in states]
    spans = {score: model.slots.spans(score) for score in ("inside", "outside")}
    widths = torch.arange(n)[:, None] - torch.arange(n)[None] + 1  # of the span from start i to end j, [j, i]
    for score, steps in (("inside", range(1, n)), ("outside", range(n, 2 * n - 1))):
        final = states[-1][:, spans[score]].unflatten(1, (-1, n))
        for t, number in enumerate(steps, 1):
            now = states[number][:, spans[score]].unflatten(1, (-1, n))
            done = (widths <= t + 1) if score == "inside" else (widths >= n - t)
            kept = (done & (widths > 0))[:, None].expand_as(final)
            assert torch.allclose(now[kept], final[kept], rtol=1e-12, atol=0)
            if t < n - 1 and score == "inside":
                assert not torch.allclose(now, final, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["inside", "outside right", "outside left"])
def test_heads_are_matrices(kind):
    """A layer is the sum of its heads; a head is linear attention with four matrices and fixed zeros and ones for positions."""
    grammar = Grammar.random(2, 3, 5, seed=8)
    model = compile_transformer(grammar, max_length=5)
    slots = model.slots
    ids, _ = encoded(grammar, sentences(grammar, [5, 3]))
    is_word = ids >= 5
    places = Places.of(is_word, slots.length, torch.float64)
    state = torch.randn(2, ids.shape[1], slots.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state *= is_word[..., None]
    layer = model.layers[0 if kind == "inside" else -1]
    every = [number for number, (own, _) in enumerate(heads(slots)) if own == kind]
    for number in every:
        mask = torch.zeros(len(slots.symbols) * (1 if kind == "inside" else 2), dtype=torch.float64)
        mask[number if kind == "inside" else number - len(slots.symbols)] = 1
        if kind == "inside":
            found = layer(state, model.rules, places, mask)
        else:
            found = layer(state, model.rules, torch.zeros_like(model.roots), places, mask)
        score = kind.split()[0]
        written = slice(
            slots.tags(score).start if score == "outside" else slots.spans(score).start, slots.spans(score).stop
        )
        expected, _ = plain_attention(state, dense_head(slots, model.rules, number), places)
        assert torch.allclose(found[..., written], expected[..., written], atol=1e-12)


def test_a_head_taken_out_is_its_rules_taken_out():
    """Inside scores without the head of C are those of the grammar without the rules that have C on the right."""
    grammar = Grammar.random(3, 3, 6, seed=4)
    model, found = compile_transformer(grammar, max_length=6), sentences(grammar, [6, 5])
    for number, symbol in enumerate(model.slots.symbols):
        mask = torch.ones(10, 2 * len(model.slots.symbols), dtype=torch.float64)
        mask[:5, number] = 0
        mask[5:, [number, number + len(model.slots.symbols)]] = 0
        without = compile_transformer(grammar, max_length=6)
        without.rules[:, :, number] = 0
        ours = asked(model, grammar, found, head_mask=mask, output_hidden_states=True).hidden_states[-1]
        theirs = asked(without, grammar, found, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(ours, theirs), symbol
        assert not torch.equal(ours, asked(model, grammar, found, output_hidden_states=True).hidden_states[-1])


def test_masked_words_are_summed_over():
    grammar = Grammar.random(3, 3, 4, seed=5)
    model = compile_transformer(grammar, max_length=5)
    ids, attention = encoded(grammar, sentences(grammar, [5]))
    masked = ids.clone()
    masked[0, 3] = model.config.mask_token_id
    filled = ids.repeat(len(grammar.words), 1)
    filled[:, 3] = torch.tensor([tokenizer(grammar).get_vocab()[word] for word in grammar.words])
    each = model(filled, attention.expand_as(filled)).log_z
    out = model(masked, attention)
    assert out.log_z.item() == pytest.approx(each.logsumexp(0).item())
    assert torch.allclose(out.logits[0, 3, filled[:, 3]], each - each.logsumexp(0))


def test_impossible_sentences_have_no_trees():
    grammar = Grammar({"S": 1.0}, {("S", "A", "B"): 1.0}, {("A", "a"): 1.0, ("B", "b"): 1.0})
    out = asked(compile_transformer(grammar, max_length=3), grammar, [("b", "a"), ("a", "b")])
    assert out.log_z.tolist() == [-np.inf, 0]
    assert out.span_marginals[0].sum() == 0 and out.span_marginals[1].sum() == 1
    assert torch.isfinite(out.logits).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_lengths(side):
    """Sentences of one word and more in a batch, padded left or right, with a mask and without, or a word left out by it."""
    grammar = Grammar.random(3, 4, 10, seed=1)
    model, found = compile_transformer(grammar, max_length=8), sentences(grammar, [1, 3, 8, 5])
    words = tokenizer(grammar)
    words.padding_side = side
    batch = words([" ".join(sentence) for sentence in found], return_tensors="pt", padding=True)
    chart = inside_outside(grammar, found)
    for options in ({}, {"attention_mask": batch["attention_mask"]}):
        out = model(batch["input_ids"], **options)
        assert torch.allclose(out.log_z, chart.log_z) and torch.allclose(out.label_marginals, chart.label_marginals)
        for state in model(batch["input_ids"], output_hidden_states=True, **options).hidden_states:
            assert not state[batch["input_ids"] < 5].any(), "tokens that are no words hold something"
    left_out = model(torch.tensor([[5, 6, 7]]), torch.tensor([[1, 0, 1]]))
    assert torch.equal(left_out.log_z, model(torch.tensor([[5, 7]])).log_z)


def test_nothing_but_masks():
    """The chance that a tree has so many words, and each mask's posterior sums to one."""
    grammar = Grammar({"S": 1.0}, {("S", "S", "S"): 0.25, ("S", "A", "A"): 0.75}, {("A", "a"): 0.4, ("A", "b"): 0.6})
    model = compile_transformer(grammar, max_length=4)
    out = model(torch.full((1, 4), model.config.mask_token_id))
    assert out.log_z.exp().item() == pytest.approx(0.25 * 0.75**2)
    assert torch.allclose(out.logits[0, :, -2:].exp(), torch.tensor([0.4, 0.6], dtype=torch.float64).expand(4, 2))


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ("S -> NP VP [1]\nNP -> N [.5] | D N [.5]\nN -> PN [.5] | 'dog' [.5]\nPN -> 'Rex' [1]\nVP -> V [1]\nV -> 'runs' [1]\nD -> 'the' [1]", "the Rex runs"),
        ("S -> A B [.5] | 'a' [.5]\nA -> 'a' [1]\nB -> 'b' [1]", "a b"),
        ("S -> A A [1]\nA -> '<unk>' [.3] | 'a' [.7]", "a <unk>"),
    ],
)  # fmt: skip
def test_odd_grammars(rules, found):
    """Chains of unary rules made binary, a root that is a word's tag too, and <unk> among the words."""
    grammar = Grammar.from_text(rules)
    pairs = [tuple(found.split()), tuple(found.split()[:1])]
    check(asked(compile_transformer(grammar, max_length=4), grammar, pairs), inside_outside(grammar, pairs), grammar, 1e-12)  # fmt: skip


def test_a_smoothed_lexicon_is_left_out(tmp_path):
    """Model and saved grammar are those of the rules for words alone."""
    trees = [
        "(S (NP (D the) (N dog)) (VP (V saw) (NP (D a) (N man))))",
        "(S (NP (D the) (N man)) (VP (V ran) (NP (N men))))",
    ]
    smoothed = Grammar.from_trees(map(Tree.parse, trees), min_count=1, smooth_lexicon=True)
    assert smoothed.lexicon is not None
    plain, model = smoothed.replaced(lexicon=None), compile_transformer(smoothed, max_length=6)
    found = [("the", "dog", "saw", "a", "man")]
    check(asked(model, plain, found), inside_outside(plain, found), plain, 1e-10)
    assert Grammar.load(save(model, smoothed, tmp_path / "built") / "grammar.pcfg.json").lexicon is None


def test_scores_out_of_range_are_warned_of():
    """Too small for float32, and said rightly in float64; sentences without trees, and heads taken out, are no reason to warn."""
    rules = {("S", "S", "S"): 1e-6, ("S", "A", "A"): 1 - 1e-6}
    grammar = Grammar({"S": 1.0}, rules, {("A", "a"): 1 - 1e-8, ("A", "b"): 1e-8})
    found = [("a",) * 20, ("a", "a"), ("a",) * 3]
    chart, model = inside_outside(grammar, found), compile_transformer(grammar, max_length=20)
    check(asked(model, grammar, found), chart, grammar, 1e-10)
    single = compile_transformer(grammar, max_length=20, dtype="float32")
    with pytest.warns(RuntimeWarning, match="1 of 3 sentences, number 0 first, are outside the range of float32"):
        out = asked(single, grammar, found)
    assert out.log_z[1].item() == pytest.approx(chart.log_z[1].item(), abs=1e-6) and out.log_z[2] == -np.inf
    assert asked(single, grammar, found, head_mask=torch.zeros(38, 4)).log_z.tolist() == [-np.inf] * 3
    single.scales.data -= 60
    single.words.weight.data *= np.exp(60)
    with pytest.warns(RuntimeWarning, match="outside the range"):
        asked(single, grammar, found[1:2])
    single.scales.data += 20
    single.words.weight.data *= np.exp(-100)  # e^-40 a word: not 0 yet, and too few digits
    with pytest.warns(RuntimeWarning, match="outside the range"):
        asked(single, grammar, found[1:2])


def test_rare_words_keep_to_the_range():
    """A scale a word makes up for its probability: twenty words of one in 10^12 each, in single precision."""
    words = {("A", "common"): 1 - 1e-12, ("A", "rare"): 1e-12}
    grammar = Grammar({"S": 1.0}, {("S", "A", "S"): 0.9, ("S", "A", "A"): 0.1}, words)
    found = [("rare",) * 20]
    log_z = asked(compile_transformer(grammar, max_length=20, dtype="float32"), grammar, found).log_z
    assert log_z.item() == pytest.approx(inside_outside(grammar, found).log_z.item(), rel=1e-6)


def test_gradients_are_expected_counts():
    """Of log Z by the logarithm of a rule's probability: how often the rule is expected in the sentences' trees."""
    grammar = Grammar.random(3, 3, 6, seed=4)
    model, found = compile_transformer(grammar, max_length=6).requires_grad_(), sentences(grammar, [6, 4, 2])
    asked(model, grammar, found).log_z.sum().backward()
    counts = model.rules.grad[tuple(map(torch.as_tensor, (grammar.parents, grammar.left, grammar.right)))]
    ours = counts.numpy() * grammar.rule_probs
    assert np.allclose(ours, inside_outside(grammar, found).rule_counts(), atol=1e-10)


def test_the_loss_of_labels():
    """Cross-entropy at the labels that aren't -100, as the library's masked language models give it."""
    grammar = Grammar.random(3, 3, 6, seed=4)
    model = compile_transformer(grammar, max_length=6)
    ids, attention = encoded(grammar, sentences(grammar, [6, 4]))
    masked, labels = ids.clone(), torch.full_like(ids, -100)
    masked[0, 2] = masked[1, 1] = model.config.mask_token_id
    labels[0, 2], labels[1, 1] = ids[0, 2], ids[1, 1]
    out = model(masked, attention, labels=labels)
    assert out.loss.item() == pytest.approx(-(out.logits[0, 2, ids[0, 2]] + out.logits[1, 1, ids[1, 1]]).item() / 2)


def test_a_random_grammar_where_nothing_is_compiled():
    """What stands for an untrained model: probabilities drawn by the seed."""
    config = compile_transformer(Grammar.random(2, 3, 4, seed=0), max_length=4).config
    before = torch.get_rng_state()
    compile_transformer(Grammar.random(2, 3, 4, seed=0), max_length=4)
    assert torch.equal(torch.get_rng_state(), before)
    drawn = AutoModel.from_config(config)
    assert torch.allclose(drawn.rules.sum((1, 2)), torch.ones(2, dtype=drawn.rules.dtype)) and drawn.rules.std() > 0
    assert drawn(torch.tensor([[5, 6, 7, 8]])).log_z.isfinite()
