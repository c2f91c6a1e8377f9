"""The page of `kvbench view` in a real browser: clicks, keys, narrow windows, dark mode, hostile texts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvbench.report.view import page
from kvbench.report.view.__main__ import main
from kvbench.store import KeptTokens
from kvbench.store.kept import kept_line
from tests.helpers.browser import Browser, browser
from tests.helpers.fake_runs import FakeRun, make_run, make_suite, out_of_memory, store_run
from tests.helpers.synthetic_store import write_store

pytestmark = pytest.mark.chromium

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>\ud800\x1b[2J\u202e<!--"
VARIANTS = [("snapkv", "0.1"), ("snapkv", "0.2"), ("ada_snapkv", "0.1"), ("ada_snapkv", "0.2"), ("h2o", "0.1")]
FULL, OTHER = "The number is 1234 .", "The secret number was 99."


def with_answers(run: FakeRun) -> FakeRun:
    for sample in run.samples:
        good = sample["scores"]["recall"] == 1
        sample |= {"prediction": FULL if good else OTHER, "new_tokens": 6, "finish_reason": "stop"}
        sample["kept"] = [[10, 20], [30, 40]]
    return run


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a needle grid, a suite of four datasets, and a run of hostile texts."""
    root = tmp_path_factory.mktemp("view") / "runs"
    store_run(root, with_answers(make_run("fullkv", "full", 1.0)))
    for method, budget in VARIANTS:
        store_run(root, with_answers(make_run(method, budget, None)))
    store_run(root, out_of_memory(with_answers(make_run("h2o", "0.2", None)), 0, 4))
    for row in (("fullkv", "full", 0.5), ("snapkv", "0.2", 0.25)):
        for run in make_suite(*row):
            store_run(root, run)
    run = make_run("fullkv", "full", 1.0, question="agnostic")
    run.manifest["identity"]["method"]["dial"] = HOSTILE.replace("\ud800", "")
    for sample in run.samples:
        sample |= {"prediction": HOSTILE, "answers": [HOSTILE], "scores": {"recall": 1.0, HOSTILE: 0.5}}
        sample["meta"][HOSTILE] = HOSTILE
    store_run(root, run)
    assert main([str(root)]) == 0
    return root / "view.html"


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Browser]:
    """The browser, whose page must not complain or ask for anything but files."""
    chromium.messages.clear()
    chromium.requests.clear()
    yield chromium
    assert not chromium.messages
    assert all(url.startswith(("file:", "about:")) for url in chromium.requests), "no network"


NEEDLE = "section[aria-label^='needle'][aria-label*='question-aware']"
METHODS = f"{NEEDLE} tbody a[data-item]"


def choose(tab: Browser, name: str, value: str) -> None:
    tab.run(f"document.getElementById('{name}').value = '{value}'")
    tab.run(f"document.getElementById('{name}').dispatchEvent(new Event('change'))")


def column(tab: Browser, number: int) -> list[str]:
    return tab.texts(f"{NEEDLE} tbody tr:not(.reference) > :nth-child({number})")


def test_the_leaderboard_sorts_by_a_click_on_a_head(tab: Browser, site: Path) -> None:
    tab.open(site)
    scores = [float(text) for text in column(tab, 4)]
    assert scores == sorted(scores, reverse=True) and len(scores) == 6
    assert tab.texts(METHODS)[0] == "fullkv", "the reference stays on top"
    tab.click(f"{NEEDLE} [data-sort=score]")
    assert [float(text) for text in column(tab, 4)] == sorted(scores)
    assert tab.run(f'document.querySelector("{NEEDLE} [data-sort=score]").parentNode.ariaSort') == "ascending"
    tab.click(f"{NEEDLE} [data-sort=method]")
    assert tab.texts(METHODS)[1:] == ["ada_snapkv", "ada_snapkv", "h2o", "h2o", "snapkv", "snapkv"]
    tab.click(f"{NEEDLE} [data-sort=budget]")
    assert column(tab, 3) == ["10%", "10%", "10%", "20%", "20%", "20%"]


