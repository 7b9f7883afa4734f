"""Measures models: bits per byte on held-out text, tasks through lm-eval, prompts side by side, a report."""
