"""Errors of the library as the command line says them."""

import pytest

from cli import main
from cli.flags import with_flags


@pytest.mark.parametrize(
    ("arguments", "message", "said"),
    [
        (["bottleneck", "fit", "-o", "x"], "`key_dim` 13 is too much: lower it", "--key-dim 13 is too much: lower it"),
        (["bottleneck", "fit"], "`output` or `seed`", "--output or --seed"),
        (["graft"], "`key_dim` 13", "`key_dim` 13"),  # no option of this command
        (["bottleneck", "show"], "run `surgery unlearn` on `key_dim`", "run `surgery unlearn` on `key_dim`"),
        ([], "`seed`", "`seed`"),
        (["graft"], "give `train`, `test` or `words` a=b", "give --data, --eval or --word a=b"),
        (["score", "x"], "give `test`", "give --data"),
    ],
)
def test_parameters_are_said_as_options_of_the_command_that_ran(arguments, message, said):
    assert with_flags(message, main._command(arguments)) == said
