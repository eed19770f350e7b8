"""Who may import whom, and how: read from the source text, so that nothing is run."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tokenizer", "mllm", "train", "demo")
MAY_IMPORT = {
    "tokenizer": {"tokenizer"},
    "mllm": {"mllm", "tokenizer"},
    "train": {"train", "mllm", "tokenizer"},
    "demo": {"demo", "mllm", "tokenizer"},
}
ONLY_IN = {"gradio": {"demo"}, "deepspeed": {"train"}}
NOT_WHEN_IMPORTED = {"deepspeed", "gradio", "datasets"}
"""Heavy: imported inside functions, so that importing our modules stays cheap; gradio in the demo is the exception."""
OPTIONAL = {"torchvision", "timm", "open_clip", "lpips", "torch_fidelity"}
"""Need a torchvision that does not fit the pinned torch; only ever imported inside the function that wants them."""

ABOUT_THE_WORLD = ("mllm/world/", "mllm/evaluation/world.py", "mllm/evaluation/requests.py")

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imported_modules(tree: ast.AST) -> list[str]:
    """Dotted names in import statements below `tree`; a relative import begins with a dot."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return names


def top_level_imports(tree: ast.Module) -> list[str]:
    """Imports that run when the module is imported: not in functions, not for type checkers only."""

    def runs_at_import(node: ast.AST) -> bool:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        return not is_function and not is_for_types

    names, nodes = [], [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names += imported_modules(ast.Module(body=[node], type_ignores=[]))
        nodes += [child for child in ast.iter_child_nodes(node) if runs_at_import(child)]
    return names


TREES = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]


def test_imports_go_one_way() -> None:
    for path, tree in TREES:
        ours = {name.split(".")[0] for name in imported_modules(tree)} & set(PACKAGES)
        assert ours <= MAY_IMPORT[package_of(path)], (
            f"{name_of(path)} may not import {ours - MAY_IMPORT[package_of(path)]}"
        )


def test_only_its_own_evaluation_knows_the_world() -> None:
    """What a checkpoint plans and checks reaches the rest of `mllm` through the planner that its config names."""
    for path, tree in TREES:
        if package_of(path) in ("mllm", "tokenizer") and not name_of(path).startswith(ABOUT_THE_WORLD):
            world = [name for name in imported_modules(tree) if name.startswith("mllm.world")]
            assert not world, f"{name_of(path)} may not import {world}"


def test_imports_are_absolute_and_from_the_defining_module() -> None:
    for path, tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name_of(path)} line {node.lineno}: relative import"
                assert all(alias.name != "*" for alias in node.names), (
                    f"{name_of(path)} line {node.lineno}: star import"
                )
                if node.module and node.module.split(".")[0] in PACKAGES:
                    assert defines(node.module, node.names), (
                        f"{name_of(path)} line {node.lineno}: import from the module that defines the name, "
                        f"not from the package {node.module}"
                    )


def defines(module: str, names: list[ast.alias]) -> bool:
    """Whether a dotted name is a module, or a package of which only modules are imported."""
    place = ROOT / Path(*module.split("."))
    return place.with_suffix(".py").is_file() or all((place / f"{alias.name}.py").is_file() for alias in names)


def test_heavy_packages_stay_in_their_layer() -> None:
    for path, tree in TREES:
        for name in {name.split(".")[0] for name in imported_modules(tree)}:
            assert package_of(path) in ONLY_IN.get(name, {package_of(path)}), f"{name_of(path)} may not import {name}"
        now = {name.split(".")[0] for name in top_level_imports(tree)}
        allowed = {"gradio"} if package_of(path) == "demo" else set()
        late = (NOT_WHEN_IMPORTED | OPTIONAL) - allowed
        assert not now & late, f"{name_of(path)} must import {now & late} inside the function that needs it"


def test_packages_hold_a_docstring_and_nothing_else() -> None:
    for path in FILES:
        if path.name == "__init__.py" and path != ROOT / "mllm" / "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            is_docstring = [isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body]
            assert is_docstring == [True], f"{name_of(path)} must hold one docstring and no code"


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in FILES}
    assert not [name_of(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_no_module_bears_the_name_of_a_library() -> None:
    libraries = set(packages_distributions()) | set(sys.stdlib_module_names)
    # Below a package of ours these names cannot hide anything, and they are the words of the design.
    allowed = {"__init__", "__main__", "mllm", "train", "demo", "tokenizer", "tokenize", "requests"}
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not (names & libraries) - allowed


def test_source_is_ascii_and_begins_with_a_docstring() -> None:
    for path, tree in TREES:
        text = path.read_text(encoding="utf-8")
        assert text.isascii(), f"{name_of(path)} holds characters that are not ASCII"
        assert ast.get_docstring(tree), f"{name_of(path)} does not say what it is for"


def test_nothing_unfinished_is_left() -> None:
    for path, tree in TREES:
        text = path.read_text(encoding="utf-8")
        for word in ("pdb.set_trace", "breakpoint(", "TODO", "FIXME"):
            assert word not in text, f"{name_of(path)} holds {word}"
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{name_of(path)} line {node.lineno}: names no exception"
