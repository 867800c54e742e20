"""The environment files, constraints.txt and pyproject.toml must tell one story."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE_FILE = (ROOT / "environment.yml").read_text(encoding="utf-8")
ITK_FILE = (ROOT / "environment-itk.yml").read_text(encoding="utf-8")
CONSTRAINTS_FILE = (ROOT / "constraints.txt").read_text(encoding="utf-8")
NOTEBOOK_CHECK = ["pytest", "nbval"]


def read_requirements(lines: list[str]) -> dict[str, Requirement]:
    """Map names to requirements; options such as "-e ." and our own extras are left out."""
    found: dict[str, Requirement] = {}
    for line in lines:
        if line.startswith(("-", "#", "medverse_nb[")) or not line.strip():
            continue
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} is listed twice"
        found[name] = requirement
    return found


def exact_version(requirement: Requirement) -> str | None:
    """Return the version of an `==` pin, None for anything looser."""
    pins = list(requirement.specifier)
    return pins[0].version if len(pins) == 1 and pins[0].operator == "==" else None


def pip_lines(environment: str) -> list[str]:
    (section,) = [
        part for part in yaml.safe_load(environment)["dependencies"] if type(part) is dict
    ]
    return section["pip"]


def disagreements(
    environment: str, wanted: dict[str, Requirement], constraints: dict[str, Requirement]
) -> list[str]:
    """List what is missing, superfluous, not pinned, or pinned otherwise than elsewhere."""
    found = read_requirements(pip_lines(environment))
    problems = [f"{name}: missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name}: not in pyproject.toml" for name in found.keys() - wanted.keys()]
    for name in found.keys() & wanted.keys():
        version = exact_version(found[name])
        if version is None:
            problems.append(f"{name}: not pinned")
        elif not wanted[name].specifier.contains(version, prereleases=True):
            problems.append(f"{name}: {version} is outside {wanted[name].specifier}")
        elif exact_version(wanted[name]) is None and version != exact_version(constraints[name]):
            problems.append(f"{name}: {version} is not the version of constraints.txt")
        if found[name].extras != wanted[name].extras:
            problems.append(f"{name}: extras {found[name].extras} and {wanted[name].extras}")
    return problems


CONSTRAINTS = read_requirements(CONSTRAINTS_FILE.splitlines())
NOTEBOOK = read_requirements(PROJECT["dependencies"] + EXTRAS["demo"] + EXTRAS["jupyter"])
WANTED_CORE = NOTEBOOK | read_requirements(NOTEBOOK_CHECK)
WANTED_ITK = NOTEBOOK | read_requirements(EXTRAS["itk"])


def test_core_environment_agrees():
    assert disagreements(CORE_FILE, WANTED_CORE, CONSTRAINTS) == []
    assert "-c constraints.txt" in pip_lines(CORE_FILE)


def test_itk_environment_agrees():
    assert disagreements(ITK_FILE, WANTED_ITK, CONSTRAINTS) == []
    assert "-c constraints.txt" not in pip_lines(ITK_FILE)  # it would bring zarr 3


def test_each_environment_has_its_own_zarr():
    core, itk = (read_requirements(pip_lines(text)) for text in (CORE_FILE, ITK_FILE))
    assert Version(exact_version(core["zarr"]) or "0").major == 3
    assert exact_version(itk["zarr"]) == "2.18.6"
    assert exact_version(itk["numcodecs"]) == "0.15.2"


@pytest.mark.parametrize("text", [CORE_FILE, ITK_FILE])
def test_environments_install_the_checkout_on_a_declared_python(text):
    environment = yaml.safe_load(text)
    (python,) = [p for p in environment["dependencies"] if str(p).startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    assert environment["dependencies"].index("pip") < len(environment["dependencies"]) - 1
    assert pip_lines(text)[-1] == "-e ."


def test_environments_have_their_own_names():
    assert yaml.safe_load(CORE_FILE)["name"] != yaml.safe_load(ITK_FILE)["name"]


@pytest.mark.parametrize("extra", ["core", *(name for name in EXTRAS if name != "itk")])
def test_constraints_pin_every_direct_dependency(extra):
    lines = PROJECT["dependencies"] if extra == "core" else EXTRAS[extra]
    for name, requirement in read_requirements(lines).items():
        assert name in CONSTRAINTS, f"{name} has no tested version"
        assert requirement.specifier.contains(exact_version(CONSTRAINTS[name]) or "")


def test_constraints_are_exact_and_public_versions():
    for name, requirement in CONSTRAINTS.items():
        version = exact_version(requirement)
        assert version, f"{name} is not pinned"
        assert Version(version).local is None, f"{name}: {version} is of one build only"


@pytest.mark.parametrize("text", [CORE_FILE, ITK_FILE, CONSTRAINTS_FILE])
def test_no_file_names_a_package_host(text):
    for word in (
        "http://",
        "https://",
        "file:",
        "--index-url",
        "--extra-index-url",
        "--find-links",
    ):
        assert word not in text


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("- einops==", "- tables==", "einops: missing"),
        ("- einops==", "- tables==", "tables: not in pyproject.toml"),
        ("- numpy==2.", "- numpy==1.", "is outside >=2"),
        ("- scipy==1.", "- scipy==0.", "is not the version of constraints.txt"),
        ("- scipy==", "- scipy>=", "scipy: not pinned"),
        ("- dask[array]==", "- dask==", "dask: extras"),
    ],
)
def test_the_comparison_can_fail(old, new, problem):
    assert old in CORE_FILE
    problems = disagreements(CORE_FILE.replace(old, new), WANTED_CORE, CONSTRAINTS)
    assert any(problem in found for found in problems)


def test_a_wrong_itk_pin_is_found():
    changed = ITK_FILE.replace("zarr==2.18.6", "zarr==3.1.6")
    assert disagreements(changed, WANTED_ITK, CONSTRAINTS) == ["zarr: 3.1.6 is outside ==2.18.6"]


def test_a_name_listed_twice_is_found():
    with pytest.raises(AssertionError, match="zarr is listed twice"):
        read_requirements(["zarr==3.1.6", "zarr==2.18.6"])
