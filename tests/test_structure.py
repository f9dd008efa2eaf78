"""The shape of the code: which way imports run, how long files are, and that papers name what exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edged"
LONGEST = 500  # lines

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "documents", "private_file", "watchdog", ""),
    ("planning", "backend", "settings"),
    ("rpc",),
    ("ring", "store", "device"),
    ("cluster", "serving", "verify"),
    ("api", "frontdoor"),
    ("node",),
    ("daemon",),
    ("cli", "__main__"),
)
"""Imports run towards the front only; "" is edged itself. Within a package anything goes."""

ALLOWED: dict[tuple[str, str], str] = {}
"""Imports against that order, each with its reason."""

PURE = {"planning": ("grpc", "zeroconf", "edged.api"), "serving": ("grpc", "zeroconf", "edged.api")}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> frozenset[tuple[str, bool]]:
    """Every module that a file imports at run time, and whether it does so while it is imported itself."""
    found: set[tuple[str, bool]] = set()

    def visit(node: ast.AST, eager: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update((alias.name, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add((node.module, eager))
            found.update((f"{node.module}.{alias.name}", eager) for alias in node.names)
        inner = eager and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(path.read_text()), True)
    return frozenset(found)


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def rank(package: str) -> int:
    for index, layer in enumerate(LAYERS):
        if package in layer:
            return index
    raise AssertionError(f"edged/{package} has no place in LAYERS")


def test_imports_run_one_way() -> None:
    known = modules()
    wrong = set()
    for module, path in known.items():
        here = package_of(module)
        for target, _ in imports(path):
            if target not in known:
                continue
            there = package_of(target)
            if there not in (here, "") and rank(there) > rank(here) and (here, there) not in ALLOWED:
                wrong.add(f"{module} imports {target}")
    assert sorted(wrong) == []


def test_exceptions_are_still_needed() -> None:
    used = {(package_of(m), package_of(t)) for m, path in modules().items() for t, _ in imports(path)}
    assert [pair for pair in ALLOWED if pair not in used] == []


@pytest.mark.parametrize("package", PURE)
def test_deciding_knows_no_network(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in sorted((PACKAGE / package).rglob("*.py"))
        for target, _ in imports(path)
        if any(target == barred or target.startswith(f"{barred}.") for barred in PURE[package])
    ]
    assert wrong == []


def test_no_import_is_circular() -> None:
    """So every module can be imported first."""
    known = modules()
    graph = {
        module: {target for target, eager in imports(path) if eager and target in known and target != module}
        for module, path in known.items()
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module in done:
            return
        for target in sorted(graph[module]):
            walk(target, (*trail, module))
        done.add(module)

    for module in graph:
        walk(module, ())


def test_importing_changes_no_environment() -> None:
    script = "import os\nbefore = dict(os.environ)\nimport edged.daemon\nassert before == dict(os.environ)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def sources() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    found = [ROOT / name for name in tracked] or [*PACKAGE.rglob("*"), *(ROOT / "native").rglob("*")]
    kinds = (".py", ".cpp", ".hpp", ".h", ".proto")
    return sorted(path for path in found if path.suffix in kinds and path.is_file())


def test_no_file_is_too_long() -> None:
    found = sources()
    assert len(found) > 50
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in found}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def test_no_file_is_called_after_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "tmp"}
    assert [str(path) for path in sources() if path.stem in vague] == []


@pytest.mark.parametrize("paper", ["README.md", "ARCHITECTURE.md"])
def test_papers_name_paths_that_exist(paper: str) -> None:
    text = (ROOT / paper).read_text()
    # A path in backticks has a slash, or an ending of ours. Places at run time begin with HOME, ~ or /.
    named = {
        word
        for word in re.findall(r"`([^`\s]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        if re.fullmatch(r"[A-Za-z_.][\w.-]*(/[\w.*{},-]*)+|[\w-]+\.(py|cpp|hpp|proto|toml|md|txt)", word)
        and word.split("/")[0] not in ("HOME", "v1")
    }
    assert named, f"{paper} names no path at all"
    starts = (ROOT, PACKAGE)
    missing = [
        word
        for word in sorted(named)
        if not any(list(start.glob(one)) for start in starts for one in _braces(word))
    ]
    assert missing == []


def _braces(word: str) -> list[str]:
    """`rpc/{channel,server}.py` is two paths."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", word)
    if match is None:
        return [word.rstrip("/")]
    return [f"{match[1]}{one}{match[3]}" for one in match[2].split(",")]
