"""The HTML page: what is in it, and how it behaves in a browser."""

import json
import re
import shutil

import pytest

from saliency.evaluation.report import write_report
from saliency.evaluation.report.analysis import analyse
from saliency.evaluation.report.page import html_page, page_data
from saliency.evaluation.running.store import Result

from .made_run import RUN_METHODS, make_config, make_run, write_run

EVIL = "</script><script>document.title='broken'</script>{{style}}<!--<b>&amp;"
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on six scenes, whose images have a name that tries to be markup, and its rows."""
    folder = tmp_path_factory.mktemp("run")
    rows = make_run(folder, images=6, names="scene{} " + EVIL)
    gone = next(row for row in rows if row.metric == "pointing_game" and row.method == "grad_cam")
    rows.append(gone._replace(image="gone.jpg", score=None, error=f"OSError: {EVIL}"))
    write_run(folder, rows, {row.fingerprint: make_config(row.metric, row.method) for row in rows})
    write_report(folder)
    return folder, rows


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_stands_alone(run):
    page = (run[0] / "report.html").read_text("utf-8")
    addresses = re.findall(r"""(?:\b(?:src|href)=["']?|\burl\(["']?|@import\s)([^"'\s>)]*)""", page)
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert set(re.findall(r"https?://[^\s\"'`<)]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, no address
    assert "default-src 'none'" in page
    around = page.split('id="data">')[0] + page.split("</script>")[1]
    assert "{{" not in around


def test_no_name_breaks_out_of_the_data(run):
    page = (run[0] / "report.html").read_text("utf-8")
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    data = embedded(page)
    assert data["gallery"][0]["image"] == f"scene0 {EVIL}"
    assert data["failures"][0]["message"] == f"OSError: {EVIL}"


def test_the_data_are_those_of_the_rows(run):
    folder, rows = run
    data = embedded((folder / "report.html").read_text("utf-8"))
    hits = {(row.image, row.target, row.method): row for row in rows if row.metric == "pointing_game"}
    maps = [(case, own) for case in data["gallery"] for own in case["maps"]]
    cases = {(row.image, row.target) for row in rows if row.error is None}
    assert len(maps) == len(cases) * len(RUN_METHODS)
    assert len(data["gallery"]) == len(cases)
    names = make_config("", "")["dataset"]["classes"]
    for case, own in maps:
        row = hits[case["image"], names.index(case["class"]), own["method"]]
        assert own["hit"] == (row.score == 1)
        assert tuple(own["point"]) == row.point
        assert own["radius"] == 15  # the metric's default: the configuration does not name it
        assert case["difficult"] == row.difficult
        assert case["boxes"]
        assert {name: score for name, score, _ in own["scores"]} == {
            other.metric: pytest.approx(other.score, rel=1e-6)
            for other in rows
            if (other.image, other.target, other.method) == (row.image, row.target, row.method)
        }
        assert own["picture"].startswith("data:image/jpeg;base64,")
    assert data["shared"]["dataset"]["name"] == "scenes"
    assert data["agreements"][0]["methods"] == sorted(RUN_METHODS)


def test_a_broken_gallery_is_named_and_the_rest_is_shown(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    (folder / "gallery" / "000000-scene.json").write_text('{"image": "scene0', "utf-8")
    (folder / "gallery" / "000001-scene.jpg").unlink()
    data = page_data(folder, analyse(folder))
    assert len(data["problems"]) == 2
    assert "gallery/000000-scene.json is left out (JSONDecodeError" in data["problems"][0]
    assert "gallery/000001-scene.json is left out (FileNotFoundError" in data["problems"][1]
    assert {case["image"].split()[0] for case in data["gallery"]} == {"scene2", "scene3", "scene4", "scene5"}


def test_a_map_of_two_configurations_is_a_hit_only_if_both_say_so(tmp_path):
    rows = make_run(tmp_path, images=1, methods=["grad_cam"])
    again = [row._replace(fingerprint="other", score=0.0) for row in rows if row.metric == "pointing_game"]
    configs = {row.fingerprint: make_config(row.metric, row.method) for row in rows}
    write_run(tmp_path, rows + again, configs | {"other": make_config("pointing_game", "grad_cam", options={"a": 1})})
    case = page_data(tmp_path, analyse(tmp_path))["gallery"][0]
    first = next(row for row in rows if row.metric == "pointing_game")
    assert first.score == 1
    assert case["maps"][0]["hit"] is None
    assert {name for name, *_ in case["maps"][0]["scores"]} >= {
        "pointing_game · grad_cam (a not set)",
        "pointing_game · grad_cam (a=1)",
    }


def test_a_run_without_pictures_curves_and_scores_has_a_page(tmp_path):
    rows = [Result("photo", 0, "cam", "pointing_game", None, 0.1, "broken", "a")]
    write_run(tmp_path, rows, {"a": make_config("pointing_game", "cam")})
    data = embedded(html_page(tmp_path, analyse(tmp_path)))
    assert data["summaries"][0]["means"][0] == [None, None, None, 0]
    assert data["gallery"] == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"):
        options.add_argument(f"--{flag}")
    options.add_argument("--disable-background-networking")
    options.add_argument("--disable-component-update")
    options.add_argument("--window-size=1280,1000")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, run):
    browser.get_log("performance")
    browser.get((run[0] / "report.html").as_uri())
    return browser


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def rows_of(driver, table):
    """The first column of a table, from the top."""
    return [node.text.replace("\n", "") for node in find(driver, f"{table} tbody th")]


@pytest.mark.browser
def test_it_opens_without_errors_and_asks_for_nothing(opened, tmp_path):
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url.split(":")[0] for url in asked if not url.startswith(("data:", "chrome"))] == ["file"]
    assert "broken" not in opened.title
    shown = [node.get_attribute("id") for node in find(opened, "main > section") if node.is_displayed()]
    assert shown == ["results", "curves", "gallery", "classes", "pairs", "agreement", "time", "failures", "about"]
    assert [link.get_attribute("href").split("#")[1] for link in find(opened, "nav a")] == shown
    assert opened.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.browser
def test_a_column_is_sorted_by_mouse_and_by_key(opened, run):
    means = {item.series.line: item.means.cases.value for item in analyse(run[0]).ranked("deletion")}
    table = "#results-table"
    heads = find(opened, f"{table} thead th")
    place = next(i for i, head in enumerate(heads) if "deletion" in head.text)
    button = heads[place].find_element("css selector", "button")
    assert heads[place].get_attribute("aria-sort") == "none"
    button.click()
    assert heads[place].get_attribute("aria-sort") == "ascending"  # less is better: the best comes first
    assert rows_of(opened, table) == sorted(means, key=means.__getitem__)
    button.send_keys("\ue007")
    assert heads[place].get_attribute("aria-sort") == "descending"
    assert rows_of(opened, table) == sorted(means, key=means.__getitem__, reverse=True)
    heads[0].find_element("css selector", "button").click()
    assert rows_of(opened, table) == sorted(means)
    assert [head.get_attribute("aria-sort") for head in heads].count("none") == len(heads) - 1


@pytest.mark.browser
def test_the_gallery_is_filtered(opened, run):
    own = [row for row in run[1] if row.metric == "pointing_game" and row.error is None]

    def count():
        return int(find(opened, "#gallery-count")[0].text.split()[0])

    def choose(legend, text):
        opened.execute_script(
            "[...document.querySelectorAll('#gallery-filters fieldset')]"
            ".find((set) => set.textContent.startsWith(arguments[0]))"
            ".querySelectorAll('label').forEach((label) => label.textContent === arguments[1] && label.click())",
            legend,
            text,
        )

    def select(label, text):
        from selenium.webdriver.support.select import Select

        nodes = [node for node in find(opened, "#gallery-filters label") if node.text.startswith(label)]
        Select(nodes[0].find_element("css selector", "select")).select_by_visible_text(text)

    assert count() == len(own) == len(find(opened, "#gallery .tile:not([aria-label^=picture])"))
    choose("Result", "misses")
    assert count() == sum(row.score == 0 for row in own) == len(find(opened, "#gallery .tile.miss"))
    assert not find(opened, "#gallery .tile.hit")
    choose("Result", "hits")
    select("Method", "activation")
    assert count() == sum(row.score == 1 and row.method == "activation" for row in own)
    choose("Result", "all")
    select("Class", "star")
    star = make_config("", "")["dataset"]["classes"].index("star")
    assert count() == sum(row.method == "activation" and row.target == star for row in own)
    select("Class", "all")
    select("Method", "all")
    find(opened, "#gallery-filters [name=difficult]")[0].click()
    assert count() == sum(row.difficult for row in own)
    find(opened, "#gallery-filters [name=difficult]")[0].click()
    find(opened, "#gallery-filters [name=image]")[0].send_keys("Scene3 ")
    assert count() == sum(row.image.startswith("scene3 ") for row in own)


@pytest.mark.browser
def test_curves_pictures_and_the_enlarged_map_are_drawn(opened):
    assert len(find(opened, "#curves figure")) == 2
    for figure in find(opened, "#curves figure"):
        lines = figure.find_elements("css selector", "polyline")
        assert len(lines) == len(RUN_METHODS)
        assert all(len(line.get_attribute("points").split()) == 17 for line in lines)
    assert opened.execute_script(
        "return [...document.querySelectorAll('#gallery img')].every((image) => image.complete && image.naturalWidth)"
    )
    assert find(opened, "#gallery .box.own")
    opened.execute_script("document.querySelector('#gallery .tile.hit').click()")
    dialog = find(opened, "#zoom")[0]
    assert dialog.is_displayed()
    assert "hit" in dialog.text
    assert EVIL in dialog.text
    dialog.find_element("css selector", ".close").click()
    assert not dialog.is_displayed()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(opened, tmp_path, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    paper, ink = opened.execute_script(
        "const style = getComputedStyle(document.body);"
        "return [style.backgroundColor, style.color].map((colour) => Number(colour.match(/\\d+/)[0]))"
    )
    assert (paper > ink) == (scheme == "light")
    assert opened.save_screenshot(str(tmp_path / f"{scheme}-{width}.png"))
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def rerun(tmp_path_factory):
    """A run with a curve of overlaps, one far from 0, failures, misses, and a trial that another has superseded."""
    folder = tmp_path_factory.mktemp("rerun")
    rows = make_run(folder, images=4)
    games = [row for row in rows if row.metric == "pointing_game"]
    rows += [row._replace(metric="box_iou", fingerprint=f"box-{row.method}", curve=(0.1, 0.6, 0.2)) for row in games]
    rows = [
        row._replace(curve=tuple(0.8 + point / 10 for point in row.curve)) if row.metric == "insertion" else row
        for row in rows
    ]
    broken = [row for row in games if row.method == "gradient"][:3]
    rows += [row._replace(image=f"{row.image} again", score=None, error="OSError: gone") for row in broken]
    rows += [row._replace(fingerprint="old", score=0.0) for row in games if row.method == "grad_cam"]
    configs = {row.fingerprint: make_config(row.metric, row.method, date="2026-03-02T00:00:00+00:00") for row in rows}
    configs["old"] |= {"date": "2026-03-01T00:00:00+00:00", "options": {"saliency_layer": "layer3"}}
    write_run(folder, rows, configs)
    write_report(folder)
    return folder, rows


@pytest.fixture
def reopened(browser, rerun):
    browser.get((rerun[0] / "report.html").as_uri())
    return browser


@pytest.mark.browser
def test_a_number_of_failures_leads_to_what_failed(reopened):
    from selenium.webdriver.support.ui import WebDriverWait

    assert reopened.get_log("browser") == []
    (link,) = find(reopened, "#results-table .failed a")
    assert link.text == "3 failed"
    link.click()
    row = find(reopened, "#failures-list tr:has(:target)")[0]
    assert "OSError: gone" in row.text
    seen = "return arguments[0].getBoundingClientRect().top < window.innerHeight"
    WebDriverWait(reopened, 5).until(lambda page: page.execute_script(seen, row))  # the page glides there


@pytest.mark.browser
def test_earlier_trials_are_folded_away(reopened):
    assert "2026-03-02 00:00 UTC" in find(reopened, "#results-table tbody")[0].text
    details = find(reopened, "#results-earlier")[0]
    assert details.text == "1 result of earlier trials"
    details.find_element("css selector", "summary").click()
    (row,) = find(reopened, "#results-trials tbody tr")
    assert row.text.startswith("grad_cam · 1 2026-03-01 00:00 UTC pointing_game 0.0")
    assert row.text.endswith("saliency_layer=layer3")


@pytest.mark.browser
def test_an_axis_starts_at_0_or_has_a_break_and_the_start_of_the_curves_is_explained(reopened):
    figures = {
        figure.find_element("css selector", "strong").text: figure for figure in find(reopened, "#curves figure")
    }
    assert set(figures) == {"insertion", "deletion", "box_iou"}
    for name, figure in figures.items():
        labels = [text.text for text in figure.find_elements("css selector", "text[text-anchor=end]")]
        assert "0" in labels
        assert len(figure.find_elements("css selector", ".break")) == (name == "insertion")
        assert ("The axis is broken between 0 and 0.8" in figure.text) == (name == "insertion")
    assert "start at the blurred image and end at the image itself" in figures["insertion"].text
    assert "start at the image itself and end at an image of zeros" in figures["deletion"].text
    letters = (
        "const [text, plot] = arguments; const scale = plot.getBoundingClientRect().width / plot.viewBox.baseVal.width;"
        "return scale * parseFloat(getComputedStyle(text).fontSize)"
    )
    plot = figures["insertion"].find_element("css selector", "svg[role=img]")
    assert reopened.execute_script(letters, plot.find_element("css selector", "text"), plot) == pytest.approx(
        14, abs=0.5
    )


@pytest.mark.browser
def test_misses_come_first(reopened, rerun):
    counts = [
        len(case.find_elements("css selector", ".tile.miss")) for case in find(reopened, "#gallery-cases article")
    ]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) > 0
    first = find(reopened, "#gallery-cases article:first-child .tile:not([aria-label^=picture])")
    kinds = ["miss" in tile.get_attribute("class") for tile in first]
    assert kinds == sorted(kinds, reverse=True)
    assert first[0].size["width"] >= 180
