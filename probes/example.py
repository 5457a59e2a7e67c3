"""The embedded example: a small grammar of English, a small model trained on it, a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcfg.devices import Device
from probes.errors import ProbeError
from probes.report import ProbeReport
from surgery.progress import Progress, silent

if TYPE_CHECKING:
    from pcfg.grammars.grammar import Grammar
    from pcfg.learning.pretraining import PretrainRecipe

LENGTH, SENTENCES = 16, 1000
_RULES = """
S -> NP VP [0.85] | S CONJ_S [0.1] | PP COMMA_S [0.05]
COMMA_S -> COMMA S [1.0]
CONJ_S -> CONJ S [1.0]
NP -> DET N [0.3] | DET ADJ_N [0.1] | ADJ N [0.15] | N N [0.15] | NP PP [0.18] | NP REL [0.12]
ADJ_N -> ADJ N [0.75] | ADJ ADJ_N [0.25]
PP -> P NP [1.0]
REL -> WHO VP [1.0]
VP -> V NP [0.55] | VP PP [0.2] | V THAT_S [0.1] | VP ADV [0.15]
THAT_S -> THAT S [1.0]
COMMA -> ',' [1.0]
CONJ -> 'and' [0.7] | 'but' [0.3]
DET -> 'the' [0.4] | 'a' [0.3] | 'every' [0.1] | 'that' [0.2]
N -> 'fish' [0.14] | 'watch' [0.14] | 'light' [0.14] | 'play' [0.14] | 'book' [0.14] | 'cross' [0.1] | 'dog' [0.1] | 'child' [0.1]
V -> 'fish' [0.12] | 'watch' [0.12] | 'light' [0.12] | 'play' [0.12] | 'book' [0.12] | 'cross' [0.1] | 'like' [0.1] | 'see' [0.2]
ADJ -> 'light' [0.3] | 'cross' [0.3] | 'old' [0.2] | 'play' [0.1] | 'fish' [0.1]
P -> 'like' [0.4] | 'with' [0.3] | 'near' [0.3]
WHO -> 'that' [0.7] | 'who' [0.3]
THAT -> 'that' [1.0]
ADV -> 'often' [0.3] | 'today' [0.3] | 'light' [0.4]
"""


def example_grammar() -> "Grammar":
    """Return a grammar of attachments, relative clauses and coordination, by which many sentences have several trees."""
    import nltk

    from pcfg.grammars.grammar import Grammar

    return Grammar.from_nltk(nltk.PCFG.fromstring(_RULES))


def example_recipe() -> "PretrainRecipe":
    """Return the settings of a two-layer model that trains for about two minutes."""
    from pcfg.learning.pretraining import PretrainRecipe

    return PretrainRecipe(layers=2, heads=4, width=64, sentences=100_000, max_length=LENGTH, rate=3e-3, evaluation=500)


def run_example(
    folder: Path,
    sentences: int = SENTENCES,
    *,
    seed: int = 0,
    device: Device | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> ProbeReport:
    """Train the model into `folder/mlm` (going on where a killed run was, or taking the finished one), then probe it.

    Other settings are `probe_spans`'s. Raises ProbeError where `folder/mlm` is something else.
    """
    from shutil import rmtree

    from pcfg.grammars.grammar import GRAMMAR_FILE, Grammar
    from pcfg.learning.pretraining import pretrain
    from probes.experiment import probe_spans

    grammar, model = example_grammar(), folder / "mlm"
    if model.exists():
        file = model / GRAMMAR_FILE
        if not (file.exists() and Grammar.load(file).fingerprint == grammar.fingerprint):
            raise ProbeError(f"{model} is in the way, and isn't the example's model: move it, or name another output")
    else:
        partial = folder / "mlm.partial"
        pretrain(grammar, example_recipe(), seed=seed, device=device, resume=partial, progress=progress).save(model)
        rmtree(partial, ignore_errors=True)
    return probe_spans(
        model, grammar, sentences, seed=seed, max_length=LENGTH, device=device, progress=progress, **settings
    )
