"""The JSON schema of `report.json`."""

from typing import Any

from probes.catalog import PROBES

_NUMBER = {"type": "number"}
_SOME = {"type": ["number", "null"]}
_TABLE = {"type": "array", "items": {"type": "array", "items": _NUMBER}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_MEASURE = _object(
    {
        "probe": {"enum": [*(probe.name for probe in PROBES), "none"]},
        "source": {"type": "string"},
        "layer": {"type": ["integer", "null"]},
        "metric": {"type": "string"},
        "group": {"type": "string"},
        "value": _NUMBER,
        "low": _SOME,
        "high": _SOME,
        "seeds": {"type": "array", "items": _NUMBER, "minItems": 1},
    }
)
_EXCESS = {"type": "object", "required": ["value", "low", "high", "count"]}
_LOSS = _object(
    {
        "masks": {"type": "integer"},
        "sentences": {"type": "integer"},
        "loss": _NUMBER,
        "optimum": _NUMBER,
        "excess": _EXCESS,
        "by_position": {"type": "array", "items": _EXCESS},
        "by_masks": {"type": "array", "items": _EXCESS},
    }
)
_REMOVAL = _object(
    {
        "layer": {"type": "integer"},
        "rank": {"type": "integer"},
        "intact": _NUMBER,
        "probed": _NUMBER,
        "random": {"type": "array", "items": _NUMBER},
        "more": _NUMBER,
        "low": _NUMBER,
        "high": _NUMBER,
    }
)
_HEAD = _object(
    {
        "block": {"type": "integer"},
        "head": {"type": "integer"},
        "within": _NUMBER,
        "chance": _NUMBER,
        "more": _NUMBER,
        "low": _NUMBER,
        "high": _NUMBER,
    }
)
_EXAMPLE = _object(
    {
        "words": {"type": "array", "items": {"type": "string"}},
        "layer": {"type": "integer"},
        "exact": _TABLE,
        "predicted": _TABLE,
        "exact_tree": _TABLE,
        "predicted_tree": _TABLE,
    }
)
_VERDICT = _object(
    {
        "probe": {"type": "string"},
        "metric": {"type": "string"},
        "control": {"type": "string"},
        "beats": {"type": "boolean"},
    }
)
_WHOLE = {"type": "integer", "minimum": 0}
_CALIBRATION = _object(
    {
        "layers": {"type": "array", "items": _WHOLE},
        "widths": {
            "type": "array",
            "items": _object(
                {
                    "words": _WHOLE,
                    "complete": _WHOLE,
                    "r2": {"type": "array", "items": {"anyOf": [{"type": "null"}, _NUMBER]}},
                }
            ),
        },
        "heads": {
            "type": "array",
            "items": _object(
                {
                    "symbol": {"type": "string"},
                    **dict.fromkeys(("needing", "zeroed", "others", "random_zeroed"), _WHOLE),
                }
            ),
        },
    }
)
REPORT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Report of surgery probe",
    **_object(
        {
            "schema": {"const": 1},
            "provenance": {"type": "object", "required": ["surgery", "call", "seed", "inputs", "libraries"]},
            "model": {"type": "object", "required": ["name", "layers", "heads", "width"]},
            "counts": {"type": "object", "required": ["train", "test", "words", "spans"]},
            "exact": {"type": "boolean"},
            "layers": {"type": "array", "items": {"type": "integer"}},
            "best_layer": {"type": "integer"},
            "measures": {"type": "array", "items": _MEASURE},
            "loss": {"anyOf": [{"type": "null"}, _LOSS]},
            "removals": {"type": "array", "items": _REMOVAL},
            "heads": {"type": "array", "items": _HEAD},
            "examples": {"type": "array", "items": _EXAMPLE},
            "notes": {"type": "array", "items": {"type": "string"}},
            "seconds": _NUMBER,
            "calibration": {"anyOf": [{"type": "null"}, _CALIBRATION]},
            "verdicts": {"type": "array", "items": _VERDICT},
        }
    ),
}
