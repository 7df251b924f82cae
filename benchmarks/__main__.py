"""Run every benchmark in turn and print a page of their figures: `python -m benchmarks [-o FILE] [NAME...]`.

A benchmark is a file of this folder that ends in `if __name__ == "__main__"`; its first line says what
is compared. The figures of docs/benchmarks.md come from here (`make bench`), and with a Qdrant server at
QDRANT_URL those of docs/performance.md (`make bench-server`).
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARIES = ("numpy", "tensorflow", "qdrant-client", "qdrant-edge-py", "pandas")


def benchmarks() -> dict[str, str]:
    """Return the name and the first line of every benchmark."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name != "__main__.py" and 'if __name__ == "__main__"' in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or path.stem).splitlines()[0].rstrip(".")
    return found


def machine() -> str:
    """Return what the figures depend on, in one line."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, {libraries}"


def figures(name: str) -> str:
    """Run one benchmark in a process of its own and return what it printed."""
    # Without a cache of byte code every cold start would compile the package anew.
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"],
        cwd=FOLDER.parent,
        env={**kept, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "110"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    note = "" if done.returncode == 0 else f"\n(ended with exit code {done.returncode})"
    return done.stdout.rstrip() + note


def main() -> None:
    known = benchmarks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(known)} (default: all)")
    parser.add_argument("-o", "--output", type=Path, help="also write the page to this file")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no benchmark {unknown[0]!r}; expected one of {', '.join(known)}")
    command = " ".join(["python -m benchmarks", *options.names])
    head = f"# Benchmarks\n\nPrinted by `{command}` on {machine()}. "
    head += "Ratios compare things of one run; absolute times depend on the machine.\n"
    parts = [head]
    print(parts[0], flush=True)
    for name in options.names or known:
        parts.append(f"## {known[name]}\n\n`benchmarks/{name}.py`\n\n```text\n{figures(name)}\n```\n")
        print(parts[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
