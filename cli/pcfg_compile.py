"""`surgery pcfg compile`: a transformer whose weights are a grammar."""

import time
from typing import Annotated

import typer

from cli import grammars, options
from cli.render import print_json, print_table, say


def compile(
    grammar: grammars.GrammarFile,
    max_length: Annotated[int, typer.Option(min=2, help="Most words of a sentence: L gives 2 (L - 1) layers.")] = 20,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Keep this many of the nonterminals, those used most: smaller, and no longer exact for the grammar given.",
            show_default="all",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    show: Annotated[
        bool, typer.Option("--show", help="List the heads: what each reads and writes; without -o nothing is saved.")
    ] = False,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Compile a grammar into a transformer that computes its Inside-Outside algorithm: no training, every slot named."""
    from pcfg.compiled import compile_transformer, save
    from pcfg.compiled.sizes import Sizes
    from pcfg.learning.pruning_by_use import prune, share_parsed
    from surgery.files import check_output

    folder, began = output if show and output is None else options.need_output(output), time.monotonic()
    if folder is not None:
        check_output(folder, overwrite=overwrite, replaces="slots.json", inputs=[grammar])
    whole = grammars.load_grammar(grammar)
    kept = whole if keep is None or keep >= len(whole.nonterminals) else prune(whole, keep)
    model = compile_transformer(kept, max_length=max_length, dtype=dtype)
    if folder is not None:
        save(model, kept, folder, overwrite=overwrite)
    parsed = 1.0 if kept is whole else share_parsed(kept, whole, max_length=max_length)
    sizes = Sizes.of(kept, max_length)
    heads = model.circuit()["heads"]
    if json:
        content = {
            "output": folder and str(folder),
            "parsed": parsed,
            "layers": sizes.layers,
            "heads": [sizes.inside_heads, sizes.outside_heads],
        }
        content |= {"width": sizes.width, "stored": sizes.stored, "nonterminals": len(kept.nonterminals)}
        print_json({**content, "operations": sizes.operations, "seconds": round(time.monotonic() - began, 2)})
        return
    if show:
        rows = [[head["kind"], head["symbol"], str(len(head["rules"])), ", ".join(head["writes"])] for head in heads]
        print_table("heads", ["layer", "right child", "rules", "writes"], rows)
    columns, lines = sizes.table()
    print_table("sizes, beside the paper's constructions", columns, [[str(cell) for cell in line] for line in lines])
    say(
        f"{folder or grammar}: {sizes.layers} layers, states of {sizes.width:,} dimensions, {sizes.stored:,} numbers stored"
    )
    if kept is not whole:
        say(
            f"exact for the {len(kept.nonterminals):,} nonterminals kept of {len(whole.nonterminals):,}, which have a tree for {100 * parsed:.0f}% of the sentences that the whole grammar makes"
        )
