"""Pictures of a report: ``python docs/figures/report.py REPORT.html`` writes docs/images/report{,-dark,-narrow}.png.

The page is opened in Chromium with the network off. The picture in the docs is of one run of ``cifar10_fast``,
``digits_plain56`` and ``digits_resnet56`` each.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "images"
VIEWS = {"report": (1200, 1500, "light"), "report-dark": (1200, 1500, "dark"), "report-narrow": (390, 1500, "light")}


def main(page_file: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, scheme) in VIEWS.items():
            size = {"width": width, "height": height}
            context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(page_file.resolve().as_uri())
            page.wait_for_selector("html[data-drawn]")
            page.locator("#smoothing").fill("0.8")
            page.wait_for_timeout(500)
            box = page.locator("#chart-loss").bounding_box()
            assert box is not None
            if box["y"] < height:
                page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"])
            page.wait_for_timeout(500)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(128)
            picture.save(IMAGES / f"{name}.png", optimize=True)
            context.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
