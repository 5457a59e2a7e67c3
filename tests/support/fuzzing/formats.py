"""A format of files: how a sound file is made, mutated, and read."""

from pathlib import Path

from tests.support.fuzzing.mutations import json_text, mutated_bytes, mutated_lines, safetensors_file


class Format:
    """Files in a folder, by name; a mutation changes one of them."""

    def __init__(self, folder):
        self.folder = folder
        self.sound = {}

    def mutate(self, rng):
        name = rng.choice([name for name in self.sound if self.mutable(name)])
        raw = self.sound[name]
        how = {".json": json_text, ".jsonl": mutated_lines, ".safetensors": safetensors_file}.get(
            Path(name).suffix, mutated_bytes
        )
        return {name: how(raw, rng)}

    def mutable(self, name):
        return name.endswith((".json", ".safetensors", ".txt", ".mrg", ".jsonl"))

    def take(self):
        self.sound = {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}
