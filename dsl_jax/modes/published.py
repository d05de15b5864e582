"""Published figures, to stand beside one's own: (MAUVE, Gen-PPL, entropy).

OpenWebText, 1,024 tokens, 5,000 samples, judged by GPT-2-large, nucleus 0.9;
None where a paper gives no figure. MAUVE is not comparable between papers that
differ in any of these, or in the reference text: run the baseline beside.
"""

OWT_MAUVE = {
  "MDLM": {
    128: (0.015, 61.5, 5.52),
    256: (0.023, 55.8, 5.49),
    512: (0.031, 53.0, 5.48),
    1024: (0.042, 51.3, 5.46),
  },
  "ReMDM": {
    128: (0.057, 42.5, 5.43),
    256: (0.216, 30.5, 5.34),
    512: (0.350, 21.1, 5.21),
    1024: (0.403, 28.6, 5.38),
  },
  "ADLM (293M)": {
    128: (0.140, 52.5, 5.52),
    256: (0.349, 39.9, 5.46),
    512: (0.573, 31.6, 5.40),
    1024: (0.699, 25.4, 5.35),
  },
  "DSL": {128: (0.639, None, None)},  # at its best 0.722 within T = 128..1024
  "AR, 1,024 calls": {1024: (0.760, 12.1, 5.22)},
}
