"""The house keeps its own rules."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

import metaformer

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "metaformer"
MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if not path.name.startswith("_"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {name: found[0].lower().replace("_", "-") for name, found in packages_distributions().items()}
BARE = {"torch", "safetensors", "numpy", "triton"}
"""All that a bare GPU machine has (triton comes with torch): networks, weights and `bench` do with it."""


def requirements(*extras: str) -> set[str]:
    """Distributions of the core, or of extras."""
    lists = [PROJECT["optional-dependencies"][extra] for extra in extras] or [PROJECT["dependencies"]]
    return {re.split(r"[\[<>=]", line)[0] for lines in lists for line in lines}


CORE, EXTRAS = requirements(), requirements(*PROJECT["optional-dependencies"])
OPTIONAL = (CORE | requirements(*PROJECT["optional-dependencies"].keys() - {"dev"})) - BARE
HEAVY = {name for name, distribution in DISTRIBUTIONS.items() if distribution in OPTIONAL}
"""What the bare machine lacks, by the names of imports."""


# Groups of tests of the whole.
WHOLE = {"faults", "golden", "golden_dense"}


def test_tests_mirror_the_folders() -> None:
    """Each folder of tests is one of the source, of benchmarks, or a group of tests of the whole."""
    for test in (ROOT / "tests").rglob("test_*.py"):
        folder = test.parent.relative_to(ROOT / "tests")
        home = ROOT if folder.parts[:1] == ("benchmarks",) else SOURCE
        assert folder.name in WHOLE or (home / folder).is_dir(), test


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("metaformer")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while leaves := {module for module, imported in imports.items() if not imported & imports.keys()}:
        imports = {module: imported for module, imported in imports.items() if module not in leaves}
    assert not imports, sorted(imports)


def test_every_exported_name_is_there() -> None:
    assert sorted(metaformer.__all__) == sorted(dir(metaformer))
    for name in metaformer.__all__:
        assert getattr(metaformer, name).__doc__ or name.isupper()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        metaformer.nonsense  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    assert metaformer.__version__ == metadata.version("metaformer")


def test_version_is_the_changelogs_newest() -> None:
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert newest.split()[1] == PROJECT["version"]


def test_readme_and_contributing_stay_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 160


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_file_can_run_code(module: Path) -> None:
    """No eval, exec, pickle or unsafe loader anywhere in the library."""
    for node in ast.walk(ast.parse((SOURCE / module).read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "dill", "joblib", "cloudpickle"} & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "yaml.load", "pickle.load", "pickle.loads"), called
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert words.get("weights_only") != "False"
            if called == "torch.load":
                assert words.get("weights_only") == "True"


def test_dependencies_are_what_is_imported() -> None:
    """Modules import the core when they are loaded, functions may import extras; the core is imported."""
    loaded, called = set(), set()
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                )
                names = {str(name).partition(".")[0] for name in modules}
                (loaded if node in tree.body else called).update(names)
    known = {*sys.stdlib_module_names, "metaformer"}
    loaded, called = ({DISTRIBUTIONS.get(n, n) for n in found - known} for found in (loaded, called))
    assert loaded <= CORE | BARE
    assert called <= CORE | EXTRAS | BARE
    assert loaded | called >= CORE


def test_a_bare_machine_suffices_for_networks_weights_and_bench() -> None:
    """Every module loads with torch, safetensors and numpy alone; a model is built, run and loaded."""
    script = f"""
import importlib, pkgutil, sys
for name in {HEAVY}: sys.modules[name] = None
import torch, metaformer
for part in ("ops", "layers", "mixers", "backbones", "models", "weights", "bench"):
    package = importlib.import_module(f"metaformer.{{part}}")
    for module in pkgutil.walk_packages(package.__path__, f"metaformer.{{part}}."):
        importlib.import_module(module.name)
model = metaformer.create_model("poolformer_n", num_classes=3)
assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
metaformer.load_weights(model, model.state_dict())
metaformer.create_segmenter("upernet", "poolformer_n")
metaformer.create_detector("mask_rcnn", "poolformer_n")
assert metaformer.list_detectors() and not metaformer.is_detector("x")
metaformer.Detections, metaformer.Targets, metaformer.DetectorConfig
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_import_alone_loads_nothing_heavy() -> None:
    script = f"import sys, metaformer; assert not {{'torch', *{HEAVY}}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
