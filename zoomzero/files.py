"""Result files written whole or not at all: whoever reads one never finds half of it."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from pathlib import Path

# Locked by the process that writes into a folder.
LOCK_FILE = "run.lock"


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before the work, not after it, whether a file can be written; its folder is made.

    Raises:
        OSError: it cannot; the message names the file.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "cannot be written: it is a folder", str(target))
    write_whole(target.parent / f".zoomzero-{secrets.token_hex(8)}.probe", b"").unlink()


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> Path:
    r"""Write a file in one step: another process, or a crash, sees the old file or the new one.

    Text is written as UTF-8; lone surrogates, which UTF-8 cannot hold, as \udXXX. Folders are made as needed.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written; the message names the file.
    """
    target = Path(path)
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    # Beside the target, for a rename within one disk; not named after it, whose name may be as long as names can be.
    part = target.parent / f".zoomzero-{secrets.token_hex(8)}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(target)) from error
    return target


def lock_folder(folder: Path) -> int:
    """A handle that holds the folder's lock until it is closed or the process ends.

    Raises:
        ValueError: another process holds it.
    """
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 32).decode("ascii", "replace").strip()
        os.close(handle)
        raise ValueError(
            f"{folder}: only one run may write into a folder, got a second one beside process {owner or 'unknown'}; "
            "wait for it, or choose another folder"
        ) from None
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode("ascii"))
    return handle
