"""Which package may import what, and what start-up loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import codesign
import hwmodels

ROOT = Path(hwmodels.__file__).parents[1]
HEAVY = ("torch", "torchvision", "onnx", "matplotlib", "pydantic", "sklearn", "pandas")


def imported_names(path, top_level_only=False):
    """Names of the modules that a file imports, those for type checkers alone left out."""
    names = set()

    def visit(node):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module)
        elif top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return {name.partition(".")[0] for name in names}


def files_that_import(package, module):
    return {path.name for path in (ROOT / package).rglob("*.py") if module in imported_names(path)}


def test_hwmodels_never_imports_codesign():
    assert files_that_import("hwmodels", "codesign") == set()


def test_only_the_torch_front_end_of_hwmodels_imports_torch():
    assert files_that_import("hwmodels", "torch") == {"from_torch.py"}
    assert files_that_import("hwmodels", "torchvision") == set()


def test_only_the_onnx_front_end_of_hwmodels_imports_onnx():
    assert files_that_import("hwmodels", "onnx") == {"from_onnx.py"}


def test_at_its_top_level_hwmodels_needs_numpy_numba_and_scipy_alone():
    standard = sys.stdlib_module_names | {"__future__"}
    for path in (ROOT / "hwmodels").rglob("*.py"):
        if path.name not in ("from_torch.py", "from_onnx.py"):
            others = imported_names(path, top_level_only=True) - standard
            assert others <= {"numpy", "numba", "scipy", "hwmodels"}, path


@pytest.mark.parametrize(
    "code",
    [
        "import hwmodels",
        "import codesign",
        "from codesign.cli import main; assert main(['estimate', 'resnet20', '--bits', 'w4a8']) == 0",
        "from codesign.cli import main; assert main(['hardware', 'list']) == 0",
    ],
)
def test_start_up_loads_neither_torch_nor_other_heavy_packages(code):
    script = f"{code}\nimport sys\nprint(sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


FIRSTS = [
    "import codesign.search",
    "import codesign.search as s",
    "from codesign.search import search",
    "import codesign",
    "from codesign import *",
    "import codesign, importlib; importlib.reload(codesign)",
    "import codesign.search, sys, importlib; importlib.reload(sys.modules['codesign.search'])",
]


@pytest.mark.parametrize("first", FIRSTS)
def test_a_public_name_is_the_same_whatever_was_imported_before(first):
    script = (
        f"{first}\nfrom codesign import search\nimport codesign\nprint(search.__qualname__, codesign.search is search)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "search True\n"


_BOTH = """
import inspect, pickle, sys
from unittest import mock
import codesign
import codesign.search as module
from codesign import search
from codesign.search import search as function

assert module is search is codesign.search is sys.modules["codesign.search"]
assert module.search is function and search.search is function and inspect.isfunction(function)
assert inspect.signature(search) == inspect.signature(function)
for thing in (search, function, codesign.Problem):
    assert pickle.loads(pickle.dumps(thing)) is thing
try:
    search(None, None, 0)
except ValueError as error:
    assert "n_trials=0" in str(error)
with mock.patch("codesign.search.Trial"), mock.patch.object(module, "search", lambda *_: "patched"):
    assert codesign.search() == "patched"
with mock.patch("codesign.search", lambda: "replaced"):
    assert codesign.search() == "replaced"
assert codesign.search is module
del codesign.search
assert codesign.search is module
"""


def test_a_function_and_the_module_that_bears_its_name_are_reached_by_one_name():
    subprocess.run([sys.executable, "-c", _BOTH], cwd=ROOT, check=True)


def test_every_public_name_is_there_and_listed_and_no_other():
    for name in codesign.__all__:
        assert getattr(codesign, name).__class__ is not None and name in dir(codesign)
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        codesign.serach  # noqa: B018


def test_a_submodule_that_cannot_be_imported_is_tried_again():
    script = (
        "import sys, codesign\nsys.modules['codesign.pareto'] = None\n"
        "try:\n    codesign.hypervolume\nexcept ImportError:\n    del sys.modules['codesign.pareto']\n"
        "print(codesign.hypervolume.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "hypervolume\n"


def test_names_that_are_first_used_by_many_threads_at_once_are_one_object():
    script = (
        "import sys, codesign\nfrom concurrent.futures import ThreadPoolExecutor as Pool\nsys.setswitchinterval(1e-6)\n"
        "names = ['search', 'Problem', 'Trial', 'STRATEGIES'] * 8\n"
        "with Pool(32) as pool:\n    got = set(pool.map(lambda name: id(getattr(codesign, name)), names))\n"
        "print(len(got))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "4\n"
