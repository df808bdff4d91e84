"""The house rules that a reader relies on: import arrows, file lengths, docstrings, fast and quiet registration."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_PACKAGES = {"core_ns": set(), "dataparsers": {"core_ns"}}
METHODS = sorted(path.name for path in ROOT.glob("*_ns") if path.name != "core_ns" and (path / "__init__.py").is_file())
HOUSE = {*SHARED_PACKAGES, *METHODS}
SOURCES = sorted(path for package in HOUSE for path in (ROOT / package).rglob("*.py"))
HEAVY = ["jax", "flax", "diffusers", "transformers", "open3d", "warp", "nvdiffrast", "tinycudann", "pycolmap"]


def allowed(package: str) -> set[str]:
    """House packages a package may import."""
    return SHARED_PACKAGES.get(package, {"core_ns", "dataparsers"}) | {package}


def imported_packages(tree: ast.AST) -> set[str]:
    """Top-level names of all imports, also those inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_import_arrows_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    foreign = imported_packages(ast.parse(path.read_text())) & HOUSE - allowed(package)
    assert not foreign, f"{package} must not import {sorted(foreign)}"


def test_the_arrow_check_sees_a_forbidden_import():
    tree = ast.parse("def f():\n    from xscale_ns.surface import Surface\n")
    assert imported_packages(tree) & HOUSE - allowed("core_ns") == {"xscale_ns"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_hold_one_idea(path):
    assert len(path.read_text().splitlines()) <= 420, "split it: two ideas"


def public_without_docstring(tree: ast.Module) -> list[str]:
    """Public modules, classes, functions and methods that say nothing."""
    missing = [] if ast.get_docstring(tree) else ["<module>"]

    def walk(body, prefix):
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            overrides = any(isinstance(d, ast.Name) and d.id == "override" for d in node.decorator_list)
            if not ast.get_docstring(node) and not overrides:
                missing.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                walk(node.body, f"{prefix}{node.name}.")

    walk(tree.body, "")
    return missing


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_is_documented(path):
    assert public_without_docstring(ast.parse(path.read_text())) == []


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_all_methods_register_without_heavy_packages(tmp_path):
    wanted = list(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["nerfstudio.method_configs"]
    )
    code = (
        f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\n"
        "from nerfstudio.configs.method_configs import all_methods\n"
        f"missing = set({wanted!r}) - set(all_methods)\n"
        "assert not missing, missing\n"
        f"assert all(name == all_methods[name].method_name for name in {wanted!r})\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr[-2000:]


def test_registration_costs_little():
    """DESIGN: ``ns-train --help`` at most 0.5 s slower. Measured as processor time of our imports after nerfstudio's,
    so that a loaded machine does not fail it."""
    code = (
        "import nerfstudio.configs.dataparser_configs, nerfstudio.engine.trainer\n"
        "import nerfstudio.pipelines.base_pipeline, nerfstudio.viewer.viewer, nerfstudio.models.nerfacto\n"
        "from time import process_time\n"
        "start = process_time()\nimport xscale_ns.config\nprint(process_time() - start)\n"
    )
    seconds = [float(run_python(code).stdout) for _ in range(3)]
    assert min(seconds) < 0.5, seconds
