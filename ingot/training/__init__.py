"""Pretraining, fine-tuning and preference training on transformers' and TRL's trainers."""
