"""The one-way streets of the house: a module imports only from the lines above its own."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "medverse_nb"
ROOT = Path(__file__).parents[1] / PACKAGE

# A unit is a module or folder right under the package; units on one line may not form a circle.
LAYERS = (
    {"errors"},
    {"files"},
    {"geometry", "regions", "resampling", "intensity", "views"},
    {"volume"},
    {"dicom", "dicom_seg"},
    {"zarr_files", "checks"},
    {"stored"},
    {"scratch", "nifti", "npy", "zarr_volumes"},
    {"io"},
    {"classes", "placement", "provenance", "pair", "pair_folder", "context"},
    {"registration"},
    {"model"},
    {"inference"},
    {"tasks", "datasets"},
    {"training"},
    {"evaluation"},
    {
        "session",
        "acceptance",
        "cohort",
        "question",
        "prediction",
        "answer",
        "comparison",
        "many",
        "manifest",
        "tuning",
        "progress",
        "bank",
        "bank_file",
        "bank_volumes",
        "json_fields",
        "judge",
    },
    {"ui"},
    {"cli", "console", "app", "demo", "__main__"},
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
MAY_SHOW = {  # the one exception: these modules import `ui` inside functions
    "comparison",
    "evaluation.doctor.report",
    "prediction",
    "progress",
    "session",
}
MODEL_MAY_IMPORT = {"torch", "einops", "safetensors", "numpy"} | sys.stdlib_module_names


class Import(NamedTuple):
    name: str  # absolute and dotted
    line: int
    late: bool  # inside a function


def read_modules(root: Path) -> dict[str, str]:
    """Map dotted names below the package ("model.network", "model.__init__") to sources."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*.py"))
    }


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Yield every import of a module, relative ones made absolute."""
    tree = ast.parse(source)
    late = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = _names_from(module, node)
        else:
            continue
        yield from (Import(name, node.lineno, node in late) for name in names)


def _names_from(module: str, node: ast.ImportFrom) -> list[str]:
    package = [PACKAGE, *module.split(".")[:-1]]
    base = package[: len(package) + 1 - node.level] if node.level else []
    origin = ".".join([*base, *filter(None, [node.module])])
    if origin != PACKAGE:
        return [origin]
    # "from . import geometry" asks for a unit, "from . import ICLSession" for the root.
    return [f"{PACKAGE}.{alias.name}" if alias.name in RANK else origin for alias in node.names]


def problem_with(module: str, imported: Import) -> str | None:
    """Say which rule an import in `module` breaks, None if it breaks none."""
    unit = module.split(".", maxsplit=1)[0]
    top, *rest = imported.name.split(".")
    if top != PACKAGE:
        if unit == "model" and top not in MODEL_MAY_IMPORT:
            return f"model may not import {top}"
        return None
    if not rest:
        return "imports the package root"
    target = rest[0]
    if target == unit:
        return None
    if target not in RANK:
        return f"{target} has no line in LAYERS"
    if unit == "model" and target != "errors":
        return f"model may not import {target}"
    if target == "ui" and module in MAY_SHOW:
        return None if imported.late else f"{module} may import ui only inside a function"
    if RANK[target] > RANK[unit]:
        return f"{unit} may not import {target}, which is below it"
    return None


def find_problems(modules: dict[str, str]) -> list[str]:
    """List every broken rule, as "module:line: rule"; the package root may import anything."""
    problems = []
    beside: dict[str, set[str]] = {}
    for module, source in modules.items():
        unit = module.split(".")[0]
        if unit == "__init__":
            continue
        if unit not in RANK:
            problems.append(f"{module}: {unit} has no line in LAYERS")
            continue
        for imported in imports_of(module, source):
            if problem := problem_with(module, imported):
                problems.append(f"{module}:{imported.line}: {problem}")
            target = imported.name.removeprefix(f"{PACKAGE}.").split(".")[0]
            if target != unit and RANK.get(target) == RANK[unit]:
                beside.setdefault(unit, set()).add(target)
    try:
        TopologicalSorter(beside).prepare()
    except CycleError as error:
        problems.append(f"circle: {' > '.join(error.args[1])}")
    return problems


def test_the_package_keeps_its_streets():
    modules = read_modules(ROOT)
    assert {"__init__", "errors", "model.network", "tasks.__init__", "datasets"} <= modules.keys()
    assert find_problems(modules) == []


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("geometry", "from .volume import read", "geometry may not import volume"),
        ("geometry", "from . import volume", "geometry may not import volume"),
        ("geometry", "import medverse_nb.volume", "geometry may not import volume"),
        ("geometry", "from medverse_nb.volume import read", "geometry may not import volume"),
        ("errors", "from .model.config import NetworkConfig", "errors may not import model"),
        ("inference.engine", "from ..session import ICLSession", "may not import session"),
        ("inference.__init__", "from ..session import ICLSession", "may not import session"),
        ("inference.deep.er", "from ...session import ICLSession", "may not import session"),
        ("io", "def f():\n    from .context import ContextPair", "io may not import context"),
        ("io", "if TYPE_CHECKING:\n    from .context import C", "io may not import context"),
        ("tasks.draw", "from ..training import losses", "tasks may not import training"),
        ("evaluation.trust", "from ..ui import view", "evaluation may not import ui"),
        ("ui.view", "from ..cli import main", "ui may not import cli"),
        ("model.network", "from ..geometry import spacing", "model may not import geometry"),
        ("model.network", "from .. import io", "model may not import io"),
        ("model.network", "import scipy.ndimage", "model may not import scipy"),
        ("model.network", "from monai.networks import nets", "model may not import monai"),
        ("session", "from .ui import view", "session may import ui only inside a function"),
        ("prediction", "class P:\n    from .ui import v", "only inside a function"),
        ("evaluation.doctor.report", "from ...ui import view", "ui only inside a function"),
        ("evaluation.doctor.fit", "def f():\n    from ...ui import v", "may not import ui"),
        ("manifest", "def show():\n    from .ui import view", "manifest may not import ui"),
        ("session", "from . import ICLSession", "imports the package root"),
        ("session", "from . import *", "imports the package root"),
        ("model.network", "from .. import __version__", "imports the package root"),
        ("cli", "import medverse_nb as mv", "imports the package root"),
        ("cli", "from medverse_nb import ICLSession", "imports the package root"),
        ("cli", "from .helpers import f", "helpers has no line in LAYERS"),
        ("helpers", "", "helpers has no line in LAYERS"),
    ],
)
def test_a_planted_breach_is_found(module, source, problem):
    (found,) = find_problems({module: source})
    assert problem in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("volume", "import numpy\nfrom .errors import InputError\nfrom .geometry import spacing"),
        ("volume", "from . import geometry"),
        ("resampling", "from .geometry import spacing"),
        ("model.network", "import math\nimport torch.nn\nfrom ..errors import WeightsError"),
        ("model.network", "from .config import NetworkConfig\nfrom . import blocks"),
        ("model.__init__", "from .network import ICLNetwork"),
        ("model.weights", "from safetensors.torch import save\nimport einops"),
        ("session", "def view(self):\n    from .ui.view import view"),
        ("prediction", "class P:\n    def view(self):\n        from .ui import view"),
        ("evaluation.doctor.report", "def show():\n    from ...ui.thumbnail import thumbnail"),
        ("session", "from .prediction import Prediction\nfrom .manifest import check"),
        ("cli", "from .session import ICLSession\nfrom .ui import view"),
        ("__main__", "from .cli import main"),
        ("__init__", "from .session import ICLSession\nimport medverse_nb.cli"),
    ],
)
def test_lawful_imports_pass(module, source):
    assert find_problems({module: source}) == []


def test_a_circle_on_one_line_is_found():
    there = {"session": "from .prediction import Prediction"}
    back = {"prediction": "def f():\n    from .session import ICLSession"}
    assert find_problems(there) == find_problems(back) == []
    (found,) = find_problems(there | back)
    assert found.startswith("circle: ")
