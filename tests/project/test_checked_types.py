"""Shapes and types that tests check of every call: a mistake of each kind is found."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from jaxtyping import Float, Float32, TypeCheckError
from torch import Tensor

from tests.support.checked_types import checked


@checked
def product(left: Float[Tensor, "n m"], right: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
    return left @ right if left.sum() else right


@checked
def rows(count: int, of: "Missing") -> "list[int]":  # noqa: F821 (a name that only a type checker sees)
    return [of] * count


@checked
def pieces(whole: Float[Tensor, "n m"]) -> Iterator[Float[Tensor, "1 m"]]:
    yield from whole.split(1)


@checked
@dataclass(frozen=True)
class Pair:
    left: Float32[np.ndarray, " n"]
    right: Float32[np.ndarray, " n"]

    @classmethod
    @checked
    def of(cls, each: Float32[np.ndarray, " n"]) -> "Pair":
        return cls(each, each)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def test_what_fits_passes():
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert rows(2, 1) == [1, 1]
    assert len(list(pieces(torch.ones(2, 3)))) == 2
    assert Pair.of(zeros(2)).left is not Pair(zeros(3), zeros(3)).left
    assert rows.__annotations__["of"] == "Missing"


@pytest.mark.parametrize(
    "call",
    [
        lambda: product(torch.ones(2, 3), torch.ones(4, 4)),  # sizes of two arguments
        lambda: product(torch.zeros(2, 3), torch.ones(3, 4)),  # what is returned
        lambda: product(torch.ones(2), torch.ones(3, 4)),
        lambda: product(torch.ones(2, 3).long(), torch.ones(3, 4)),
        lambda: rows("2", 1),
        lambda: rows(1, "x"),
        lambda: Pair(zeros(2), zeros(3)),
        lambda: Pair.of(zeros(2, dtype=np.float64)),
    ],
)
def test_what_does_not_is_found(call):
    with pytest.raises(TypeCheckError):
        call()


def test_the_packages_are_checked():
    from pcfg.grammars.grammar import Grammar
    from surgery.memory import size

    with pytest.raises(TypeCheckError):
        size("1")
    with pytest.raises(TypeCheckError):
        Grammar.random("2", 2, 2, 3)
