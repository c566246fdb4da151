"""Ask a question about a video and see what each pass looked at.

python examples/answer_a_question.py                                  # a clip and the tiny model of the package
python examples/answer_a_question.py film.mp4 "Who opens the door?" "the nurse" "the child" --model CHECKPOINT
"""

import argparse
import tempfile

from zoomzero import ZoomZero
from zoomzero.synthetic import make_clips
from zoomzero.video import open_video


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", help="a clip made on the spot unless told")
    parser.add_argument("question", nargs="?", default="Which letter is on the red sign?")
    parser.add_argument("options", nargs="*", help="none: an open question")
    parser.add_argument("--model", help="a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint; the tiny model unless told")
    arguments = parser.parse_args()
    engine = ZoomZero.from_pretrained(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        question, options = arguments.question, arguments.options or None
        path = arguments.video
        if path is None:
            clip = make_clips(folder, 1, seed=1)[0]
            path, question, options = clip.path, clip.questions[0].question, clip.questions[0].options
        with open_video(path) as video:
            answer = engine.answer(video, question, options)
    print(question, *(options or ()))
    for look in answer.passes:
        where = ", ".join(f"{start:.1f} to {end:.1f} s" for start, end in look.looked_at) or "the whole video"
        print(f"{look.name}: looked at {where} in {look.cost.seconds:.2f} s, {look.cost.visual_tokens} visual tokens")
    said = f"{answer.letter or ''} {answer.text or 'none'}"
    print(f"answer: {said}, {answer.confidence:.0%} sure, evidence {answer.spans}")


if __name__ == "__main__":
    main()
