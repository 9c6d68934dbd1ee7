"""Files that are whole or not there: written under another name in the same folder, then moved into place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["write_atomically", "write_together"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` is the old file or the new one, never half of either.

    Folders on the way are made. If writing fails (no space, Ctrl-C) the old file stays and nothing is left behind.

    Raises:
        OSError: the folder cannot be written to.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Likewise several files that belong together: none takes its place before all are written.

    Raises:
        OSError: a folder cannot be written to.
    """
    written: list[tuple[str, Path]] = []
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            written.append((temporary, path))
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
        for temporary, path in written:
            os.replace(temporary, path)
    except BaseException:
        for temporary, _ in written:
            Path(temporary).unlink(missing_ok=True)
        raise
