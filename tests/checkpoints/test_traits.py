"""What a skill's base computes besides its weights: changed fields and tokenizers are refused by name, mere re-saves aren't."""

import json
import shutil
from dataclasses import replace

import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from surgery.checkpoints.applying import patch_folder, unchecked, write_patched
from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import SkillError
from surgery.grafting.algebra import merge
from surgery.grafting.skill import Skill
from surgery.tasks.task import Task
from tests.support.tiny import block_names, hashes, perturb


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def other(folder, target, change, file="config.json"):
    shutil.copytree(folder, target)
    edit(target / file, change)
    return target


@pytest.fixture
def loaded(tmp_path):
    """`loaded(base)`: a delta over it as a file gives it back."""

    def get(base):
        perturb(base, tmp_path / "tuned", count=20)
        file = tmp_path / "skill.safetensors"
        made = SparseDelta.between(Checkpoint(base), Checkpoint(tmp_path / "tuned"), block_names(base))
        file.write_bytes(made.to_bytes())
        return SparseDelta.load(file)

    return get


def refused(delta, folder, out, message):
    before = hashes(folder)
    with pytest.raises(SkillError, match=message) as caught:
        write_patched(delta, Checkpoint(folder), out)
    assert f"{folder} is not the skill's base: its " in str(caught.value)
    with pytest.raises(SkillError, match=message):
        patch_folder(delta, folder)
    assert hashes(folder) == before
    assert not out.exists()


# -- the config ------------------------------------------------------------------------------------------------------

CHANGED = {
    "hidden_act": ("bert", {"hidden_act": "relu"}, 'hidden_act "relu" instead of "gelu"'),
    "layer_norm_eps": ("bert", {"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05 instead of 1e-12"),
    "num_attention_heads": ("bert", {"num_attention_heads": 1}, r"num_attention_heads 1 instead of \d"),
    "architectures": ("bert", {"architectures": ["BertModel"]}, r'architectures \["BertModel"\] instead of'),
    "is_decoder": ("bert", {"is_decoder": True}, "is_decoder true instead of false"),
    "pad_token_id": ("roberta", {"pad_token_id": 0}, "pad_token_id 0 instead of 1"),
    "rope": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, "rope_parameters .*500"),
    "model_type": ("bert", {"model_type": "roberta"}, 'model_type "roberta" instead of "bert"'),
    "unheard of": ("bert", {"model_type": "unheard-of"}, 'model_type "unheard-of" instead of "bert"'),
}


@pytest.mark.parametrize(("kind", "fields", "message"), CHANGED.values(), ids=CHANGED)
def test_a_field_that_matters_is_refused_by_name(tiny, tmp_path, loaded, kind, fields, message):
    delta = loaded(tiny(kind))
    folder = other(tiny(kind), tmp_path / "other", lambda config: config.update(fields))
    refused(delta, folder, tmp_path / "out", f"config.json says {message}")


FREE = {
    "id2label": {"0": "good", "1": "bad"},
    "hidden_dropout_prob": 0.4,
    "transformers_version": "3.0.2",
    "dtype": "float16",
    "torch_dtype": "float16",
    "use_cache": False,
    "initializer_range": 3.0,
    "_name_or_path": "elsewhere",
    "output_attentions": True,
    "gradient_checkpointing": True,
    "eos_token_id": 5,
}


@pytest.mark.parametrize("field", FREE)
def test_a_field_that_changes_nothing_is_free(tiny, tmp_path, loaded, field):
    folder = other(tiny("bert"), tmp_path / "other", lambda config: config.update({field: FREE[field]}))
    delta = loaded(tiny("bert"))
    write_patched(delta, Checkpoint(folder), tmp_path / "out")
    patch_folder(delta, folder)


def test_a_default_counts_whether_it_is_written_or_not(tiny, tmp_path, loaded):
    """BERT's own defaults: GELU, an epsilon of 1e-12."""
    bare = other(tiny("bert"), tmp_path / "bare", lambda c: [c.pop("hidden_act"), c.pop("layer_norm_eps")])
    write_patched(loaded(tiny("bert")), Checkpoint(bare), tmp_path / "out")
    relu = other(tiny("bert"), tmp_path / "relu", lambda config: config.update(hidden_act="relu"))
    shutil.rmtree(tmp_path / "tuned")
    refused(loaded(relu), bare, tmp_path / "no", 'hidden_act "gelu" instead of "relu"')


def test_a_kind_of_model_that_the_library_does_not_know_is_compared_as_it_stands(tiny, tmp_path, loaded):
    base = other(tiny("bert"), tmp_path / "base", lambda c: c.update(model_type="mine", twist=float("nan"), depth=2))
    delta = loaded(base)
    write_patched(delta, Checkpoint(base), tmp_path / "out")
    folder = other(base, tmp_path / "other", lambda config: config.update(depth=3))
    refused(delta, folder, tmp_path / "no", "depth 3 instead of 2")


# -- the tokenizer ---------------------------------------------------------------------------------------------------


def bpe(folder, merges=(["a", "n"], ["t", "h"], ["th", "e"]), lower=False, mask="[MASK]"):
    """A small BPE tokenizer in place of the folder's own."""
    letters = sorted({*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!? '", "an", "th", "the"})
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[MASK]", "[SEP]", *letters])}
    core = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in merges], unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        core.normalizer = normalizers.Lowercase()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", mask_token=mask
    )
    made.save_pretrained(folder)
    return folder


def swap_two_words(content):
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def test_a_tokenizer_with_two_words_swapped_is_refused(tiny, tmp_path, loaded):
    folder = other(tiny("bert"), tmp_path / "other", swap_two_words, "tokenizer.json")
    refused(loaded(tiny("bert")), folder, tmp_path / "out", "its tokenizer has another vocabulary")