def test_filters_and_free_text_choose_rows(tab: Browser, site: Path) -> None:
    tab.open(site)
    assert len(tab.texts("section.card")) == 3
    tab.press("/", *"ada")
    shown = f'document.querySelectorAll("{METHODS}").length'
    tab.wait(f"{shown} === 3")
    assert tab.texts(METHODS) == ["fullkv", "ada_snapkv", "ada_snapkv"]
    tab.press(*" 20%")
    tab.wait(f"{shown} === 2")
    assert tab.texts(METHODS) == ["fullkv", "ada_snapkv"] and tab.run("document.activeElement.id") == "q"
    tab.press("Escape")
    assert len(tab.texts(METHODS)) == 7
    choose(tab, "filter-benchmark", "needle")
    assert len(tab.texts("section.card")) == 2
    choose(tab, "filter-method", "h2o")
    assert tab.texts(METHODS) == ["fullkv", "h2o", "h2o"]
    tab.reload()
    assert tab.texts(METHODS) == ["fullkv", "h2o", "h2o"], "the address holds the filters"
    tab.click("#reset")
    assert len(tab.texts("section.card")) == 3


def test_a_sample_opens_by_keys_alone_and_marks_the_differences(tab: Browser, site: Path) -> None:
    tab.open(site, "#/board?benchmark=needle&q=aware")
    tab.press("4")
    tab.wait("document.querySelector('.samples')")
    tab.press("j", "j", "Enter")
    tab.wait("document.querySelector('.answers')")
    title = tab.texts("h1")[0]
    assert title.startswith("len0")
    assert tab.texts(".answer.reference .said") == [FULL]
    assert "fullkv" in tab.texts(".answer.reference .names")[0]
    texts = tab.texts(".answer:not(.reference) .said:not(.lost)")
    assert len(texts) == len(set(texts)) == 1, "variants with one answer share a card"
    assert tab.texts(".answer del") and tab.texts(".answer ins")
    kept = "[...document.querySelector('.answer:not(.reference) .said:not(.lost)').childNodes]"
    assert tab.run(f"{kept}.filter((n) => n.nodeName !== 'DEL').map((n) => n.textContent).join('')") == OTHER
    assert tab.run(f"{kept}.filter((n) => n.nodeName !== 'INS').map((n) => n.textContent).join('')") == FULL
    tab.press("l")
    tab.wait(f"document.querySelector('h1')?.textContent !== {title!r}")
    tab.press("h")
    tab.wait(f"document.querySelector('h1')?.textContent === {title!r}")
    assert not tab.run("document.getElementById('prompt').open")
    tab.press("p")
    assert tab.run("document.getElementById('prompt').open")
    assert f"kvbench prompts model=smollm2_135m benchmark=needle show={title}" in tab.texts("#prompt")[0]
    tab.press("Escape")
    tab.wait("document.querySelector('.samples')")
    tab.press("Escape")
    tab.wait("document.querySelector('[data-sort=score]')")


def test_two_variants_are_compared_sample_by_sample(tab: Browser, site: Path) -> None:
    tab.open(site, "#/board?benchmark=needle&q=aware&sort=method")
    tab.press("j", "j", "x", "j", "j", "x")
    assert tab.run("document.querySelectorAll('.mark input:checked').length") == 2
    tab.press("4")
    tab.wait("document.querySelector('.samples')")
    assert tab.texts(".samples thead th:not(.wide)") == ["Sample", "fullkv", "ada_snapkv 10%", "h2o 10%"]
    rows = [row.split("\t")[-3:] for row in tab.texts(".samples tbody tr")]
    gaps = [abs(int(a) - int(full)) + abs(int(b) - int(full)) for full, a, b in rows]
    assert gaps == sorted(gaps, reverse=True) and len(gaps) == 9, "those that differ come first"
    tab.click(".samples tbody a")
    tab.wait("document.querySelector('.answers')")
    named = " ".join(tab.texts(".answer .names li"))
    assert "ada_snapkv" in named and "h2o" in named and "snapkv 20%" not in named


