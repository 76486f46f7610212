"""The page of examples/web_digits.py, in a browser without a window.

Those tests are slow ones (-m slow), and skip unless there are

- Chromium and its driver, of one version: on Debian `apt-get install chromium chromium-driver`;
- Selenium, which talks to the driver: `pip install ".[web]"`;
- ONNX Runtime Web: Node with npm, and either the network or `npm install onnxruntime-web` done in
  the current folder before.

Nothing is downloaded but ONNX Runtime Web. Chromium runs with `--no-sandbox`: root has none.
`--basetemp FOLDER` keeps the screenshots.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib.image import imread

from kerasnorm.cli import demo
from kerasnorm.errors import KerasNormError

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import web_digits

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SENT = 40


def ring(x, y, radius_x, radius_y, start=-90, end=-450):
    """An arc as a line of points, clockwise angles in degrees from the right."""
    return [
        (x + radius_x * math.cos(math.radians(a)), y + radius_y * math.sin(math.radians(a)))
        for a in np.linspace(start, end, 24)
    ]


# Each digit as strokes, in parts of the field.
DRAWN = {
    "ring": (0, [ring(0.5, 0.5, 0.2, 0.3)]),
    "large ring": (0, [ring(0.5, 0.5, 0.42, 0.45)]),
    "bar": (1, [[(0.5, 0.15), (0.5, 0.85)]]),
    "slanted bar in a corner": (1, [[(0.25, 0.1), (0.15, 0.4)]]),
    "two": (2, [[*ring(0.5, 0.33, 0.18, 0.18, -190, 20), (0.32, 0.85), (0.72, 0.85)]]),
    "three": (
        3,
        [ring(0.48, 0.32, 0.17, 0.17, -160, 90) + ring(0.48, 0.67, 0.2, 0.18, -90, 160)],
    ),
    "four": (4, [[(0.45, 0.15), (0.3, 0.55), (0.72, 0.55)], [(0.62, 0.35), (0.6, 0.88)]]),
    "five": (
        5,
        [[(0.68, 0.15), (0.38, 0.15), (0.35, 0.45), *ring(0.48, 0.63, 0.19, 0.22, -120, 150)]],
    ),
    "six": (6, [[(0.58, 0.12), (0.4, 0.4), *ring(0.5, 0.68, 0.16, 0.18, -180, -540)]]),
    "seven": (7, [[(0.3, 0.15), (0.7, 0.15), (0.45, 0.85)]]),
    "eight": (8, [ring(0.5, 0.32, 0.14, 0.17, 90, -270) + ring(0.5, 0.68, 0.17, 0.19, -90, 270)]),
    "nine": (9, [[*ring(0.5, 0.33, 0.17, 0.18, 0, -360), (0.66, 0.6), (0.6, 0.88)]]),
}


@pytest.fixture(scope="module")
def digits():
    return demo.load_digits()


@pytest.fixture(scope="module")
def runtime():
    try:
        return web_digits.runtime_files()
    except KerasNormError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Selenium; nothing that the page complains of goes unseen."""
    webdriver = pytest.importorskip("selenium.webdriver", reason='needs `pip install ".[web]"`')
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=900,800")
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as running:
        yield running


@pytest.fixture(scope="module")
def source(digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "EPOCHS", 8)
        return web_digits.trained(digits)


@pytest.fixture(scope="module", params=["weight", "layer", "weight, softmax"])
def page(request, browser, runtime, source, digits, tmp_path_factory):
    """The page of a model, in the browser, and where it is."""
    to, _, softmax = request.param.partition(", ")
    model = source
    if softmax:
        model = keras.Model(source.input, keras.layers.Softmax()(source.output))
    folder = tmp_path_factory.mktemp("page")
    built = web_digits.build(model, to, digits, folder, runtime)
    with web_digits.server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        browser.get(f"http://127.0.0.1:{server.server_port}/")
        yield built, browser
        complaints = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
        server.shutdown()
        thread.join()
    assert complaints == []


def expected(built, images):
    """The ten probabilities that Keras gives to each image."""
    answer = np.float64(built.model.predict(images, verbose=0))
    if json.loads((built.folder / "about.json").read_text())["logits"]:
        answer = np.exp(answer - answer.max(-1, keepdims=True))
    return answer / answer.sum(-1, keepdims=True)


def shown(browser):
    """The digit in the page and the words under it."""
    return tuple(browser.find_element("id", name).text for name in ("answer", "status"))


def until(browser, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 10, poll_frequency=0.05).until(lambda _: condition())


