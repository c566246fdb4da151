"""The report's page in Chromium: filters, keys, links, accessibility, scrolling, and nothing on the network."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.browser import Watched, accessibility_problems, chromium
from support.run_folders import made_answer, many, write_run, write_training

from zoomzero.annotations import Sample
from zoomzero.report import read_report, write_report
from zoomzero.synthetic import make_clips

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1"><b>&amp;\ud800'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of pages: one run, two runs with a training, 2,000 questions, hostile texts."""
    folder = tmp_path_factory.mktemp("pages")
    video = str(make_clips(folder / "clips", 1, seed=7, workers=1)[0].path)
    samples, answers = many(60, video)
    first = write_run(folder / "first", samples, answers)
    second = write_run(folder / "second", samples[:50], many(60, video, seed=1)[1][:50])
    large = write_run(folder / "large", *many(2000, video, seed=2))
    # Every string that a run can carry.
    name = HOSTILE.replace("/", "").encode("utf-8", "backslashreplace").decode()
    bad = Sample(name, HOSTILE, (HOSTILE, "b"), "A", ((1.0, 2.0),), None, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    answer = made_answer(HOSTILE, HOSTILE, (0.0, 1.0), text=HOSTILE)
    answer["passes"][0] |= {"text": HOSTILE, "why": HOSTILE, "name": HOSTILE, "words": HOSTILE}
    hostile = write_run(folder / "hostile", [bad], [answer])
    (hostile / "run.json").write_text(json.dumps({HOSTILE: HOSTILE, "strategy": HOSTILE, "model": HOSTILE}))
    trained = write_training(folder / "training")
    line = (trained / "samples.jsonl").read_text().splitlines()[-1]
    entry = json.loads(line) | {"question": HOSTILE, "answer": HOSTILE}
    entry["responses"][0]["tokens"][1] = HOSTILE
    (trained / "samples.jsonl").write_text(json.dumps(entry) + "\n")
    made = {
        "one": read_report([first], max_bytes=10**7, time_limit=None),
        "two": read_report([first, second], max_bytes=10**7, time_limit=None),
        "large": read_report([large]),
        "hostile": read_report([hostile, trained], title=HOSTILE),
        "training": read_report([write_training(folder / "other")]),
    }
    return {name: write_report(report, folder / f"{name}.html").resolve().as_uri() for name, report in made.items()}


@pytest.fixture
def opened(browser: Any, pages: dict[str, str]) -> Iterator[Any]:
    """opened(name, **how) -> a watched page; in the end none may have complained or asked the network for anything."""
    watched: list[Watched] = []

    def open_page(name: str, place: str = "", **how: Any) -> Watched:
        one = Watched(browser, **how)
        watched.append(one)
        one.page.goto(pages[name] + place)
        return one

    yield open_page
    for one in watched:
        assert one.problems == []
        assert [url for url in one.requests if not url.startswith(("file:", "data:"))] == []
        one.page.close()


def _titles(page: Any) -> list[str]:
    return page.locator(".row .title").all_inner_texts()


def test_filters_search_and_order_choose_the_questions(opened: Any) -> None:
    page = opened("one", "#questions").page
    assert "60 questions" in page.locator(".count").inner_text()
    for name in ("wrong", "right", "rescued", "broken", "unanswered"):
        chip = page.locator(f'[data-outcome="{name}"]')
        count = chip.locator("span").inner_text()
        chip.click()
        assert page.locator(".count").inner_text().startswith(f"{count} question")
    page.locator('[data-outcome="all"]').click()
    page.get_by_label("Task", exact=True).select_option("who")
    page.get_by_label("Length of the video").select_option("long")
    assert all("who" in text for text in page.locator(".row small").all_inner_texts())
    page.get_by_label("Task", exact=True).select_option("")
    page.get_by_label("Length of the video").select_option("")
    page.locator("#search").fill("question 17: ID17")
    assert len(_titles(page)) == 1
    page.locator("#search").fill("no such words")
    assert page.locator(".detail").inner_text() == "No question fits these filters."
    page.locator("#search").fill("")
    page.locator("#sort").select_option("iou")
    page.locator(".row").first.click()
    low = float(page.locator(".verdict").inner_text().split("IoU ")[1].split(" ")[0])
    page.locator("#sort").select_option("file")
    assert low < 0.2
    assert _titles(page)[0].startswith("Question 0")


def test_keys_move_search_and_explain(opened: Any) -> None:
    watched = opened("one")
    page = watched.page
    assert page.locator(".tiles").is_visible()
    page.keyboard.press("j")
    assert page.locator(".asked").inner_text().startswith("Question 0")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.locator(".asked").inner_text().startswith("Question 1:")
    assert page.url.endswith("#q2")
    for _ in range(30):
        page.keyboard.press("j")
    current = page.locator('.row a[aria-current="true"]')
    box, area = current.bounding_box(), page.locator(".list").bounding_box()
    assert area["y"] <= box["y"] <= area["y"] + area["height"] - box["height"] + 1
    page.keyboard.press("/")
    page.keyboard.type("j k ?")
    assert page.locator("#search").input_value() == "j k ?"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()
    page.keyboard.press("1")
    page.locator(".tiles").wait_for()


def test_a_link_opens_its_question_whatever_the_filters(opened: Any) -> None:
    page = opened("one", "#q42").page
    assert page.locator(".asked").inner_text().startswith("Question 41:")
    page.locator("#search").fill("question 3:")
    page.evaluate("location.hash = '#q43'")
    page.locator(".asked", has_text="Question 42:").wait_for()
    # Spans, frames and passes are drawn, the thumbnails in the size that the model got.
    assert page.locator(".timeline i.true").count() == 1
    assert page.locator(".frame").count() == 6
    assert (
        page.locator(".frames div[role=img]")
        .first.evaluate("node => getComputedStyle(node).backgroundImage")
        .startswith('url("data:image/webp')
    )
    assert page.locator(".pass h3").all_inner_texts() == ["1 · coarse", "2 · zoom"]


def test_two_runs_stand_side_by_side(opened: Any) -> None:
    watched = opened("two")
    page = watched.page
    assert page.locator(".tiles").count() == 2
    assert "over 50 shared questions" in page.locator(".difference").inner_text()
    page.keyboard.press("j")
    assert page.locator(".column").count() == 2
    gained = int(page.locator('[data-outcome="gained"] span').inner_text())
    page.locator('[data-outcome="gained"]').click()
    assert page.locator(".count").inner_text().startswith(f"{gained} question")
    page.get_by_role("button", name="first", exact=True).click()
    assert page.locator('[data-outcome="all"] span').inner_text() == "60"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1360, 390])
