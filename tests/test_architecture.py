"""The architecture: imports point down, limits hold. Every check is shown to find what it looks for."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "saliency"
Sources = dict[str, str]  # module name -> source
Check = Callable[[Sources], list[str]]

# What each part of the package may import of it: only what stands below.
BELOW = {
    "saliency.engine": (),
    "saliency.rules": ("saliency.engine",),
    "saliency.methods": ("saliency.engine", "saliency.rules"),
    "saliency.wrappers": ("saliency.engine",),
    "saliency.similarity": ("saliency.engine",),
    "saliency.targets": ("saliency.engine",),
    "saliency.scenes": ("saliency.engine",),
    "saliency.images": ("saliency.engine",),
    "saliency.plot": ("saliency.engine", "saliency.images"),
    "saliency.networks": ("saliency.engine", "saliency.images", "saliency.scenes"),
    "saliency.pages": (),
    "saliency.explaining": (
        *(
            "saliency.pages",
            "saliency.engine",
            "saliency.rules",
            "saliency.methods",
            "saliency.images",
            "saliency.plot",
        ),
        *("saliency.scenes", "saliency.networks"),
    ),
    "saliency.evaluation": (
        *(
            "saliency.pages",
            "saliency.engine",
            "saliency.rules",
            "saliency.images",
            "saliency.scenes",
            "saliency.networks",
        ),
    ),
    "saliency.torchray": (
        *("saliency.engine", "saliency.evaluation", "saliency.images", "saliency.networks", "saliency.plot"),
        "saliency.scenes",
    ),
    "saliency": (
        *("saliency.engine", "saliency.rules", "saliency.methods", "saliency.wrappers", "saliency.similarity"),
        "saliency.targets",
        # Under TYPE_CHECKING, and when a name of theirs is asked for: what works on photos.
        *("saliency.explaining", "saliency.images", "saliency.networks", "saliency.plot"),
    ),
    "saliency.cli": ("",),
    "saliency.__main__": ("",),
}
# What the core may import beyond the standard library: torch, and what torch itself imports.
FOUNDATION = ("torch", "typing_extensions")
CORE = ("saliency", "saliency.engine", "saliency.rules", "saliency.methods", "saliency.wrappers", "saliency.similarity")
# The packages beyond the standard library that may be imported, and where.
OUTSIDE = {
    **dict.fromkeys(FOUNDATION, ("",)),
    "numpy": (
        *("saliency.scenes", "saliency.images", "saliency.networks", "saliency.evaluation", "saliency.plot"),
        *("saliency.explaining", "saliency.cli"),
    ),
    "PIL": (
        "saliency.explaining",
        "saliency.plot",
        "saliency.images",
        "saliency.scenes",
        "saliency.networks",
        "saliency.evaluation",
        "saliency.cli",
    ),
    "torchvision": ("saliency.evaluation", "saliency.networks"),  # timm and transformers: by import_module, by name
    "matplotlib": ("saliency.plot",),
    "mpl_toolkits": ("saliency.plot",),
    "tqdm": ("saliency.evaluation", "saliency.cli"),
    "pycocotools": ("saliency.evaluation",),
    "defusedxml": ("saliency.evaluation",),
}


def read_package() -> Sources:
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: the longest name in the table that holds it."""
    return max((part for part in BELOW if module == part or module.startswith(part + ".")), key=len)


def imports(module: str, sources: Sources) -> Iterator[tuple[str, int]]:
    """The full names of what a module imports, anywhere in it, each with its line."""
    is_package = any(name.startswith(module + ".") for name in sources)
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in sources else base), node.lineno


def upward_imports(sources: Sources) -> list[str]:
    found = []
    for module in sources:
        own = part_of(module)
        for name, line in imports(module, sources):
            if name.split(".")[0] != "saliency":
                continue
            # A module of a part may import the part; nobody but the command line imports the package as a whole.
            allowed = [part for part in (own, *BELOW[own]) if part != "saliency"]
            if not any(part == "" or name == part or name.startswith(part + ".") for part in allowed):
                found.append(f"{module}:{line} imports {name}")
    return found


