"""Write docs/reference/*.md from the docstrings of the public modules.

Public: modules, classes and functions of the two packages without a leading underscore, defined
where they stand. Read from the source, so nothing is imported and optional packages may be absent.
``python docs/build_reference.py`` writes; ``--check`` says what is out of date.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("eeg_encoder", "threestudio_eeg")
Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def rooms(package: str) -> dict[str, list[Path]]:
    """Name of each page to the modules on it: one page a subpackage, one for the top."""
    pages: dict[str, list[Path]] = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        inner = file.relative_to(ROOT / package)
        if any(part.startswith("_") and part != "__init__.py" for part in inner.parts):
            continue
        page = package if len(inner.parts) == 1 else f"{package}.{inner.parts[0]}"
        pages.setdefault(page, []).append(file)
    return pages


def public(body: list[ast.stmt]) -> Iterator[Named]:
    """Classes and functions of a module's or a class's body."""
    for node in body:
        if isinstance(node, Named) and not node.name.startswith("_"):
            yield node


def module_name(file: Path) -> str:
    """Dotted name of a module."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_text(file: Path) -> str:
    """Section of one module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    parts = [f"## `{module_name(file)}`", ast.get_docstring(tree) or ""]
    for node in public(tree.body):
        parts += [f"### `{signature(node)}`", documentation(node)]
        if isinstance(node, ast.ClassDef):
            for method in public(node.body):
                if ast.get_docstring(method):
                    parts += [f"#### `{node.name}.{signature(method)}`", documentation(method)]
    return "\n\n".join(part for part in parts if part)


def signature(node: Named) -> str:
    """Name, arguments and what is returned; bases of a class."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returned}"


def documentation(node: Named) -> str:
    """The docstring as it stands, its layout kept."""
    text = ast.get_docstring(node)
    return f"```text\n{inspect.cleandoc(text)}\n```" if text else ""


def build() -> dict[str, str]:
    """File name to content of every page."""
    pages, listed = {}, []
    for package in PACKAGES:
        for page, modules in rooms(package).items():
            sections = "\n\n".join(module_text(file) for file in modules)
            pages[f"{page}.md"] = f"# {page}\n\n{sections}\n"
            listed.append(f"- [{page}]({page}.md)")
    pages["README.md"] = "# Reference\n\nFrom the docstrings.\n\n" + "\n".join(listed) + "\n"
    return pages


def main(folder: Path = ROOT / "docs" / "reference", *, check: bool = False) -> int:
    """Write the pages, or with ``check`` name those that differ; the exit status."""
    pages = build()
    old = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.md")}
    differ = sorted(name for name in pages.keys() | old.keys() if pages.get(name) != old.get(name))
    if check:
        print("\n".join(differ) or "up to date")
        return int(bool(differ))
    folder.mkdir(parents=True, exist_ok=True)
    for name in old.keys() - pages.keys():
        (folder / name).unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(pages)} pages in {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(check="--check" in sys.argv[1:]))
