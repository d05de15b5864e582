"""Text in, fixed-length token rows out: corpora, tokenizers, packing."""
