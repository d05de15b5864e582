"""Fine-tunes a small MDLM of text8's alphabet; minutes on a laptop.

python -m benchmarks.train_mdlm   trains such an MDLM first

Variants, --config=configs/finetune.py:NAME
  ""     the skip and the share of the study, for masked paths
  paper  the paper's, with the authors' converter init

[P] the paper, arXiv 2605.12836, or its authors' code; [M] MDLM's recipe; [S]
runs of docs/study.md, by name; [O] our choice.
"""

import dataclasses
import math

from dsl_jax.runtime import config as config_lib


def get_config(arg=""):
  """Returns the config of a variant."""
  net = config_lib.NetConfig(
    vocab_size=34,  # [M] text8's 27 characters and 7 specials, without the mask
    width=128,  # [O] what one CPU core trains in minutes
    depth=4,  # [O]
    heads=4,  # [O]
    sphere_dim=16,  # [P] text8
    beta_init=1.0,  # [O] Bayes: reads soft evidence from the start
    mask_prior=0.99,  # [P] so that z = 0 reads as MDLM's mask
    evidence_skip=True,  # [S] A3, skip: the mixture costs 0.066, not 0.159
  )
  base = config_lib.Config(
    name="finetune",
    net=net,
    init_from="runs/finetune/mdlm.ckpt",
    clean_snr=100.0,  # [P] 100 log V / log 35 at MDLM's V = 35
    data=config_lib.Data(corpus="kjv", tokenizer="text8-mdlm", length=128),
    law=config_lib.TrainingLaw(
      mu=1.4,  # [P] text8
      sigma=0.55,  # [P] text8
      endpoint_share=0.75,  # [S] skip-0.75: 0.008 bits then
      smooth=True,  # [P]
    ),
    optim=config_lib.Optim(
      learning_rate=1e-3,  # [O] a small network takes more than 3e-4
      warmup_steps=0,  # [P] fine-tuning
      schedule="cosine",  # [O] a short run gains from decay
      clip_norm=1.0,  # [P]
      converter_lr_scale=10.0,  # [O] beta is learned too slowly otherwise
      ema_decay=0.9999,  # [P]
    ),
    train=config_lib.Train(
      steps=600,  # [O] a tenth of what the MDLM had
      batch_size=16,  # [O]
      eval_every=300,
      checkpoint_every=300,
    ),
    eval=config_lib.Eval(
      batch_size=32,
      sequences=256,
      snr_max=22.0,  # [O] where the law ends: 0.1 % of its SNRs are higher
    ),
    sample=config_lib.Sample(snr_max=22.0),  # [O] as above
  )
  paper = dataclasses.replace(  # all [P]
    base,
    name="finetune_paper",
    net=dataclasses.replace(
      net, beta_init=1 / math.sqrt(16), evidence_skip=False
    ),
    law=dataclasses.replace(base.law, endpoint_share=0.25),
    optim=dataclasses.replace(base.optim, converter_lr_scale=1.0),
  )
  variants = {"": base, "paper": paper}
  return config_lib.to_config_dict(
    config_lib.variant(arg, variants, "finetune.py")
  )
