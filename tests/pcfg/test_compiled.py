"""The compiled transformer against exact charts, against plain linear attention with whole matrices, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from pcfg import Grammar, inside_outside, sample
from pcfg.compiled import InsideOutsideConfig, InsideOutsideTransformer, Slots, compile_transformer, save
from pcfg.compiled.circuit import heads
from pcfg.compiled.layers import InsideLayer, OutsideLayer, Places
from pcfg.compiled.matrices import dense_head
from pcfg.compiled.sizes import Sizes
from pcfg.errors import GrammarError, OptionError
from pcfg.sampling.tokenizer import tokenizer
from pcfg.treebanks.trees import Tree
from surgery.memory import Meter


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
        expected = plain_attention(state, dense_head(slots, model.rules, number), places)
        assert torch.allclose(found[..., written], expected[..., written], atol=1e-12)


def plain_attention(state, head, places):
    """One head of gated linear attention, with loops over tokens."""
    out = torch.zeros_like(state)
    for row in range(state.shape[0]):
        for reader in range(state.shape[1]):
            for read in range(state.shape[1]):
                there = places.before[row, reader, read] if head.reads == "before" else places.before[row, read, reader]
                if not there:
                    continue
                query = (head.query @ state[row, reader] + head.query_bias) * head.gate("query", places, row, reader)
                key = (head.key @ state[row, read] + head.key_bias) * head.gate("key", places, row, read)
                value = (head.value @ state[row, read] + head.value_bias) * head.gate("value", places, row, read)
                out[row, reader] += head.output @ (head.gate("output", places, row, reader) * ((query @ key) * value))
    return out


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


def test_saved_and_loaded_bit_for_bit(tmp_path):
    grammar = Grammar.random(3, 4, 5, seed=6)
    model = compile_transformer(grammar, max_length=6)
    for _ in range(2):  # into a folder that is there already, too
        model.save_pretrained(tmp_path / "built")
    found = sentences(grammar, [6, 2])
    for loaded in (InsideOutsideTransformer, AutoModel, AutoModelForMaskedLM):
        again = loaded.from_pretrained(tmp_path / "built")
        assert isinstance(again, InsideOutsideTransformer)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        assert torch.equal(asked(again, grammar, found).logits, asked(model, grammar, found).logits)
    single = AutoModel.from_pretrained(tmp_path / "built", dtype=torch.float32).requires_grad_(False)
    check(asked(single, grammar, found), inside_outside(grammar, found), grammar, 1e-4)
    slots = json.loads((tmp_path / "built" / "slots.json").read_text())
    first, stop = slots["outside"][grammar.nonterminals[1]]
    assert slice(first, stop) == model.slots["outside", grammar.nonterminals[1]]
    layers, kinds = json.loads((tmp_path / "built" / "circuit.json").read_text())["layers"], model.layers
    for kind, found in (("inside", InsideLayer), ("outside", OutsideLayer)):
        assert all(isinstance(layer, found) for layer in kinds[slice(*layers[kind])])
    assert layers["inside"][1] == layers["outside"][0] and layers["outside"][1] == len(kinds)
    edges = {
        (a, b, c): p
        for head in json.loads((tmp_path / "built" / "circuit.json").read_text())["heads"]
        for a, b, c, p in head["rules"]
    }
    assert edges == grammar.binary


def test_heads_of_the_circuit_read_and_write_what_they_say():
    """Slots change where a head writes only, and what it reads only changes them: by setting slots of a random state to 0."""
    grammar = Grammar(
        {"S": 1.0},
        {("S", "A", "T"): 0.6, ("S", "T", "T"): 0.4, ("T", "S", "A"): 0.5, ("T", "A", "A"): 0.5},
        {("A", "a"): 1.0},
    )
    model = compile_transformer(grammar, max_length=5)
    slots, ids = model.slots, torch.full((1, 5), 5)
    places = Places.of(ids >= 5, 5, torch.float64)
    state = torch.rand(1, 5, slots.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    named = {f"{score} {symbol}": slots[score, symbol] for score in ("inside", "outside") for symbol in slots.symbols}
    for head in model.circuit()["heads"]:
        inside = head["kind"] == "inside"
        mask = torch.zeros(3 if inside else 6, dtype=torch.float64)
        mask[head["head"]] = 1
        rest = () if inside else (torch.zeros_like(model.roots),)

        def written(some, head_mask=mask, layer=model.layers[0 if inside else -1], rest=rest):
            return layer(some, model.rules, *rest, places, head_mask)

        full, nothing = written(state), written(state, 0 * mask)
        assert {n for n, where in named.items() if not torch.equal(full[..., where], nothing[..., where])} == set(
            head["writes"]
        )
        reads = {name for names in head["reads"].values() for name in names} - {"position"}
        for name, where in named.items():
            without = state.clone()
            without[..., where] = 0
            changed = any(not torch.equal(written(without)[..., named[n]], full[..., named[n]]) for n in head["writes"])
            assert changed == (name in reads and bool(head["rules"])), (head, name)


def test_slots_name_every_dimension_once():
    slots = compile_transformer(Grammar.random(3, 4, 5, seed=6), max_length=6).slots
    names = list(slots.names())
    assert [number for number, *_ in names] == list(range(slots.width))
    for number, score, symbol, start in names[1:]:
        assert number == slots[score, symbol].start + (start or 0)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 9))
def test_sizes_are_the_built_model_s(nonterminals, preterminals, length):
    grammar = Grammar.random(nonterminals, preterminals, 7, seed=1)
    model, sizes = compile_transformer(grammar, max_length=length), Sizes.of(grammar, length)
    assert (sizes.layers, sizes.width) == (len(model.layers), model.slots.width)
    assert sizes.stored == sum(p.numel() for p in model.parameters())
    kinds = [kind for kind, _ in heads(model.slots)]
    assert sizes.inside_heads == kinds.count("inside") and sizes.outside_heads == len(kinds) - sizes.inside_heads


@given(st.integers(2, 6), st.integers(2, 6), st.integers(2, 9))  # sums over one symbol are no matrix products to torch
def test_operations_are_those_counted(nonterminals, preterminals, length):
    """Matrix products of one layer of each kind, by torch's counter, times the layers of that kind."""
    sizes = Sizes(nonterminals, preterminals, 1, 1, length)
    slots = Slots(tuple(f"N{i}" for i in range(nonterminals)), tuple(f"P{i}" for i in range(preterminals)), length)
    places = Places.of(torch.ones(1, length, dtype=torch.bool), length, torch.float32)
    state, rules = torch.ones(1, length, slots.width), torch.ones(nonterminals, sizes.symbols, sizes.symbols)
    with FlopCounterMode(display=False) as counter:
        InsideLayer(slots)(state, rules, places)
        OutsideLayer(slots)(state, rules, torch.ones(sizes.symbols), places)
    assert sizes.operations == sizes.layers // 2 * counter.get_total_flops()


