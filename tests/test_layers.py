"""Rules of the house, read from the sources: who may import whom, and how long things get."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hyperjax"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
CORE = [name for name in SOURCES if not name.startswith(("io/", "tasks/"))]
IO = [name for name in SOURCES if name.startswith("io/")]
NOT_MODELS = [name for name in SOURCES if not name.startswith("models/")]
HEAVY = (  # slow to import, or of use at the border only: inside functions of the core, if at all
    "absl", "matplotlib", "ml_collections", "orbax", "rich", "sklearn", "tensorflow",
    "tensorflow_datasets", "umap",
)  # fmt: skip

# files, what they must not import, whether imports inside functions count
RULES = {
    "the core knows neither io nor tasks": (CORE, ("hyperjax.io", "hyperjax.tasks"), True),
    "the core imports nothing heavy at module level": (CORE, HEAVY, False),
    "io does not know tasks": (IO, ("hyperjax.tasks",), True),
    "only models know linen": (NOT_MODELS, ("flax.linen",), True),
}


def nodes(tree: ast.AST, functions: bool) -> Iterator[ast.AST]:
    """All nodes below `tree`, with or without those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from nodes(node, functions)


def forbidden(source: str, packages: tuple[str, ...], functions: bool) -> set[str]:
    """What a source imports from `packages`: `from a.b import c` counts as "a.b.c"."""
    names = set()
    for node in nodes(ast.parse(source), functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names for package in packages if f"{name}.".startswith(f"{package}.")}


@pytest.mark.parametrize("rule", RULES)
def test_imports_point_one_way(rule):
    files, packages, functions = RULES[rule]
    found = {name: forbidden(SOURCES[name], packages, functions) for name in files}
    assert {name: imports for name, imports in found.items() if imports} == {}


def test_files_and_functions_are_short():
    long = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    for name, source in SOURCES.items():
        for node in nodes(ast.parse(source), functions=True):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long[f"{name}:{node.name}"] = node.end_lineno - node.lineno + 1
    limit = {name: 60 if ":" in name else 400 for name in long}
    assert {name: lines for name, lines in long.items() if lines > limit[name]} == {}


def test_the_rules_see_what_they_look_for():
    source = "import umapper\nif 1:\n    from hyperjax import io\ndef f():\n    import umap.plot\n"
    assert forbidden(source, ("hyperjax.io", "umap"), True) == {"hyperjax.io", "umap.plot"}
    assert forbidden(source, ("hyperjax.io", "umap"), False) == {"hyperjax.io"}
    assert "weights.py" in CORE
    assert "io/images.py" in IO
    assert "models/cnn.py" not in NOT_MODELS
