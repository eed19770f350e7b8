"""Who may import whom, and how: read from the source text, so that nothing is run."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "tokenizer": {"tokenizer"},
    "mllm": {"mllm", "tokenizer"},
    "train": {"train", "mllm", "tokenizer"},
    "demo": {"demo", "mllm", "tokenizer"},
}
ONLY_IN = {"gradio": {"demo"}, "deepspeed": {"train"}}
LATE = {"deepspeed", "gradio", "datasets"} | {"torchvision", "timm", "open_clip", "lpips", "torch_fidelity"}
"""Heavy, or optional (they need a torchvision that does not fit the pinned torch): imported inside the function that
wants them. Gradio in the demo is the exception."""
ABOUT_THE_WORLD = ("mllm/world/", "mllm/evaluation/world.py", "mllm/evaluation/requests.py")
PATHS = sorted(p for package in MAY_IMPORT for p in (ROOT / package).rglob("*.py") if "assets" not in p.parts)
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in PATHS}


def imported_modules(tree: ast.AST) -> set[str]:
    found = list(ast.walk(tree))
    names = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in found if isinstance(node, ast.ImportFrom)}


def imported_at_once(tree: ast.Module) -> set[str]:
    """Imports that run when the module is imported: not in functions, not for type checkers only."""
    names, nodes = set(), list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= imported_modules(node)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return names


def test_imports_go_one_way_and_heavy_packages_stay_in_their_layer() -> None:
    for path, tree in TREES.items():
        package, heavy = path.split("/")[0], LATE - ({"gradio"} if path.startswith("demo/") else set())
        names, now = ({name.split(".")[0] for name in f(tree)} for f in (imported_modules, imported_at_once))
        assert names & MAY_IMPORT.keys() <= MAY_IMPORT[package], path
        for name, homes in ONLY_IN.items():
            assert name not in names or package in homes, f"{path} may not import {name}"
        now &= heavy
        assert not now, f"{path} must import {now} inside the function that needs it"


def test_only_its_own_evaluation_knows_the_world() -> None:
    """What a checkpoint plans and checks reaches the rest of `mllm` through the planner that its config names."""
    for path, tree in TREES.items():
        if path.startswith(("mllm/", "tokenizer/")) and not path.startswith(ABOUT_THE_WORLD):
            world = [name for name in imported_modules(tree) if name.startswith("mllm.world")]
            assert not world, f"{path} may not import {world}"


def test_imports_are_absolute_and_from_the_defining_module() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names]
                assert node.level == 0 and "*" not in names, f"{path} line {node.lineno}: relative or star import"
                if node.module and node.module.split(".")[0] in MAY_IMPORT:
                    place = ROOT / Path(*node.module.split("."))
                    is_module = place.with_suffix(".py").is_file()
                    assert is_module or all((place / f"{name}.py").is_file() for name in names), (
                        f"{path} line {node.lineno}: import from the module that defines the name, not from a package"
                    )


def test_every_folder_of_modules_is_a_package_that_holds_a_docstring_alone() -> None:
    assert not [path for path in PATHS if not (path.parent / "__init__.py").is_file()]
    for path, tree in TREES.items():
        if path.endswith("/__init__.py") and path != "mllm/__init__.py":
            assert len(tree.body) == 1 and ast.get_docstring(tree), f"{path} must hold one docstring and no code"


def test_no_module_bears_the_name_of_a_library() -> None:
    libraries = set(packages_distributions()) | set(sys.stdlib_module_names)
    # Below a package of ours these names cannot hide anything, and they are the words of the design.
    allowed = {"__init__", "__main__", "mllm", "train", "demo", "tokenizer", "tokenize", "requests"}
    names = {path.stem for path in PATHS} | {path.parent.name for path in PATHS}
    assert not (names & libraries) - allowed


def test_source_is_finished_ascii_that_begins_with_a_docstring() -> None:
    for path, tree in TREES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert text.isascii() and ast.get_docstring(tree), path
        assert not [word for word in ("pdb.set_trace", "breakpoint(", "TODO", "FIXME") if word in text], path
        bare = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]
        assert not bare, f"{path} names no exception in line {bare}"
