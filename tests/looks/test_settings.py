"""zoomzero.json and template files: what is wrong with them is told at loading, with file, key, rule and value."""

import json
from pathlib import Path
from typing import Any

import pytest

from zoomzero.prompts import Inquiry, Prompts
from zoomzero.settings import PassSettings, ZoomSettings, load_prompts
from zoomzero.synthetic import tiny_processor


def _valid() -> dict[str, Any]:
    return {
        "coarse": {"budget_tokens": 64, "sample_fps": 1.5},
        "zoom": {"budget_tokens": 32, "max_frames": 4, "context_fraction": 0.25},
        "prompts": {"coarse": "$question $options", "zoom": "$question", "thinking": False},
    }


def _write(folder: Path, data: object) -> Path:
    file = folder / "zoomzero.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    return file


def test_what_the_file_says_is_taken(tmp_path: Path) -> None:
    _write(tmp_path, _valid() | {"kept_share": 0.2})
    settings = ZoomSettings.load(tmp_path)
    assert settings.coarse == PassSettings(budget_tokens=64, sample_fps=1.5)
    assert settings.zoom.context_fraction == 0.25
    assert settings.prompts == Prompts("$question $options", "$question", thinking=False)
    assert settings.kept_share == 0.2
    settings.save(tmp_path)
    assert ZoomSettings.load(tmp_path) == settings


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("coarse.budget_tokens", "many", r"coarse\.budget_tokens must be a whole number from 1 to 1048576, got 'many'"),
        ("coarse.budget_tokens", 0, r"coarse\.budget_tokens must be a whole number .* got 0"),
        ("coarse.budget_tokens", 64.0, r"coarse\.budget_tokens must be a whole number .* got 64\.0"),
        ("coarse.budget_tokens", 10**12, r"coarse\.budget_tokens must be a whole number .* got 1000000000000"),
        ("coarse.budget_tokens", True, r"coarse\.budget_tokens must be a whole number .* got True"),
        ("coarse.budget_tokens", 15, r"coarse\.budget_tokens must hold one temporal patch .* got 15 < 16"),
        ("coarse.context_fraction", 0.5, "the coarse pass sees the whole video"),
        ("coarse.max_frames", None, r"coarse\.max_frames must be a whole number .* got None"),
        ("coarse.sample_fps", float("nan"), r"coarse\.sample_fps must be a number above 0 and at most 240, got nan"),
        ("coarse.sample_fps", float("inf"), r"coarse\.sample_fps must be a number .* got inf"),
        ("coarse.sample_fps", 10**400, r"coarse\.sample_fps must be a number .* got 1000"),
        ("coarse.sample_fps", [2], r"coarse\.sample_fps must be a number .* got \[2\]"),
        ("coarse.min_frame_tokens", 1000, r"coarse\.max_frame_tokens must be at least min_frame_tokens"),
        ("zoom.context_fraction", 1, r"zoom\.context_fraction must be in \[0, 1\), got 1"),
        ("zoom.context_fraction", "half", r"zoom\.context_fraction must be in \[0, 1\), got 'half'"),
        ("zoom.colour", 1, r"zoom\.colour is no setting, these are: budget_tokens"),
        ("prompts.coarse", 7, r"prompts\.coarse must be a text, got 7"),
        ("prompts.coarse", "no place", r"prompts\.coarse must hold \$question, got 'no place'"),
        ("prompts.zoom", "$question" + "x" * 30_000, r"prompts\.zoom must have at most 20000 characters, got 30009"),
        ("prompts.zoom", "$question $video $video", r"prompts\.zoom must hold \$video at most once, got 2"),
        ("prompts.zoom", "$question \ud800", r"prompts\.zoom must be valid Unicode"),
        ("prompts.thinking", "yes", r"prompts\.thinking must be true or false, got 'yes'"),
        ("kept_share", 1.5, r"kept_share must be in \[0, 1\), got 1\.5"),
        ("kept_share", "some", r"kept_share must be in \[0, 1\), got 'some'"),
        ("speed", 1, r"speed is no setting, these are: coarse, zoom, prompts, kept_share"),
        ("coarse", [1], r"coarse must be an object, got \[1\]"),
        ("prompts", "text", r"prompts must be an object, got 'text'"),
    ],
)
def test_wrong_values_are_refused_with_file_and_key(tmp_path: Path, key: str, value: object, message: str) -> None:
    data = _valid()
    section, _, name = key.partition(".")
    if name:
        data[section][name] = value
    else:
        data[section] = value
    file = _write(tmp_path, data)
    with pytest.raises(ValueError, match=message) as error:
        ZoomSettings.load(tmp_path)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not valid settings of zoomzero"),
        ("[1, 2]", "must hold a JSON object, got list"),
        ("{}", "needs coarse, which is not there"),
        ('{"coarse": {}, "zoom": {"budget_tokens": 32}, "prompts": {}}', r"needs coarse\.budget_tokens"),
        ("[" * 100_000, "not valid settings of zoomzero"),
        ('{"coarse": ' + "9" * 5001 + "}", "not valid settings of zoomzero"),
        (" " * (1 << 19), "must have at most 262144 bytes"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path: Path, content: str, message: str) -> None:
    _write(tmp_path, content)
    with pytest.raises(ValueError, match=rf"zoomzero\.json.*{message}"):
        ZoomSettings.load(tmp_path)


def test_templates_come_from_a_file_of_their_own_or_from_settings(tmp_path: Path) -> None:
    own = tmp_path / "prompts.json"
    own.write_text(json.dumps({"coarse": "In $duration s: $question $options"}))
    assert load_prompts(own) == Prompts(coarse="In $duration s: $question $options")
    assert load_prompts(_write(tmp_path, _valid())).thinking is False
    with pytest.raises(OSError, match=r"absent\.json"):
        load_prompts(tmp_path / "absent.json")
    own.write_text('{"coarse": "no place"}')
    with pytest.raises(ValueError, match=r"prompts\.json: prompts\.coarse must hold \$question"):
        load_prompts(own)


def test_templates_are_filled_with_duration_and_subtitles() -> None:
    prompts = Prompts(coarse="$duration s$video$question|$options", zoom="$question", open_zoom="Say: $question")
    inquiry = Inquiry(" why? ", ("x", "y"), 12.345)
    assert prompts.around_video(inquiry, zoomed=False) == ("12.3 s", "why?|(A) x\n(B) y")
    assert prompts.around_video(Inquiry("why?", None, 1.0), zoomed=True) == ("", "Say: why?")
    said = Inquiry("why?", ("x", "y"), 1.0, subtitles="hello\nyou")
    assert prompts.around_video(said, zoomed=True) == ("", "Subtitles of the video:\nhello\nyou\n\nwhy?")


def test_built_in_prompts_state_the_duration_and_the_tiny_models_stay_as_trained() -> None:
    inquiry = Inquiry("why?", ("x", "y"), 61.0)
    for prompts in (Prompts(), Prompts.direct()):
        assert "lasts 61.0 seconds" in prompts.around_video(inquiry, zoomed=False)[1]
    tiny = tiny_processor().settings.prompts
    assert tiny.coarse == "$question$video$options\nAnswer with evidence."
    assert tiny.zoom == "$question$video$options\nAnswer with the letter."


@pytest.mark.parametrize("count", [1, 9])
def test_options_are_two_to_eight(count: int) -> None:
    with pytest.raises(ValueError, match=f"options must be 2 to 8 texts, got {count}"):
        Inquiry("why?", ("x",) * count, 1.0)
    assert Inquiry("why?", ("x",) * 8, 1.0).letters == "ABCDEFGH"
