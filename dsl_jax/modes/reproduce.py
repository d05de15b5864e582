"""Scores of texts, and published tables from a checkpoint of one's own."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from dsl_jax.data import corpora, prepare, prompts
from dsl_jax.modes import evaluate, named_samplers, trained
from dsl_jax.quality import diversity, estimate, mauve, perplexity
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage
from dsl_jax.runtime import sharding as sharding_lib

_FIX = "delete it and run this again."
_SHOWN = ("mauve", "gen_ppl_remdm", "entropy", "reference_entropy")
_BLEU_SAMPLES = 500  # self-BLEU compares every sample with all others
_TEXTS_FIX = 'write lines such as {"text": "..."}, or a list of strings.'
_COLUMNS = {  # table: type of its columns and the default ones
  "owt_mauve": (int, "128,256,512,1024"),
  "frontier": (float, "0.7,0.8,0.9,1.0"),
}
# MAUVE / Gen-PPL / entropy by number of steps: OpenWebText, 1,024 tokens, 5,000
# samples, judged by GPT-2-large, nucleus 0.9; - where a paper has no figure.
# MAUVE is not comparable between papers that differ in any of these, or in the
# reference text: rerun the baseline. ADLM has 293M parameters.
_PUBLISHED_STEPS = (128, 256, 512, 1024)
_PUBLISHED = {
  "MDLM": "0.015/61.5/5.52 0.023/55.8/5.49 0.031/53.0/5.48 0.042/51.3/5.46",
  "ReMDM": "0.057/42.5/5.43 0.216/30.5/5.34 0.350/21.1/5.21 0.403/28.6/5.38",
  "ADLM": "0.140/52.5/5.52 0.349/39.9/5.46 0.573/31.6/5.40 0.699/25.4/5.35",
  "DSL": "0.639/-/- - - -",  # at its best 0.722 within T = 128..1024
  "AR": "- - - 0.760/12.1/5.22",  # 1,024 calls
}


class Texts(NamedTuple):
  """Texts, and their ids by the tokenizer of the run."""

  words: Sequence[str]
  ids: Sequence[np.ndarray]


class Job(NamedTuple):
  """Texts to score against as many rows of human text."""

  scores: pathlib.Path
  identity: dict  # what the scores depend on
  texts: Callable[[], tuple[Texts, dict]]  # and what it took to draw them


def _features(judge, texts):
  """Features of texts under a judge."""
  progress = tqdm.tqdm(texts.words, "features", unit="text", leave=False)
  return perplexity.features(judge, progress)


def _score(samples, human, human_ND, judge):
  """Scores samples against human text: numbers with their errors, by name."""

  def mean(values):
    return estimate.ratio(values, np.ones(len(values)))

  scores: dict = {"mauve": mauve.score(human_ND, _features(judge, samples))}
  for protocol in (perplexity.remdm, perplexity.corrected):
    name = f"gen_ppl_{protocol.__name__}"
    progress = tqdm.tqdm(samples.words, name, unit="text", leave=False)
    scores[name] = protocol(judge, progress)
  for name, texts in (("entropy", samples), ("reference_entropy", human)):
    scores[name] = mean([diversity.unigram_entropy(x) for x in texts.ids])
  scores["self_bleu"] = mean(diversity.self_bleu(samples.ids[:_BLEU_SAMPLES]))
  for n in (1, 2, 3, 4):

    def distinct(kept, n=n):
      return diversity.distinct([samples.ids[i] for i in kept], n)

    scores[f"distinct_{n}"] = estimate.jackknife(distinct, len(samples.ids))
  numbers = {name: score._asdict() for name, score in scores.items()}
  return numbers | {"judge": judge.name}


def _show_scores(result):
  lines = [
    f"{name:<20}{entry['value']:12.4g} +- {entry['stderr']:.2g}"
    for name, entry in result.items()
    if isinstance(entry, dict) and entry.get("stderr", math.nan) >= 0
  ]
  judge, seed = result["judge"], result["seed"]
  lines.append(f"{result['samples']} texts, judge {judge}, seed {seed}")
  return "\n".join(lines)


def _read_scores(path):
  """Reads the scores of a file, in which undefined numbers are null."""
  with errors.reading(str(path), _FIX):
    scores = storage.read_json(path, _FIX)
    entries = [x for x in scores.values() if isinstance(x, dict)]
    scored = [x for x in entries if "stderr" in x]
    for entry in scored + [scores[name] for name in _SHOWN]:
      for key in ("value", "stderr"):
        entry[key] = float("nan" if entry[key] is None else entry[key])
    _show_scores(scores)
  return scores


def _entries(tree: Any) -> list:
  """Returns what is in nested lists, and in "generated_seqs" of objects."""
  found = tree.get("generated_seqs") if isinstance(tree, dict) else tree
  if not isinstance(found, list):
    return [tree]
  return [entry for part in found for entry in _entries(part)]


def _parse_texts(name: str, content: str, is_json: bool) -> list:
  """Parses JSON, lines of JSON or, unless that must be, a text a line."""
  lines = [x.removesuffix("\r") for x in content.split("\n") if x.strip()]
  if not (is_json or content.lstrip().startswith(("[", "{"))):
    return lines
  with contextlib.suppress(ValueError, RecursionError):
    return _entries(json.loads(content))
  entries: list = []
  for i, line in enumerate(lines, 1):
    try:
      entries += _entries(json.loads(line))
    except (ValueError, RecursionError) as error:
      if not is_json:
        return lines
      wrong = f"line {i} of {name} cannot be read ({error})"
      raise errors.UserError(f"{wrong}; {_TEXTS_FIX}") from error
  return entries


def load_texts(path: str) -> list[dict]:
  """Returns objects with the string "text", of a file in any of these forms.

  JSON: a list of strings or of such objects, perhaps as "generated_seqs" of an
  object, as ReMDM writes it; lines of these (.jsonl); otherwise a text a line.
  """
  name, table = f"eval.text {path!r}", corpora.TABLE.search(path)
  is_json = bool(table and "json" in table[1].lower())
  if table and not is_json:
    raise errors.UserError(f"{name} is a table; {_TEXTS_FIX}")
  with (
    errors.reading(name, "give texts in UTF-8."),
    corpora.open_text(path) as file,
  ):
    entries = _parse_texts(name, file.read(), is_json)
  texts = [x if isinstance(x, dict) else {"text": x} for x in entries]
  for i, entry in enumerate(texts, 1):
    text = entry.get("text")
    if not isinstance(text, str) or not text.strip():
      raise errors.UserError(f"line {i} of {name} has no text; {_TEXTS_FIX}")
  return texts


def at_entropy(
  entropy_K: Sequence[float], perplexity_K: Sequence[float], target: float
) -> float:
  """Interpolates log perplexity at a given entropy, NaN outside its range.

  A sampler at low temperature has a low generative perplexity and a low
  entropy, so perplexities compare only where entropies agree.
  """
  order = np.argsort(entropy_K)
  entropy, logs = np.asarray(entropy_K)[order], np.log(perplexity_K)[order]
  return float(np.exp(np.interp(target, entropy, logs, math.nan, math.nan)))


def parse(cfg: config_lib.Config) -> dict[tuple[str, float], config_lib.Sample]:
  """Parses eval.table to sample sections, by sampler and column.

  owt_mauve:T,...  the masked sampler and ReMDM's protocol (cap with eta 0.04
    for T below the length, else loop with 0.02), nucleus 0.9 by ReMDM's rule,
    with the published figures.
  frontier:TEMPERATURE,...  sample.path and the masked sampler at sample.steps;
    Gen-PPL at the entropy of human text.
  """
  name, _, columns = cfg.eval.table.partition(":")
  if name not in _COLUMNS:
    near = errors.nearest(name, ["zero_shot", *_COLUMNS])
    raise errors.UserError(f"eval.table is {cfg.eval.table!r}{near}")
  number, default = _COLUMNS[name]
  try:
    values = [number(word) for word in (columns or default).split(",")]
  except ValueError:
    values = [0]
  if not all(0 < value <= 10**5 for value in values):
    raise errors.UserError(
      f"eval.table is {cfg.eval.table!r}; write {name}:{default}."
    )
  given = dataclasses.replace(cfg.sample, seed=cfg.seed)
  masked = dataclasses.replace(given, path="masked", remasks=0.0)
  if name == "frontier":
    return {
      (c.path, value): dataclasses.replace(c, temperature=value)
      for c, value in itertools.product((given, masked), values)
    }
  c = dataclasses.replace(masked, top_p=0.9, strict_top_p=True, temperature=1.0)
  sections = {("masked", n): dataclasses.replace(c, steps=n) for n in values}
  for n in values:
    capped = n < cfg.data.length
    path, eta = ("remask_cap", 0.04) if capped else ("remask_loop", 0.02)
    sections["remask", n] = dataclasses.replace(
      c, path=path, eta=eta, remask_snr=0.0, steps=n
    )
  return sections


def show_table(name: str, cells: dict[tuple[str, float], dict]) -> str:
  """Returns a table as lines of text, of scores by sampler and column."""
  samplers, columns = (list(dict.fromkeys(keys)) for keys in zip(*cells))
  one = next(iter(cells.values()))
  target = one["reference_entropy"]["value"]
  specs = {"gen_ppl_remdm": ".1f", "entropy": ".2f"}
  if name == "frontier":
    heads = [f"temperature {x:g}" for x in columns]
    heads.append(f"Gen-PPL at {target:.3f} nats")
    note = "the last column is at the entropy of human text, if in range"
  else:
    heads = [f"T={x}" for x in columns]
    specs = {"mauve": ".3f", **specs}
    note = "published figures are of 5,000 samples and GPT-2-large"
  rows = {" / ".join(specs): heads}
  for sampler in samplers:
    row = [cells[sampler, x] for x in columns]
    rows[f"this model, {sampler}"] = words = [
      " / ".join(
        f"{cell[name]['value']:{spec}}({cell[name]['stderr']:{spec}})"
        for name, spec in specs.items()
      )
      for cell in row
    ]
    if name == "frontier":
      entropy = [cell["entropy"]["value"] for cell in row]
      gen_ppl = [cell["gen_ppl_remdm"]["value"] for cell in row]
      at = at_entropy(entropy, gen_ppl, target)
      words.append("-" if math.isnan(at) else f"{at:.1f}")
  if name == "owt_mauve" and {*columns} & {*_PUBLISHED_STEPS}:
    for label, figures in _PUBLISHED.items():
      by_steps = dict(zip(_PUBLISHED_STEPS, figures.split()))
      rows[label] = [by_steps.get(x, "").replace("/", " / ") for x in columns]
  lines = [
    f"{label:<32}" + "".join(f"{word:>40}" for word in words)
    for label, words in rows.items()
  ]
  lines.append(
    f"This model: {one['samples']} samples, judge {one['judge']}, seed "
    f"{one['seed']}; entropy in nats; standard errors in brackets; {note}."
  )
  return "\n".join(lines)


def _decode(cfg, tokens_NL, tokenizer):
  if cfg.data.pad:  # an empty text is BOS alone
    cut = [trained.sample_ids(cfg, tokenizer, row) for row in tokens_NL]
    tokens_NL = [x if x.size else row[:1] for x, row in zip(cut, tokens_NL)]
  return Texts([tokenizer.decode(row) for row in tokens_NL], tokens_NL)


def _read_texts(entries, tokenizer):
  """Texts of a file, with the ids that they were written from if it has them.

  Different ids may be the same text, and encoding it gives only one of them.
  """
  all_ids = []
  for i, entry in enumerate(entries, 1):
    if entry.get("tokenizer") != tokenizer.fingerprint or "ids" not in entry:
      all_ids.append(trained.encode(entry["text"], tokenizer))
      continue
    with errors.reading(f"ids of text {i}", "remove the key ids there."):
      ids = np.asarray(entry["ids"])
      is_list = ids.ndim == 1 and ids.dtype.kind == "i"
      if not is_list or min(ids) < 0 or max(ids) >= tokenizer.vocab_size:
        raise ValueError("not a list of the tokenizer's")
    all_ids.append(ids.astype(np.int32))
  return Texts([entry["text"] for entry in entries], all_ids)


def _draw(cfg, params, tokenizer, path):
  """Draws the samples of a cell unless its file is there; and their cost."""
  cost = path.with_suffix(".json")
  if not path.exists():
    began = time.monotonic()
    request = prompts.parse("", tokenizer, cfg.data, name="")
    batches = named_samplers.draw(cfg, params, [request] * cfg.eval.samples)
    tokens, calls = zip(*batches)
    seconds = time.monotonic() - began
    storage.write_json(cost, {"calls": sum(calls), "seconds": seconds})
    with storage.replacing(path) as file:
      np.save(file, np.concatenate(tokens))
  with errors.reading(str(path), _FIX):
    tokens_NL = np.load(storage.local(path))
  return _decode(cfg, tokens_NL, tokenizer), storage.read_json(cost)


def _table_jobs(cfg, workdir, tokenizer, judged):
  """The cells of eval.table by sampler and column; prints what they take."""
  sections, num = parse(cfg), cfg.eval.samples
  for section in sections.values():
    named_samplers.check(dataclasses.replace(cfg, sample=section))
  params, step = trained.open_weights(cfg, workdir)
  folder = storage.to_path(workdir) / "reproduce"
  run = {"train_step": step, "clean_snr": cfg.clean_snr}
  run |= {"samples": num, "seed": cfg.seed}
  jobs, missing = {}, []
  for (sampler, column), section in sections.items():
    stem = f"{sampler}-{column:g}"
    identity = run | {"settings": dataclasses.asdict(section)}
    tokens = folder / f"{stem}-{storage.digest(identity)[:12]}.npy"
    made = storage.digest(identity | judged)[:12]
    scores = folder / f"{stem}-{made}-scores.json"
    cell = dataclasses.replace(cfg, sample=section)
    texts = functools.partial(_draw, cell, params, tokenizer, tokens)
    jobs[sampler, column] = Job(scores, identity | judged, texts)
    if not tokens.exists():
      missing.append(section)
  mesh = sharding_lib.make_mesh(cfg.mesh)
  batch = named_samplers.batch_size(cfg, num, mesh)
  calls = sum(math.ceil(num / batch) * section.steps for section in missing)
  print(
    f"{len(jobs)} cells of {num} samples of {cfg.data.length} tokens: "
    f"{len(missing)} to generate, at most {calls:,} network calls on batches "
    f"of {batch} ({len(missing) * num:,} samples)"
  )
  return jobs


def reproduce(cfg: config_lib.Config, workdir: str) -> None:
  """Generates, scores and prints the table eval.table with published figures.

  Samples of a cell (see `parse`) and its scores are a file each in
  WORKDIR/reproduce: finished cells are not computed again, and other settings
  are other files. With eval.text, scores those texts instead.
  """
  if cfg.eval.table.partition(":")[0] == "zero_shot" and not cfg.eval.text:
    evaluate.zero_shot(cfg, workdir)
    return
  text, folder = cfg.eval.text, storage.to_path(workdir) / "reproduce"
  with errors.user_errors():
    if jax.process_count() > 1:
      raise errors.UserError(
        f"--mode=reproduce runs on {jax.process_count()} hosts; its files are "
        "those of one, so start a single process on one of them."
      )
    packed = prepare.open_rows(cfg, cfg.eval.split)
    tokenizer = prepare.load_tokenizer(cfg)
    num, given = cfg.eval.samples, f"eval.samples is {cfg.eval.samples}"
    if text:
      entries = load_texts(text)
      num = len(entries)
      given = f"eval.text is {text!r} with {num} texts"
    if not 2 <= num <= len(packed.tokens_NL):
      raise errors.UserError(
        f"{given}; there are {len(packed.tokens_NL)} held-out rows to "
        "compare with, so use 2 to that many."
      )
    judged = {
      "samples": num,
      "seed": cfg.seed,
      "judge_asked": cfg.eval.judge,
      "data_sha256": packed.manifest["data_sha256"],
      "references": f"{cfg.eval.split} rows drawn without replacement",
      "mauve_order": "p = references, q = samples",
    }
    if text:
      digest = storage.digest([x.get("ids", x["text"]) for x in entries])[:12]
      identity = {"texts": text, "texts_digest": digest, **judged}
      digest = storage.digest(identity)[:12]
      name = f"{pathlib.Path(text).stem}-{digest}-scores.json"
      texts = _read_texts(entries, tokenizer)
      job = Job(folder / name, identity, lambda: (texts, {}))
      jobs: dict = {text: job}
    else:
      jobs = _table_jobs(cfg, workdir, tokenizer, judged)
    unscored = [job for job in jobs.values() if not job.scores.exists()]
    if unscored:
      print(
        f"{len(unscored) * num:,} texts, and {num:,} references, to judge with "
        f"{cfg.eval.judge}"
      )
      errors.require("faiss", "eval")  # for MAUVE
      judge = perplexity.CausalJudge(cfg.eval.judge)
      human_NL = trained.draw_rows(packed.tokens_NL, num, cfg.seed)
      human = _decode(cfg, human_NL, tokenizer)
      human_ND = _features(judge, human)

  for job in unscored:
    samples, cost = job.texts()
    with errors.user_errors():
      scores = _score(samples, human, human_ND, judge)
    scores |= job.identity | cost
    storage.write_json(job.scores, scores)
  results = {k: _read_scores(job.scores) for k, job in jobs.items()}
  if text:
    print(_show_scores(results[text]))
  else:
    print(show_table(cfg.eval.table.partition(":")[0], results))
