"""`surgery probe`: does a model hold the parse? Every layer, every control, one report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.grammars import load_grammar
from cli.pcfg_pretrain import count
from cli.render import print_json, progress_bar, say
from cli.resuming import state_beside

if TYPE_CHECKING:
    from probes.report import ProbeReport


def probe(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model folder or hub id; without one, a small model is trained on a small grammar.", show_default=False
        ),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(help="The grammar that the model was trained on.", show_default="the one in the model's folder"),
    ] = None,
    trees: Annotated[
        Path | None,
        typer.Option(help="A treebank, file or folder, to probe a natural-language model against.", show_default=False),
    ] = None,
    nltk_treebank: Annotated[
        bool, typer.Option("--nltk-treebank", help="NLTK's sample of the Penn Treebank, found by NLTK_DATA.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(help="Sentences, one a line; they must be the trees'.", show_default="drawn, or the trees'"),
    ] = None,
    sentences: Annotated[
        str | None,
        typer.Option(
            help="How many to draw, or to take at most of what is given; a quarter is held out.", show_default="2000"
        ),
    ] = None,
    max_length: Annotated[int, typer.Option(min=3, help="Most words of a sentence.")] = 40,
    layers: Annotated[str, typer.Option(help="all, or numbers such as 0,3,6.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Of every probe.")] = 5,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to keep hidden states in for a next run.", show_default="a temporary one"),
    ] = None,
    output: options.ExampleOutput = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Probe every layer for span marginals, trees and masked words, with every control, and write a report.

    A run that was stopped goes on after the last layer that was done.

    Without arguments: a small grammar, a small model, a report, in about five minutes.
    """
    from functools import partial

    from probes import probe_spans, probe_trees
    from probes.report import SCHEMA_FILE
    from surgery.errors import OptionError
    from surgery.files import check_output

    folder = Path("probe-example/report") if output is None and model is None else options.need_output(output)
    inputs = [p for p in (model, grammar, trees, text) if p is not None]
    check_output(folder, overwrite=overwrite, replaces=SCHEMA_FILE, inputs=inputs)
    most = count(sentences or "2000", "--sentences")
    settings: dict[str, Any] = {"layers": layers, "seeds": seeds, "seed": seed, "device": device, "cache": cache}
    if sum(given is not None and given is not False for given in (grammar, trees, nltk_treebank)) > 1:
        raise OptionError("give one of --grammar, --trees and --nltk-treebank: the report is about one of them")
    if model is None:
        from probes.example import run_example

        if grammar is not None or trees is not None or nltk_treebank or text is not None:
            raise OptionError("MODEL is missing: name the folder of the model to probe")
        if sentences is not None:
            settings["sentences"] = most
        say(f"No model was named: an example, in {folder.parent}", quiet=json)
        run = partial(run_example, folder.parent)
    elif trees is not None or nltk_treebank:
        from cli.grammars import read_bank

        bank, words = read_bank(trees, nltk_treebank), None if text is None else _text(text)[:most]
        if words is None:  # else they are matched first, and long ones left out then
            bank = [tree for tree in bank if len(tree.words()) <= max_length]
        run = partial(probe_trees, model, bank[:most], words, max_length=max_length)
    else:
        loaded = load_grammar(_grammar_of(model) if grammar is None else grammar)
        drawn = most if text is None else [s for s in _text(text) if len(s) <= max_length][:most]
        run = partial(probe_spans, model, loaded, drawn, max_length=max_length)
    with state_beside(folder) as state:
        with progress_bar() as progress:
            report = run(**settings, resume=state, progress=progress)
        report.save(folder, overwrite=overwrite)
    _show(report, folder, json)


def _show(report: "ProbeReport", folder: Path, json: bool) -> None:
    if json:
        verdicts = [
            {"probe": v.probe, "metric": v.metric, "control": v.control, "beats": v.beats} for v in report.verdicts
        ]
        share = report.find("span-two-layer", "model", "f1 share", report.best_layer)
        found = {"best_layer": report.best_layer, "f1_share": share and share.value, "verdicts": verdicts}
        print_json({"output": str(folder), **found, "seconds": report.seconds})
        return
    say(f"probes of {report.model['name']}\n\n{report.text()}\n")
    for line in (*report.summary, *report.remarks):
        say(line)
    for example in report.examples[-1:]:
        say(f"\n{example.text()}")
    say(f"\n{folder / 'index.html'}: figures and all numbers, in {report.seconds:.0f} s")


def _grammar_of(model: str) -> Path:
    """The grammar beside a model that `surgery pcfg pretrain` made."""
    from pcfg.grammars.grammar import GRAMMAR_FILE
    from surgery.errors import OptionError

    found = Path(model).expanduser() / GRAMMAR_FILE
    if not found.exists():
        raise OptionError(f"{model} holds no {GRAMMAR_FILE}: name a grammar by --grammar, or trees by --trees")
    return found


def _text(path: Path) -> list[list[str]]:
    from pcfg.sentences import read_sentences

    return read_sentences(path)