def test_a_treebank_s_sizes_without_memory():
    """The arithmetic equals a model of a whole treebank's grammar, whose 24 GB of rules nobody allocates."""
    names = [f"N{i}" for i in range(1600)], [f"P{i}" for i in range(250)]
    with torch.device("meta"):
        model = InsideOutsideTransformer(InsideOutsideConfig(*names, max_words=25, vocab_size=10_005))
    sizes = Sizes(1600, 250, 10_000, 10_000, 25)
    assert sizes.stored == sum(p.numel() for p in model.parameters()) > 5e9
    assert (sizes.layers, sizes.width) == (len(model.layers), model.slots.width) == (48, 80_501)


@pytest.mark.parametrize(("nonterminals", "preterminals", "length"), [(20, 45, 20), (5, 100, 20), (10, 10, 40)])
def test_memory_is_what_a_sentence_takes(nonterminals, preterminals, length):
    """What the estimate says is enough, and less than twice what tensors take at their fullest."""
    grammar = Grammar.random(nonterminals, preterminals, 100, seed=0)
    model = compile_transformer(grammar, max_length=length, dtype="float32")
    with Meter(torch.device("cpu")) as meter:
        model(torch.arange(5, 5 + length)[None])
    used = meter.peak + 4 * sum(p.numel() for p in model.parameters())
    assert used < Sizes.of(grammar, length).memory(4) < 2 * used


