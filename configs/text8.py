"""text8, 27 characters, from scratch; published: 1.45 bits per character.

--mode=eval scores every row of the test split, as the literature does.

python -m dsl_jax.data.prepare --corpus=text8:text8.zip --tokenizer=text8
  --length=256 --wrap=False --out=data_cache/text8

[P] the paper, arXiv 2605.12836, or its authors' code; [M] MDLM's recipe, from
which the paper starts; [S] docs/study.md; [O] our choice.
"""

import math

from dsl_jax.runtime import config as config_lib

# [O] The continuous law, the integral and continuous paths end together: one in
# a thousand SNRs of the law is higher, and up to clean_snr nothing is trained.
_LAST_SNR = 22.0


def get_config(arg=""):
  """Returns the config; there are no variants."""
  net = config_lib.NetConfig(
    vocab_size=27,  # a-z and space; the mask is a row of its own
    width=768,  # [P] MDLM small
    depth=12,  # [P]
    heads=12,  # [P]
    sphere_dim=16,  # [P] text8
    cond_dim=128,  # [P]
    dropout=0.1,  # [P]
    f32_residual=True,  # [M] autocast rounds products, not the stream
    dtype="bfloat16",  # [M] from scratch
    unroll=1,  # [O] a rolled scan compiles sooner on accelerators
    beta_init=1.0,  # [O] Bayes; the authors start at 1 / sqrt(D)
    mask_prior=0.99,  # [P]
    evidence_skip=True,  # [S] scratch-learned: integral 2.19, not 2.40
  )
  config = config_lib.Config(
    name="text8",
    net=net,
    clean_snr=100 * math.log(27) / math.log(35),  # [P] 100 at MDLM's V = 35
    data=config_lib.Data(
      corpus="text8:text8.zip",
      tokenizer="text8",
      length=256,  # [P]
      dir="data_cache/text8",
    ),
    law=config_lib.TrainingLaw(
      mu=1.4,  # [P] seen for text8; the paper's final choice is not public
      sigma=0.55,  # [P] as above
      endpoint_share=0.25,  # [P]
      smooth=True,  # [P]
    ),
    optim=config_lib.Optim(
      learning_rate=3e-4,  # [P]
      b1=0.9,  # [P]
      b2=0.999,  # [P]
      clip_norm=1.0,  # [P]
      warmup_steps=2500,  # [M] from scratch
      converter_lr_scale=10.0,  # [O] beta is learned too slowly otherwise
      ema_decay=0.9999,  # [P]
    ),
    train=config_lib.Train(
      steps=1_000_000,  # [M] from scratch
      batch_size=512,  # [P]
      log_every=100,
      eval_every=10_000,
      checkpoint_every=10_000,
    ),
    eval=config_lib.Eval(
      batch_size=64,
      split="test",  # [M] and the literature: the last 5 M characters,
      sequences=0,  # all of them
      snr_max=_LAST_SNR,
    ),
    sample=config_lib.Sample(
      path="masked", steps=256, num=64, batch_size=64, snr_max=_LAST_SNR
    ),
  )
  variants = {"": config}
  return config_lib.to_config_dict(
    config_lib.variant(arg, variants, "text8.py")
  )
