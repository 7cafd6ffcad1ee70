"""Rules of the house, read from the sources: who may import whom, and how long things get."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hyperjax"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
FLOORS = (  # a file imports from its own folder or floor, and from those above it in this list
    ("types", "errors", "config", "config_rules", "rng"),
    ("weights",),
    ("distributed", "zoo", "models", "symmetry", "cost"),
    ("population", "hyperrep"),
    ("diffusion",),
    ("samplers",),
    ("analysis",),
    ("data", "store", "report"),
    ("exchange",),
    ("app",),
    ("paper",),
    ("api", "commands", "__main__"),
)
CORE = FLOORS[:7]
HEAVY = (  # slow to import, or of use at the border only: inside functions of the core, if at all
    "absl", "matplotlib", "ml_collections", "orbax", "rich", "sklearn", "tensorflow",
    "tensorflow_datasets", "umap",
)  # fmt: skip


def place(name: str) -> str:
    """The folder, or file at the top, that a source or an imported name belongs to."""
    return name.removeprefix("hyperjax.").replace("/", ".").removesuffix(".py").split(".")[0]


def floor(name: str) -> int:
    """The floor of a source or of an imported "hyperjax.x.y"; the top for the package itself, which
    but for its version imports nothing."""
    if name in ("hyperjax", "hyperjax.__version__"):
        return 0
    return next((i for i, names in enumerate(FLOORS) if place(name) in names), len(FLOORS))


def nodes(tree: ast.AST, functions: bool) -> Iterator[ast.AST]:
    """All nodes below `tree`, with or without those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from nodes(node, functions)


def imports(source: str, functions: bool = True) -> set[str]:
    """What a source imports: `from a.b import c` counts as "a.b.c"."""
    names = set()
    for node in nodes(ast.parse(source), functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(names: set[str], packages: tuple[str, ...]) -> set[str]:
    return {name for name in names for package in packages if f"{name}.".startswith(f"{package}.")}


def rising(name: str, source: str) -> set[str]:
    """Imports of a source from a higher floor."""
    ours = within(imports(source), ("hyperjax",))
    return {other for other in ours if floor(other) > floor(name)}


def test_every_file_has_its_floor():
    assert {name for name in SOURCES if floor(name) == len(FLOORS)} == {"__init__.py"}


def test_imports_point_one_way():
    found = {name: rising(name, source) for name, source in SOURCES.items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_folders_of_one_floor_do_not_import_each_other_in_a_circle():
    arrows = {
        (place(name), place(other))
        for name, source in SOURCES.items()
        for other in within(imports(source), ("hyperjax",))
        if place(name) != place(other)
    }
    assert {arrow for arrow in arrows if arrow[::-1] in arrows} == set()


@pytest.mark.parametrize("name", [name for name in SOURCES if floor(name) < len(CORE)])
def test_the_core_imports_nothing_heavy_at_module_level(name):
    assert within(imports(SOURCES[name], functions=False), HEAVY) == set()


def test_only_models_know_linen():
    others = {n: imports(s) for n, s in SOURCES.items() if place(n) != "models"}
    assert {name for name, names in others.items() if within(names, ("flax.linen",))} == set()


def test_names_of_files_are_unique():
    names = Counter(Path(name).name for name in SOURCES)
    assert {name for name, count in names.items() if count > 1} == {"__init__.py"}


def test_files_and_functions_are_short():
    long = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    for name, source in SOURCES.items():
        for node in nodes(ast.parse(source), functions=True):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long[f"{name}:{node.name}"] = node.end_lineno - node.lineno + 1
    limit = {name: 60 if ":" in name else 400 for name in long}
    assert {name: lines for name, lines in long.items() if lines > limit[name]} == {}


def test_the_rules_see_what_they_look_for():
    source = "import umapper\nif 1:\n    from hyperjax import app\ndef f():\n    import umap.plot\n"
    assert within(imports(source), ("umap",)) == {"umap.plot"}
    assert within(imports(source, functions=False), ("umap",)) == set()
    assert rising("report/page.py", source) == {"hyperjax.app"}
    assert rising("paper/fig2.py", source) == set()
    assert floor("weights.py") < floor("hyperjax.symmetry.group") < floor("paper/fig2.py")