def test_a_cell_of_the_needle_grid_opens_its_samples(tab: Browser, site: Path) -> None:
    tab.open(site, "#/grids?benchmark=needle&q=aware")
    assert tab.run("document.querySelectorAll('.grid-card').length") == 7
    assert tab.run("document.querySelectorAll('.cell.lost').length") == 2
    tab.run("document.querySelector('.grid-card:nth-child(2) .cell').focus()")
    tab.press("ArrowDown", "ArrowRight", "Enter")
    tab.wait("document.querySelector('.samples')")
    assert tab.texts(".samples tbody th") == ["len01000-depth050-seed0"]
    assert "1000 tokens, depth 50%" in tab.texts(".choices")[0]


def test_curves_have_a_line_per_method_and_answer_the_legend(tab: Browser, site: Path) -> None:
    tab.open(site, "#/curves?benchmark=needle&q=aware")
    assert tab.run("document.querySelectorAll('.series path:not(.lead)').length") == 3
    tab.click(".legend button[data-name=h2o]")
    assert tab.run("[...document.querySelectorAll('.series.on')].every((n) => n.dataset.method === 'h2o')")
    colours = "[...document.querySelectorAll('.series')].map((n) => [n.dataset.method, n.style.stroke])"
    before = tab.run(f"Object.fromEntries({colours}.filter(([, colour]) => colour))")
    assert len(set(before.values())) == 3 and tab.texts(".chart .axis")[1] == "recall × 100"
    tab.click("[data-x=bytes]")
    assert "Bytes held" in tab.texts(".chart .axis")[0]
    assert tab.run(f"Object.fromEntries({colours}.filter(([, colour]) => colour))") == before
    dots = "[...document.querySelectorAll('.series circle:not(.reachable)')].map((n) => n.getAttribute('cx'))"
    assert len(set(tab.run(dots))) == len(tab.run(dots)), "points of equal bytes are side by side"


def test_a_method_keeps_its_colour_where_others_join_or_leave(tab: Browser, tmp_path: Path) -> None:
    for method, budget in (
        ("fullkv", "full"),
        ("a_store", "full"),
        ("snapkv", "0.2"),
        ("tova", "0.2"),
        ("tova", "0.4"),
    ):
        store_run(tmp_path, make_run(method, budget, 0.5))
    assert main([str(tmp_path)]) == 0
    colour = "document.querySelector('.series[data-method=tova]').style.stroke"
    seen = []
    for query in ("", "?x=bytes", "?method=tova", "?q=tova&x=bytes"):
        tab.open(tmp_path / "view.html", f"#/curves{query}")
        seen.append(tab.run(colour))
    assert len(set(seen)) == 1 and seen[0]
    assert tab.texts(".chart text")[0] == "0", "the axis of scores begins at 0"


def test_a_variant_shows_its_numbers_and_where_tokens_were_kept(tab: Browser, site: Path) -> None:
    tab.open(site, "#/board?benchmark=needle&q=aware&method=h2o&sort=budget")
    tab.press("j", "j", "Enter")
    tab.wait("document.querySelector('.kept')")
    assert tab.texts("h1") == ["h2o, 10% budget"]
    assert tab.run("document.querySelectorAll('.kept rect').length") == 4
    assert tab.run("document.querySelectorAll('.grid.large .cell').length") == 9
    tab.click(".action")
    tab.wait("document.querySelector('.samples')")
    assert tab.texts(".samples thead th:not(.wide)") == ["Sample", "fullkv", "h2o 10%"]