def test_width_at_the_paper_s_sizes():
    """20 nonterminals and 45 preterminals for 25 words: at most the paper's 1,275 dimensions."""
    assert Sizes(20, 45, 1, 1, 25).width == 1091


@pytest.mark.parametrize(
    ("ids", "error", "said"),
    [
        ([[0, 5, 6, 5, 6, 5]], OptionError, "5 words and the model was compiled for 4"),
        ([[1, 5, 3, 2]], GrammarError, "token 2 of sentence 0"),
        ([[1, 2, 0]], OptionError, "no words"),
        ([[5, 8]], OptionError, "from 0 to 7"),
        ([[5, -100]], OptionError, "from 0 to 7"),
    ],
)
def test_bad_sentences(ids, error, said):
    model = compile_transformer(Grammar.random(2, 2, 3, seed=0), max_length=4)
    with pytest.raises(error, match=said):
        model(torch.tensor(ids))


def test_bad_grammars(monkeypatch):
    grammar = Grammar.random(2, 2, 3, seed=0)
    with pytest.raises(OptionError, match="max_length is 1"):
        compile_transformer(grammar, max_length=1)
    with pytest.raises(GrammarError, match="no binary rules"):
        compile_transformer(Grammar({"A": 1.0}, {}, {("A", "a"): 1.0}))
    monkeypatch.setattr("pcfg.compiled.sizes.free_memory", lambda _: 100)
    with pytest.raises(OptionError, match="are free"):
        compile_transformer(grammar, max_length=5)


def test_sampled_sentences_score_near_one():
    """Scales keep whole sentences in the range of single precision, long ones and large vocabularies too."""
    grammar = Grammar.random(4, 5, 2000, seed=1)
    model = compile_transformer(grammar, max_length=20)
    drawn = [tuple(s) for s in sample(grammar, 50, seed=9, max_length=20)]
    found = asked(model, grammar, drawn)
    ids, _ = encoded(grammar, drawn)
    scaled = found.log_z + model.scales[ids].sum(1)
    assert scaled.abs().max() < 40


def test_the_command_writes_a_folder(tmp_path, run):
    """Model, tokenizer, names and grammar in one folder; with `--keep`, exact for the smaller grammar that lies beside it."""
    rules = (
        "1 S -> NP VP",
        "1 NP -> Det N",
        ".6 VP -> V NP",
        ".4 VP -> VP NP",
        "1 Det -> 'the'",
        "1 N -> 'dog' [.5] | 'man' [.5]",
        "1 V -> 'saw'",
    )
    grammar = Grammar.from_text("\n".join(rules).replace("1 N -> 'dog' [.5]", "N -> 'dog' [.5]"))
    grammar.save(tmp_path / "g.pcfg.json")
    status, out, _ = run(
        "pcfg", "compile", tmp_path / "g.pcfg.json", "--max-length", 6, "-o", tmp_path / "built", "--show"
    )
    assert status == 0 and "10 layers" in out
    model = AutoModel.from_pretrained(tmp_path / "built")
    words = AutoTokenizer.from_pretrained(tmp_path / "built")
    sentence = "the dog saw the man"
    found = model(**words(sentence, return_tensors="pt", return_token_type_ids=False))
    assert found.log_z.item() == pytest.approx(inside_outside(grammar, [sentence.split()]).log_z.item())
    status, out, _ = run("pcfg", "compile", tmp_path / "g.pcfg.json", "--keep", 3, "-o", tmp_path / "small", "--json")
    assert status == 0 and json.loads(out)["nonterminals"] <= 3
    for options, said in ((["--max-length", 1], "max-length"), (["-o", tmp_path / "built"], "exists already")):
        status, _, err = run("pcfg", "compile", tmp_path / "g.pcfg.json", "-o", tmp_path / "new", *options)
        assert status == 2 and said in err