def foreign_imports(sources: Sources) -> list[str]:
    import sys

    found = []
    for module in sources:
        for name, line in imports(module, sources):
            package = name.split(".")[0]
            if package == "saliency" or package in sys.stdlib_module_names:
                continue
            own = part_of(module)
            allowed = OUTSIDE.get(package, ()) if own not in CORE else ("",) if package in FOUNDATION else ()
            if not any(part in ("", own) for part in allowed):
                found.append(f"{module}:{line} imports {package}")
    return found


def import_cycles(sources: Sources) -> list[str]:
    """Modules that can be reached from themselves. A package is imported before what is inside it: no edge."""
    edges = {
        module: {name for name, _ in imports(module, sources) if name in sources and name != module}
        for module in sources
    }
    found = []
    for start in edges:
        seen, front = set(), list(edges[start])
        while front:
            module = front.pop()
            if module not in seen:
                seen.add(module)
                front.extend(edges[module])
        if start in seen:
            found.append(start)
    return found


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, source: str) -> int:
    """The lines of a function's body, without its docstring and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    lines = source.splitlines()[body[0].lineno - 1 : function.end_lineno]
    return sum(bool(line.strip()) for line in lines)


def long_files(sources: Sources) -> list[str]:
    return [module for module, source in sources.items() if len(source.splitlines()) > 300]


def long_functions(sources: Sources) -> list[str]:
    return [
        f"{module}.{function.name}: {code_lines(function, source)}"
        for module, source in sources.items()
        for function in functions(source)
        if code_lines(function, source) > 30
    ]


def long_docstrings(sources: Sources) -> list[str]:
    """More than 15 lines; the driver is the manual of every gradient method, and has 40."""
    found = []
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
                name = getattr(node, "name", "")
                limit = 40 if (module, name) == ("saliency.engine.driver", "saliency") else 15
                if len((ast.get_docstring(node) or "").splitlines()) > limit:
                    found.append(f"{module}.{name}")
    return found


def forbidden_statements(sources: Sources) -> list[str]:
    """``assert``, ``print``, ``__del__``, ``import *`` and ``global``."""
    found = []
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            star = isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
            delete = isinstance(node, (ast.FunctionDef, ast.Name)) and "__del__" in (
                getattr(node, "name", ""),
                getattr(node, "id", ""),
            )
            if isinstance(node, (ast.Assert, ast.Global)) or called or star or delete:
                found.append(f"{module}:{node.lineno}")
    return found


def files_named_like_a_function(sources: Sources) -> list[str]:
    return [
        module
        for module, source in sources.items()
        if module.rpartition(".")[2] in {function.name for function in functions(source)}
    ]


def many_anys(sources: Sources) -> list[str]:
    """More than 81 mentions of ``Any`` in the engine and the methods together; a model's own output needs about 40."""
    found = [
        f"{module}:{node.lineno}"
        for module, source in sources.items()
        if part_of(module) in ("saliency.engine", "saliency.methods")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and node.id == "Any"
    ]
    return found if len(found) > 81 else []


def drawers(sources: Sources) -> list[str]:
    """Files whose name says nothing."""
    names = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base", "core", "functions"}
    return [module for module in sources if names & set(module.split("."))]


_LINES = "\n".join("    x = 1" for _ in range(31))
_TEXT = '"""' + "\n".join(map(str, range(16))) + '"""'

