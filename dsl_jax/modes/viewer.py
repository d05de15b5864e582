"""One self-contained page of a sample's way: tokens appear row by row."""

import base64
import os
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import vocab
from dsl_jax.data import extras, tokenizers
from dsl_jax.runtime import errors
from dsl_jax.runtime import workdir as workdir_lib

COMMITTED = 255  # level of an SNR of inf; 0 is the mask
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}: a sample row by row</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; color:
        #1c2430; max-width: 84rem; padding: 0 1rem; }
 h1 { font-size: 1.3rem; margin: 0; } .note { color: #5a6675; margin: .2rem 0; }
 #bar { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center;
        margin: .8rem 0; } #step { flex: 1 1 14rem; }
 #where { min-width: 18rem; font-variant-numeric: tabular-nums; }
 button { width: 5rem; } button, select { font: inherit; }
 #both { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
 #text { flex: 1 1 30rem; margin: 0; line-height: 1.9; overflow-wrap: anywhere;
         white-space: break-spaces; font-family: ui-monospace, monospace;
         {{ "word-break: break-all;" if letters }}
         font-size: {{ 22 if positions <= 64 else 15 }}px; }
 #text span { border-radius: 3px; padding: 2px 1px; }
 #text .new { outline: 2px solid #1c2430; }
 figure { flex: 1 1 22rem; margin: 0; max-width: 36rem; position: relative; }
 canvas { width: 100%; height: 24rem; image-rendering: pixelated; border:
          1px solid #c5ccd6; display: block; }
 #row { position: absolute; left: 0; right: 0; border-top: 2px solid #d1495b; }
 .key { display: inline-block; width: 7rem; height: .8rem; vertical-align:
        middle; margin: 0 .4rem; border: 1px solid #c5ccd6; }
</style>
<h1>{{ title }}</h1>
<p class="note">{{ positions }} tokens, {{ rows }} rows that change something.
Every row is one step of the path.</p>
<div id="bar"><button id="play">Play</button>
<input id="step" type="range" min="0" max="{{ rows - 1 }}" value="0"
 aria-label="row"> <span id="where"></span>
<label>colour <select id="colour"><option value="confidence">confidence
<option value="snr">SNR</select></label></div>
<div id="both"><p id="text"></p><figure><canvas id="map"></canvas>
<div id="row"></div><figcaption class="note">SNR of every token (across) in
every row (down). <br>mask<span class="key" id="key"></span>committed
<br>confidence: low<span class="key" id="sure"></span>high{% if high %}; finite
SNRs {% if low == high %}are {{ low }}{% else %}run from {{ low }} to {{ high
}}{% endif %}{% endif %}.</figcaption></figure></div>
<noscript>This page needs JavaScript.</noscript>
<script id="data" type="application/json">{{ data | tojson }}</script>
<script>
const $ = id => document.getElementById(id);
const data = JSON.parse($('data').textContent);
const L = data.length, R = data.rows.length;
const mix = (stops, x) => { // x in 0..1 along [r, g, b] stops
  const at = Math.min(x * (stops.length - 1), stops.length - 1 - 1e-9);
  const i = Math.floor(at), t = at - i;
  return stops[i].map((a, c) => Math.round(a + t * (stops[i + 1][c] - a)));
};
const SNR = [[236, 240, 246], [150, 190, 230], [52, 110, 180], [24, 50, 110]];
const SURE = [[245, 160, 140], [253, 240, 190], [150, 215, 175]];
const MASK = [247, 247, 249], DONE = [16, 122, 105];
const snrColour = v => v == 0 ? MASK : v == 255 ? DONE : mix(SNR, v / 254);
const css = c => `rgb(${c})`;
const gradient = f => `linear-gradient(90deg, ${[0, 1, 2, 3, 4, 5, 6, 7, 8]
  .map(i => css(f(i / 8)))})`;
const unpack = async name => {
  const bytes = Uint8Array.from(atob(data[name]), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream();
  const raw = stream.pipeThrough(new DecompressionStream('deflate'));
  return new Response(raw).arrayBuffer();
};
(async () => {
  const level = new Uint8Array(await unpack('level'));
  const sure = new Uint8Array(await unpack('confidence'));
  const token = new Uint32Array(await unpack('token'));
  const spans = [...Array(L)].map(() => {
    const span = document.createElement('span');
    $('text').append(span);
    return span;
  });
  const map = $('map'), image = new ImageData(L, R);
  map.width = L; map.height = R;
  level.forEach((v, i) => image.data.set([...snrColour(v), 255], 4 * i));
  map.getContext('2d').putImageData(image, 0, 0);
  $('key').style.background = gradient(x => snrColour(Math.round(255 * x)));
  $('sure').style.background = gradient(x => mix(SURE, x));
  const show = () => {
    const r = +$('step').value, bySnr = $('colour').value == 'snr';
    let done = 0;
    spans.forEach((span, l) => {
      const i = r * L + l, v = level[i];
      done += v == 255;
      const text = v ? data.pieces[token[i]] : '\\u00b7';
      const moved = r && (level[i - L] != v || token[i - L] != token[i]);
      const c = v == 0 ? MASK : bySnr ? snrColour(v) : mix(SURE, sure[i] / 255);
      if (span.textContent != text) span.textContent = text;
      span.className = moved && (v == 255 || v == 0) ? 'new' : '';
      span.style.background = css(c);
      span.style.color = c[0] + c[1] + c[2] < 330 ? '#fff' : v ? '' : '#9aa3ae';
      span.title = `position ${l}, ` + (v == 0 ? 'mask' : v == 255 ?
        'committed' : `SNR ${data.snr[v].toPrecision(3)}`) +
        (v ? `, confidence ${(sure[i] / 255).toFixed(2)}` : '');
    });
    $('where').textContent =
      `row ${data.rows[r]} of ${data.last}, ${done} of ${L} committed`;
    $('row').style.top = `${(r + .5) / R * map.clientHeight}px`;
  };
  let timer = null;
  const stop = () => {
    clearInterval(timer); timer = null; $('play').textContent = 'Play';
  };
  $('play').onclick = () => {
    if (timer) return stop();
    if (+$('step').value == R - 1) $('step').value = 0;
    $('play').textContent = 'Pause';
    timer = setInterval(() => {
      if (+$('step').value >= R - 1) return stop();
      $('step').value = +$('step').value + 1;
      show();
    }, Math.max(30, Math.min(300, 12000 / R)));
    show();
  };
  $('step').oninput = $('colour').onchange = show;
  window.onresize = show;
  const jump = () => { // page.html#12 opens on the 12th row kept
    $('step').value = location.hash.slice(1) || 0;
    show();
  };
  window.onhashchange = jump;
  jump();
  document.body.dataset.ready = 'yes';
})();
</script></html>
"""


def check(path: str) -> None:
  """Refuses a page that cannot be written, or would replace a file.

  Raises:
    errors.UserError: names the file and the mend.
  """
  extras.require("jinja2", "demo")
  if jax.process_count() > 1:
    raise errors.UserError(
      f"--trace is {path} on {jax.process_count()} hosts; the page follows one "
      "sample on one host, so start a single process for it."
    )
  target = pathlib.Path(path)
  if target.exists():
    raise errors.UserError(
      f"--trace is {path}, which exists; name a new file or remove that one."
    )
  if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
    raise errors.UserError(
      f"--trace is {path}, which cannot be written; name a file in a folder "
      "that can."
    )


class Recorder:
  """Keeps the rows of a batch's first sequence.

  Attributes:
    rows: indices of the rows kept, those that change something.
    snr, tokens, confidence: a vector of L for each of them.
  """

  def __init__(self):
    self.rows, self.snr, self.tokens, self.confidence = [], [], [], []
    self._last = 0

  def watch(self, table_VD: jax.Array):
    """Returns the callback for `samplers.sample`, to be run every row."""

    def see(row, state):
      if not self.rows:
        held = np.asarray(state.held_BL[0])
        given = np.where(held, np.asarray(state.tokens_BL[0]), 0)
        self._keep(0, np.where(held, np.inf, 0), given, np.ones(len(held)))
      snr = np.asarray(state.snr_BL[0])
      tokens = np.asarray(state.tokens_BL[0])
      confidence = np.exp(np.asarray(state.logp_BL[0]))
      soft = np.isfinite(snr) & (snr > 0)
      if soft.any():  # what z alone says
        nearest, sure = _read(table_VD, state.z_BLD[:1])
        tokens = np.where(soft, np.asarray(nearest)[0], tokens)
        confidence = np.where(soft, np.asarray(sure)[0], confidence)
      self._keep(row, snr, tokens, confidence)

    return see

  def _keep(self, row, snr, tokens, confidence):
    tokens = np.where(snr > 0, tokens, 0)
    self._last = row
    if self.rows and np.array_equal(snr, self.snr[-1]):
      return
    for kept, new in zip(
      (self.rows, self.snr, self.tokens, self.confidence),
      (row, snr, tokens, confidence),
    ):
      kept.append(new)

  def write(
    self, path: str, tokenizer: tokenizers.Tokenizer, *, title: str
  ) -> None:
    """Writes the page; an interruption leaves no half of it."""
    jinja2 = extras.require("jinja2", "demo")
    ids, token = np.unique(np.stack(self.tokens), return_inverse=True)
    level, snr = _levels(np.stack(self.snr))
    sure = np.clip(np.stack(self.confidence), 0, 1)
    pieces = [tokenizer.decode([i]) for i in ids]
    data = {
      "length": level.shape[1],
      "rows": self.rows,
      "last": self._last,
      "snr": snr.tolist(),
      "pieces": pieces,
      "level": _pack(level),
      "confidence": _pack(np.round(255 * sure).astype(np.uint8)),
      "token": _pack(token.reshape(level.shape).astype("<u4")),
    }
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
      title=title,
      rows=len(self.rows),
      positions=level.shape[1],
      letters=all(len(x) == 1 for x in pieces),  # then each keeps its place
      low=f"{snr[1]:.3g}",
      high=f"{snr[-2]:.3g}"
      if np.any((level > 0) & (level < COMMITTED))
      else "",
      data=data,
    )
    target = pathlib.Path(path)
    workdir_lib.write(str(target.parent), target.name, text)


@jax.jit
def _read(table_VD, z_BLD):
  """The nearest token and its share in the posterior of z alone."""
  tokens = vocab.argmax(z_BLD, table_VD)
  return tokens, jnp.exp(-vocab.nll(z_BLD, table_VD, tokens))


def _levels(snr_RL):
  """SNRs as bytes on a logarithmic scale, and the SNR of each byte."""
  soft = np.isfinite(snr_RL) & (snr_RL > 0)
  low, high = (snr_RL[soft].min(), snr_RL[soft].max()) if soft.any() else (1, 1)
  scale = np.geomspace(low, high, COMMITTED - 1)
  share = np.log(np.where(soft, snr_RL, low) / low)
  share = share / np.log(high / low) if high > low else share + 1
  level = 1 + np.round(share * (COMMITTED - 2))
  level = np.where(np.isinf(snr_RL), COMMITTED, np.where(soft, level, 0))
  # JSON has no inf: the last entry stands for it and is never shown.
  return level.astype(np.uint8), np.array([0, *scale, 0.0])


def _pack(array):
  return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
