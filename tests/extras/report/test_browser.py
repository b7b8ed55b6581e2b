"""In a real browser: TensorBoard shows a run on every tab, and the report needs nothing but itself."""

import itertools
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DIGITS, ROOT, SMALL
from tensorboard import program

from project.__main__ import main
from tests.extras.report.browser import CHROMIUM, Browser

pytestmark = pytest.mark.slow
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("no chromium is installed: apt-get install chromium", allow_module_level=True)

# All elements of the page, those of shadow trees and frames included, which TensorBoard's tabs are made of.
ALL = """(() => { const found = []; const walk = node => { found.push(node);
  for (const inner of [node.shadowRoot, node.contentDocument && node.contentDocument.body]) if (inner) walk(inner);
  for (const child of node.childNodes) walk(child); }; walk(document.body); return found })()"""
TEXT = f"""{ALL}.filter(node => node.nodeType === 3)
  .filter(node => !['STYLE', 'SCRIPT', 'NOSCRIPT'].includes(node.parentNode.nodeName))
  .map(node => node.textContent.trim()).filter(text => text).join(' | ')"""
PICTURES = f"{ALL}.filter(node => node.nodeName === 'IMG' && node.naturalWidth > 50).length"  # that have arrived
DRAWINGS = f"""{ALL}.filter(node => ['svg', 'CANVAS'].includes(node.nodeName))
  .filter(node => node.getBoundingClientRect().width > 100).length"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs on the digits with all pictures, one of them tested."""
    folder = tmp_path_factory.mktemp("browser")
    before = Path.cwd()
    os.chdir(folder)
    try:
        look = ["--config", str(ROOT / "configs/look.yaml")]
        assert main(["fit", *DIGITS, *look, *SMALL, "--trainer.max_epochs", "3"]) == 0
        assert main(["test", "--ckpt_path", "best"]) == 0
        assert main(["fit", *DIGITS, *SMALL, "--trainer.max_epochs", "2", "--model.lr", "0.001"]) == 0
    finally:
        os.chdir(before)
    return folder / "runs"


@pytest.fixture(scope="module")
def address(runs: Path) -> str:
    """Of a TensorBoard that shows them."""
    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(runs), "--port", "0", "--load_fast", "false"])
    url = board.launch()
    for _ in range(100):
        with urllib.request.urlopen(f"{url}data/plugin/scalars/tags") as answer:
            if b"final/val/acc" in answer.read():
                return url
        time.sleep(0.2)
    raise AssertionError("TensorBoard has not read the runs")


TABS = {  # tab -> words on it, and what must be drawn
    "scalars": (["activations", "dead_share_of_relus", "lr", "update_ratio", "val"], None),
    "images": (["activations/image", "digits/version_0"], PICTURES),
    "histograms": (["gradients/head.weight", "gradients/stages.0.0.conv.weight"], DRAWINGS),
    "hparams": (
        ["digits/version_0", "digits/version_1", "model.lr", "final/val/acc", "Trial ID", "Parallel Coordinates"],
        None,
    ),
    "graphs": (["ConvNet", "Op graph"], None),
    "projector": (["features", "287x32", "label"], DRAWINGS),
}


@pytest.mark.parametrize("tab", TABS)
def test_tensorboard_shows(tab, address, tmp_path) -> None:
    words, drawn = TABS[tab]
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"{address}?tab={tab}#{tab}")
        missing = words
        for _ in range(120):
            text = browser.value(TEXT)
            missing = [word for word in words if word.lower() not in text.lower()]
            if not missing and (drawn is None or browser.value(drawn)):
                return
            time.sleep(0.25)
        browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{tab}.png")
        raise AssertionError(f"{tab} lacks {missing or 'its drawings'}: {text[:2000]}")


@pytest.fixture(scope="module")
def pages(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the reports of one run, and of two."""
    folder, before = tmp_path_factory.mktemp("pages"), Path.cwd()
    shutil.copytree(_trained / "runs", folder / "runs")
    os.chdir(folder)
    try:
        assert main(["test", "--ckpt_path", "best"]) == 0
        shutil.copytree("runs/digits/version_0", "runs/digits/version_1")
        assert main(["report", "--out", "one.html"]) == 0
        assert main(["report", "--run", "runs/digits/version_0", "runs/digits/version_1", "--out", "two.html"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser without a network."""
    with Browser(tmp_path_factory.mktemp("profile"), hosts="MAP * ~NOTFOUND") as browser:
        yield browser


# The lowest contrast of text against the ground.
CONTRAST = """(() => {
  const linear = part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = colour => { const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(part => linear(part / 255));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const texts = ['body', '.soft', 'p', 'th', 'a'].map(name => document.querySelector(name)).filter(each => each)
    .map(each => light(getComputedStyle(each).color));
  return Math.min(...texts.map(text => (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05))) })()"""
IMAGES = "[...document.images].map(image => [image.complete && image.naturalWidth > 50, image.alt.length > 10])"


@pytest.mark.parametrize("page", ["one", "two"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_without_a_request_and_fits(page, width, scheme, pages, offline) -> None:
    offline.size(width, 900)
    offline.scheme(scheme)
    offline.open((pages / f"{page}.html").as_uri())
    assert [url for url in offline.requests if not url.startswith(("file:", "data:"))] == []
    assert offline.errors == []
    shown = offline.value(IMAGES)
    assert len(shown) == (13 if page == "one" else 4) and all(all(each) for each in shown)
    assert offline.value("document.documentElement.scrollWidth") <= width  # the page itself does not scroll sideways
    assert ("Test accuracy" if page == "one" else "2 runs compared") in offline.value("document.body.innerText")
    assert float(offline.value(CONTRAST)) >= 4.5  # WCAG 2.1, 1.4.3


def test_the_report_prints_on_few_pages_with_its_pictures(pages, offline, tmp_path) -> None:
    offline.open((pages / "one.html").as_uri())
    content = offline.pdf(tmp_path / "one.pdf").read_bytes()
    sheets = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 4 <= sheets <= 16 and content.count(b"/Subtype /Image") >= 13


def test_a_heading_never_skips_a_level_and_every_link_of_the_contents_leads_somewhere(pages, offline) -> None:
    offline.open((pages / "one.html").as_uri())
    levels = offline.value("[...document.querySelectorAll('h1, h2, h3, h4')].map(each => +each.nodeName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    links = "[...document.querySelectorAll('nav a')].map(link => !!document.querySelector(link.getAttribute('href')))"
    found = offline.value(links)
    assert len(found) >= 6 and all(found)
    assert offline.value("document.documentElement.lang") == "en"
