"""The One Billion Word benchmark, from scratch.

python -m dsl_jax.data.prepare --corpus=lm1b:DIR --length=128 --pad=True
  --tokenizer=hf:bert-base-uncased --out=data_cache/lm1b

DIR is the unpacked archive 1-billion-word-language-modeling-benchmark-r13output
of statmt.org/lm-benchmark; `lm1b` alone is a set that TFDS has prepared. Text,
rows and perplexity are MDLM's: detokenised, a sentence a row, padding seen but
not scored, all held-out sentences.

[P] the paper, arXiv 2605.12836, or its authors' code; [M] MDLM's recipe, from
which the paper starts; [S] docs/study.md; [O] our choice. The paper has no LM1B
run: the law and D are OpenWebText's.
"""

from dsl_jax.runtime import config as config_lib


def get_config(arg=""):
  """Returns the config; there are no variants."""
  net = config_lib.NetConfig(
    vocab_size=30_522,  # [M] BERT's word pieces; the mask is a row of its own
    width=768,  # [M] MDLM small
    depth=12,  # [M]
    heads=12,  # [M]
    sphere_dim=64,  # [O] as for OpenWebText
    cond_dim=128,  # [M]
    dropout=0.1,  # [M]
    f32_residual=True,  # [M] autocast rounds products, not the stream
    dtype="bfloat16",  # [M]
    unroll=1,  # [O] a rolled scan compiles sooner on accelerators
    beta_init=1.0,  # [O] Bayes: reads soft evidence from the start
    mask_prior=0.99,  # [P]
    evidence_skip=True,  # [S] scratch-learned: integral 2.19, not 2.40
  )
  config = config_lib.Config(
    name="lm1b",
    net=net,
    clean_snr=100.0,  # [O] clean at V = 30,522 when beta = 1: from 15 on
    data=config_lib.Data(
      corpus="lm1b",
      tokenizer="hf:bert-base-uncased",  # [M]
      length=128,  # [M]
      pad=True,  # [M] wrap: False there
      dir="data_cache/lm1b",
    ),
    law=config_lib.TrainingLaw(
      mu=2.69,  # [O] as for OpenWebText
      sigma=1.41,  # [O]
      endpoint_share=0.25,  # [P]
      smooth=True,  # [P]
    ),
    optim=config_lib.Optim(
      learning_rate=3e-4,  # [M]
      b1=0.9,  # [M]
      b2=0.999,  # [M]
      clip_norm=1.0,  # [M]
      warmup_steps=2500,  # [M]
      converter_lr_scale=10.0,  # [O] beta is learned too slowly otherwise
      ema_decay=0.9999,  # [M]
    ),
    train=config_lib.Train(
      steps=1_000_000,  # [M]
      batch_size=512,  # [M]
      log_every=100,
      eval_every=10_000,
      checkpoint_every=10_000,
    ),
    eval=config_lib.Eval(batch_size=64, sequences=0),  # [M] all held-out ones
    sample=config_lib.Sample(
      path="masked",
      steps=128,
      num=64,
      batch_size=64,
      snr_max=100.0,  # [O] the integral's cut-off and clean_snr
    ),
  )
  variants = {"": config}
  return config_lib.to_config_dict(config_lib.variant(arg, variants, "lm1b.py"))