def draw(browser, strokes):
    """Strokes with the mouse, pressed, moved and released."""
    from selenium.webdriver import ActionChains

    pad = browser.find_element("id", "pad")
    width, height = pad.size["width"], pad.size["height"]
    for stroke in strokes:
        mouse = ActionChains(browser, duration=10)
        for number, (x, y) in enumerate(stroke):
            mouse.move_to_element_with_offset(pad, (x - 0.5) * width, (y - 0.5) * height)
            if number == 0:
                mouse.click_and_hold()
        mouse.release().perform()


def ink(browser):
    """How much of the drawing field is dark."""
    picture = imread(io.BytesIO(browser.find_element("id", "pad").screenshot_as_png))
    return float(np.mean(picture[..., 0] < 0.5))


@pytest.mark.slow
def test_the_answers_are_those_of_keras(page, digits):
    built, browser = page
    images = digits.x_test[:SENT]
    answers = [
        browser.execute_script("return classify(arguments[0])", image.ravel().tolist())
        for image in images
    ]
    np.testing.assert_allclose(answers, expected(built, images), atol=1e-4)
    digit, words = shown(browser)
    assert digit == str(np.argmax(answers[-1]))
    assert f" {digit} (" in words
    assert np.mean(np.argmax(answers, -1) == digits.y_test[:SENT]) > 0.9


@pytest.mark.slow
def test_pixels_in_the_address(page, digits):
    built, browser = page
    image = digits.x_test[SENT]
    browser.get(f"{browser.current_url.split('?')[0]}?pixels={','.join(map(str, image.ravel()))}")
    until(browser, lambda: shown(browser)[0] != "–")
    assert shown(browser)[0] == str(expected(built, image[None]).argmax())


@pytest.mark.slow
@pytest.mark.parametrize("page", ["weight"], indirect=True)
@pytest.mark.parametrize("name", DRAWN)
def test_a_digit_drawn_with_the_mouse(page, name, tmp_path):
    _, browser = page
    digit, strokes = DRAWN[name]
    browser.find_element("id", "clear").click()
    assert shown(browser) == ("–", "")
    assert ink(browser) < 0.01
    draw(browser, strokes)
    _, words = until(browser, lambda: shown(browser)[1] and shown(browser))
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    assert f" {digit} (" in words
    assert 0.01 < ink(browser) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("page", ["weight"], indirect=True)
def test_the_keyboard_suffices_for_the_test_images(page, digits):
    built, browser = page
    browser.refresh()
    button = browser.find_element("id", "example")
    until(browser, button.is_enabled)
    for image in digits.x_test[:3]:
        button.send_keys(" ")
        digit = str(expected(built, image[None]).argmax())
        until(browser, lambda digit=digit: f" {digit} (" in shown(browser)[1])


@pytest.mark.slow
@pytest.mark.parametrize("page", ["weight"], indirect=True)
@pytest.mark.parametrize("pixels", [[0.5] * 63, [2.0] * 64, ["ink"] * 64])
def test_what_is_no_image_is_refused(page, pixels):
    _, browser = page
    refused = "return classify(arguments[0]).then(() => 'taken', (error) => error.message)"
    assert "64 numbers from 0 to 1" in browser.execute_script(refused, pixels)


def test_a_model_of_another_shape_is_refused(digits, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    with pytest.raises(KerasNormError, match=r"answer \(None, 10\)\. Received .*\(None, 64\)"):
        web_digits.build(model, "weight", digits, tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_runtime_is_refused(tmp_path):
    with pytest.raises(KerasNormError, match="Run: npm install --prefix"):
        web_digits.runtime_files(tmp_path)


def test_without_npm_it_says_where_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path.anchor)  # below which nobody has run npm
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        web_digits.main(["--folder", str(tmp_path / "page")])
    assert end.value.code == 1
    assert "npm, which is not installed. Install Node" in capsys.readouterr().err


def test_warped_images_are_still_images(digits):
    images = digits.x_train[:20]
    warped = web_digits.warped(images, np.random.default_rng(0))
    assert warped.shape == images.shape
    assert not np.array_equal(warped, images)
    assert warped.min() >= 0
    assert warped.max() <= 1
    assert 0.75 < warped.sum() / images.sum() < 1.1


def test_a_port_in_use_is_named(tmp_path):
    with web_digits.server(tmp_path) as server:
        port = server.server_port
        with pytest.raises(KerasNormError, match=f"Port {port} cannot be used"):
            web_digits.server(tmp_path, port)
