"""Hooks on the heads of compiled transformers, what they attend to, and which of them an answer depends on."""

import numpy as np
import pytest
import torch

from pcfg import Grammar
from pcfg.compiled import compile_transformer, used_heads
from pcfg.compiled.circuit import heads
from pcfg.compiled.matrices import dense_head
from pcfg.compiled.places import Places
from pcfg.errors import OptionError
from tests.support.compiled import asked, encoded, plain_attention, sentences


@pytest.fixture(scope="module")
def case():
    """A model with every kind of rule, some symbols without, and two sentences."""
    grammar = sparse_grammar(8)
    return compile_transformer(grammar, max_length=5), grammar, encoded(grammar, sentences(grammar, [5, 3]))[0]


def sparse_grammar(seed, rules=7):
    """Random rules over three nonterminals and three preterminals, few enough that some heads have none."""
    random = np.random.default_rng(seed)
    inner, tags = ["S", "A", "B"], ["x", "y", "z"]
    binary = {("S", "x", "y"): 1.0, ("A", "y", "x"): 1.0, ("B", "z", "S"): 1.0}
    while len(binary) < rules:
        binary[(random.choice(inner), *random.choice([*inner, *tags], 2))] = float(random.uniform(0.5, 1.5))
    totals = {a: sum(p for rule, p in binary.items() if rule[0] == a) for a in inner}
    words = {
        (tag, word): float(p) for tag in tags for word, p in zip("abcd", random.dirichlet(np.ones(4)), strict=True)
    }
    return Grammar({"S": 1.0}, {rule: p / totals[rule[0]] for rule, p in binary.items()}, words)


def hooked(points, function):
    return [point.register_forward_hook(function) for point in points]


