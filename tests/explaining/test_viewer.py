"""The viewer: one page that holds all that it shows, and answers to the keyboard."""

import json
import re
import shutil
import time

import numpy as np
import pytest
import torch

from saliency import explain
from saliency.explaining.viewer import viewer_page, viewer_photo
from saliency.images import overlay
from saliency.scenes import make_scene, scene_network

EVIL = "</script><script>document.title='broken'</script>{{style}}<!--<b>&amp;"
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def found():
    layers = {"grad_cam": ["layer3", "layer4"]}
    return explain(scene_network(), make_scene(1).image, [0, 1], ["grad_cam", "gradient", "linear_approx"], layers)


@pytest.fixture(scope="module")
def page(found):
    return viewer_page([found.viewed(), {**found.viewed(), "name": EVIL}])


def test_the_page_stands_alone_and_no_name_breaks_out_of_it(page):
    addresses = re.findall(r"""(?:\b(?:src|href)=["']?|\burl\(["']?|@import\s)([^"'\s>)]*)""", page)
    assert all(address.startswith("data:") for address in addresses)
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<script") == page.count("</script>") == 2
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [photo["name"] for photo in data["photos"]] == ["image", EVIL]
    columns = data["photos"][0]["columns"]
    assert [(column["name"], column["layer"]) for column in columns] == [
        ("grad_cam layer3", "layer3"),
        ("grad_cam layer4", "layer4"),
        ("gradient", ""),
        ("linear_approx", ""),
    ]
    assert [column["maps"][0]["signed"] for column in columns] == [False, False, False, True]
    assert all(len(column["maps"]) == 2 for column in columns)


def test_a_photo_with_many_maps_stays_below_a_megabyte(found):
    noise = [found.columns[0]._replace(maps=torch.rand(1, 1, 480, 640), picture=torch.rand(3, 448, 597))] * 20
    shown = [column._replace(picture=noise[0].picture) for column in noise]
    assert len(viewer_page([viewer_photo("a", shown, found.scores[:1], (), ())])) < 1_000_000


@pytest.fixture
def opened(page, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    (tmp_path / "viewer.html").write_text(page, "utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    driver.get((tmp_path / "viewer.html").as_uri())
    yield driver
    driver.quit()


PIXELS = """
const done = arguments[0];
show().then(() => {
  const canvas = document.getElementById("canvas-left"), small = document.createElement("canvas");
  [small.width, small.height] = [16, 16];
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, 0, 0, 16, 16);
  done([...context.getImageData(0, 0, 16, 16).data]);
});
"""


SLOW = """
const uri = DATA.photos[0].columns[1].maps[1].picture;
LOADED.set(uri, load(uri).then((image) => new Promise((done) => setTimeout(() => done(image), 200))));
"""


def pixels(driver):
    """What the left canvas shows, (3, 16, 16) in [0, 1]."""
    return torch.tensor(driver.execute_async_script(PIXELS)).view(16, 16, 4)[..., :3].permute(2, 0, 1) / 255


@pytest.mark.browser
def test_it_shows_the_maps_and_answers_to_keys(opened, found):
    def small(picture):
        return torch.from_numpy(np.array(picture.convert("RGB").resize((16, 16), 4))) / 255

    body = opened.find_element("css selector", "body")

    def caption(side="left"):
        pixels(opened)
        return opened.find_element("id", f"caption-{side}").text

    assert opened.title.startswith("image, </script>")
    assert caption() == f"grad_cam layer3 — {found.scores[0]}"
    expected = small(overlay(found.picture, found.columns[0].maps[0, 0])).permute(2, 0, 1)
    assert (pixels(opened) - expected).abs().mean() < 0.03  # JPEG, and another way to enlarge
    body.send_keys("\ue014\ue014")  # right
    assert caption().startswith("gradient · input — ")
    body.send_keys("\ue015")  # down
    assert caption().startswith(f"gradient · input — {found.scores[1].name}")
    shown = pixels(opened)
    body.send_keys(" ")
    assert caption() == "image"
    assert (pixels(opened) - small_photo(found)).abs().mean() < 0.03
    body.send_keys(" ")
    for _ in range(17):
        body.send_keys("-")
    assert (pixels(opened) - small_photo(found)).abs().mean() < 0.03  # no opacity
    assert (shown - small_photo(found)).abs().mean() > 0.03
    opened.execute_script(SLOW)
    body.send_keys("\ue012\ue014")  # left, to a map that takes long, and back
    time.sleep(0.4)
    assert opened.find_element("id", "caption-left").text == f"gradient · input — {found.scores[1]}"
    body.send_keys("s")
    assert caption("right").startswith("grad_cam layer4")
    body.send_keys("p")
    assert opened.find_element("id", "photo").get_attribute("selectedIndex") == "1"
    assert opened.get_log("browser") == []


def small_photo(found):
    return torch.nn.functional.adaptive_avg_pool2d(found.picture, 16)
