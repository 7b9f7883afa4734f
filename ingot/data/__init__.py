"""Data: documents from any source, split, tokenised and served to training as blocks."""
