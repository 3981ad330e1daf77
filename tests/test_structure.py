"""The shape of the code: who may import whom, what may not be committed, and that everything public is documented."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wbcrepro"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports its own layer and those before it: `training`, which drives the methods, comes after them, and only
# what renders a book, a session or a command knows experiments.
LAYERS = (
    ("errors", "seeds", "memory", ""),
    ("data",),
    ("stain",),
    ("metrics", "longtail", "inference", "domains", "rescue"),
    ("backbones", "backbone_stages", "augment", "augment_domains", "checkpoints", "training", "domain_training")
    + ("augment_rescue", "embedders", "restoration_training", "semantic_training"),
    ("papers",),
    ("experiments",),
    ("report",),
    ("book", "session"),
    ("commands",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Places that this code may not name: home, temporary and mounted folders of some machine, private addresses.
# (Tests of hostile archives name a file `evil`.)
MACHINE = re.compile(
    r"(?<![\w.:/<}{~-])/(?:home|Users|root|work|mnt|scratch|tmp)/(?!evil)[\w.-]+|\b(?:10|192\.168)\.\d+\.\d+\.\d+\b|localhost:\d+"
)
TEXT = {".py", ".md", ".yml", ".yaml", ".toml", ".lock", ".json", ".csv", ".cff", ".ipynb", ".txt", ".bib", ""}


def layer(module: str) -> str:
    """``data`` of ``wbcrepro.data.manifest``; empty for the package itself."""
    return (module.split(".") + [""])[1]


def imports(tree: ast.AST) -> set[str]:
    """Modules of wbcrepro that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; the layer would be invisible"
            found.add(node.module)
            if node.module == "wbcrepro":
                found |= {f"wbcrepro.{alias.name}" for alias in node.names if alias.name in RANK}
    return {name for name in found if name.split(".")[0] == "wbcrepro"}


def tracked() -> list[Path]:
    """Files in the repository, and those that `git add .` would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def too_far_right(module: str, imported: set[str]) -> list[str]:
    """Those of ``imported`` that stand to the right of ``module``."""
    return sorted(name for name in imported if RANK[layer(name)] > RANK[layer(module)])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_to_the_left(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert layer(module) in RANK, f"{layer(module)} is in no layer; put it in LAYERS"
    wrong = too_far_right(module, imports(ast.parse(path.read_text(encoding="utf-8"))))
    assert not wrong, f"{module} imports {', '.join(wrong)}, which stands to its right in data -> ... -> commands"


def test_the_layer_test_can_fail():
    text = "def f():\n    from wbcrepro.experiments import store\n    import wbcrepro.report.tables"
    found = imports(ast.parse(text))
    assert too_far_right("wbcrepro.longtail.losses", found) == ["wbcrepro.experiments", "wbcrepro.report.tables"]
    assert too_far_right("wbcrepro.commands.report", found) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_lookup_by_name_in_globals(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        assert called not in ("globals", "locals", "eval", "exec"), f"line {node.lineno}: {called}()"


def public(tree: ast.Module) -> list[ast.AST]:
    """Public functions, classes and methods of a module (a class that is private hides its methods)."""
    found, todo = [], list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if node.name != "forward":  # of a module of torch: what it does is said at its class
                found.append(node)
            todo += node.body if isinstance(node, ast.ClassDef) else []
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_everything_public_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    bare = [f"{node.name} (line {node.lineno})" for node in public(tree) if not ast.get_docstring(node)]
    assert not bare, f"no docstring: {', '.join(bare)}"


def test_nothing_large_is_committed():
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked() if p.stat().st_size > 1_000_000}
    assert not large


def test_no_image_or_weights_of_a_run_are_committed():
    suffixes = {".pt", ".pth", ".safetensors", ".ckpt", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".onnx"}
    assert not [str(p.relative_to(ROOT)) for p in tracked() if p.suffix.lower() in suffixes]


def test_the_address_of_the_repository_is_set_in_one_place():
    from wbcrepro import REPOSITORY

    generated = {".ipynb"}  # written from notebooks/*.py and the address, and compared with them by a test
    named = [p for p in tracked() if p.suffix in TEXT - generated and REPOSITORY in p.read_text(encoding="utf-8")]
    assert [str(p.relative_to(ROOT)) for p in named] == ["wbcrepro/__init__.py"]


def machine_words(text: str) -> list[str]:
    """Paths and addresses of some machine in a text."""
    return MACHINE.findall(text)


def test_no_path_or_address_of_a_machine_is_committed():
    found = {}
    for path in tracked():
        vendored = "_static" in path.parts or path == Path(__file__)
        if path.suffix in TEXT and not vendored and (words := machine_words(path.read_text(encoding="utf-8"))):
            found[str(path.relative_to(ROOT))] = words[:3]
    assert not found


@pytest.mark.parametrize("text", ["see /home/ada/data", "cd '/work/main'", "http://10.0.0.7/simple", "localhost:8888"])
def test_machine_words_are_seen(text):
    assert machine_words(text)


@pytest.mark.parametrize("text", ["data/work/x", "https://example.org/home/page", "{root}/tmp/x", "version 3.10.1.2"])
def test_ordinary_words_are_not(text):
    assert not machine_words(text)
