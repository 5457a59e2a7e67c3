"""`surgery score`."""

from typing import Annotated

import typer

from cli import options
from cli.render import figure, print_json, print_table, progress_bar


def score(
    model: Annotated[str, typer.Argument(help="Checkpoint to score: a folder or a hub id.")],
    task: options.NeededTaskName = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Examples: .jsonl, .csv, .tsv, .parquet or a dataset id. Required.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another checkpoint, to report how often both predict the same.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="For sentence encoders without a readout file: the checkpoint that embeds the phrases."),
    ] = None,
    prompt: options.Prompt = None,
    word: options.Word = None,
    phrase: options.Phrase = None,
    column: options.Column = None,
    max_length: options.MaxLength = 128,
    batch_size: options.BatchSize = 32,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Score a checkpoint on a task: accuracy, F1, calibration error, agreement."""
    from surgery.files import check_output
    from surgery.tasks.scoring import score as run

    if output:
        check_output(output, overwrite=overwrite, inputs=[model, against, base, data])
    loaded = options.load_task(
        task, test=data, prompt=prompt, word=word, phrase=phrase, column=column, max_length=max_length
    )
    with progress_bar() as progress:
        result = run(
            model,
            loaded,
            against=against,
            base=base,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            progress=progress,
        )
    if output:
        result.save(output, overwrite=overwrite)
    if json:
        print_json({"model": model, **result.figures(), "output": output and str(output)})
        return
    columns, ((_, examples, *figures),) = result.table()
    print_table("", ["", *columns[1:]], [[model, f"{examples:,}", *map(figure, figures)]])
