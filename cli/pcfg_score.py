"""`surgery pcfg score`: parses against gold trees."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import options
from cli.grammars import whole_label
from cli.render import print_json, say


def score(
    gold: Annotated[Path, typer.Argument(help="Gold trees.")],
    parses: Annotated[
        Path, typer.Argument(help="Parses of the same sentences; (()) or an empty line where there is none.")
    ],
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled/--evalb",
            help="Unlabelled F1, averaged over sentences, for unsupervised parsers; or labelled F1 as EVALB counts.",
        ),
    ] = False,
    kim: Annotated[
        bool,
        typer.Option(
            "--kim",
            help="Unlabelled F1 as Kim et al. 2019 count: -LRB-, -RRB-, $ and # go too, a sentence of two words scores 1.",
        ),
    ] = False,
    keep_labels: Annotated[
        bool, typer.Option("--keep-labels", help="Compare labels whole: EVALB cuts them at - and =.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Score parses against gold trees; the result names the convention it was counted by."""
    from pcfg.errors import OptionError
    from pcfg.treebanks.evalb import read_pairs, score_labelled, score_unlabelled

    unlabelled = unlabelled or kim
    if unlabelled and keep_labels:
        raise OptionError("--keep-labels is for labelled scores: leave it out")
    wanted, parsed = read_pairs(gold, parses)
    if unlabelled:
        plain = score_unlabelled(wanted, parsed, kim=kim)
        result: dict[str, Any] = {"skipped": plain.skipped, "sentences": len(plain.f1s)}
        line, shared = str(plain), plain
    else:
        full = score_labelled(wanted, parsed, keep_labels=keep_labels)
        names = ("precision", "recall", "complete_match", "matched", "predicted", "gold", "sentences")
        result = {name: getattr(full, name) for name in names}
        result["valid"] = {name: getattr(full.valid, name) for name in ("f1", *names)}
        line, shared = str(full), full  # type: ignore[assignment]
    if json:
        print_json({"f1": shared.f1, "convention": shared.convention, "unparsed": shared.unparsed, **result})
        return
    say(line)
    if not (unlabelled or keep_labels) and (label := whole_label(wanted)) is not None:
        say(f"Labels such as {label} were cut at - and =, as EVALB does: --keep-labels compares them whole")
