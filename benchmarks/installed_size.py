"""How much disk a served model's libraries take, beside those that train one (docs/performance.md).

    python benchmarks/installed_size.py [--extras onnx openvino train]

For each extra a virtual environment is made in a temporary folder, this project is installed into it with pip, torch
first where it is needed (constraints.txt), and the sizes of all files are added up, pip's own left out. Needs a package
index. Writes benchmarks/results/installed_size.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from offramp.bench.provenance import provenance, write_result

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "installed_size.json"
WITH_TORCH = ("train", "export", "attach", "bench", "all")


def installed(extra: str, folder: Path) -> dict[str, Any]:
    """Megabytes and packages of an environment with one extra."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    if extra in WITH_TORCH:
        subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, f"{ROOT}[{extra}]"], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    sizes = {
        path.name: sum(
            file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
        )
        for path in site.iterdir()
        if not path.name.startswith(("pip", "setuptools", "_distutils"))
    }
    listed = json.loads(subprocess.check_output([str(python), "-m", "pip", "list", "--format=json"], text=True))
    packages = {each["name"]: each["version"] for each in listed if each["name"] not in ("pip", "setuptools")}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    return {
        "megabytes": sum(sizes.values()) / 1e6,
        "packages": packages,
        "largest": {name: sizes[name] / 1e6 for name in largest},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="+", default=["onnx", "openvino", "train"])
    found = {}
    for extra in parser.parse_args().extras:
        print(extra, flush=True)
        with tempfile.TemporaryDirectory(prefix="offramp-size-") as work:
            found[extra] = installed(extra, Path(work) / "env")
    write_result(RESULT, {**provenance(), "extras": found})


if __name__ == "__main__":
    main()
