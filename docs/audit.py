"""What `make audit` does: licences, a bill of materials (CycloneDX) and vulnerabilities of all we install.

python docs/audit.py TOOLS OUTPUT looks at the environment of the Python that runs it. TOOLS is the folder of
the programs cyclonedx-py and pip-audit, which are in an environment of their own; the results go to OUTPUT.
Exits with 1 for a licence that is not in the list below, a bill that is not valid, or a vulnerability; not
where the database of vulnerabilities cannot be reached, which is said.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

# What lets us use and pass on a package as it is. MPL-2.0: changes of its own files would have to be shown.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "MIT-CMU",
    "MPL-2.0", "PSF-2.0", "Zlib",
}  # fmt: skip
SPDX = {  # what packages without an expression write in its place
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD 3-Clause": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC license": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSFL": "PSF-2.0",
}
# Read in their repositories, since their metadata say nothing or all of it; matplotlib's is PSF's renamed.
READ = {"matplotlib": "PSF-2.0", "namex": "Apache-2.0", "ptyprocess": "ISC"}
OURS = "embedstore"


def main(tools: Path, output: Path) -> int:
    output.mkdir(parents=True, exist_ok=True)
    return max(licences(output), bill(tools, output), vulnerabilities(tools, output))


def licences(output: Path) -> int:
    """Write the licence of every package, and return 1 where one is not allowed."""
    known = {str(found.name): licence_of(found) for found in distributions() if found.name != OURS}
    lines = [f"{name}: {licence or 'unknown'}" for name, licence in sorted(known.items(), key=str)]
    (output / "licences.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    refused = [name for name, licence in known.items() if not is_allowed(licence)]
    print(f"licences: {len(known)} packages, {', '.join(sorted(set(filter(None, known.values()))))}")
    for name in refused:
        print(f"licences: NOT ALLOWED: {name}: {known[name] or 'unknown'}; read it, then see docs/audit.py")
    return int(bool(refused))


def licence_of(found: Distribution) -> str | None:
    """Return the SPDX expression of a package's licence, None where its metadata do not tell."""
    told = list(_told(found))
    spdx = [SPDX.get(text, text) for text in told]
    if (read := READ.get(str(found.name))) is not None:
        return read
    return next((text for text in spdx if is_allowed(text)), told[0] if told else None)


def is_allowed(licence: str | None) -> bool:
    """Whether every licence of an SPDX expression is in the list."""
    words = re.split(r"\s+(?:AND|OR)\s+", re.sub("[()]", " ", licence or "").strip())
    return set(words) <= ALLOWED


def _told(found: Distribution) -> Iterator[str]:
    for field in ("License-Expression", "License"):
        if field in found.metadata and (text := found.metadata[field].strip()):
            yield text.splitlines()[0]
    for classifier in found.metadata.get_all("Classifier") or ():
        if classifier.startswith("License :: OSI Approved :: "):
            yield classifier.rpartition(" :: ")[2]


def bill(tools: Path, output: Path) -> int:
    """Write the bill of materials, and return 1 where it is not as CycloneDX's own schema wants it."""
    path = output / "sbom.cdx.json"
    command: list[str | Path] = [tools / "cyclonedx-py", "environment", "--pyproject", "pyproject.toml"]
    done = subprocess.run(
        [*command, "--output-reproducible", "--validate", "--output-file", path, sys.executable], check=False
    )
    if done.returncode:
        print("bill of materials: NOT MADE, see above")
        return 1
    content = json.loads(path.read_bytes())
    told = f"{content['bomFormat']} {content['specVersion']}, {len(content['components'])} components"
    print(f"bill of materials: {told}, valid: {path}")
    return 0


def vulnerabilities(tools: Path, output: Path) -> int:
    """Ask the database for every package, and return 1 where one is known to be vulnerable."""
    path = output / "vulnerabilities.json"
    path.unlink(missing_ok=True)
    packages = sorted({str(Path(str(found.locate_file("")))) for found in distributions()})
    command: list[str | Path] = [tools / "pip-audit", "--format", "json", "--output", path, "--skip-editable"]
    command += ["--progress-spinner", "off", *(word for package in packages for word in ("--path", package))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not path.exists():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"vulnerabilities: NOT AUDITED, the database cannot be reached: {reason[:300]}")
        return 0
    found = [one for one in json.loads(path.read_bytes())["dependencies"] if one["name"] != OURS]
    # pip-audit says that it found nothing where it could not look, too.
    skipped = [package for package in found if "skip_reason" in package]
    if skipped:
        text = f"{len(skipped)} of {len(found)} packages are not in the database that can be reached"
        print(f"vulnerabilities: NOT AUDITED: {text} ({skipped[0]['skip_reason']})")
    vulnerable = [package for package in found if package.get("vulns")]
    for package in vulnerable:
        names = ", ".join(one["id"] for one in package["vulns"])
        print(f"vulnerabilities: {package['name']} {package['version']}: {names}")
    print(f"vulnerabilities: {len(vulnerable)} of {len(found) - len(skipped)} audited packages have some")
    return int(bool(vulnerable))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
