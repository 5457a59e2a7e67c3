"""Hidden states word by word: transformers' own, aligned, changed by hooks, and refused where they can't be had."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaForMaskedLM

from probes.activations import Activations
from probes.causal import Whitening, random_directions, smallest_spans, word_attention
from probes.errors import ProbeError
from probes.loading import some_tokens
from probes.probed_model import ProbedModel, pad
from surgery.errors import CheckpointError, OptionError, SurgeryError
from tests.support import architectures
from tests.support.tiny import BLOCK, KINDS, WORDS, change

SENTENCES = [list(WORDS[:5]), list(WORDS[3:12]), [WORDS[4]]]


@pytest.fixture(scope="module")
def loaded(tiny):
    """Each kind loaded once: loading goes through TransformerLens."""
    found = {}

    def get(kind):
        if kind not in found:
            found[kind] = ProbedModel.load(tiny(kind), device="cpu")
        return found[kind]

    return get


def own_states(folder, causal, ids, mask):
    """Transformers' hidden states, from a model that TransformerLens has never seen."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    module = (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_pretrained(folder).eval()
    with torch.no_grad():
        return module.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_transformers_own(kind, tiny, loaded, tmp_path):
    model = loaded(kind)
    assert model.bridge is not None
    encoded = model.encode(SENTENCES)
    wanted = own_states(tiny(kind), model.causal, *pad(model, encoded))
    found = Activations.collect(model, SENTENCES, tmp_path, range(model.layers + 1))
    for layer, states in enumerate(wanted):
        rows = []
        for number, code in enumerate(encoded):
            for word in range(len(SENTENCES[number])):
                tokens = [i for i, owner in enumerate(code.words) if owner == word]
                rows.append(states[number, tokens].mean(0).numpy())
        assert np.abs(found.layer(layer) - np.stack(rows)).max() < 1e-5


def test_a_cache_knows_states_by_content(tiny, copied, tmp_path, monkeypatch):
    """Two models, weights changed on disk or in memory, other sentences: none takes another's states or writes over them."""
    folder, cache = copied("bert"), tmp_path / "cache"
    first = ProbedModel.load(folder, device="cpu")
    states = Activations.collect(first, SENTENCES, cache, [0, 1])
    wanted = {layer: np.array(states.layer(layer)) for layer in (0, 1)}
    shutil.rmtree(folder)
    change(tiny("bert"), folder, lambda name, tensor: tensor + 0.5 if BLOCK.search(name) else None)
    second = Activations.collect(ProbedModel.load(folder, device="cpu"), SENTENCES, cache, [0, 1])
    Activations.collect(ProbedModel.load(folder, device="cpu", untrained=0), SENTENCES, cache, [0, 1])
    Activations.collect(first, [SENTENCES[0], SENTENCES[1][::-1], SENTENCES[2]], cache, [0, 1])
    for layer in (0, 1):  # read while others wrote
        np.testing.assert_array_equal(states.layer(layer), wanted[layer])
    np.testing.assert_array_equal(second.layer(0), wanted[0])
    assert np.abs(second.layer(1) - wanted[1]).max() > 0.01

    run, asked = ProbedModel.hidden_states, []
    monkeypatch.setattr(
        ProbedModel, "hidden_states", lambda self, i, m, layers: asked.append(layers) or run(self, i, m, layers)
    )
    again = Activations.collect(first, SENTENCES, cache, [0, 1, 2])
    assert asked == [[2]]  # the others are there
    np.testing.assert_array_equal(again.layer(1), wanted[1])
    with torch.no_grad():
        first.module.get_input_embeddings().weight[:, 0].add_(1.0)
    changed = Activations.collect(first, SENTENCES, cache, [0])
    assert np.abs(changed.layer(0) - wanted[0]).max() > 0.01
    assert not list(cache.rglob("*.part")) and not list(cache.rglob("*.lock"))