def test_heads_that_are_seen_compute_the_same(case):
    model, _, ids = case
    plain = model(ids, output_hidden_states=True).hidden_states
    hooks = hooked([layer.head_out for layer in model.layers], lambda *_: None)
    seen = model(ids, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(plain, seen, strict=True))
    model.keep_heads_apart()
    apart = model(ids, output_hidden_states=True).hidden_states
    model.keep_heads_apart(False)
    assert all(torch.equal(a, b) for a, b in zip(seen, apart, strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(plain, model(ids, output_hidden_states=True).hidden_states, strict=True)
    )


def test_hooks_see_heads_as_matrices(case):
    """Outputs and attention scores of each head, against plain linear attention with four matrices; and from other states."""
    model, _, ids = case
    slots, symbols = model.slots, len(model.slots.symbols)
    places = Places.of(ids >= 5, slots.length, torch.float64)
    states = torch.rand(
        2, ids.shape[1], 2 * symbols, slots.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    states *= (ids >= 5)[..., None, None]
    for number, (kind, _) in enumerate(heads(slots)):
        layer, head = model.layers[0 if kind == "inside" else -1], number - (0 if kind == "inside" else symbols)
        rest = () if kind == "inside" else (model.roots,)
        kept = []
        hooks = hooked(
            [layer.head_in], lambda _, __, found: states[:, :, : found.shape[2]]
        )  # a state of its own for each head
        hooks += hooked([layer.attention, layer.head_out], lambda _, __, found, kept=kept: kept.append(found))
        layer(states[:, :, 0], model.rules, *rest, places)
        for hook in hooks:
            hook.remove()
        dense = dense_head(slots, model.rules, number)
        out, scores = plain_attention(states[:, :, head], dense, places)
        assert torch.allclose(kept[1][:, :, head], out, rtol=0, atol=1e-12)
        if (
            symbols and slots.symbols[head % symbols] in slots.preterminals
        ):  # its value counts where the words are neighbours
            scores = scores * (places.previous if dense.reads == "before" else places.previous.mT)
        assert torch.allclose(kept[0][:, head], scores, rtol=0, atol=1e-12)


def test_hooks_before_a_point_see_heads_too(case):
    """What is put into the last inside layer's `head_out`: all heads, and without them there is no score."""
    model, _, ids = case
    seen, layer = [], model.layers[3]
    hook = layer.head_out.register_forward_pre_hook(lambda _, given: (seen.append(given[0].shape), given[0] * 0)[1:])
    assert model(ids).log_z.tolist() == [-np.inf] * 2 and seen == [(2, 7, 6, model.slots.width)]
    hook.remove()
    assert not layer.hooked


def test_a_plain_hook_takes_a_head_out(case):
    model, _, ids = case
    for layer, head in ((1, 0), (2, 4), (5, 7), (6, 9)):
        mask = torch.ones(8, 12, dtype=torch.float64)
        mask[layer, head] = 0

        def zeroed(_, __, found, head=head):
            found = found.clone()
            found[:, :, head] = 0
            return found

        hook = model.layers[layer].head_out.register_forward_hook(zeroed)
        ours = model(ids, output_hidden_states=True).hidden_states
        hook.remove()
        for a, b in zip(ours, model(ids, head_mask=mask, output_hidden_states=True).hidden_states, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=0)


def test_hook_points_of_transformer_lens(case):
    """HookPoint in place of the submodule: seen, and changed."""
    from transformer_lens.hook_points import HookPoint

    _, grammar, ids = case
    model, seen = compile_transformer(grammar, max_length=5), []
    plain = model(ids)
    for layer in model.layers:
        layer.head_out = HookPoint()
    model.layers[3].head_out.add_hook(lambda found, hook: seen.append(found.shape))
    assert torch.allclose(model(ids).logits, plain.logits) and seen == [(2, 7, 6, model.slots.width)]
    model.layers[3].head_out.add_hook(lambda found, hook: found * 0)
    assert model(ids).log_z.tolist() == [-np.inf] * 2


def test_attentions(case):
    """All layers', as their hooks give them; gone again afterwards."""
    model, _, ids = case
    plain, out = model(ids), model(ids, output_attentions=True)
    assert [scores.shape[1] for scores in out.attentions] == [6] * 4 + [12] * 4
    assert torch.allclose(out.logits, plain.logits, rtol=1e-10) and plain.attentions is None
    assert not any(layer.hooked for layer in model.layers)
    tag = model.slots["inside", "y"].start
    words = model.words.weight[ids[0], tag - 1]  # scaled P(word | y): what the head of y finds one word on
    assert (
        torch.equal(out.attentions[0][0, 4].diagonal(-1)[1:5], words[2:6])
        and not out.attentions[0][0, 4].diagonal().any()
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("output", ["log_z", "logits"])
def test_used_heads_are_those_that_matter(seed, output):
    """Taking out each head of each layer in turn: what is read changes, for some sentence of all of them, just where it is used."""
    grammar = sparse_grammar(seed)
    model, n = compile_transformer(grammar, max_length=5), (4, 5, 3)[seed]
    every = [tuple("abcd"[(k >> 2 * i) % 4] for i in range(n)) for k in range(0, 4**n, max(1, 4**n // 5))]
    ids = encoded(grammar, every)[0]

    def read(mask=None):
        out = model(ids, head_mask=mask, output_hidden_states=True)
        return out.log_z if output == "log_z" else out.hidden_states[-1][..., model.slots.tags("outside")]

    found, plain = np.zeros((8, 12), bool), read()
    for layer, head in np.ndindex(found.shape):
        if layer < 4 and head >= 6:  # inside layers have no more
            continue
        mask = torch.ones(8, 12, dtype=torch.float64)
        mask[layer, head] = 0
        found[layer, head] = not torch.allclose(read(mask), plain, rtol=1e-9, atol=0)
    assert np.array_equal(found, used_heads(model, n, output))


def test_used_heads_of_nothing(case):
    model = case[0]
    assert not used_heads(model, 1).any() and not used_heads(model, 1, "logits").any()
    with pytest.raises(OptionError, match="`words` is 6"):
        used_heads(model, 6)
    with pytest.raises(OptionError, match="`output` is 'loss'"):
        used_heads(model, 3, "loss")


def test_embeddings_in_place_of_words(case):
    """The same answers from the embedded words, log Z but for their scales, with gradients."""
    model, grammar, ids = case
    embeds = model.get_input_embeddings()(ids).requires_grad_()
    plain, out = model(ids), model(inputs_embeds=embeds)
    for name in ("label_marginals", "tag_posteriors", "logits"):
        assert torch.equal(getattr(plain, name), getattr(out, name)), name
    scales = (model.scales[ids] * (ids >= 5)).sum(1)
    assert torch.allclose(out.log_z - scales, plain.log_z)
    assert torch.allclose(model(inputs_embeds=embeds.float()).log_z, out.log_z)
    out.log_z.sum().backward()
    expected = embeds * embeds.grad  # each word's expected tags
    assert torch.allclose(expected[0, 1:6], plain.tag_posteriors[0].to(expected.dtype)) and grammar is not None


def test_embeddings_that_are_none(case):
    model, _, ids = case
    embeds = model.words(ids)
    for options, said in (
        ({}, "one of `input_ids` and `inputs_embeds`"),
        ({"input_ids": ids, "inputs_embeds": embeds}, "one of"),
        ({"inputs_embeds": embeds[..., :2]}, r"\[sentences, tokens, 3\]"),
        ({"inputs_embeds": embeds * 0}, "no words"),
        ({"inputs_embeds": embeds.repeat(1, 2, 1)}, "10 words and the model was compiled for 5"),
    ):
        with pytest.raises(OptionError, match=said):
            model(**options)


def test_tuples(case):
    model, grammar, ids = case
    out = model(ids)
    assert all(torch.equal(a, b) for a, b in zip(out.to_tuple(), model(ids, return_dict=False), strict=True))
    assert asked(model, grammar, sentences(grammar, [2]), return_dict=True).log_z.shape == (1,)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions", "return_dict"])
def test_the_configuration_says_what_is_put_out(case, name):
    """As in other models of the library: what a call doesn't say is taken from the configuration."""
    _, grammar, ids = case
    model = compile_transformer(grammar, max_length=5)
    value = name != "return_dict"
    setattr(model.config, name, value)
    out, asked_for = model(ids), model(ids, **{name: not value})
    if name == "return_dict":
        assert isinstance(out, tuple) and torch.equal(out[0], asked_for.logits)
    else:
        field = name.removeprefix("output_")
        assert getattr(out, field) is not None and getattr(asked_for, field) is None
