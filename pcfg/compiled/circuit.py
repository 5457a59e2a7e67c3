"""The circuit: which head serves which child, what it reads and writes, and every edge that isn't zero."""

from typing import Any

from torch import Tensor

from pcfg.compiled.slots import Slots

KINDS = ("inside", "outside right", "outside left")


def heads(slots: Slots) -> list[tuple[str, str]]:
    """(layer kind, symbol) of every head: an inside layer has the first S, an outside layer the other 2 S, in this order."""
    return [(kind, symbol) for kind in KINDS for symbol in slots.symbols]


def circuit(slots: Slots, rules: Tensor) -> dict[str, Any]:
    """What `circuit.json` holds: for each head the symbols it reads and writes, and its rules as [parent, left, right, probability].

    A head whose symbol is nobody's right child has no edges: it reads and writes nothing.
    """
    by_right: dict[int, list[tuple[int, int, float]]] = {}
    for parent, left, right in rules.nonzero().tolist():
        by_right.setdefault(right, []).append((parent, left, float(rules[parent, left, right])))
    found = []
    for number, (kind, symbol) in enumerate(heads(slots)):
        edges = by_right.get(number % len(slots.symbols), [])
        parents = sorted({slots.symbols[parent] for parent, _, _ in edges})
        left = sorted({slots.symbols[child] for _, child, _ in edges})
        reads, writes = _ends(kind, symbol, parents, left) if edges else ({}, [])
        rules_of = [[slots.symbols[a], slots.symbols[b], symbol, p] for a, b, p in edges]
        head = number if kind == "inside" else number - len(slots.symbols)
        found.append(
            {"head": head, "kind": kind, "symbol": symbol, "reads": reads, "writes": writes, "rules": rules_of}
        )
    layers = slots.length - 1
    return {"layers": {"inside": [0, layers], "outside": [layers, 2 * layers]}, "heads": found}


def _ends(kind: str, symbol: str, parents: list[str], left: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    if kind == "inside":
        return {"query": [f"inside {symbol}"], "key": ["position"], "value": [f"inside {name}" for name in left]}, [
            f"inside {name}" for name in parents
        ]
    outer = [f"outside {name}" for name in parents]
    if kind == "outside right":
        return {"query": outer, "key": [f"inside {name}" for name in left], "value": ["position"]}, [
            f"outside {symbol}"
        ]
    return {"query": ["position"], "key": [f"inside {symbol}"], "value": outer}, [f"outside {name}" for name in left]
