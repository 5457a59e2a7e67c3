"""Compiled transformers as files, names, sizes and a command, and what they refuse."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from pcfg import Grammar, inside_outside, sample
from pcfg.compiled import InsideOutsideConfig, InsideOutsideTransformer, Slots, compile_transformer
from pcfg.compiled.circuit import heads
from pcfg.compiled.compiling import save
from pcfg.compiled.layers import InsideLayer, OutsideLayer
from pcfg.compiled.places import Places
from pcfg.compiled.sizes import Sizes
from pcfg.errors import GrammarError, OptionError
from pcfg.learning.pruning_by_use import prune, share_parsed
from surgery.memory import Meter
from tests.support.compiled import asked, check, encoded, sentences


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
    assert (slots.pop("width"), slots.pop("max_length"), slots.pop("last")) == (model.slots.width, 6, [0, 1])
    named = {(score, symbol): slice(*ends) for score, some in slots.items() for symbol, ends in some.items()}
    assert named == {
        (score, symbol): model.slots[score, symbol] for score in ("inside", "outside") for symbol in model.slots.symbols
    }
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
        assert bool(head["rules"]) == bool(head["reads"]) == bool(head["writes"])
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
    sizes = Sizes(20, 45, 1, 1, 25)
    assert sizes.width == 1091
    # Of theorems with S = 65 symbols, L = 25: 2 L layers, S heads, 2 S L wide; 2 L - 1, 4 S and (4 S + 1) L.
    assert [row[1:] for row in sizes.table()[1]] == [[48, "65 and 130", 1091], [50, 65, 3250], [49, 260, 6525]]


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
    needed = Sizes.of(grammar, 5).memory(8)
    monkeypatch.setattr("pcfg.compiled.sizes.free_memory", lambda _: needed)
    assert compile_transformer(grammar, max_length=5).slots.length == 5
    monkeypatch.setattr("pcfg.compiled.sizes.free_memory", lambda _: needed - 1)
    with pytest.raises(OptionError, match="are free"):
        compile_transformer(grammar, max_length=5)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({("S", "A", "A"): float("inf")}, "S -> A A has the probability inf"),
        ({("S", "A", "A"): float("nan")}, "S -> A A has the probability nan"),
        ({("S", "S", "S"): 1.0}, "every tree goes on for ever"),
        ({("S", "A", "B"): 1.0, ("B", "A", "C"): 1.0, ("C", "A", "A"): 1.0}, "no sentence of 3 words or fewer"),
    ],
)
def test_grammars_without_finite_scores_or_short_sentences(rules, said):
    with pytest.raises(GrammarError, match=said):
        compile_transformer(Grammar({"S": 1.0}, rules, {("A", "a"): 1.0}), max_length=3)


def test_a_grammar_whose_trees_may_never_end():
    """Nine in ten nodes branch on: most trees are infinite, and those of four words have their exact probability."""
    grammar = Grammar({"S": 1.0}, {("S", "S", "S"): 0.9, ("S", "A", "A"): 0.1}, {("A", "a"): 1.0})
    model = compile_transformer(grammar, max_length=4)
    assert model(torch.full((1, 4), 5)).log_z.exp().item() == pytest.approx(0.9 * 0.1**2)


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


def test_options_of_the_command(tmp_path, run):
    """Nonterminals kept are those used most, numbers are of the model written, `--show` lists its heads."""
    rules = "S -> NP VP [1]\nNP -> Det N [.8] | NP PP [.2]\nVP -> V NP [.9] | VP PP [.1]\nPP -> P NP [1]\nDet -> 'the' [1]\nN -> 'dog' [.5] | 'man' [.5]\nV -> 'saw' [1]\nP -> 'with' [1]"
    Grammar.from_text(rules).save(tmp_path / "g.pcfg.json")
    given = ("pcfg", "compile", tmp_path / "g.pcfg.json", "--max-length", 6, "--keep", 3, "--dtype", "float32")
    status, out, _ = run(*given, "-o", tmp_path / "small", "--json")
    kept, said = Grammar.load(tmp_path / "small" / "grammar.pcfg.json"), json.loads(out)
    assert status == 0 and sorted(kept.nonterminals) == ["NP", "S", "VP"]
    sizes, model = Sizes.of(kept, 6), AutoModel.from_pretrained(tmp_path / "small")
    assert model.rules.dtype == torch.float32 and model.slots.nonterminals == tuple(kept.nonterminals)
    numbers = {"layers": 10, "heads": [sizes.symbols, 2 * sizes.symbols], "width": sizes.width, "nonterminals": 3}
    assert {**said, **numbers, "stored": sizes.stored, "operations": sizes.operations} == said
    found = [("the", "dog", "saw", "the", "man")]
    assert asked(model, kept, found).log_z.item() == pytest.approx(inside_outside(kept, found).log_z.item(), abs=1e-5)
    status, out, _ = run(*given, "-o", tmp_path / "shown", "--show")
    assert status == 0 and "outside left" in out and "inside VP" in out and "3 nonterminals kept of 4" in out
    status, out, _ = run(*given, "-o", tmp_path / "quiet")
    assert status == 0 and "outside left" not in out
    status, out, _ = run(*given, "--show", "--json")
    assert (status, json.loads(out)["output"]) == (0, None)  # nothing is saved
    status, out, _ = run("pcfg", "compile", tmp_path / "small", "--show")  # the grammar in a model's folder
    assert status == 0 and "inside VP" in out


def test_the_share_of_sentences_that_a_smaller_grammar_has_trees_for():
    """PP is gone, whose rules every fourth sentence or so needs: counted by a plain parse of each."""
    whole = Grammar.from_text(
        "S -> NP VP [1]\nNP -> Det N [.8] | NP PP [.2]\nVP -> V NP [1]\nPP -> P NP [1]\nDet -> 'the' [1]\nN -> 'dog' [1]\nV -> 'saw' [1]\nP -> 'with' [1]"
    )
    small = prune(whole, 3)
    drawn = list(sample(whole, 500, seed=0, max_length=12))
    wanted = sum("with" not in sentence for sentence in drawn) / 500
    assert 0.5 < wanted < 0.8
    assert share_parsed(small, whole, max_length=12) == wanted
    assert share_parsed(whole, whole, max_length=12) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_words": -1}, "`max_words` must be a whole number of 2 or more"),
        ({"max_words": True}, "`max_words` must be"),
        ({"max_words": 10**9}, "`max_words` is 1,000,000,000: give at most 10,000"),
        ({"max_words": 7}, "aren't those that the weights were compiled for"),
        ({"nonterminals": ["VP", "NP", "S"]}, "aren't those that the weights were compiled for"),
        ({"nonterminals": ["S", "S", "VP"]}, "must be names, each once"),
        ({"preterminals": [1, 2, 3, 4]}, "must be names, each once"),
        ({"vocab_size": "many"}, "`vocab_size` must be"),
        ({"mask_token_id": 99}, "99 is no token of a vocabulary"),
    ],
)
def test_configurations_that_are_no_grammar_s(tmp_path, changes, said):
    grammar = Grammar.from_text(
        "S -> NP VP [1]\nNP -> D N [1]\nVP -> V NP [1]\nD -> 'the' [1]\nN -> 'dog' [1]\nV -> 'saw' [1]"
    )
    save(compile_transformer(grammar, max_length=5), grammar, tmp_path / "built")
    file = tmp_path / "built" / "config.json"
    content = json.loads(file.read_text())
    assert sorted(content["nonterminals"]) == ["NP", "S", "VP"]
    if changes.get("nonterminals") == content["nonterminals"]:
        changes = {"nonterminals": content["nonterminals"][::-1]}
    if changes.get("max_words") == 10**9:
        content.pop("symbols_digest")  # as of a folder that was written before there was one
    file.write_text(json.dumps({**content, **changes}))
    with pytest.raises(OptionError, match=said):
        AutoModel.from_pretrained(tmp_path / "built")


def test_the_likeliest_root_is_kept():
    """S is used least, once a sentence, and without it there are none."""
    rules = "S -> NP VP [1]\nNP -> NP PP [.1] | D N [.9]\nVP -> VP PP [.3] | V NP [.7]\nPP -> P NP [1]\nD -> 'the' [1]\nN -> 'dog' [1]\nV -> 'saw' [1]\nP -> 'with' [1]"
    assert sorted(prune(Grammar.from_text(rules), 3).nonterminals) == ["NP", "S", "VP"]
    with pytest.raises(GrammarError, match=r"2 nonterminals used most derive no sentence .* keep 3 or more"):
        prune(Grammar.from_text(rules), 2)


def test_weights_that_are_no_numbers_and_tokens_that_are_none_are_named():
    grammar = Grammar.random(2, 3, 8, seed=0)
    model = compile_transformer(grammar, max_length=4)
    with pytest.raises(OptionError, match="input_ids must be"):
        model(torch.tensor([[5.0, 6.0]]))
    model.roots[0] = float("nan")
    with pytest.raises(OptionError, match="weight roots holds NaN or infinity"):
        model(torch.tensor([[5, 6, 7]]))
