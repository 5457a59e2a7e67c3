"""Pairs as they come: ties stored on one side, other prefixes and dtypes, grown vocabularies; against plain reading of the files."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from surgery import Checkpoint, SparseDelta, graft, score
from surgery.checkpoints.counterparts import counterparts
from surgery.checkpoints.models import load_model
from surgery.checkpoints.pairing import check_alike
from surgery.errors import CheckpointError
from surgery.grafting.heads import with_tuned_head
from tests.checkpoints.test_structure import configure, rename
from tests.support import architectures
from tests.support.tiny import block_names, change, perturb, weights
from tests.tuning.test_tuning import task

TIED = {
    "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "roberta": ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "llama-tied": ("model.embed_tokens.weight", "lm_head.weight"),
}


def with_both(folder, kind, spoil=False):
    """Store both of two tied tensors, as the hub's older checkpoints do."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[TIED[kind][1]] = tensors[TIED[kind][0]].clone() + spoil
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def tuned(tiny, tmp_path):
    """`tuned(kind)`: a tiny checkpoint with some block weights and its embedding changed, where they are named."""

    def get(kind, **options):
        touched = perturb(tiny(kind), tmp_path / "moved", **options)
        name = TIED.get(kind, [None])[0]
        change(tmp_path / "moved", tmp_path / "tuned", lambda n, tensor: tensor * 1.5 if n == name else None)
        return tmp_path / "tuned", touched

    return get


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_tied_tensors_may_be_stored_on_one_side_only(copied, tuned, kind, side):
    base, (other, touched) = copied(kind), tuned(kind)
    alone = score(other, task(), device="cpu")  # transformers' own ties
    with_both(base if side == "base" else other, kind)
    skill = graft(base, other, task(), weights=20, method="movement", control=False, device="cpu")
    assert skill.report["tuned"]["accuracy"] == alone.accuracy
    assert skill.report["tuned"]["ece"] == pytest.approx(alone.ece, abs=1e-6)
    assert skill.report["moved"] == sum(map(len, touched.values()))
    assert TIED[kind][0] in skill.report["left_out"]


def test_tied_tensors_that_differ_in_the_files_are_refused(copied, tuned):
    base, (other, _) = copied("llama-tied"), tuned("llama-tied")
    with_both(other, "llama-tied", spoil=True)
    with pytest.raises(
        CheckpointError, match=r"tensors .* and .* are tied in its config\.json, but differ in its files"
    ):
        graft(base, other, task(), weights=20, method="movement", control=False, device="cpu")


@pytest.mark.parametrize(("kind", "prefix"), [("gpt2", "transformer."), ("bert", "bert."), ("llama", "model.")])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_prefixes_may_differ(copied, tuned, kind, prefix, side):
    base, (other, touched) = copied(kind), tuned(kind)
    rename(base if side == "base" else other, lambda name: name.removeprefix(prefix))
    delta = SparseDelta.between(Checkpoint(base), Checkpoint(other))
    found = {name.removeprefix(prefix): delta.part(name)[0].tolist() for name in delta.tensors}
    assert found == {name.removeprefix(prefix): indices for name, indices in touched.items()}
    assert (
        graft(base, other, task(), weights=20, method="movement", control=False, device="cpu").report["moved"]
        == delta.weights
    )


def test_a_bare_body_and_a_model_with_a_head_have_the_same_blocks(copied, tuned):
    base, (other, touched) = copied("bert"), tuned("bert")
    rename(base, lambda name: name.removeprefix("bert.") if name.startswith("bert.") else None)
    configure(base, architectures=["BertModel"])
    delta = SparseDelta.between(Checkpoint(base), Checkpoint(other))
    assert {f"bert.{name}": delta.part(name)[0].tolist() for name in delta.tensors} == touched


def test_counterparts_prefer_the_tensor_of_the_same_name(copied):
    base = Checkpoint(with_both(copied("gpt2"), "gpt2"))
    assert counterparts(base, base) == {name: name for name in base.structure.parameters}