def test_axe_finds_nothing_and_nothing_runs_over_the_edge(opened: Any, scheme: str, width: int) -> None:
    for name, places in (("one", ["", "#q2"]), ("two", ["", "#q2"]), ("training", [""])):
        for place in places:
            watched = opened(name, place, width=width, height=900, scheme=scheme)
            assert accessibility_problems(watched.page) == []
            assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
            watched.screenshot(f"report-{name}{place.replace('#', '-')}-{scheme}-{width}")


def test_a_phone_shows_the_list_or_the_question(opened: Any) -> None:
    page = opened("one", "#questions", width=390, height=800).page
    assert page.locator(".list").is_visible()
    assert not page.locator(".detail").is_visible()
    page.locator(".row a").nth(1).click()
    assert page.locator(".asked").is_visible()
    assert not page.locator(".list").is_visible()
    page.get_by_role("button", name="List").click()
    assert page.locator(".list").is_visible()


def test_print_holds_summary_and_questions(opened: Any) -> None:
    page = opened("two").page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("#print .asked").count() == 40
    assert page.locator(".tiles").first.is_visible()
    assert page.locator("#print .asked").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#print .asked").count() == 0


def test_texts_from_outside_stay_texts(opened: Any) -> None:
    watched = opened("hostile")
    page = watched.page
    shown = HOSTILE.replace("\ud800", "\ufffd")
    assert page.title() == HOSTILE.replace("\ud800", "\\ud800")
    for place in ("#summary", "#training", "#q1"):
        page.evaluate(f"location.hash = {place!r}")
        page.locator(f'body[data-view="{"questions" if place == "#q1" else place[1:]}"]').wait_for()
        assert page.locator("main img, main script, main b b").count() == 0
    assert page.locator(".asked").inner_text().replace("\ud800", "\ufffd") == shown
    assert page.locator("pre").first.inner_text().replace("\ud800", "\ufffd") == shown
    assert page.title() != "owned"


def test_two_thousand_questions_keep_few_rows_and_scroll(opened: Any) -> None:
    page = opened("large", "#questions").page
    assert page.locator(".row").count() < 30
    page.locator(".list").evaluate("node => node.scrollTop = node.scrollHeight")
    page.locator(".row .title", has_text="Question 1999").wait_for()
    assert page.locator(".row").count() < 30
    assert page.locator('.row a[href="#q2000"]').count() == 1


def test_few_rows_are_made_for_a_filter_a_step_or_a_scroll(opened: Any) -> None:
    """What a task costs is the rows that it makes: as many as are in sight, however many questions there are."""
    page = opened("large", "#questions").page
    page.evaluate(
        """() => {
          window.made = 0;
          new MutationObserver((records) => { for (const one of records) window.made += one.addedNodes.length; })
            .observe(document.querySelector(".list ol"), {childList: true});
        }"""
    )

    def rows_made_by(action: Callable[[], object]) -> int:
        page.evaluate("window.made = 0")
        action()
        # Two frames: one that draws, one after it.
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return page.evaluate("window.made")

    in_sight = page.locator(".row").count()
    assert in_sight < 30
    assert rows_made_by(lambda: page.locator('[data-outcome="wrong"]').click()) <= in_sight
    assert rows_made_by(lambda: page.locator("#search").fill("door")) <= in_sight
    page.locator("#search").blur()
    assert rows_made_by(lambda: page.keyboard.press("j")) == 0
    assert page.locator('.row a[aria-current="true"]').count() == 1
    scroll = "node => { for (let row = 1; row <= 9; row++) { node.scrollTop = 64 * row; } }"
    assert rows_made_by(lambda: page.locator(".list").evaluate(scroll)) <= 9 + 1


def test_tokens_are_coloured_by_advantage_and_segment(opened: Any) -> None:
    page = opened("training").page
    tokens = page.locator(".response .tokens span")
    assert [tokens.nth(place).get_attribute("class") for place in range(4)] == ["rest", "answer", "rest", "span"]
    assert tokens.nth(1).get_attribute("title") == "answer, advantage -1.00"
    colours = [tokens.nth(place).evaluate("node => getComputedStyle(node).backgroundColor") for place in range(3)]
    assert colours[0] == colours[2] != colours[1]
    page.get_by_label("Sampled step").fill("0")
    assert "Q1" in page.locator("section:has(.slider)").inner_text()