def test_states_of_a_run_that_was_cut_short_are_not_taken(tiny, tmp_path, monkeypatch):
    model = ProbedModel.load(tiny("bert"), device="cpu")
    wanted = np.array(Activations.collect(model, SENTENCES, tmp_path / "whole", [1]).layer(1))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("probes.activations._TOKENS", 1)  # a batch is a sentence

        def stop(done, total, text):
            raise KeyboardInterrupt

        Activations.collect(model, SENTENCES, tmp_path / "cut", [1], progress=stop)
    assert list((tmp_path / "cut").rglob("*.part"))
    np.testing.assert_array_equal(Activations.collect(model, SENTENCES, tmp_path / "cut", [1]).layer(1), wanted)
    assert not list((tmp_path / "cut").rglob("*.part"))


def test_words_of_several_tokens_are_their_mean(loaded):
    model = loaded("bert")
    code = model.encode([["the", "-LRB-", "".join(WORDS[5:6]) + "."]])[0]
    assert code.words[0] == code.words[-1] == -1
    assert sorted(set(code.words)) == [-1, 0, 1, 2]


def test_a_grammars_words_are_tokens_as_they_are(tmp_path):
    """The treebank's -LRB- is a word of its grammar, and not one of the model's unknown ones."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    from pcfg import Grammar
    from pcfg.sampling.tokenizer import tokenizer

    grammar = Grammar.from_text("S -> Q N [1.0]\nQ -> '``' [0.5] | '-LRB-' [0.5]\nN -> 'x' [1.0]")
    words = tokenizer(grammar)
    words.save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    RobertaForMaskedLM(RobertaConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    code = ProbedModel.load(tmp_path, device="cpu").encode([["``", "x"], ["-LRB-", "x"]])
    assert [words.convert_ids_to_tokens(list(c.ids))[1] for c in code] == ["``", "-LRB-"]


def test_an_untrained_model_has_the_shape_and_not_the_weights(tiny, loaded):
    model, fresh = loaded("roberta"), ProbedModel.load(tiny("roberta"), device="cpu", untrained=0)
    again = ProbedModel.load(tiny("roberta"), device="cpu", untrained=0)
    ids, mask = pad(model, model.encode(SENTENCES))
    states = [m.hidden_states(ids, mask, [2])[2] for m in (model, fresh, again)]
    assert states[0].shape == states[1].shape
    assert not torch.allclose(states[0], states[1])
    assert torch.equal(states[1], states[2])
    assert not fresh.head


def test_a_bare_encoder_has_no_head(loaded):
    assert not loaded("bert-encoder").head
    assert loaded("bert").head


def test_hooks_change_what_the_model_computes_and_go(loaded):
    model = loaded("roberta")
    ids, mask = pad(model, model.encode(SENTENCES))
    with torch.no_grad():
        before = model.module(input_ids=ids, attention_mask=mask).logits
        with model.changed({1: torch.zeros_like}):
            nothing = model.hidden_states(ids, mask, [1, 2])
            changed = model.module(input_ids=ids, attention_mask=mask).logits
        after = model.module(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(before, changed)
    assert torch.equal(before, after)
    assert torch.allclose(nothing[2][0, 0], nothing[2][0, 3], atol=1e-6)  # all tokens alike from there on


def test_attention_sums_to_one_and_is_transformers_own(tiny, loaded):
    from transformers import AutoModelForMaskedLM

    model = loaded("bert")
    ids, mask = pad(model, model.encode(SENTENCES))
    module = AutoModelForMaskedLM.from_pretrained(tiny("bert"), attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = module(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    for ours, theirs in zip(model.attention(ids, mask), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_attention_between_words_is_that_of_a_loop(loaded):
    code = loaded("bert").encode([["the", WORDS[5] + "."]])[0]
    pattern = np.random.default_rng(0).random((2, len(code.ids), len(code.ids))).astype(np.float32)
    found = word_attention(pattern, code, 2)
    for a in range(2):
        for b in range(2):
            rows = [i for i, word in enumerate(code.words) if word == a]
            columns = [i for i, word in enumerate(code.words) if word == b]
            wanted = pattern[:, rows][:, :, columns].sum(2).mean(1)
            assert found[:, a, b] == pytest.approx(wanted, rel=1e-5)


def test_the_smallest_constituent_around_a_word():
    from pcfg.treebanks.trees import Tree

    tree = Tree.parse("(S (A a) (X (B b) (Y (C c) (D d))) (E e))")
    assert smallest_spans(tree).tolist() == [[-1, -1], [1, 4], [2, 4], [2, 4], [-1, -1]]


def test_removed_directions_are_gone_and_others_stay():
    random = np.random.default_rng(0)
    states = (random.normal(size=(500, 6)) @ random.normal(size=(6, 6)) + 3).astype(np.float32)
    space, basis = Whitening.of(states), random_directions(6, 2, 0)
    found = space.removal(basis)(torch.from_numpy(states)).numpy().astype(np.float64)
    white = (found - space.mean) @ space.inverse
    assert np.abs(white @ basis).max() < 1e-3
    others = np.linalg.svd(basis)[0][:, 2:]
    assert np.abs((white - (states - space.mean) @ space.inverse) @ others).max() < 1e-3
    # Every direction of whitened space holds the same share of what varies.
    assert np.cov((states - space.mean) @ space.inverse, rowvar=False) == pytest.approx(np.eye(6), abs=0.02)


@pytest.mark.parametrize(
    ("layers", "message"),
    [([3], "no layer 3: .* has 0 .* to 2"), ("1,x", "`layers` '1,x' must be"), ([], "`layers` is empty")],
)
def test_layers_out_of_range(layers, message, loaded):
    with pytest.raises(OptionError, match=message):
        loaded("bert").check_layers(layers)
    assert loaded("bert").check_layers("all") == (0, 1, 2)
    assert loaded("bert").check_layers("2,0") == (0, 2)


def test_words_that_cant_be_aligned_are_named(loaded, copied):
    from tokenizers import Tokenizer

    model = loaded("bert")
    with pytest.raises(ProbeError, match=r"sentence 1 \(the the the the the \.\.\.\) has 202 tokens"):
        model.encode([["the"] * 200])
    with pytest.raises(ProbeError, match=r"sentence 2 \(the  \): the word '\\u2003' \(number 2\) has no token"):
        model.encode([["the"], ["the", "\u2003"]])
    folder = copied("bert", "whole")
    core = json.loads((folder / "tokenizer.json").read_text())
    core["pre_tokenizer"] = None  # the whole sentence is one token
    (folder / "tokenizer.json").write_text(json.dumps(core))
    Tokenizer.from_file(str(folder / "tokenizer.json"))
    with pytest.raises(
        ProbeError, match=r"sentence 1 \(the cat\): the token 'the cat' spans the word 'the' and the next"
    ):
        ProbedModel.load(folder, device="cpu").encode([["the", "cat"]])


def test_models_that_cant_be_probed(copied, monkeypatch, tmp_path):
    folder = copied("bert", "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(CheckpointError, match="can't be loaded as a language model or an encoder"):
        ProbedModel.load(folder, device="cpu")
    with pytest.raises(SurgeryError):
        ProbedModel.load(tmp_path / "nothing")
    for name, message in (
        ("XmodForMaskedLM", "gives no hidden states for tokens alone .Input language unknown"),
        ("BartModel", "gives no hidden states for tokens alone"),
        ("FunnelForMaskedLM", "layers of different widths or lengths"),
    ):
        folder = architectures.build(name, tmp_path / name, "masked")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "default_language": None}))
        with pytest.raises(CheckpointError, match=message):
            ProbedModel.load(folder, device="cpu")


def test_layers_of_different_widths_are_refused(tmp_path, tiny):
    """OPT-350m's embeddings and last states are narrower than its blocks."""
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    words = AutoTokenizer.from_pretrained(tiny("opt"))
    words.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=len(words), ffn_dim=16, do_layer_norm_before=False, **sizes)
    OPTForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="layers of different widths"):
        ProbedModel.load(tmp_path, device="cpu")


