"""The folder of a run: each answer is on disk as soon as it is there, and a later run goes on from what it finds.

answers.jsonl has one line per answer, written in one piece. A process that dies may leave its last line cut: the next
run moves such lines to set_aside.jsonl and answers their questions again. run.json holds the settings that answers
depend on, so that answers of two models or strategies are never mixed. run.lock is locked by the process that writes;
the system frees it when that process ends, however it ends.

Where several processes share a run, the first owns the folder and the others write answers.<rank>.jsonl, so that no two
write one file; whoever owns the folder next puts them together, with however many processes.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoomzero.annotations import Sample
from zoomzero.answering.answer import Answer
from zoomzero.closable import Closable
from zoomzero.evaluation.processes import Processes
from zoomzero.evaluation.records import AnswerRecord
from zoomzero.files import lock_folder, write_whole

logger = logging.getLogger("zoomzero.evaluation")

ANSWERS_FILE = "answers.jsonl"
SET_ASIDE_FILE = "set_aside.jsonl"
SETTINGS_FILE = "run.json"
SUMMARY_FILE = "summary.json"

_ANSWER_FILE = re.compile(r"answers(\.[0-9]+)?\.jsonl")


class RunFolder(Closable):
    """A run's folder in the hands of this process, until it is closed.

    kept holds the answers that were found, by their questions' keys; num_set_aside says how many lines were none.

    Args:
        folder: made if it is not there.
        settings: what answers depend on; a folder whose answers were made with others is refused.
        processes: those that share the run.

    Raises:
        ValueError: another run writes there, or the settings differ.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: Mapping[str, Any], processes: Processes | None = None
    ) -> None:
        self.path = Path(folder)
        self._processes = processes or Processes()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise ValueError(f"{self.path}: a run needs a folder, got a file; choose another name") from error
        self._lock = lock_folder(self.path) if self._processes.is_first else None
        self._out: int | None = None
        self.num_set_aside = 0
        try:
            if self._processes.is_first:
                self._check_settings(settings)
                self.num_set_aside = self._join_answers()
            self._processes.barrier()
            self.kept = dict(self._read(self.path / ANSWERS_FILE)[0])
            # Nobody writes before all have read.
            self._processes.barrier()
            rank = "" if self._processes.is_first else f".{self._processes.rank}"
            self._file = self.path / f"answers{rank}.jsonl"
            self._out = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except BaseException:
            self.close()
            raise

    def append(self, key: str, index: int, sample: Sample, answer: Answer) -> AnswerRecord:
        """Write an answer down; returns what was written.

        Raises:
            OSError: the disk is full or gone; names the file.
        """
        if self._out is None:
            raise ValueError(f"{self.path}: the run's folder must be open, got a closed one; open it again")
        data = answer.as_dict()
        asked = {"key": key, "index": index, "question_id": sample.question_id}
        asked |= {"video": sample.video, "question": sample.question}
        # Inside a JSON string the escape of a lone surrogate is \udXXX, which reads back as it was.
        line = json.dumps({**asked, **data}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            while line:
                line = line[os.write(self._out, line) :]
        except OSError as error:
            raise OSError(error.errno, f"cannot be written: {error.strerror}", str(self._file)) from error
        return AnswerRecord.from_dict(data)

    def close(self) -> None:
        """Let another run have the folder."""
        for handle in (self._out, self._lock):
            if handle is not None:
                os.close(handle)
        self._out = self._lock = None

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        file = self.path / SETTINGS_FILE
        if file.exists():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                differing = [name for name, value in settings.items() if found.get(name) != value]
            except (ValueError, AttributeError) as error:
                raise ValueError(
                    f"{file}: must be the settings of a run, got {error}; choose another folder"
                ) from error
            if differing:
                name = differing[0]
                raise ValueError(
                    f"{self.path}: the answers here were made with {name}={found.get(name)!r}, got {settings[name]!r}; "
                    "choose another folder, or the same settings"
                )
        else:
            write_whole(file, json.dumps(dict(settings), indent=1) + "\n")

    def exchange(self, part: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, AnswerRecord]]:
        """End of this process's share: what every process has to say, and the answers of all by their keys.

        part: in JSON's types. Waits for the other processes.
        """
        write_whole(self.path / f"part.{self._processes.rank}.json", json.dumps(part))
        self._processes.barrier()
        files = [self.path / f"part.{rank}.json" for rank in range(self._processes.count)]
        parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        answers = dict(pair for file in self._answer_files() for pair in self._read(file)[0])
        self._processes.barrier()
        if self._processes.is_first:
            self._join_answers()
            for file in files:
                file.unlink()
        return parts, answers

    def _answer_files(self) -> list[Path]:
        return sorted(file for file in self.path.glob("answers*.jsonl") if _ANSWER_FILE.fullmatch(file.name))

    def _read(self, file: Path) -> tuple[list[tuple[str, AnswerRecord]], list[bytes], list[bytes]]:
        """(key, record) of a file's whole answers, their lines, and the lines that are none."""
        pairs, good, bad = [], [], []
        for line in file.read_bytes().split(b"\n") if file.exists() else []:
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                pairs.append((str(data["key"]), AnswerRecord.from_dict(data)))
                good.append(line)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                bad.append(line)
        return pairs, good, bad

    def _join_answers(self) -> int:
        """Put the answers of all files into answers.jsonl, each once; returns how many lines were set aside."""
        target = self.path / ANSWERS_FILE
        files = self._answer_files()
        lines: dict[str, bytes] = {}
        bad: list[bytes] = []
        for file in files:
            pairs, good, broken = self._read(file)
            bad += broken
            for (key, _), line in zip(pairs, good, strict=True):
                lines.setdefault(key, line)
        if bad:
            with (self.path / SET_ASIDE_FILE).open("ab") as aside:
                aside.write(b"".join(line + b"\n" for line in bad))
            logger.warning(
                "%s: %d of %d lines are no whole answers; they are in %s now, and their questions are asked again",
                target, len(bad), len(bad) + len(lines), SET_ASIDE_FILE,
            )  # fmt: skip
        whole = b"".join(line + b"\n" for line in lines.values())
        if files and (files != [target] or whole != target.read_bytes()):
            write_whole(target, whole)
        for file in files:
            if file != target:
                file.unlink()
        return len(bad)
