"""The house in order: no imports in circles, modules and functions that can be read in one go."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("surgery", "probes", "pcfg", "cli")
MODULE_LINES, FUNCTION_LINES = 450, 60


def _files(*folders):
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def _name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file, modules):
    """Modules that a file imports anywhere in it, within functions and for type checkers alone too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def circles(graph):
    """Sets of modules each of which leads to all others of its set."""

    def reached(start):
        seen, todo = set(), [start]
        while todo:
            for found in graph.get(todo.pop(), ()):
                if found not in seen:
                    seen.add(found)
                    todo.append(found)
        return seen

    reach = {module: reached(module) for module in graph}
    found = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in graph if a in reach[a]}
    return sorted(map(sorted, found))


def test_circles_are_found_where_there_are_some():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]


def test_nothing_is_imported_in_a_circle():
    files = {_name(file): file for file in _files(*PACKAGES)}
    graph = {name: {found for found in _imports(file, files) if found in files} for name, file in files.items()}
    # A package's face names what lies in its rooms, and loads it when asked.
    faces = {name for name, file in files.items() if file.name == "__init__.py"}
    assert circles({name: found - faces for name, found in graph.items()}) == []


def test_a_module_reads_in_one_sitting():
    long = {
        str(file.relative_to(ROOT)): n
        for file in _files(*PACKAGES, "tests", "examples")
        if (n := len(file.read_text().splitlines())) > MODULE_LINES
    }
    assert long == {}


def test_a_function_fits_a_screen_or_says_why_not():
    """A function over the limit carries a comment that begins `# Long:` right above or as its first line."""
    long = []
    for file in _files(*PACKAGES):
        text = file.read_text()
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                around = lines[first - 2 : node.body[1].lineno if len(node.body) > 1 else node.end_lineno]
                if not any(line.strip().startswith("# Long:") for line in around):
                    long.append(
                        f"{file.relative_to(ROOT)}:{node.lineno} {node.name} {node.end_lineno - node.lineno + 1}"
                    )
    assert long == []


def test_every_package_is_installed():
    """A folder with modules but without `__init__.py` would be left out of an installation."""
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    folders = {Path(name).parent for name in tracked if name.endswith(".py")}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []
