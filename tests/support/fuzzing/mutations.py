"""Mutations of bytes, of JSON, of a safetensors file and of arrays."""

import contextlib
import copy
import json

import numpy as np
from safetensors.numpy import load, save

ODD = [
    None,
    True,
    -1,
    0,
    7,
    1e308,
    0.5,
    2**40,
    2**70,
    "",
    "x",
    "\ud800",
    "a/../b",
    "[/b]",
    [],
    {},
    [[]],
    {"a": 1},
    [None],
]


def mutated_bytes(raw, rng):
    """A few bits, bytes or stretches changed, or the end cut off."""
    found = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        place = rng.randrange(len(found) or 1)
        stretch = slice(place, place + rng.choice([1, 1, 2, 8, 64]))
        how = rng.randrange(6)
        if how == 0 and found:
            found[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            del found[stretch]
        elif how == 2:
            found[place:place] = rng.randbytes(rng.choice([1, 4]))
        elif how == 3:
            found[place:place] = found[stretch]
        elif how == 4:
            found[place:place] = rng.choice(
                [b"[", b"{", b"(", b")", b'"', b",", b"0", b"\n", b"\xef\xbb\xbf", b"-", b"'", b"|"]
            )
        elif rng.random() < 0.2:
            del found[place:]
    return bytes(found)


def mutated_json(content, rng):
    """A parsed JSON text with one or two of its values replaced, dropped, doubled or moved."""
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(content))
        if not places:
            return copy.deepcopy(rng.choice(ODD))
        holder, key = rng.choice(places)
        how = rng.randrange(7)
        if how <= 2:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        elif how == 3:
            del holder[key]
        elif how == 4:
            other, place = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[place])) if _there(other, place) else None
        elif how == 5 and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), holder[key])
        elif isinstance(holder[key], bool) or not isinstance(holder[key], (int, float)):
            holder[key] = [holder[key]]
        else:
            holder[key] = rng.choice([-holder[key], holder[key] + 1, holder[key] * 1000, str(holder[key])])
    return content


def _places(content):
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)


def _there(holder, key):
    return key in holder if isinstance(holder, dict) else key < len(holder)


def json_text(raw, rng):
    """JSON, mutated as text or as values; now and then very deep."""
    if rng.random() < 0.01:
        deep = rng.choice(["[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 100_000])
        return raw.replace(b": ", b": " + deep.encode() + b", ", 1) if rng.random() < 0.5 else deep.encode()
    if rng.random() < 0.3:
        return mutated_bytes(raw, rng)
    return json.dumps(mutated_json(json.loads(raw), rng)).encode()


def safetensors_file(raw, rng):
    """A safetensors file with bytes, its header or an array mutated."""
    if rng.random() < 0.3:
        return mutated_bytes(raw, rng)
    stop = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:stop])
    if rng.random() < 0.5:
        for key, value in header.get("__metadata__", {}).items():  # some of it is JSON
            if value[:1] in ("[", "{") and rng.random() < 0.4:
                header["__metadata__"][key] = json.dumps(mutated_json(json.loads(value), rng))
                break
        else:
            header = mutated_json(header, rng)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + raw[stop:]
    arrays, metadata = load(raw), header.get("__metadata__")
    name = rng.choice(sorted(arrays))
    arrays[name] = mutated_array(arrays[name], rng)
    if rng.random() < 0.1:
        del arrays[name]
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, metadata)


def mutated_array(array, rng):
    """Another number, type or shape."""
    how = rng.randrange(5)
    if how == 0 and array.size:
        array = array.copy()
        odd = [0, 1, 255, *([-1.0, np.nan, np.inf, 1e30] if array.dtype.kind == "f" else [np.iinfo(array.dtype).max])]
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice(odd)
        return array
    if how == 1:
        return array.astype(rng.choice([np.float32, np.float16, np.int32, np.uint8, np.int64, np.uint16, np.uint64]))
    if how == 2:
        return array[: rng.randrange(len(array) + 1)] if array.ndim else array
    if how == 3:
        return array.reshape(-1) if array.ndim > 1 else array[None]
    return np.concatenate([array, array]) if array.ndim else array


def mutated_lines(raw, rng):
    """JSON a line, or bytes."""
    lines = raw.split(b"\n")
    number = rng.randrange(len(lines))
    with contextlib.suppress(ValueError):
        lines[number] = json_text(lines[number], rng)
        return b"\n".join(lines)
    return mutated_bytes(raw, rng)
