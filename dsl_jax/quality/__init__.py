"""Quality of text: pure functions of numbers, tokens, texts and features."""
