"""Detokenizers: text of corpora that are kept as words with spaces between.

The rules and their order are those with which MDLM trains on LM1B and scores
models zero-shot, so that perplexities compare with the published ones.
"""

import re
from collections.abc import Callable

from dsl_jax.runtime import errors


def _spaced(marks: str) -> list[tuple[str, str]]:
  """Removes the space before a mark."""
  return [(f" {re.escape(x)} ", f"{x} ") for x in marks]


_WIKITEXT = [
  ("s '", "s'"),
  ("/' [0-9]/", "/'[0-9]/"),  # literally so in MDLM
  *((f" @{re.escape(x)}@ ", x) for x in "-,."),
  *_spaced(":;.!?,"),
  (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
  (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
  (r"{\s*([^}]*?)\s*}", r"{\1}"),
  (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
  (r"'\s*([^']*?)\s*'", r"'\1'"),
  ("= = = =", "===="),
  ("= = =", "==="),
  ("= =", "=="),
  (" ° ", "°"),
  (" \n", "\n"),
  ("\n ", "\n"),
  (" N ", " 1 "),
  (" 's", "'s"),
]
_LM1B = [
  ("(https?) : / / ", r"\1://"),
  (r" '(\w+)", r"'\1"),
  (r" (\w+) \. ", r" \1. "),
  (r" (\w+) \.$", r" \1."),
  *_spaced("?"),
  (r" \?$", "?"),
  *_spaced("!"),
  (" !$", "!"),
  *_spaced(",:;"),
  (" / ", "/"),
  (r"\" ([^\"]+) \"", r'"\1"'),
  (r"' ([^']+) '", r"'\1'"),
  (r"\( ([^\(\)]+) \)", r"(\1)"),
  (r"\[ ([^\[\]]+) \]", r"[\1]"),
  (r"([$£]) ", r"\1"),
]
_PTB = [
  (" 's", "'s"),
  ("s ' ", "s' "),
  (" n't", "n't"),
  (" \n ", "\n"),
  (r"\\/", "/"),
  (" N(?= )", " 1"),
  ("([$#]) 1", r"\g<1>1"),
  ("<unk>", "?"),
]
_RULES: dict[str, list[tuple[str, str]]] = {
  "none": [],
  "lambada": [("[“”]", '"'), (r"\s+$", ""), (r"^\s*", "\n")],
  "lm1b": _LM1B,
  "ptb": _PTB,
  "scientific_papers": [*_WIKITEXT, *_LM1B],
  "wikitext": _WIKITEXT,
}


def resolve(name: str, corpus: str) -> str:
  """Returns a detokenizer's name; "" is that of the corpus."""
  if name and name not in _RULES:
    raise ValueError(f"detokenizer is {name!r}{errors.nearest(name, _RULES)}")
  return name or ("lm1b" if corpus.split(":")[0] == "lm1b" else "none")


def make(name: str) -> Callable[[str], str]:
  """Returns text -> text, by one of the names "none", "lm1b", "ptb", ..."""
  rules = [(re.compile(pattern), new) for pattern, new in _RULES[name]]

  def detokenize(text: str) -> str:
    for pattern, new in rules:
      text = pattern.sub(new, text)
    return text

  return detokenize