def test_kept_tokens_are_shown_over_the_text(tab: Browser, tmp_path: Path) -> None:
    runs = [with_answers(make_run("fullkv", "full", 1.0)), with_answers(make_run("snapkv", "0.2", 1.0))]
    for run in runs:
        store_run(tmp_path, run)
    tokens = ["The", " needle", "\n", "<b>", " is", " 12"]
    for file in tmp_path.rglob("samples.jsonl"):
        mask = np.zeros((10, 2, 6), dtype=bool)
        mask[:, :, :2] = True  # all heads keep the first two tokens
        mask[:2, 0, 5] = "snapkv" in str(file)  # one of 20 heads in each of the first two layers
        ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
        (file.parent / "kept.jsonl").write_bytes(b"".join(kept_line(KeptTokens(name, tokens, mask)) for name in ids))
    assert main([str(tmp_path)]) == 0
    tab.open(tmp_path / "view.html", "#/sample/0/0/len00500-depth000-seed0")
    tab.click("#kept summary")
    assert tab.run("document.querySelector('.kept-text').textContent") == "".join(tokens)
    dropped = "[...document.querySelectorAll('.kept-text .dropped')].map((n) => n.textContent)"
    assert tab.run("document.getElementById('pick-variant').selectedOptions[0].text") == "snapkv, 20% budget"
    assert tab.run(dropped) == ["\n", "<b>", " is"], "a token that one head keeps is kept"
    choose(tab, "pick-layers", "3")  # the last two layers of the first six
    assert tab.run(dropped) == ["\n", "<b>", " is", " 12"]
    tab.press("p")
    assert "The needle" in tab.texts("#prompt pre")[0]


def test_a_suite_shows_its_datasets(tab: Browser, site: Path) -> None:
    tab.open(site, "#/board?benchmark=longbench")
    assert {"qasper", "gov_report"} <= set(tab.texts("thead th"))
    tab.press("j", "j", "Enter")
    tab.wait("document.querySelector('h1')")
    assert [text.split("\t")[0] for text in tab.texts(".board tbody tr")][:2] == ["qasper", "multifieldqa_en"]


def test_hostile_texts_are_shown_and_do_nothing(tab: Browser, site: Path) -> None:
    tab.open(site, "#/board?q=agnostic")
    tab.press("j", "Enter")
    tab.wait("document.querySelector('h1')")
    assert "onerror" in tab.run("document.querySelector('main').textContent")
    tab.click(".action")
    tab.wait("document.querySelector('.samples a')")
    tab.click(".samples tbody a")
    tab.wait("document.querySelector('.answers')")
    [answer] = tab.texts(".said")
    assert answer == HOSTILE.replace("\ud800", "\\ud800").replace("\x1b", "\\u001b").replace("\u202e", "\\u202e")
    assert tab.run("window.pwned === undefined && !document.querySelector('img')")
    bad = ["#/sample/0/0/%E0%A4%A", "#/samples/99/99", "#/variant/x/y", "#/sample/__proto__/0/a", f"#/{HOSTILE[:60]}"]
    for fragment in bad:
        tab.open(site, fragment)
        assert tab.texts("main")[0]
    assert tab.run("window.pwned === undefined")


def test_the_policy_lets_no_other_script_run(chromium: Browser, site: Path) -> None:
    chromium.open(site)
    add = "const s = document.createElement('script'); s.textContent = 'window.other = 1'; document.body.append(s)"
    chromium.run(f"(() => {{ {add} }})()")
    assert chromium.run("window.other === undefined")
    assert chromium.run("fetch('https://example.org').then(() => 1, () => 0)") == 0
    assert chromium.messages, "the browser says what it refused"
    chromium.messages.clear()
    chromium.requests.clear()