@pytest.mark.parametrize("half", ["base", "tuned"])
def test_equal_values_in_another_dtype_are_equal(tiny, tmp_path, half):
    plain = change(tiny("llama"), tmp_path / "plain", lambda name, tensor: tensor.bfloat16().float())
    touched = perturb(plain, tmp_path / "moved")
    folders = {
        "base": plain,
        "tuned": change(tmp_path / "moved", tmp_path / "short", lambda n, t: t.bfloat16().float()),
    }
    folders[half] = change(folders[half], tmp_path / "half", lambda name, tensor: tensor.bfloat16())
    base, other = Checkpoint(folders["base"]), Checkpoint(folders["tuned"])
    delta = SparseDelta.between(base, other)
    assert {name: delta.part(name)[0].tolist() for name in delta.tensors} == touched
    assert delta.values.dtype == base.entries[block_names(plain)[0]].dtype
    report = graft(base, other, task(), weights=20, method="movement", control=False, device="cpu").report
    assert report["moved"] == sum(map(len, touched.values())) and report["left_out"] == []


def grow(folder, extra, rows=None):
    """Add tokens to a checkpoint's tokenizer, and rows to its embeddings, with transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(extra)
    tokenizer.save_pretrained(folder)
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder)
    model.resize_token_embeddings(rows or len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "bert-classifier"])
@pytest.mark.parametrize("rows", [None, 128])
def test_a_tokenizer_that_only_grew_is_accepted(tiny, tuned, kind, rows):
    other, touched = tuned(kind)
    grow(other, ["<new>", "<newer>"], rows)
    skill = graft(tiny(kind), other, task(), weights=20, method="movement", control=False, device="cpu")
    alone = score(other, task(), device="cpu")
    assert skill.report["tuned"]["accuracy"] == alone.accuracy
    assert skill.report["tuned"]["ece"] == pytest.approx(alone.ece, abs=1e-6)
    assert skill.report["moved"] == sum(map(len, touched.values()))
    before, after = weights(tiny(kind)), weights(other)
    wanted = sorted(name for name in before if before[name].shape != after[name].shape)
    assert skill.report["resized"] == wanted != []
    assert set(wanted) <= set(skill.report["left_out"])


@pytest.mark.parametrize("spoil", [0.0, 0.5])
def test_a_head_that_only_grew_is_resized_and_no_other_head(tiny, tuned, spoil):
    """LLaMA's output matrix is no embedding's: a pad token added for training gives it rows and leaves the others."""
    other, _ = tuned("llama")
    change(grow(other, ["<pad>"]), other.parent / "spoilt", lambda n, t: t + spoil if n == "lm_head.weight" else None)
    report = graft(
        tiny("llama"), other.parent / "spoilt", task(), weights=20, method="movement", control=False, device="cpu"
    ).report
    assert report["resized"] == ["lm_head.weight", "model.embed_tokens.weight"]
    assert report["head"] == (["lm_head.weight"] if spoil else [])


def test_embeddings_padded_to_more_rows_than_tokens(tiny, copied, tuned):
    """The base's embeddings padded, the tuned one's not: only rows that no token has are missing."""
    other, _ = tuned("gpt2")
    base = grow(copied("gpt2"), [], rows=128)
    skill = graft(base, other, task(), weights=20, device="cpu")
    assert skill.report["resized"] == ["transformer.wte.weight"]
    assert skill.report["tuned"]["ece"] == pytest.approx(score(other, task(), device="cpu").ece, abs=1e-6)


def test_too_few_rows_for_the_tokens(tiny, tuned):
    other, _ = tuned("bert")
    rows = 40
    configure(other, vocab_size=rows)
    tensors = load_file(other / "model.safetensors")
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        tensors[name] = tensors[name][:rows].clone()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has 40 rows in .*, too few for the .* tokens"):
        graft(tiny("bert"), other, task(), weights=20, method="movement", control=False, device="cpu")


def test_grown_tokenizers_must_split_the_texts_alike(tiny, tuned):
    other, _ = tuned("bert")
    grow(other, ["film was"])
    with pytest.raises(CheckpointError, match=r"split 'the film was .*' differently"):
        graft(tiny("bert"), other, task(), weights=20, method="movement", control=False, device="cpu")


def test_a_resized_tensor_cannot_move(tiny, tuned):
    other, _ = tuned("bert")
    grow(other, ["<new>"])
    with pytest.raises(CheckpointError, match=r"tensor \S*word_embeddings\.weight is \(\d+, 16\) in "):
        graft(tiny("bert"), other, task(), weights=20, include=["*word_embeddings*"], device="cpu")


def test_other_sizes_and_shrunk_tokenizers_are_refused(tiny, copied):
    wider = copied("bert", "wider")
    tensors = load_file(wider / "model.safetensors")
    name = "bert.embeddings.position_embeddings.weight"
    save_file({**tensors, name: torch.zeros(80, 16)}, wider / "model.safetensors", metadata={"format": "pt"})
    configure(wider, max_position_embeddings=80)
    with pytest.raises(CheckpointError, match=rf"tensor {name} is \(64, 16\) in .*, but \(80, 16\)"):
        check_alike(Checkpoint(tiny("bert")), Checkpoint(wider), [])
    grown = grow(copied("bert", "grown"), ["<new>"])
    with pytest.raises(CheckpointError, match="different tokenizers"):
        check_alike(Checkpoint(grown), Checkpoint(tiny("bert")), [])


def test_a_tuned_encoder_may_lack_the_pooler_that_nobody_reads(tiny, tmp_path):
    perturb(tiny("bert-encoder"), tmp_path / "tuned")
    rename(tmp_path / "tuned", lambda name: None if "pooler" in name else name)
    skill = graft(
        tiny("bert-encoder"), tmp_path / "tuned", task(), weights=20, method="movement", control=False, device="cpu"
    )
    assert (
        skill.report["tuned"]["accuracy"]
        == score(tmp_path / "tuned", task(), base=tiny("bert-encoder"), device="cpu").accuracy
    )


def test_holding_another_checkpoint_and_coming_back(tiny, tuned):
    other, _ = tuned("bert")
    grow(other, ["<new>"])
    base = Checkpoint(tiny("bert"))
    model = load_model(base, device="cpu")
    model.load_weights(Checkpoint(other))
    model.load_weights(base)
    assert all(torch.equal(model.parameters[name], tensor) for name, tensor in weights(tiny("bert")).items())


def test_two_named_tensors_of_other_shapes(copied):
    folders = [copied("bert", name) for name in ("base", "tuned")]
    for folder, size in zip(folders, (2, 3), strict=True):
        save_file({"a": torch.zeros(size)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor a is \(2,\) in .*, but \(3,\)"):
        SparseDelta.between(*map(Checkpoint, folders), ["a"])


# What configs on the hub say, where saving them again with today's library says it otherwise.
HUB = {
    "deberta-v3": (
        "DebertaV2ForMaskedLM",
        "masked",
        {"pos_att_type": "p2c|c2p", "relative_attention": True, "share_att_key": True},
    ),
    "qwen2": ("Qwen2ForCausalLM", "causal", {"use_sliding_window": False, "sliding_window": 131072}),
    "gemma": ("GemmaForCausalLM", "causal", {"hidden_act": "gelu", "hidden_activation": None}),
    "llama-3": ("LlamaForCausalLM", "causal", {"rope_theta": 500000.0, "rope_scaling": None, "initializer_range": 0.5}),
}


def hub_pair(tmp_path, name):
    """A base whose config.json is spelled as on the hub, and what a trainer's save makes of it."""
    class_name, kind, fields = HUB[name]
    base = architectures.build(class_name, tmp_path / "base", kind)
    config = json.loads((base / "config.json").read_text())
    config.pop("rope_parameters", None)
    (base / "config.json").write_text(json.dumps({**config, **fields}))
    perturb(base, tmp_path / "tuned")
    transformers.AutoConfig.from_pretrained(base).save_pretrained(tmp_path / "tuned")
    configure(tmp_path / "tuned", architectures=[class_name], initializer_range=0.02)
    return base, tmp_path / "tuned"


@pytest.mark.parametrize("name", HUB)
def test_configs_are_compared_as_the_library_reads_them(tmp_path, name):
    base, tuned = hub_pair(tmp_path, name)
    check_alike(Checkpoint(base), Checkpoint(tuned), [])
    assert weights(with_tuned_head(base, tuned, tmp_path / "made").folder).keys() == weights(base).keys()


def test_a_field_that_one_side_leaves_to_its_default_counts(tmp_path):
    """The base says in the old spelling what the tuned one says in the new: other angles in either."""
    base, tuned = hub_pair(tmp_path, "llama-3")
    configure(tuned, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    with pytest.raises(CheckpointError, match=r"config\.json says rope_parameters .*500000\.0.* but .*10000\.0"):
        check_alike(Checkpoint(base), Checkpoint(tuned), [])


def test_a_default_that_only_one_side_writes_counts(tmp_path, copied):
    bare, other = copied("bert", "bare"), copied("bert", "other")
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "hidden_act"}))
    check_alike(Checkpoint(bare), Checkpoint(other), [])
    configure(other, hidden_act="relu")
    with pytest.raises(CheckpointError, match=r"says hidden_act gelu in .*, but relu in "):
        check_alike(Checkpoint(bare), Checkpoint(other), [])
