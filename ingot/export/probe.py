"""What a Hub folder answers to fixed prompts: a program of its own, because it also runs where there is no Ingot.

    python -P probe.py FOLDER OUTPUT THREADS

It loads the folder as a stranger would, with its own code and nothing of Ingot, and saves what it saw to OUTPUT.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PROMPTS = (
    "The state of the Union is",
    'def main():\n\treturn {"a": [1, 2.5e-3]}\r\n',
    "Größe, naïve, 日本語, \U0001f642  two  spaces",
)
CONVERSATION = [
    {"role": "user", "content": "What is the state of the Union?"},
    {"role": "assistant", "content": "It is strong."},
    {"role": "user", "content": "Why?"},
]
NEW_TOKENS = 32


def probe(folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    """Token ids, float32 logits (1, T, V), last hidden states (1, T, D) and greedy text of the fixed prompts."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "trust_remote_code": trust_remote_code,
        "local_files_only": True,
    }
    model: Any = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    longest = getattr(model.config, "max_position_embeddings", None) or 2 * NEW_TOKENS
    ids = [tokenizer(prompt, return_tensors="pt")["input_ids"][:, : longest // 2] for prompt in PROMPTS]
    with torch.inference_mode():
        logits = [model(input_ids=row).logits for row in ids]
        greedy = [_greedy(model, tokenizer, row, longest) for row in ids]
        del model
        base: Any = AutoModel.from_pretrained(folder, **options).eval()
        hidden = [base(input_ids=row).last_hidden_state for row in ids]
    return {
        "token_ids": [row.tolist() for row in ids],
        "chat_token_ids": _chat(tokenizer),
        "logits": logits,
        "hidden_states": hidden,
        "greedy_text": greedy,
    }


def _greedy(model: Any, tokenizer: Any, ids: torch.Tensor, longest: int) -> str:
    """The greedy continuation; no token ends it, so that none can hide a difference after it."""
    model.generation_config = GenerationConfig(max_new_tokens=min(NEW_TOKENS, longest // 2), do_sample=False)
    output = model.generate(ids, attention_mask=torch.ones_like(ids))
    return str(tokenizer.decode(output[0, ids.shape[1] :]))


def _chat(tokenizer: Any) -> list[int]:
    """Token ids of a fixed conversation; none where there is no chat template."""
    if not tokenizer.chat_template:
        return []
    return list(tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=True)["input_ids"])


def main() -> None:
    """Probes a folder with Ingot out of reach, wherever it is installed."""
    out_of_reach: dict[str, Any] = {"ingot": None, "modeling": None}
    sys.modules.update(out_of_reach)
    torch.set_num_threads(int(sys.argv[3]))
    torch.save(probe(Path(sys.argv[1]), trust_remote_code=True), sys.argv[2])


if __name__ == "__main__":
    main()
