"""The command `surgery`: commands registered, errors turned into one line and a status."""

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from cli import (
    bottleneck,
    emergence,
    evaluate,
    graft,
    pcfg,
    pcfg_compile,
    pcfg_pretrain,
    probe,
    score,
    select,
    skill,
    study,
    sync,
    tint,
    tune,
    tune_mezo,
    unlearn,
)
from cli.flags import with_flags
from cli.render import print_error
from cli.workers import alone, is_shared, launched


class _Commands(TyperGroup):
    """Commands of which some are called by two words, such as `tune replay` beside `tune BASE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of the first words: the name, the command, and what is left for it."""
        two = " ".join(args[:2])
        return (two, self.commands[two], args[2:]) if two in self.commands else super().resolve_command(ctx, args)


app = typer.Typer(
    name="surgery",
    cls=_Commands,
    help="Find, move, remove and measure skills in language-model checkpoints.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(tune.tune)
app.command("tune replay")(tune_mezo.replay)
app.command()(graft.graft)
skill.app.command()(study.study)
app.add_typer(skill.app, name="skill")
app.command()(score.score)
app.command()(unlearn.unlearn)
app.add_typer(bottleneck.app, name="bottleneck")
pcfg.app.command()(pcfg_pretrain.pretrain)
pcfg.app.command()(pcfg_compile.compile)
app.add_typer(pcfg.app, name="pcfg")
app.add_typer(tint.app, name="tint")
app.command()(probe.probe)
app.add_typer(emergence.app, name="emergence")
app.add_typer(evaluate.app, name="eval")
app.add_typer(sync.app, name="sync")
app.command()(select.select)
app.command("select score")(select.score)
app.command("select show")(select.show)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from surgery.provenance import package_version

        print(package_version("surgery"))
        raise typer.Exit


def main() -> None:
    """Run; a mistake of the user's ends with one sentence on stderr and status 2."""
    from surgery.errors import SurgeryError

    if launched():
        _under_launcher()
    try:
        if launched() and not is_shared(sys.argv[1:]):
            alone(" ".join(["surgery", *sys.argv[1:2], *(word for word in sys.argv[1:] if word == "--dry-run")]))
        app()
    except SurgeryError as error:
        if not launched() or _is_the_one_to_say_so(error):
            print_error(with_flags(str(error), _command(sys.argv[1:])))
        sys.exit(_status(error) if launched() else 2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which isn't imported here
            raise
        print_error("the device's memory is full: lower --batch-size or --max-length, or use --dtype bfloat16")
        sys.exit(2)
    except MemoryError:
        print_error("the memory is full: give fewer or shorter inputs, or lower what the options ask for")
        sys.exit(2)
    except OSError as error:  # disk full, no permission: the library has left nothing half written
        print_error(f"{error.filename or 'the system'}: {error.strerror or error}")
        sys.exit(2)


def _under_launcher() -> None:
    """Start the worker itself in a process of its own, where there are several; there, end with the one that started it."""
    from surgery.sync.launch import die_with_parent, is_outer, outlive

    if is_outer():
        sys.exit(outlive(sys.argv[1:]))
    die_with_parent()


def _is_the_one_to_say_so(error: Exception) -> bool:
    from surgery.sync.errors import EndedElsewhereError, LeftOutError
    from surgery.sync.launch import tell_failure

    return isinstance(error, LeftOutError) or (not isinstance(error, EndedElsewhereError) and tell_failure())


def _status(error: Exception) -> int:
    from surgery.sync.errors import LeftOutError
    from surgery.sync.launch import LEFT_OUT

    return LEFT_OUT if isinstance(error, LeftOutError) else 2


def _command(arguments: Sequence[str]) -> Any:
    """The command that these arguments ran."""
    command: Any = typer.main.get_command(app)
    if (two := " ".join(arguments[:2])) in command.commands:
        return command.commands[two]
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    return command


if __name__ == "__main__":
    main()
