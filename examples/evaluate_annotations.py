"""Evaluate a model on annotated questions: accuracy, temporal IoU, and a page about every answer.

python examples/evaluate_annotations.py                        # clips and the tiny model of the package
python examples/evaluate_annotations.py rows.json --model CHECKPOINT --run runs/mine
"""

import argparse
import tempfile
from pathlib import Path

from zoomzero import ZoomZero
from zoomzero.evaluation import evaluate, load_annotations, write_summary
from zoomzero.report import read_report, write_report
from zoomzero.synthetic import make_clips

NUM_CLIPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", nargs="?", type=Path, help="clips made on the spot unless told")
    parser.add_argument("--model", help="checkpoint; the tiny model unless told")
    parser.add_argument("--run", type=Path, default=Path("runs/example"), help="folder of the answers (%(default)s)")
    arguments = parser.parse_args()
    engine = ZoomZero.from_pretrained(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.annotations is None:
            make_clips(folder, NUM_CLIPS, seed=2)
        samples = load_annotations(arguments.annotations or Path(folder, "annotations.json"))
        # A run that is stopped goes on in the same folder; videos that cannot be read are skipped and listed.
        result = evaluate(engine, samples, run_folder=arguments.run)
        summary = write_summary(arguments.run, samples, result)
        page = write_report(read_report([arguments.run]), arguments.run / "page.html")
    for name, value in {**result.metrics, "Acc (coarse pass)": result.coarse_accuracy}.items():
        interval = summary["intervals"].get(name)
        print(
            f"{name:20}{value:8.3f}" + ("" if interval is None else f"   95 % {interval[0]:.3f} to {interval[1]:.3f}")
        )
    print(f"page: {page}")


if __name__ == "__main__":
    main()
