"""Leaves the terminal to our own lines."""

import os
import warnings


def keep_quiet() -> None:
    """Turns off upstream's bars, and its warnings about things that a user of a recipe cannot change."""
    # TRL reads the key `gradient_checkpointing`, which transformers calls the old name
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing. is deprecated", category=FutureWarning)
    # torch 2.13 about functions that DeepSpeed calls
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use", module="torch.distributed")
    os.environ["TQDM_DISABLE"] = "1"
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
