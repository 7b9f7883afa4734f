"""Ingot: make your own language model, from raw text to a model you can talk to."""

import logging

__version__ = "0.1.0"

# What these say while they are imported, of kernels that this machine has not got, no user can change.
for _name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
