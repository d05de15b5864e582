"""Uses the page of --mode=demo in a headless Chromium: `make demo-check`.

python tests/check_demo.py OUT --workdir=DIR

Needs `pip install playwright` and a Chromium: of the system, or of `playwright
install chromium`. Screenshots are written to the folder OUT.
"""

import pathlib
import re
import shutil
import subprocess
import sys

from playwright import sync_api

HOSTILE = "<script>broken=1</script>[MASK:2]<b>"
SIZES = {"wide": (1200, 900), "narrow": (400, 800)}


def start(args):
  """Starts the server; returns its process and address."""
  command = [sys.executable, "-u", "-m", "dsl_jax.main", "--mode=demo", *args]
  server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  for line in server.stdout:
    if address := re.search(r"http://127\.0\.0\.1:\d+", line):
      return server, address[0]
  raise SystemExit("the server ended")


def wait(page, status):
  """Waits until the status begins so; returns it."""
  box = page.get_by_label("Status")
  sync_api.expect(box).to_have_value(re.compile(status), timeout=300_000)
  return box.input_value()


def press(page, name, status):
  """Presses a button; returns the new status that begins so."""
  before = page.get_by_label("Status").input_value()
  page.get_by_role("button", name=name, exact=True).click()
  box = page.get_by_label("Status")
  sync_api.expect(box).not_to_have_value(before, timeout=300_000)
  return wait(page, status)


def texts(page):
  return page.locator("#tokens .text").all_text_contents()


def use(page):
  """Types, runs, clicks tokens, runs again."""
  page.get_by_label("Text with blanks").fill("in the beginning [MASK:9] the")
  press(page, "Generate", "^step")
  wait(page, "^done")
  before = texts(page)
  assert "in the beginning" in "".join(before), before

  # A token that is clicked twice is not marked.
  for position, marks in ((20, 1), (22, 2), (22, 1)):
    page.locator("#tokens .token").nth(position).click()
    wait(page, f"^{marks} of")
  page.get_by_label("A click remasks to SNR").fill("5")
  page.locator("#tokens .token").nth(24).click()
  wait(page, "^2 of")
  press(page, "Regenerate marked tokens", "^done")
  after = texts(page)
  changed = {i for i, (a, b) in enumerate(zip(before, after)) if a != b}
  assert len(before) == len(after) and changed <= {20, 24}, changed

  for scale, label in (("SNR", "committed"), ("probability", "0.8")):
    page.get_by_label(scale, exact=True).check()
    sync_api.expect(page.locator("#tokens")).to_contain_text(label)


def attack(page):
  """HTML in a text is text; a text that is too long is a sentence."""
  page.get_by_label("Text with blanks").fill(HOSTILE)
  print("  hostile text:", press(page, "Generate", "^(done|error)"))
  print("  shown as:", "".join(texts(page))[:60])
  assert page.evaluate("window.broken") is None
  assert not page.locator("#tokens script, #tokens b").count()
  page.get_by_label("Text with blanks").fill("a" * 100_000)
  print("  long text:", press(page, "Generate", "^error: the text has 100000"))


def main(out, *args):
  server, address = start(args)
  try:
    with sync_api.sync_playwright() as playwright:
      browser = playwright.chromium.launch(
        executable_path=shutil.which("chromium"), args=["--no-sandbox"]
      )
      for name, (width, height) in SIZES.items():
        page = browser.new_page(viewport={"width": width, "height": height})
        failures = []
        page.on("pageerror", lambda error, seen=failures: seen.append(error))
        page.goto(address)
        use(page)
        page.screenshot(
          path=str(pathlib.Path(out) / f"{name}.png"), full_page=True
        )
        scrolled = page.evaluate("document.documentElement.scrollWidth")
        assert scrolled <= width, f"{scrolled} wide at {width}"
        attack(page)
        assert not failures, failures
        print(f"  {name}: ok")
      browser.close()
  finally:
    server.terminate()
    server.wait()


if __name__ == "__main__":
  main(*sys.argv[1:])
