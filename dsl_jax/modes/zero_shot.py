"""Zero-shot perplexities of other corpora, beside MDLM's published ones."""

import dataclasses

import jax

from dsl_jax.data import prepare
from dsl_jax.modes import evaluate, trained
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage

# Name: text on the hub, detokenizer, and the perplexity of MDLM (arXiv
# 2406.07524, table 3): trained on OpenWebText, 1,024 tokens, GPT-2's tokenizer,
# documents joined by EOS, the masked bound.
_PAPERS, _WORDS = "hub:armanc/scientific_papers", "scientific_papers"
SETS = {
  "ptb": ("hub:ptb-text-only/ptb_text_only@validation#sentence", "ptb", 95.26),
  "wikitext": (
    "hub:Salesforce/wikitext:wikitext-103-raw-v1@validation",
    "wikitext",
    32.83,
  ),
  "lm1b": ("lm1b", "lm1b", 67.01),
  "lambada": ("hub:EleutherAI/lambada_openai@test", "lambada", 47.52),
  "ag_news": ("hub:fancyzhx/ag_news@test", "none", 61.15),
  "pubmed": (f"{_PAPERS}:pubmed@validation#article", _WORDS, 41.89),
  "arxiv": (f"{_PAPERS}:arxiv@validation#article", _WORDS, 37.37),
}


def parse(table: str) -> dict[str, str]:
  """Parses zero_shot:NAME[=FILE],... to places of text; all without names."""
  words = table.partition(":")[2] or ",".join(SETS)
  places = {}
  for word in words.split(","):
    name, _, place = word.partition("=")
    if name not in SETS:
      hint = errors.nearest(name, SETS)
      raise errors.UserError(f"eval.table is {table!r} with {name!r}{hint}")
    places[name] = place or SETS[name][0]
  return places


def zero_shot(cfg: config_lib.Config, workdir: str) -> None:
  """Scores the sets of eval.table; writes WORKDIR/zero_shot-HASH.json."""
  places, scored = parse(cfg.eval.table), {}
  with errors.user_errors():
    tokenizer = prepare.load_tokenizer(cfg)
    for name, place in places.items():
      c = dataclasses.replace(
        cfg.eval, text=place, detokenizer=SETS[name][1], bounds="endpoint"
      )
      set_cfg = dataclasses.replace(cfg, eval=c)
      scored[name] = set_cfg, *trained.text_rows(set_cfg, tokenizer)
    params, step = trained.restore(cfg, workdir)
  results = {}
  for name, (set_cfg, rows_NL, counts) in scored.items():
    set_cfg, bounds = evaluate.measure(set_cfg, params, rows_NL, counts)
    result = trained.describe(set_cfg, step, rows_NL, places[name])
    results[name] = result | {"source": counts, "bounds": bounds}
  if jax.process_index() == 0:
    print(
      f"{'perplexity':<12}{'this model':>12}{'+-':>9}{'MDLM':>9}{'rows':>9}"
    )
    for name, result in results.items():
      row = result["bounds"]["endpoint"]
      print(
        f"{name:<12}{row['perplexity']:>12.2f}{row['perplexity_stderr']:>9.2g}"
        f"{SETS[name][2]:>9.2f}{result['sequences']:>9}"
      )
    digest = trained.digest([places, cfg.seed, cfg.eval.draws])
    storage.write_json(f"{workdir}/zero_shot-{digest}.json", results)