def test_a_tokenizer_that_sets_no_marks_is_refused(tiny, tmp_path, loaded):
    folder = other(tiny("bert"), tmp_path / "other", lambda c: c.update(post_processor=None), "tokenizer.json")
    refused(loaded(tiny("bert")), folder, tmp_path / "out", "its tokenizer makes other tokens of .The film, ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merges": (["t", "h"], ["a", "n"], ["th", "e"])}, "has other merges or scores"),
        ({"lower": True}, "makes other tokens of .The film, "),
        ({"mask": "[SEP]"}, r"has mask_token '\[SEP\]' instead of '\[MASK\]'"),
    ],
    ids=["merges", "normaliser", "special token"],
)
def test_other_merges_normalisers_and_special_tokens_are_refused(copied, tmp_path, loaded, options, message):
    base = bpe(copied("llama"))
    folder = bpe(shutil.copytree(base, tmp_path / "other"), **options)
    refused(loaded(base), folder, tmp_path / "out", f"its tokenizer {message}")


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2", "bpe"])
def test_a_folder_that_was_saved_again_is_the_base(copied, tmp_path, loaded, kind):
    base = bpe(copied("llama")) if kind == "bpe" else copied(kind)
    again = shutil.copytree(base, tmp_path / "again")
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(again)
    transformers.AutoConfig.from_pretrained(base).save_pretrained(again)
    for file in ("tokenizer.json", "config.json"):  # the same in another order and spelling
        edit(again / file, lambda content: content.update(dict(reversed(content.items()))))
    edit(again / "tokenizer.json", lambda c: c.update(truncation=None, padding=None, version="1.0"))
    if kind == "bpe":
        edit(again / "tokenizer.json", lambda c: c["model"].update(merges=["a n", "t h", "th e"]))
    assert hashes(again) != hashes(base)
    delta = loaded(base)
    write_patched(delta, Checkpoint(again), tmp_path / "out")
    assert unchecked(delta, Checkpoint(again)) == ""


def without_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    return folder


def test_folders_without_a_tokenizer(tiny, copied, tmp_path, loaded):
    bare = without_tokenizer(copied("bert"))
    write_patched(loaded(tiny("bert")), Checkpoint(bare), tmp_path / "out")
    assert unchecked(loaded_again(tmp_path), Checkpoint(bare)) == f"the tokenizer, since {bare} has none"
    shutil.rmtree(tmp_path / "tuned")
    delta = loaded(bare)
    for number, folder in enumerate((bare, tiny("bert"))):
        write_patched(delta, Checkpoint(folder), tmp_path / f"out{number}")
        assert unchecked(delta, Checkpoint(folder)) == "the tokenizer, since the skill's base had none"


def loaded_again(tmp_path):
    return SparseDelta.load(tmp_path / "skill.safetensors")


# -- older skills, damaged ones, half done ones, two of them ------------------------------------------------------------


def test_an_older_skill_says_what_it_cannot_check(tiny, tmp_path, loaded, run):
    delta = replace(loaded(tiny("bert")), traits=None, metadata={"task": json.dumps(Task.load("sst2").spec())})
    assert b"traits" not in delta.to_bytes()
    Skill(delta, Task.load("sst2"), {}).save(tmp_path / "skill", figures=False)
    folder = other(tiny("bert"), tmp_path / "other", lambda config: config.update(hidden_act="relu"))
    status, out, _ = run("skill", "apply", tmp_path / "skill", folder, "-o", tmp_path / "out")
    assert status == 0 and "not checked: config and tokenizer, which the skill doesn't hold" in out
    out = run("skill", "apply", tmp_path / "skill", folder, "-o", tmp_path / "out2", "--json")[1]
    assert json.loads(out)["unchecked"].startswith("config and tokenizer")


@pytest.mark.parametrize(
    "traits",
    ["", "[]", "{}", '{"config":[],"files":"","tokenizer":{}}', '{"config":{},"files":"","tokenizer":{"a":1}}'],
)
def test_damaged_traits_are_refused(tiny, tmp_path, loaded, traits, monkeypatch):
    delta = loaded(tiny("bert"))
    monkeypatch.setattr("surgery.checkpoints.traits.Traits.to_json", lambda self: traits)
    (tmp_path / "bad.safetensors").write_bytes(delta.to_bytes())
    with pytest.raises(SkillError, match=r"bad\.safetensors: its header or arrays can't be read"):
        SparseDelta.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("direction", ["apply", "revert"])
def test_a_changed_config_does_not_keep_a_half_done_patch_from_being_completed(copied, loaded, monkeypatch, direction):
    base = copied("bert")
    delta = loaded(base)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as moment, pytest.raises(KeyboardInterrupt):
        moment.setattr("surgery.checkpoints.applying.patch_in_place", killed)
        patch_folder(delta, base)
    edit(base / "config.json", lambda config: config.update(hidden_act="relu"))
    patch_folder(delta, base, direction=direction)
    assert not (base / JOURNAL).exists()


def test_skills_of_one_set_of_weights_and_two_configs_are_not_merged(tiny, tmp_path, loaded):
    first = loaded(tiny("bert"))
    shutil.rmtree(tmp_path / "tuned")
    second = loaded(other(tiny("bert"), tmp_path / "other", lambda config: config.update(hidden_act="relu")))
    assert first.base_fingerprint == second.base_fingerprint
    with pytest.raises(SkillError, match=r'the second\'s config\.json says hidden_act "relu" instead of "gelu"'):
        merge([first, second])
    assert merge([first, first]).traits == first.traits == first.inverse().traits
