"""The Ingot architecture: its configuration, its model, and their places in transformers' Auto classes.

Importing this package registers the classes twice: with `Auto*.register`, so that a saved folder loads in this process
without trusting remote code, and with `register_for_auto_class`, so that every save copies the two source files and
the folder loads in a process that has never heard of Ingot.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_ingot import IngotConfig
from .modeling_ingot import IngotForCausalLM, IngotModel

AutoConfig.register(IngotConfig.model_type, IngotConfig, exist_ok=True)
AutoModel.register(IngotConfig, IngotModel, exist_ok=True)
AutoModelForCausalLM.register(IngotConfig, IngotForCausalLM, exist_ok=True)

IngotConfig.register_for_auto_class()
IngotModel.register_for_auto_class("AutoModel")
IngotForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["IngotConfig", "IngotForCausalLM", "IngotModel"]
