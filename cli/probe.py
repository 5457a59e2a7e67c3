"""`surgery probe`: does a model hold the parse? Every layer, every control, one report."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, workers
from cli.grammars import NltkTreebank, load_grammar, read_bank
from cli.render import print_json, progress_bar, say
from cli.resuming import state_beside
from surgery.errors import OptionError

if TYPE_CHECKING:
    from probes.report import ProbeReport


# Long: options, declared where Typer reads them.
def probe(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model folder or hub id; without one, a small model is trained on a small grammar first.",
            show_default=False,
        ),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(help="Grammar that the model was trained on.", show_default="the one in the model's folder"),
    ] = None,
    trees: Annotated[
        Path | None,
        typer.Option(help="Treebank, a file or folder, to probe a natural-language model against.", show_default=False),
    ] = None,
    nltk_treebank: NltkTreebank = False,
    text: Annotated[
        Path | None,
        typer.Option(
            help="File of sentences, one a line, of the grammar or of the trees.", show_default="drawn, or the trees'"
        ),
    ] = None,
    sentences: Annotated[
        str | None,
        typer.Option(
            help="Number to draw from the grammar, or to take at most of those given; a quarter is held out to test on.",
            show_default="2000",
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=3, help="Most words a sentence may have; longer ones are left out.")
    ] = 40,
    layers: Annotated[
        str, typer.Option(help="Layers to probe: all, or numbers such as 0,3,6; 0 is the embeddings.")
    ] = "all",
    seeds: Annotated[
        int, typer.Option(min=1, help="Times that every probe is trained, each time with another seed.")
    ] = 5,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps hidden states for the next run.", show_default="a temporary one"),
    ] = None,
    output: options.ExampleOutput = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Probe every layer for span marginals, trees and masked words, with every control, and write a report.

    A run that was stopped goes on after the last layer that was done. Under torchrun several workers share the layers.

    Without arguments: a small grammar, a small model, a report, in about five minutes.
    """
    from probes.report import SCHEMA_FILE
    from surgery.files import check_output

    if model is None:
        workers.alone("surgery probe without a model")
    folder = Path("probe-example/report") if output is None and model is None else options.need_output(output)
    inputs = [p for p in (model, grammar, trees, text) if p is not None]
    check_output(folder, overwrite=overwrite, replaces=SCHEMA_FILE, inputs=inputs)
    run = _choose(model, grammar, trees, nltk_treebank, text, sentences, max_length, folder)
    if model is None:
        say(f"No model was named: an example, in {folder.parent}", quiet=json)
    place = workers.device(device)
    with workers.by_rank(), state_beside(folder) as state:
        with progress_bar() as progress:
            report = run(
                layers=layers, seeds=seeds, seed=seed, device=place, cache=cache, resume=state, progress=progress
            )
        report.save(folder, overwrite=overwrite)
        _show(report, folder, json)


def _choose(
    model: str | None,
    grammar: Path | None,
    trees: Path | None,
    nltk_treebank: bool,
    text: Path | None,
    sentences: str | None,
    max_length: int,
    folder: Path,
) -> Callable[..., "ProbeReport"]:
    """What to run by the options given: the example, a model against a treebank, or a model against its grammar."""
    from functools import partial

    from probes import probe_spans, probe_trees
    from probes.example import SENTENCES, run_example

    most = options.whole_number(sentences or "2000", "--sentences")
    if sum(given is not None and given is not False for given in (grammar, trees, nltk_treebank)) > 1:
        raise OptionError("give one of --grammar, --trees and --nltk-treebank: the report is about one of them")
    if model is None:
        if grammar is not None or trees is not None or nltk_treebank or text is not None:
            raise OptionError("MODEL is missing: name the folder of the model to probe")
        return partial(run_example, folder.parent, SENTENCES if sentences is None else most)
    given = None if text is None else _text(text)
    if trees is not None or nltk_treebank:
        bank = read_bank(trees, nltk_treebank)
        if given is None:  # else they are matched first, and long ones left out then
            bank = [tree for tree in bank if len(tree.words()) <= max_length]
        return partial(probe_trees, model, bank[:most], given and given[:most], max_length=max_length)
    loaded = load_grammar(_grammar_of(model) if grammar is None else grammar)
    drawn = most if given is None else [words for words in given if len(words) <= max_length][:most]
    return partial(probe_spans, model, loaded, drawn, max_length=max_length)


def _show(report: "ProbeReport", folder: Path, json: bool) -> None:
    if json:
        verdicts = [
            {"probe": v.probe, "metric": v.metric, "control": v.control, "beats": v.beats} for v in report.verdicts
        ]
        share = report.find("span-two-layer", "model", "f1 share", report.best_layer)
        content = {"best_layer": report.best_layer, "f1_share": share and share.value, "verdicts": verdicts}
        print_json({"output": str(folder), **content, "seconds": report.seconds})
        return
    say(f"probes of {report.model['name']}\n\n{report.text()}\n")
    lost = [f"Controls that aren't beaten by more than the 95% intervals - {'; '.join(report.unbeaten)}."]
    for line in (*report.summary, *(lost if report.unbeaten else ()), *report.remarks):
        say(line)
    for example in report.examples[-1:]:
        say(f"\n{example.text()}")
    say(f"\n{folder / 'index.html'}: figures and all numbers, in {report.seconds:.0f} s")


def _grammar_of(model: str) -> Path:
    """The grammar beside a model that `surgery pcfg pretrain` made."""
    from pcfg.grammars.grammar import GRAMMAR_FILE

    grammar = Path(model).expanduser() / GRAMMAR_FILE
    if not grammar.parent.is_dir():
        raise OptionError(
            f"{model} isn't a folder here: name a model's folder, or a grammar or trees too for a hub id (--grammar, --trees)"
        )
    if not grammar.exists():
        raise OptionError(f"{model} holds no {GRAMMAR_FILE}: name a grammar by --grammar, or trees by --trees")
    return grammar


def _text(path: Path) -> list[list[str]]:
    from pcfg.sentences import read_sentences

    return read_sentences(path)