def test_a_split_view_loads_its_parts_and_draws_the_best_of_many_methods(
    tab: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LIMIT", 5000)
    write_store(tmp_path, runs=64, samples=10, budgets=2, datasets=1)  # 32 methods
    assert main([str(tmp_path), "--out", str(tmp_path / "a view #1.html")]) == 0
    tab.open(tmp_path / "a view #1.html", "#/samples")
    assert len(tab.texts(".samples tbody tr")) == 10
    lines = "[...document.querySelectorAll('g.series')].map((n) => n.dataset.method)"
    tab.open(tmp_path / "a view #1.html", "#/curves")
    best = tab.run(lines)
    assert len(best) == 30 and "30 of 32 methods have a line" in tab.texts(".note")[0]
    key = tab.run(f"index.tables[0].rows.find((row) => !row.full && !{lines}.includes(row.method)).key")
    tab.open(tmp_path / "a view #1.html", f"#/curves?mark={key}")
    assert len(tab.run(lines)) == 30 and len(set(tab.run(lines)) - set(best)) == 1, "a marked method has a line"
    tab.click("#all-lines")
    assert len(tab.run(lines)) == 32 and not tab.texts(".note")
    for file in (tmp_path / "a view #1-parts").iterdir():
        file.unlink()
    tab.open(tmp_path / "a view #1.html", "#/samples")
    assert "is missing: keep the folder next to this page" in tab.texts("main")[0]
    tab.messages.clear()  # the browser names the missing file as well


VIEWS = ["#/board", "#/curves", "#/grids", "#/samples", "#/samples/0", "#/variant/1/1"]
VIEWS += ["#/sample/1/0/len00500-depth000-seed0"]
LOWEST_CONTRAST = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => sum + share * linear(rgb[i] / 255), 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      const parts = colour.startsWith('color(') ? parse(colour).slice(0, 3).map((c) => 255 * c) : parse(colour);
      if (colour !== 'rgba(0, 0, 0, 0)' && !(parts.length === 4 && parts[3] === 0)) return parts;
    }
    return [255, 255, 255];
  };
  let worst = [99, ''];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    const seen = walk.currentNode.data.trim() && node.checkVisibility({visibilityProperty: true});
    if (!seen || node.closest('script, svg, .hidden, .off, [hidden]')) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, walk.currentNode.data];
  }
  return worst;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("fragment", VIEWS)
def test_every_view_fits_a_narrow_window_and_can_be_read(tab: Browser, site: Path, fragment: str, dark: bool) -> None:
    tab.open(site, fragment, width=420, dark=dark)
    assert tab.run("document.documentElement.scrollWidth") == 420, "nothing is wider than the window"
    ratio, text = tab.run(LOWEST_CONTRAST)
    assert ratio >= 4.5, f"{ratio:.2f}: {text!r}"
    ground = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 22, 24)") is dark


def test_the_theme_can_be_switched_and_stays(tab: Browser, site: Path) -> None:
    tab.open(site)
    tab.press("t")
    assert tab.run("document.documentElement.dataset.theme") == "dark"
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 24)"
    theme, end = None, time.monotonic() + 60
    while theme != "dark":  # a new process of the browser may read its storage before the old one has written it
        assert time.monotonic() < end, f"the theme of a page that is opened again: {theme}"
        tab.open(site, "#/curves")
        theme = tab.run("document.documentElement.dataset.theme")
    tab.click("#theme")
    assert tab.run("document.documentElement.dataset.theme") == "light"
    tab.run("localStorage.clear()")


def test_focus_is_visible_and_help_opens_and_closes(tab: Browser, site: Path) -> None:
    tab.open(site)
    tab.press("j")
    assert tab.run("getComputedStyle(document.activeElement).outlineWidth") == "2px"
    tab.press("?")
    assert tab.run("document.getElementById('help').open") and "search" in tab.texts("#help")[0]
    tab.press("Escape")
    assert not tab.run("document.getElementById('help').open")
    tab.press("Tab")
    assert tab.run("document.activeElement !== document.body")


def test_every_control_has_a_name(tab: Browser, site: Path) -> None:
    for fragment in VIEWS:
        tab.open(site, fragment)
        nameless = "[...document.querySelectorAll('a, button, input, select, [role=img], dialog[open]')]"
        nameless += (
            ".filter((n) => !(n.ariaLabel || n.getAttribute('aria-label') || n.textContent.trim() || n.labels?.length))"
        )
        assert tab.run(f"{nameless}.map((n) => n.outerHTML.slice(0, 90))") == [], fragment
        ids = tab.run("[...document.querySelectorAll('[id]')].map((n) => n.id)")
        assert len(ids) == len(set(ids))
