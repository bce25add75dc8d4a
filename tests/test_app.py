"""app.py in a real browser: each tab is used as a person would, and the result checked in the page.

Needs `pip install -r requirements-app.txt selenium==4.51.0`, and Debian's packages chromium and
chromium-driver. A screenshot of each tab is left in the test's directory.
"""
import shutil
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image

import weights
from common.cli import InputError
from common.images import save_png
from evaluation.phantom import PhantomConfig, held_out_phantoms
from helpers import ROOT

pytest.importorskip("gradio")
import app                                              # noqa: E402: after it is known to be there

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of the weights in demo/, served by a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--port", str(port), "--threads", "1"],
        cwd=tmp_path_factory.mktemp("served"))
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, "app.py has ended"
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def browser(address):
    pytest.importorskip("selenium")
    if not BROWSER or not DRIVER:
        pytest.skip("there is no chromium with its driver: apt-get install chromium-driver")
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000",
                 "--disable-background-networking", "--disable-dev-shm-usage"):
        options.add_argument(word)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.get(address)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A held-out phantom with a pneumothorax, as a PNG."""
    phantoms = held_out_phantoms(PhantomConfig(), 128, range(12))
    n = next(n for n, facts in enumerate(phantoms.facts)
             if any(fact[0] == "pneumothorax" for fact in facts))
    path = tmp_path_factory.mktemp("film") / "film.png"
    save_png(Image.fromarray(phantoms.pictures[n]), path)
    return path


class Hands:
    """What a person does with a page."""

    def __init__(self, driver, folder):
        self.driver = driver
        self.folder = folder

    def find(self, css, seconds=90):
        """The element, as soon as it is there and can be seen."""
        end = time.time() + seconds
        while time.time() < end:
            found = [each for each in self.driver.find_elements("css selector", css)
                     if each.is_displayed()]
            if found:
                return found[0]
            time.sleep(0.2)
        self.driver.save_screenshot(str(self.folder / "missing.png"))
        raise AssertionError(f"there is no {css} in the page")

    def tab(self, name):
        for button in self.driver.find_elements("css selector", "button[role=tab]"):
            if button.text == name:
                button.click()
                return
        raise AssertionError(f"there is no tab {name}")

    def upload(self, name, path):
        self.driver.find_element("css selector", f"#{name} input[type=file]").send_keys(str(path))
        self.wait(lambda: path.stem in self.find(f"#{name}").text)

    def value(self, name):
        return self.find(f"#{name} textarea, #{name} input").get_attribute("value")

    def wait(self, condition, seconds=90):
        end = time.time() + seconds
        while not condition():
            assert time.time() < end, "waited too long"
            time.sleep(0.2)

    def look(self, name):
        self.driver.save_screenshot(str(self.folder / f"{name}.png"))
        assert Image.open(self.folder / f"{name}.png").size[0] >= 1000


@pytest.fixture
def hands(browser, tmp_path):
    browser.refresh()
    hands = Hands(browser, tmp_path)
    hands.find("#read-go")
    return hands


@pytest.mark.slow
def test_a_film_is_read_and_a_sentence_found_in_it(hands, film):
    assert "not for clinical use" in hands.driver.page_source
    hands.upload("read-film", film)
    hands.find("#read-go").click()
    hands.wait(lambda: "neumothorax" in hands.value("read-report"))
    hands.find("#read-picture img")
    before = hands.find("#read-picture img").get_attribute("src")
    labels = hands.driver.find_elements("css selector", "#read-sentence label")
    next(label for label in labels if "neumothorax" in label.text).click()
    hands.wait(lambda: hands.find("#read-picture img").get_attribute("src") != before)
    assert "seconds" in hands.value("read-took")
    hands.look("read")


@pytest.mark.slow
def test_a_report_is_drawn(hands):
    hands.tab("Draw")
    hands.find("#draw-go").click()
    hands.find("#draw-picture img")
    hands.wait(lambda: "seconds" in hands.value("draw-took"))
    hands.look("draw")


@pytest.mark.slow
def test_a_film_is_changed(hands, film):
    hands.tab("Change")
    hands.upload("change-film", film)
    box = hands.find("#change-statement textarea, #change-statement input")
    box.clear()
    box.send_keys("Severe cardiomegaly.")
    hands.find("#change-go").click()
    hands.find("#change-after img")
    hands.wait(lambda: "after:" in hands.value("change-words"))
    after = hands.value("change-words").partition("after:")[2]
    assert "cardiomegaly" in after or "enlarged" in after
    hands.look("change")


@pytest.mark.slow
def test_a_bad_file_ends_in_the_pages_own_error(hands, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    hands.upload("read-film", bad)
    hands.find("#read-go").click()
    hands.wait(lambda: "bad.png" in hands.find("[data-testid=toast-body], .toast-body").text)
    assert hands.find("#read-report textarea").get_attribute("value") == ""
    hands.look("error")


def test_what_a_person_may_leave_behind_in_a_field_is_one_sentence():
    jobs = app.Jobs(*weights.load(ROOT / "demo"))
    with pytest.raises(InputError, match="the seed is empty"):
        jobs.draw("Edema.", 1, 2, None)


def test_a_port_in_use_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} is in use"):
            app.main(["--port", str(port)])
    with pytest.raises(InputError, match="--port 0"):
        app.main(["--port", "0"])
