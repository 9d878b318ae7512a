"""Check that a wheel holds the configs and the weights, and no file that is too large."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

LARGEST_FILE = 15e6
LARGEST_WHEEL = 60e6


def main(wheel: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    shipped = {
        f"threestudio_eeg/{file.relative_to(root)}" for file in root.glob("configs/**/*.yaml")
    }
    for package in ("eeg_encoder", "threestudio_eeg"):
        for suffix in ("py", "safetensors", "json", "js", "css", "html"):
            files = (root / package).rglob(f"*.{suffix}")
            shipped |= {str(file.relative_to(root)) for file in files}
    absent = sorted(shipped - set(sizes))
    heavy = sorted(name for name, size in sizes.items() if size > LARGEST_FILE)
    strays = sorted(name for name in sizes if name.startswith(("tests/", "benchmarks/")))
    for problem, names in (("absent", absent), ("too large", heavy), ("not ours", strays)):
        if names:
            raise SystemExit(f"{wheel.name}: {problem}: {', '.join(names)}")
    if wheel.stat().st_size > LARGEST_WHEEL:
        raise SystemExit(f"{wheel.name}: {wheel.stat().st_size / 1e6:.0f} MB")
    print(f"{wheel.name}: {len(sizes)} files, {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
