"""The page in a real headless Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_chromium
from simulated import write_logs

from lm_eval_calib.report import Report

CHROMIUM = find_chromium()
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
EVIL = "sft</script><img src=x onerror=alert(1)>"
WIDTHS = {"laptop": (1280, 800, False), "phone": (390, 844, True)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    logs = write_logs(tmp_path_factory.mktemp("logs"), questions=80)
    return Report.from_logs({"base": logs["base"], EVIL: logs["sft"], "sft_ls": logs["sft_ls"]}, resamples=40)


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.to_html(questions=1), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM) as opened:
        yield opened


def rows(browser: Browser, selector: str = "#language-table tbody tr:not(.mean)") -> list[list[str]]:
    script = f"[...document.querySelectorAll({selector!r})].map(r => [...r.cells].map(c => c.textContent.trim()))"
    return list(browser.run(script))


def click(browser: Browser, selector: str, label: str | None = None) -> None:
    condition = "true" if label is None else f"e.textContent.trim() === {json.dumps(label)}"
    found = browser.run(
        f"(() => {{ const e = [...document.querySelectorAll({selector!r})].find(e => {condition});"
        " if (!e) return false; e.click(); return true; })()"
    )
    assert found, (selector, label)


def choose(browser: Browser, identity: str, value: str) -> None:
    browser.run(
        f"(() => {{ const e = document.getElementById({identity!r}); e.value = {value!r};"
        " e.dispatchEvent(new Event('change')); e.dispatchEvent(new Event('input')); })()"
    )


def values(report: Report, metric: str, run: str) -> dict[str, float]:
    return {g.label: part.values[metric] for g, part in report.cells.items() if g.run == run}


def shown(value: float) -> str:
    # Through four digits, as the page's data are.
    return f"{round(value, 4):.3f}".replace("-", "−")


@needs_browser
@pytest.mark.parametrize("device", WIDTHS)
def test_renders_without_errors_or_requests(browser: Browser, page: Path, device: str) -> None:
    width, height, mobile = WIDTHS[device]
    browser.errors.clear()
    browser.requests.clear()
    browser.resize(width, height, mobile=mobile)
    browser.open(page)
    assert browser.errors == []
    # The page itself, and its icon, which is empty and inside it.
    assert {url for url in browser.requests if url != "data:,"} == {page.resolve().as_uri()}
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('svg').length") > 30
    for section in ("overview", "arrows", "languages", "differences", "diagrams", "selective", "temperature", "what"):
        size = browser.run(f"(r => [r.width, r.height])(document.querySelector('#{section}').getBoundingClientRect())")
        assert size[0] > 0.8 * min(width, 1000), section
        assert size[1] > 100, section
    broken = browser.run(
        "[...document.querySelectorAll('svg *')]"
        ".filter(e => [...e.attributes].some(a => /NaN|undefined|Infinity/.test(a.value))).length"
    )
    assert broken == 0
    # No text of a figure is cut off at the page's side.
    outside = browser.run(
        "['overview', 'arrows', 'differences', 'selective']"
        ".flatMap(id => [...document.querySelectorAll(`#${id} svg text`)])"
        ".filter(e => (r => r.width && (r.left < -1 || r.right > innerWidth + 1))(e.getBoundingClientRect()))"
        ".map(e => e.textContent)"
    )
    assert outside == []


@needs_browser
def test_table_shows_the_reports_numbers_and_sorts(browser: Browser, page: Path, report: Report) -> None:
    browser.resize(1280, 800)
    browser.open(page)
    base, evil = values(report, "ece", "base"), values(report, "ece", EVIL)
    found = {row[0].replace("中文", ""): row for row in rows(browser)}
    assert len(found) == 6
    for name, row in found.items():
        label = next(label for label in base if name.startswith(label))
        assert row[2:4] == [shown(base[label]), shown(evil[label])]
    click(browser, "#language-table th button", EVIL)
    assert [row[3] for row in rows(browser)] == sorted(map(shown, evil.values()), reverse=True)
    click(browser, "#language-table th button", EVIL)
    assert [row[3] for row in rows(browser)] == sorted(map(shown, evil.values()))
    assert browser.run("document.querySelectorAll('th[aria-sort=ascending]').length") == 1
    click(browser, "#language-table th button", "Language")
    assert [row[0] for row in rows(browser)] == sorted(row[0] for row in rows(browser))
    means = rows(browser, "#language-table tbody tr.mean")
    assert [row[0] for row in means] == ["All languages", "High-resource", "Mid-resource", "Low-resource"]
    overall = next(mean for group, (mean, _) in report.benchmarks.items() if group.run == "base")
    assert means[0][2] == shown(overall.values["ece"])


@needs_browser
def test_switching(browser: Browser, page: Path, report: Report) -> None:
    browser.resize(1280, 800)
    browser.open(page)
    choose(browser, "metric", "nll")
    nll = values(report, "nll", "base")
    assert {row[2] for row in rows(browser)} == set(map(shown, nll.values()))
    assert browser.run("document.getElementById('differences-title').textContent") == "Differences in NLL from base"
    click(browser, "#tiers button", "low")
    assert len(rows(browser)) == 2
    assert browser.run("document.querySelectorAll('#arrows-panels figure').length") == 1
    click(browser, "#tiers button", "all tiers")
    choose(browser, "search", "Kiswa")
    assert [row[0][:7] for row in rows(browser)] == ["Swahili"]
    choose(browser, "search", "")
    columns = len(rows(browser)[0])
    click(browser, "#runs button", "sft_ls")
    assert len(rows(browser)[0]) == columns - 2
    click(browser, "#runs button", EVIL)
    assert browser.run("document.getElementById('differences').hidden") is True
    click(browser, "#runs button", EVIL)
    click(browser, "#runs button", "sft_ls")
    assert browser.run("document.getElementById('differences').hidden") is False
    assert len(rows(browser)[0]) == columns
    first = browser.run("document.querySelectorAll('#diagrams-grid figcaption')[4].textContent")
    choose(browser, "diagram-order", "worst")
    assert browser.run("document.querySelectorAll('#diagrams-grid figcaption')[4].textContent") != first
    click(browser, "#diagrams-grid button")
    assert browser.run("document.getElementById('large').open") is True
    pooled = report.diagram(report.pooled_rows("base", "calib_simulated"))
    assert rows(browser, "#large tbody tr")[0][2] == f"{pooled.counts[0]:,}"
    click(browser, "#large .close")
    assert browser.run("document.getElementById('large').open") is False
    assert browser.errors == []


@needs_browser
def test_hover_tells_values_and_names_are_inert(browser: Browser, page: Path) -> None:
    browser.resize(1280, 800)
    browser.open(page)
    place = browser.run(
        "(() => { const e = document.querySelector('#overview [data-tip]');"
        " e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    browser.wait(lambda: browser.run("document.getElementById('tip').classList.contains('on')"))
    assert browser.run("document.getElementById('tip').textContent").startswith("base · All languages\naccuracy 0.")
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.querySelector('#runs button:nth-child(2)').textContent") == EVIL
    assert browser.errors == []


@needs_browser
def test_dark_single_run_and_no_language(browser: Browser, tmp_path: Path) -> None:
    alone = Report.from_logs(Path(__file__).parent / "logs" / "0.4.13", resamples=20)
    path = tmp_path / "report.html"
    path.write_text(alone.to_html(), encoding="utf-8")
    browser.resize(1280, 800, dark=True)
    browser.open(path)
    assert browser.errors == []
    assert browser.run("document.getElementById('differences').hidden") is True
    background, ink = browser.run("(c => [c.backgroundColor, c.color])(getComputedStyle(document.body))")
    assert sum(map(int, re.findall(r"\d+", background))) < 120 < 500 < sum(map(int, re.findall(r"\d+", ink)))
    assert browser.run("document.querySelectorAll('#benchmark option').length") == 6
    choose(browser, "benchmark", "3")
    assert browser.run("document.querySelectorAll('#language-table tbody tr').length") == 1
    assert browser.errors == []
    browser.resize(1280, 800)


def test_page_is_self_contained_and_texts_are_on_request(report: Report, page: Path) -> None:
    plain, with_texts = report.to_html(), page.read_text(encoding="utf-8")
    # No address is fetched: no src, no link to a sheet, and a policy that forbids it.
    assert not re.search(r"<(script|img|iframe|link)[^>]+(src|href)=\"(?!data:,)", plain)
    assert "default-src 'none'" in plain
    assert EVIL not in plain
    document = json.loads(next(iter(report.predictions.column("source"))) and "{}")
    assert document == {}
    assert "Confident errors" not in plain
    assert with_texts.count('<article class="question">') == 3
    assert len(plain) < 10e6


def test_texts_are_escaped(tmp_path: Path) -> None:
    logs = write_logs(tmp_path, questions=12, runs=("base",))
    for file in logs["base"].rglob("samples_*"):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in lines:
            for argument in row["arguments"].values():
                argument["arg_0"] = "<script>alert('q')</script> & <b>bold</b>"
        file.write_text("\n".join(json.dumps(row) for row in lines), encoding="utf-8")
    html = Report.from_logs(logs, resamples=5).to_html(questions=2)
    assert "&lt;script&gt;alert(&#39;q&#39;)&lt;/script&gt; &amp; &lt;b&gt;bold" in html
    assert "<script>alert" not in html


def numbers(data: Any) -> Iterator[float]:
    """Every number in nested JSON."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from numbers(item)
    elif isinstance(data, float | int) and not isinstance(data, bool):
        yield data


def test_data_of_the_page_is_strict_json(page: Path) -> None:
    text = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL
    )
    assert text is not None
    data = json.loads(text[1], parse_constant=lambda name: pytest.fail(name))
    assert len(list(numbers(data))) > 3000