# Each check, with small packages in which it finds something.
CHECKS: list[tuple[Check, list[Sources]]] = [
    (
        upward_imports,
        [
            {"saliency.engine.a": "from saliency.methods.cam import grad_cam"},
            {"saliency.engine.a": "from saliency import METHODS"},
            {"saliency.engine.a": "import saliency"},
            {"saliency.engine.a": "def f():\n    from saliency.rules import guided"},
            {"saliency.rules": "import saliency.methods"},
            {"saliency.rules": "from saliency import methods", "saliency.methods": ""},
            {"saliency.methods.a": "from ..wrappers import smooth_grad", "saliency.methods": ""},
            {"saliency.wrappers": "from saliency.methods import METHODS"},
            {"saliency.evaluation.a": "from saliency.methods import METHODS"},
            {"saliency": "from saliency.cli import main"},
            {"saliency.images": "from saliency.plot import show"},
        ],
    ),
    (
        foreign_imports,
        [
            {"saliency.engine.a": "import numpy as np"},
            {"saliency.engine.a": "from torchvision.models import resnet18"},
            {"saliency.images": "import torchvision"},
            {"saliency.evaluation.a": "def f():\n    import matplotlib.pyplot as plt"},
            {"saliency.plot": "import seaborn"},
        ],
    ),
    (
        import_cycles,
        [
            {"saliency.engine.a": "import saliency.engine.b", "saliency.engine.b": "from saliency.engine import a"},
            {
                "saliency.a": "import saliency.b",
                "saliency.b": "import saliency.c",
                "saliency.c": "def f():\n    import saliency.a",
            },
        ],
    ),
    (long_files, [{"saliency.a": "x = 1\n" * 301}]),
    (
        long_functions,
        [{"saliency.a": f"def f():\n{_LINES}"}, {"saliency.a": f"class A:\n  async def f(self):\n{_LINES}"}],
    ),
    (
        long_docstrings,
        [
            {"saliency.a": f"def f():\n    {_TEXT}"},
            {"saliency.a": _TEXT},
            {"saliency.a": f"class A:\n    {_TEXT}"},
            {"saliency.engine.maps": f"def saliency():\n    {_TEXT}"},
        ],
    ),
    (
        forbidden_statements,
        [
            {"saliency.a": "assert True"},
            {"saliency.a": "print(1)"},
            {"saliency.a": "class A:\n    def __del__(self): pass"},
            {"saliency.a": "from torch import *"},
            {"saliency.a": "def f():\n    global x\n    x = 1"},
        ],
    ),
    (
        files_named_like_a_function,
        [{"saliency.methods.cam": "def cam(): pass"}, {"saliency.a": "class A:\n    def a(self): pass"}],
    ),
    (
        many_anys,
        [
            {"saliency.engine.a": "x: Any\n" * 82},
            {"saliency.engine.a": "x: list[Any]\n" * 41, "saliency.methods.a": "def f(**x: Any): pass\n" * 41},
        ],
    ),
    (drawers, [{"saliency.utils": ""}, {"saliency.engine.helpers": ""}, {"saliency.misc.maps": ""}]),
]


@pytest.mark.parametrize("check", [check for check, _ in CHECKS], ids=lambda check: check.__name__)
def test_package(check):
    assert check(read_package()) == []


@pytest.mark.parametrize(
    ("check", "sources"),
    [
        pytest.param(check, sources, id=f"{check.__name__}-{i}")
        for check, bad in CHECKS
        for i, sources in enumerate(bad)
    ],
)
def test_the_check_finds_a_violation(check, sources):
    assert check(sources) != []


def test_the_checks_let_good_code_pass():
    body = "\n\n".join("    x = 1" for _ in range(30))
    sources = {
        "saliency": "from saliency.methods import METHODS",
        "saliency.engine": "",
        "saliency.engine.a": f'import torch\ndef f():\n    {_TEXT[:20]}"""\n{body}',
        "saliency.engine.b": "from saliency.engine import a\nfrom .a import f",
        "saliency.methods": "from saliency import rules\nfrom saliency.engine.b import f",
        "saliency.rules": "from saliency.engine.a import f",
        "saliency.cli": "from saliency import METHODS\nimport saliency.plot",
        "saliency.plot": "def show():\n    import matplotlib",
    }
    assert [check(sources) for check, _ in CHECKS] == [[] for _ in CHECKS]


def test_the_whole_package_was_read():
    assert {"saliency", "saliency.engine.driver", "saliency.methods.cam", "saliency.rules"} <= set(read_package())