def test_a_model_that_transformer_lens_cant_load_falls_back(tiny, monkeypatch, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    def refuse(*args, **kwargs):
        raise ValueError("Architecture Odd is not supported")

    monkeypatch.setattr(TransformerBridge, "boot_transformers", refuse)
    model = ProbedModel.load(tiny("bert"), device="cpu")
    assert model.bridge is None
    assert "Architecture Odd is not supported" in model.note
    ids, mask = pad(model, model.encode(SENTENCES))
    wanted = own_states(tiny("bert"), False, ids, mask)
    assert all(
        torch.allclose(states, wanted[layer], atol=1e-5)
        for layer, states in model.hidden_states(ids, mask, range(3)).items()
    )
    with pytest.raises(ProbeError, match="TransformerLens can't load it"):
        model.attention(ids, mask)


_POST_NORM = {
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 16,
    "max_position_embeddings": 64,
    "do_layer_norm_before": False,
}


@pytest.mark.parametrize(
    ("name", "kind", "own", "reason"),
    [
        ("MambaForCausalLM", "causal", {}, "has no attention heads"),
        ("Mamba2ForCausalLM", "causal", {}, "has no attention heads"),
        ("RwkvForCausalLM", "causal", {}, "has no attention heads"),
        ("FNetForMaskedLM", "masked", {}, "has no attention heads"),
        ("OPTForCausalLM", "causal", _POST_NORM, "states differ"),
        (
            "OPTForCausalLM",
            "causal",
            {**_POST_NORM, "do_layer_norm_before": True, "_remove_final_layer_norm": True},
            "states differ",
        ),
        ("BertLMHeadModel", "masked", {"is_decoder": True}, "states differ"),
        ("BertLMHeadModel", "masked", {}, "states differ"),
        ("RobertaForCausalLM", "masked", {"is_decoder": True}, "can't load it"),
    ],
)
def test_models_that_transformer_lens_misreads_give_transformers_own_states(
    name, kind, own, reason, tmp_path, monkeypatch
):
    monkeypatch.setattr(architectures, "shrunk", partial(_with, architectures.shrunk, own))
    folder = architectures.build(name, tmp_path / "model", kind)
    model = ProbedModel.load(folder, device="cpu")
    assert model.bridge is None
    assert reason in model.note
    assert "transformers' own" in model.note
    assert model.causal == ("CausalLM" in name or "LMHead" in name)
    encoded = model.encode(SENTENCES)
    for code in encoded:
        ids, mask = pad(model, [code])
        wanted = _library_states(name, folder, ids)
        found = model.hidden_states(ids, mask, range(len(wanted)))
        assert model.layers == len(wanted) - 1
        for layer, states in enumerate(wanted):
            assert torch.allclose(found[layer], states, atol=1e-5)
    assert ProbedModel.load(folder, device="cpu", untrained=0).bridge is None


def _with(make, own, config_class, tokenizer):
    config = make(config_class, tokenizer)
    for field, value in own.items():
        setattr(config, field, value)
    return config


def _library_states(name, folder, ids):
    """Hidden states of the very class that was saved."""
    import transformers

    module = getattr(transformers, name).from_pretrained(folder).eval()
    with torch.no_grad():
        return module(input_ids=ids, output_hidden_states=True).hidden_states


@pytest.mark.parametrize(
    ("name", "kind", "causal"),
    [
        ("GPT2Model", "causal", True),
        ("GPT2ForSequenceClassification", "causal", True),
        ("GPT2ForTokenClassification", "causal", True),
        ("LlamaModel", "causal", True),
        ("LlamaForSequenceClassification", "causal", True),
        ("OPTModel", "causal", True),
        ("MambaModel", "causal", True),
        ("BertForTokenClassification", "masked", False),
        ("FlaubertWithLMHeadModel", "masked", False),
        ("XLMModel", "masked", False),
    ],
)
def test_bodies_and_classifiers_are_probed_as_language_models_are(name, kind, causal, tmp_path):
    folder = architectures.build(name, tmp_path / "model", kind)
    model = ProbedModel.load(folder, device="cpu")
    assert model.causal == causal
    ids, mask = pad(model, [model.encode(SENTENCES)[0]])
    wanted = _library_states(name, folder, ids)
    found = model.hidden_states(ids, mask, range(len(wanted)))
    assert all(torch.allclose(found[layer], states, atol=1e-5) for layer, states in enumerate(wanted))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("MPNetForMaskedLM", 94),
        ("LongformerForMaskedLM", 95),
        ("RobertaForMaskedLM", 95),
        ("LukeForMaskedLM", 95),
        ("Data2VecTextForMaskedLM", 95),
        ("BertForMaskedLM", 96),
        ("XLNetLMHeadModel", None),
        ("MambaForCausalLM", None),
    ],
)
def test_the_longest_sentence_is_what_the_model_can_run(name, most, tmp_path):
    """96 rows in the position table; positions begin behind the padding token's, 0 or 1, in some families."""
    folder = architectures.build(name, tmp_path / "model", "masked")
    model = ProbedModel.load(folder, device="cpu")
    longest = model.most_tokens
    assert longest == most if most else longest > 1 << 20
    for length, fits in ((most or 200, True), ((most or 200) + 1, most is None)):
        ids = torch.full((1, length), 9)
        try:
            model.hidden_states(ids, torch.ones_like(ids), [model.layers])
            assert fits
        except (IndexError, RuntimeError):
            assert not fits


