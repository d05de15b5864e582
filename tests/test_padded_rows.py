"""A model of padded rows, one document each: from text to numbers."""

import functools
import json

import jax
import numpy as np
import pytest
from test_scoring import TINY

import dsl_jax
from dsl_jax import likelihood, main
from dsl_jax.data import batches, packing, prepare, tokenizers
from dsl_jax.modes import correct, evaluate, trained
from dsl_jax.quality import estimate, ngrams
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir

END, LENGTH = 256, 16  # EOS, which is BOS and the padding as well
WORDS = ["he", "was", "not", "there", "and", "they", "said", "it", "is", "now"]


def hand_mask(rows_NL):
  """Counts BOS, the text and one EOS of every row."""
  size_N = [1 + list(row[1:]).index(END) + 1 for row in rows_NL]
  return np.arange(rows_NL.shape[1]) < np.array(size_N)[:, None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A trained run and a function that runs a mode there."""
  root = tmp_path_factory.mktemp("padded")
  rng = np.random.default_rng(0)
  texts = [" ".join(rng.choice(WORDS, 1 + i % 5)) for i in range(300)] + [""]
  corpus = root / "corpus.jsonl"
  corpus.write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
  settings = TINY | {
    "data.corpus": f"text:{corpus}",
    "data.tokenizer": "bytes",
    "data.pad": True,
    "data.dir": str(root / "rows"),
    "net.vocab_size": 257,
    "train.microbatches": 1,
    "train.eval_every": 2,
  }
  packed = prepare.prepare(
    corpus=f"text:{corpus}",
    tokenizer="bytes",
    length=LENGTH,
    out=str(root / "rows"),
    pad=True,
  )
  dropped = sum(max(len(x) - (LENGTH - 2), 0) for x in texts)
  assert dropped == sum(x.manifest["dropped"] for x in packed.values()) > 0

  def mode(name, *extra, **changes):
    argv = ["main", f"--workdir={root / 'run'}", f"--mode={name}"]
    argv += [f"--config.{k}={v}" for k, v in (settings | changes).items()]
    return main.main([*argv, "--config=quickstart:letters", *extra])

  assert mode("train") == 0
  return root, mode


def test_perplexity_is_the_mean_over_what_is_not_padding(run):
  root, mode = run
  bounds = "endpoint,left_to_right:16"
  assert mode("eval", **{"eval.bounds": bounds, "eval.batch_size": 16}) == 0
  result = json.loads((root / "run/eval.json").read_text())
  cfg = workdir.stored(root / "run").config
  model = dsl_jax.load(root / "run")
  packed = prepare.open_rows(cfg, "validation")
  rows_NL = trained.draw_rows(packed.tokens_NL, TINY["eval.sequences"], 0)
  N, mask_NL, draws = len(rows_NL), hand_mask(rows_NL), 3
  # The rows of a batch, filled up to a multiple of the devices, and its key.
  filled = np.pad(rows_NL, [(0, -N % 8), (0, 0)])
  mask_BL = np.pad(mask_NL, [(0, -N % 8), (0, 0)], constant_values=True)
  key = jax.random.fold_in(state_lib.stream(0, "eval"), 0)
  keys = jax.random.split(key, 2)
  common = {"denoiser": model.denoiser, "clean_snr": model.clean_snr}
  endpoint = jax.jit(
    lambda key: likelihood.endpoint_nats(
      model.params, key, filled, draws=draws, mask_BL=mask_BL, **common
    )[0]
  )
  path = dsl_jax.paths.left_to_right(LENGTH)
  along = jax.jit(
    lambda key: likelihood.path_nats(model.params, key, filled, path, **common)
  )
  noise = [jax.random.split(k)[1] for k in jax.random.split(keys[1], draws)]
  nats = {
    "endpoint": np.asarray(endpoint(keys[0]))[:N],
    "left_to_right_16_steps": np.mean(
      [(np.asarray(along(k)) * mask_BL).sum(axis=1)[:N] for k in noise], axis=0
    ),
  }
  characters = mask_NL.sum() - 2 * N  # bytes of ASCII text
  for name, nats_N in nats.items():
    row, mean = result["bounds"][name], nats_N.sum() / mask_NL.sum()
    assert row["perplexity"] == pytest.approx(np.exp(mean), rel=1e-4)
    bits = nats_N.sum() / np.log(2) / characters
    assert row["bits_per_char"] == pytest.approx(bits, rel=1e-4)
    error = estimate.ratio(nats_N, mask_NL.sum(axis=1), group=4).stderr
    assert row["stderr"] == pytest.approx(error / np.log(2), rel=1e-3)


def test_training_and_its_held_out_loss_count_no_padding(run):
  root, _ = run
  lines = (root / "run/metrics.jsonl").read_text().splitlines()
  first, _, held_out = (json.loads(x)["loss"] for x in lines)
  cfg, model = workdir.stored(root / "run").config, dsl_jax.load(root / "run")
  packed = prepare.open_rows(cfg, "train")
  tokens = batches.batch_at(packed, 0, batch_size=8, seed=cfg.data.seed)
  params = model.denoiser.init(state_lib.stream(cfg.seed, "init"))
  key = jax.random.fold_in(state_lib.stream(cfg.seed, "train"), 0)
  loss = jax.jit(state_lib.make_loss(cfg, dropout=True))
  mean, _ = loss(params, jax.random.split(key, 8), tokens, hand_mask(tokens))
  assert first == pytest.approx(float(mean), rel=1e-4)
  rows_NL = prepare.open_rows(cfg, "validation").tokens_NL
  loss, size = jax.jit(state_lib.make_loss(cfg, dropout=False)), 9
  total = dict.fromkeys(("nll", "tokens"), 0.0)
  for number, start in enumerate(range(0, len(rows_NL), size)):
    part = rows_NL[start : start + size]
    fill = [(0, 16 - len(part)), (0, 0)]
    key = jax.random.fold_in(state_lib.stream(cfg.seed, "eval"), number)
    arrays = np.pad(part, fill), np.pad(hand_mask(part), fill)
    sums = loss(model.params, jax.random.split(key, 16), *arrays)[1]
    total = {name: x + float(sums[name]) for name, x in total.items()}
  assert held_out == pytest.approx(total["nll"] / total["tokens"], rel=1e-4)


def test_ngrams_see_no_padding(run):
  root, _ = run
  cfg = workdir.stored(root / "run").config
  splits = [prepare.open_rows(cfg, x) for x in ("train", "validation")]
  streams, sizes = [], []
  for packed in splits:
    mask_NL = hand_mask(packed.tokens_NL)
    mask_NL[:, 0] = False
    streams.append(np.int64(packed.tokens_NL[mask_NL]))
    sizes.append(mask_NL.sum(axis=1))
  name, (nats_N, stderr_N) = evaluate._best_ngram(cfg, *splits)
  *_, prob = ngrams.probabilities(*streams, 257, int(name[-1]))
  rows = np.split(-np.log(prob), np.cumsum(sizes[1])[:-1])
  spread = np.array([row.std() * np.sqrt(len(row)) for row in rows])
  expected = np.array([row.sum() for row in rows])
  drawn_N = trained.draw_rows(np.arange(len(expected)), 11, cfg.seed)
  np.testing.assert_allclose(nats_N, expected[drawn_N], rtol=1e-9)
  np.testing.assert_allclose(stderr_N, spread[drawn_N], rtol=1e-9)


def test_samples_are_between_their_markers(run):
  root, mode = run
  for prompt in ("", "he was[MASK:2]now"):  # of 15 and one position is open
    settings = {"sample.prompt": prompt, "sample.num": 2, "data.pad": True}
    assert mode("sample", **settings, **{"sample.path": "left_to_right"}) == 0
  lines = (root / "run/samples.jsonl").read_text().splitlines()
  samples = [json.loads(x) for x in lines]
  byte = tokenizers.load("bytes")
  assert len(samples) == 4
  for sample in samples:
    assert sample["text"] == byte.decode(sample["ids"])
    assert END not in sample["ids"]
  assert all(bytes(x["ids"][:6]) == b"he was" for x in samples[2:])


def test_a_text_is_scored_by_documents(run, tmp_path, capsys):
  root, mode = run
  text = tmp_path / "two.txt"
  text.write_text("all of it\n<|endoftext|>\nthey said that it is good")
  assert mode("eval", f"--text={text}", **{"eval.bounds": "endpoint"}) == 0
  out = capsys.readouterr().out
  assert "2 rows" in out and "11 of its 35 tokens do not fit in" in out
  model = dsl_jax.load(root / "run")
  data = model.config.data
  rows = packing.make_rows(
    [np.frombuffer(b"good", "u1")], model.tokenizer, data
  )
  row_1L = next(rows)
  key = jax.random.fold_in(state_lib.stream(0, "score"), 0)
  filled = np.pad(row_1L, [(0, 7), (0, 0)])
  mask_BL = np.pad(hand_mask(row_1L), [(0, 7), (0, 0)])
  options = {"denoiser": model.denoiser, "clean_snr": model.clean_snr}
  endpoint = functools.partial(likelihood.endpoint_nats, draws=64, **options)
  nats_B, _ = jax.jit(endpoint)(model.params, key, filled, mask_BL=mask_BL)
  bits = float(nats_B[0]) / np.log(2) / 4
  assert model.score("good").value == pytest.approx(bits, rel=1e-4)


def test_a_correction_holds_markers_and_padding(run, tmp_path, monkeypatch):
  _, mode = run
  text, seen = tmp_path / "one.txt", []

  def score(cfg, params, rows_NL, inner_L):
    seen.append((rows_NL, inner_L))
    p_NL = np.ones(rows_NL.shape)
    return [np.zeros(rows_NL.shape, bool), p_NL, rows_NL, p_NL]

  monkeypatch.setattr(correct, "_score_windows", score)
  for words in ("they said it is now", "now"):
    text.write_text(words)
    assert mode("correct", f"--text={text}") == 0
  (rows_NL, inner_L), (short_1L, short_L) = seen
  shown = [bytes(row[inner_L].tolist()) for row in rows_NL]
  assert shown == [b"they said it i", b"said it is now"]
  assert rows_NL[:, [0, -1]].tolist() == [[END, END]] * 2
  assert short_1L.tolist() == [[END, *b"now", *[END] * 12]]
  assert np.flatnonzero(short_L).tolist() == [1, 2, 3]
