"""Result files written whole or not at all: whoever reads one never finds half of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: str | os.PathLike[str], text: str) -> Path:
    r"""Write a text file in one step: another process, or a crash, sees the old file or the new one.

    Lone surrogates, which UTF-8 cannot hold, are written as \udXXX. Folders are made as needed.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written; the message names the file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:64]}.", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            # mkstemp makes files for their owner alone; results are as readable as others made here.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(target)) from error
    return target