@pytest.mark.parametrize("name", ["convbert", "yoso", "mobilebert"])
def test_states_of_models_whose_places_mix_are_those_of_a_sentence_alone(name, tmp_path):
    folder = architectures.build(architectures.classes("masked")[name], tmp_path / name, "masked")
    model = ProbedModel.load(folder, device="cpu")
    layers = range(model.layers + 1)
    together = Activations.collect(model, SENTENCES, tmp_path / "together", layers)
    first = 0
    for number, sentence in enumerate(SENTENCES):
        ids, mask = pad(model, model.encode([sentence]))
        for layer, states in enumerate(own_states(folder, False, ids, mask)):
            wanted = states[0, 1 : 1 + len(sentence)].numpy()  # a word is a token, behind [CLS]
            assert np.abs(together.layer(layer)[first : first + len(sentence)] - wanted).max() < 1e-5, number
        first += len(sentence)


def test_a_tokenizer_that_knows_more_than_the_model(copied, tmp_path):
    """A padding token that only the tokenizer has is never looked at; a word's is refused with its place."""
    folder, sentences = copied("gpt2"), [SENTENCES[2], SENTENCES[0]]
    before = Activations.collect(ProbedModel.load(folder, device="cpu"), sentences, tmp_path / "one", [1]).layer(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zebra"])
    tokenizer.add_special_tokens({"pad_token": "<more>"})
    tokenizer.save_pretrained(folder)
    model = ProbedModel.load(folder, device="cpu")
    np.testing.assert_array_equal(Activations.collect(model, sentences, tmp_path / "two", [1]).layer(1), before)
    with pytest.raises(ProbeError, match=r"sentence 2.* has token \d+, and .* its tokenizer is another model's"):
        model.encode([SENTENCES[2], ["zebra"]])


def test_a_model_of_few_positions_is_tried_with_as_many_tokens_as_it_reads(tmp_path):
    """RoBERTa counts positions from its padding's number on: 10 of them are 8 tokens."""
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    model = RobertaForMaskedLM(RobertaConfig(**sizes, max_position_embeddings=10, pad_token_id=1))
    assert [tuple(part.shape) for part in some_tokens(model)] == [(1, 8)] * 2
    model(*some_tokens(model))
