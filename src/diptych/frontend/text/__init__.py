"""Text to tokens and back: chat templates, tokenizer, incremental detokenization, stop strings, tool calls in text."""
