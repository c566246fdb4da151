"""`zoomzero serve`: a page on this machine to ask questions about videos."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

NUM_EXAMPLES = 2


def add(commands: Any) -> None:
    """Add the command and its options."""
    serve = commands.add_parser("serve", help="a page on this machine to ask questions about videos")
    serve.add_argument("--model", help="checkpoint; the tiny model of the package, with its clips, unless told")
    serve.add_argument("--device", help="cpu, cuda, ...")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)")
    serve.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    serve.add_argument("--max-upload", default="500mb", metavar="SIZE", help="largest video (%(default)s)")
    serve.add_argument("--time-limit", type=float, default=30.0, help="seconds a decoder may hang (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    # Clips and uploads lie in one folder that goes with the process, however that is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="zoomzero-serve-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))
        return _serve(options, Path(folder))


def _serve(options: argparse.Namespace, folder: Path) -> int:
    try:
        from zoomzero.serve.app import ServeLimits, build_page, theme
    except ImportError as error:
        raise ImportError(f"serve needs gradio, got {error}; pip install 'zoomzero[serve]'") from error
    from zoomzero.answering.engine import ZoomZero

    limits = ServeLimits(max_upload=options.max_upload, time_limit=options.time_limit)
    examples = [] if options.model else _examples(folder / "clips")
    page = build_page(ZoomZero.from_pretrained(options.model, options.device), limits, examples)
    page.launch(
        server_name=options.host,
        server_port=options.port,
        share=False,
        max_file_size=limits.max_upload,
        theme=theme(),
        footer_links=[],
        show_error=False,
        quiet=True,
        enable_monitoring=False,
        ssr_mode=False,
        prevent_thread_lock=True,
    )
    print(f"http://{options.host}:{options.port}  (Ctrl-C ends it)", flush=True)
    page.block_thread()
    return 0


def _examples(folder: Path) -> list[tuple[str, str, str]]:
    from zoomzero.synthetic import make_clips

    clips = make_clips(folder, NUM_EXAMPLES, seed=500)
    return [
        (str(clip.path), question.question, "\n".join(question.options))
        for clip in clips
        for question in clip.questions[:1]
    ]
