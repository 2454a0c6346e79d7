"""What holds for the package as a whole: the direction of its imports, what importing it costs, what it never does."""

import ast
import graphlib
import importlib.metadata
import importlib.resources
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import simple_hierarchical_transformer as package

NAME = "simple_hierarchical_transformer"
ROOT = Path(__file__).parent.parent
FOLDER = Path(package.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))

# A module imports from its own layer and from those above it in this list, never from one below.
# `NAME` itself stands for the public names, in `__init__.py`.
LAYERS = (
    (
        "arguments",
        "blocks",
        "blockwise",
        "breakdown",
        "chunk",
        "config",
        "cost",
        "figures",
        "files",
        "inputs",
        "linear",
        "model_card",
        "modules",
        "naming",
        "norm",
        "queries_keys_values",
        "ring",
        "rotary",
        "sampling",
        "saved_config",
        "squared_relu",
        "state",
        "validation",
        "weights",
    ),
    ("attention", "compressor", "feedforward", "ngrams", "token_shift"),
    ("block", "checkpoint", "checks", "description", "hub", "losses", "merge"),
    ("layer", "sharing"),
    ("prompts", "writing", "stepping", "speculation", "generation"),
    ("model",),
    (NAME,),
    ("text",),
    ("evaluation",),
    ("training",),
    ("demo", "visualize"),
    ("describe", "flags"),
    ("configure",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LAYER_OF = {module: index for index, layer in enumerate(LAYERS) for module in layer}


def module_name(file: Path) -> str:
    """`losses/prophet.py` → `simple_hierarchical_transformer.losses.prophet`."""
    parts = (NAME, *file.relative_to(FOLDER).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def executed_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`, which only a type checker reads."""
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children: Iterable[ast.AST] = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from executed_nodes(child)


def imported_modules(name: str) -> Iterator[str]:
    """Modules of the package that module `name` imports when it runs, at the top of the file or in a function."""
    file = MODULES[name]
    for node in executed_nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
            base = folder[: len(folder) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import a` may import the module `package.a`, or a name from `package`
            targets = [f"{source}.{alias.name}" for alias in node.names]
            targets = [target if target in MODULES else source for target in targets]
        else:
            continue
        yield from (target for target in targets if target.split(".")[0] == NAME)


def part_of(module: str) -> str:
    """The entry of LAYERS that a module belongs to: that of `….losses.prophet` is `losses`."""
    return module.split(".")[1] if "." in module else module


def test_every_module_has_a_place_in_the_layers() -> None:
    missing = {part_of(module) for module in MODULES} - set(LAYER_OF)
    assert not missing, f"say in LAYERS where {missing} stands"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    for target in imported_modules(module):
        assert LAYER_OF[part_of(target)] <= LAYER_OF[part_of(module)], f"{module} imports {target}, a layer below it"


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: set(imported_modules(module)) - {module} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_losses_never_see_the_model() -> None:
    for module in MODULES:
        if part_of(module) == "losses":
            assert not {part_of(target) for target in imported_modules(module)} & {"model", "block", "generation"}


def modules_after(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parent)
    *printed, modules = run.stdout.splitlines()
    assert not printed, f"importing prints {printed}"
    return {module.split(".")[0] for module in json.loads(modules)}


def test_importing_the_package_imports_no_extra_and_no_lazy_dependency() -> None:
    extras = {"accelerate", "tqdm", "tyro", "tomli_w", "zstandard", "tokenizers", "tiktoken", "datasets", "lm_eval"}
    extras |= {"huggingface_hub", "tensorboard", "wandb", "trackio", "matplotlib"}
    lazy = {"local_attention", "vector_quantize_pytorch"}
    added = modules_after(f"import {NAME}") - modules_after("import torch")  # torch takes tqdm where it finds it
    assert NAME in added
    assert not added & (extras | lazy)


def test_types_ship() -> None:
    assert importlib.resources.files(NAME).joinpath("py.typed").is_file()


def called_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is called: `exec`, `torch.load`, `importlib.import_module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_nothing_is_executed_from_a_file(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    sources = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level]
    modules |= {n.module.split(".")[0] for n in sources if n.module}
    names = {f"{n.module}.{alias.name}" for n in sources for alias in n.names} | set(called_names(tree))

    assert not modules & {"cloudpickle", "dill", "joblib", "marshal", "pickle", "runpy", "shelve"}
    forbidden = {"eval", "exec", "compile", "__import__", "importlib.import_module", "torch.load", "torch.save"}
    assert not names & forbidden


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_installed_version_is_that_of_the_source() -> None:
    try:
        installed = importlib.metadata.version("simple-hierarchical-transformer")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("run from the source without an installation")
    assert installed == package.__version__


def test_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d.*?)\]", changelog, re.MULTILINE)
    assert versions[0] == package.__version__


def test_requirements_are_lower_bounds_only() -> None:
    extras = project()["optional-dependencies"]
    for requirement in [*project()["dependencies"], *(entry for extra in extras.values() for entry in extra)]:
        assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+|simple-hierarchical-transformer\[[\w,]+\]", requirement), (
            requirement
        )
