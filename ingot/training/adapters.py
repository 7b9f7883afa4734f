"""LoRA and 4-bit QLoRA: the `model` section of sft and dpo, the model to start from, and the merge with its proof."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ingot.loading import check_model, load_model
from ingot.recipe import InputError, Section

if TYPE_CHECKING:  # these take seconds to import; a wrong recipe is refused before that
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel

# Largest difference of logits, as a share of the largest logit, that is rounding and not a mistake.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


class AdapterModel(Section):
    """How the start model is loaded, and which of its weights are trained."""

    adapter: Literal["none", "lora", "qlora"] = Field(
        default="none",
        description="none: train every weight; lora: small matrices beside them; qlora: the same on a 4-bit base",
    )
    r: int = Field(default=16, gt=0, description="rank of the adapter matrices")
    lora_alpha: int = Field(default=32, gt=0, description="the adapter's output is multiplied by lora_alpha / r")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: str | list[str] = Field(
        default="all-linear",
        description="modules that get an adapter: all-linear (not the head), or names such as [q_proj]",
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(
        default="nf4", description="4-bit number format of the qlora base"
    )
    bnb_4bit_use_double_quant: bool = Field(
        default=True, description="the scales of the 4-bit blocks are quantised too"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the loaded and of the saved weights; bf16 autocast is training.bf16"
    )

    def problems(self) -> Iterator[str]:
        """Adapter keys that the chosen adapter would ignore."""
        lora = {"r", "lora_alpha", "lora_dropout", "target_modules"} if self.adapter == "none" else set()
        four_bit = {"bnb_4bit_quant_type", "bnb_4bit_use_double_quant"} if self.adapter != "qlora" else set()
        for key in sorted(lora | four_bit):
            if getattr(self, key) == type(self).model_fields[key].default:  # a resolved recipe writes defaults out
                continue
            wanted = "lora or qlora" if key in lora else "qlora"
            yield f"model.{key}: has no effect with adapter '{self.adapter}'; set model.adapter to {wanted}"


def lora_config(section: AdapterModel) -> LoraConfig | None:
    """peft's LoraConfig for the recipe, or None without an adapter."""
    if section.adapter == "none":
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=section.r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )


def quantization_config(section: AdapterModel) -> BitsAndBytesConfig | None:
    """transformers' BitsAndBytesConfig for a qlora recipe, else None."""
    if section.adapter != "qlora":
        return None
    import bitsandbytes  # noqa: F401 - a missing package becomes a one-line error here
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=section.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_start_model(folder: Path, section: AdapterModel, device: torch.device) -> PreTrainedModel:
    """The model in a Hub-format folder: on the CPU, or in 4 bits on `device` for qlora.

    Raises: InputError when the folder does not hold every weight.
    """
    import torch

    if section.adapter == "qlora":
        return _load_in_4_bits(folder, section, device)
    return load_model(folder, dtype=getattr(torch, section.dtype))


def _load_in_4_bits(folder: Path, section: AdapterModel, device: torch.device) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    check_model(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        dtype=getattr(torch, section.dtype),
        quantization_config=quantization_config(section),
        device_map={"": str(device)},
        output_loading_info=True,
    )
    model, found = loaded
    if found["missing_keys"]:
        raise InputError(f"{folder}: the weights lack {', '.join(sorted(found['missing_keys'])[:3])}")
    for module in _four_bit_layers(model):
        # bitsandbytes' CPU kernel for evaluation repacks the weights for good, into a form without gradients
        module.support_avx512bf16_for_cpu = False
    return model


def _four_bit_layers(model: torch.nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if type(module).__module__ == "bitsandbytes.nn.modules" and type(module).__name__ == "Linear4bit":
            yield module


def probe_logits(model: torch.nn.Module, probes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits (T, V) of each row of token ids, on the CPU in float32."""
    import torch

    from ingot.training.heldout import plain_logits

    device = next(model.parameters()).device
    return [plain_logits(model, torch.tensor([ids], device=device))[0].cpu() for ids in probes]


def check_equal(
    expected: list[torch.Tensor], got: list[torch.Tensor], dtype: str, what: str, out_of: str = "the trained model"
) -> float:
    """The largest difference of logits.

    Raises: RuntimeError when it is more than rounding in `dtype` explains.
    """
    difference = max(float((a - b).abs().max()) for a, b in zip(expected, got, strict=True))
    allowed = TOLERANCE[dtype] * max(1.0, *(float(a.abs().max()) for a in expected))
    if not difference <= allowed:  # a NaN is a failure too
        raise RuntimeError(
            f"{what}: logits differ from those of {out_of} by {difference:.2e} (allowed: {allowed:.2e}); not kept"
        )
    return difference


def merge_adapter(
    trained: torch.nn.Module,
    adapter: Path,
    start: Path,
    section: AdapterModel,
    probes: Sequence[Sequence[int]],
) -> tuple[PreTrainedModel, float]:
    """Saves the adapter, merges it into the weights it was trained on, and measures that nothing changed.

    A QLoRA adapter has learned to correct the 4-bit base, so it is merged into that base dequantised, not into the
    original weights. Returns the merged model and the largest difference of logits on `probes`.

    Raises: RuntimeError when the merged model is not equal to the model with the adapter.
    """
    from peft import PeftModel

    trained.save_pretrained(adapter)  # type: ignore[operator]
    _compute_in_float32(trained)
    expected = probe_logits(trained, probes)
    base = load_start_model(start, section, next(trained.parameters()).device)
    if section.adapter == "qlora":
        base = base.dequantize()
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    merged.to(next(trained.parameters()).device)
    difference = check_equal(expected, probe_logits(merged, probes), section.dtype, f"merging {adapter}")
    return merged, difference


def adapter_in_float32(model: torch.nn.Module) -> None:
    """Undoes TRL's cast of QLoRA's matrices to bf16, which loses small updates and makes a resume inexact."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _compute_in_float32(model: torch.nn.Module) -> None:
    """Takes the rounding of bf16 out of a finished 4-bit model, so that only a wrong merge can differ."""
    import torch

    for module in _four_bit_layers(model):
        module.compute_dtype = torch.float32


def check_target_modules(model: torch.nn.Module, section: AdapterModel) -> None:
    """Refuses target_modules that name nothing in the model, or its head.

    Raises: InputError that lists the names there are.
    """
    if section.adapter == "none" or section.target_modules == "all-linear":
        return
    import torch

    wanted = [section.target_modules] if isinstance(section.target_modules, str) else section.target_modules
    linear = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    linear.discard("lm_head")
    missing = [name for name in wanted if name.rsplit(".", 1)[-1] not in linear]
    if missing:
        raise InputError(
            f"model.target_modules: no linear layer named {', '.join(missing)}; "
            f"use all-linear or some of: {', '.join(sorted(linear))}"
        )
