"""What is killed: every stage and strategy, and the settings that change what a checkpoint has to hold."""

from pathlib import Path

from ingot.faults.kills import Plan, survive
from ingot.faults.workplace import Result, Subject, Workplace


def kills_pretrain(work: Workplace) -> Result:
    """Pretraining on one process; long: with a share of cold processes."""
    plan = Plan("kills_pretrain", 4, 2) if work.short else Plan("kills_pretrain", 50, 15, cold_every=5)
    return survive(work, plan, pretrain_subjects(work)[: 1 if work.short else None])


def pretrain_subjects(work: Workplace) -> list[Subject]:
    """Optimizers, accumulation, workers, dropout, packing, precision, saving in the background, best checkpoint."""
    dropout = {f"model__{kind}_dropout": 0.1 for kind in ("attention", "residual", "embedding")}
    workers = {"training__dataloader_num_workers": 2, "training__gradient_accumulation_steps": 4}
    best = {"training__load_best_model_at_end": True, "training__eval_steps": 4, "training__save_total_limit": 3}
    adamw, lion = {"run__optimizer": None}, {"run__optimizer": "lion", "training__learning_rate": 1e-3}
    shorter = [{"seq_length": 8, "share": 0.5}]
    background = {"run__background_save": True}
    return [
        work.usual,
        work.pretrain("adamw_accumulate_workers", **adamw, **workers),
        work.pretrain("muon_background", **background),
        work.pretrain("lion_bf16_background", training__bf16=True, **lion, **background),
        work.pretrain("adamw_lengths_best", data__seq_length_schedule=shorter, **adamw, **best, **dropout),
        work.pretrain("muon_workers_best_fit_background", data__packing="best_fit", **workers, **background, **best),
    ]


def kills_sft(work: Workplace) -> Result:
    """Supervised fine-tuning."""
    whole = work.sft("sft_packed")
    adapter = work.sft("sft_lora", model__adapter="lora", training__packing=False)
    plan = Plan("kills_sft", 1) if work.short else Plan("kills_sft", 20, 6, cold_every=6)
    return survive(work, plan, [whole] if work.short else [whole, adapter])


def kills_dpo(work: Workplace) -> Result:
    """Preference tuning."""
    cached = work.dpo("dpo_cached")
    beside = work.dpo("dpo_beside", training__precompute_ref_log_probs=False, run__background_save=True)
    return survive(work, Plan("kills_dpo", 20, 6, cold_every=6), [cached, beside])


def kills_ddp(work: Workplace) -> Result:
    """Two processes: the whole group or one of them is killed."""
    plain = work.pretrain("ddp", num_processes=2, run__global_batch_size=8)
    background = plain.changed("ddp_background", run__background_save=True, run__optimizer=None)
    return survive(work, Plan("kills_ddp", 20, 6, cold_every=6), [plain, background])


def kills_zero2(work: Workplace) -> Result:
    """Two processes whose optimizer states and gradients DeepSpeed shares out."""
    reason = no_deepspeed()
    if reason is not None:
        measured = {"skipped": reason}
        return {"name": "kills_zero2", "asked": "10 kills under ZeRO-2", "measured": measured, "passed": True}
    shared = {"num_processes": 2, "strategy": work.zero2, "run__global_batch_size": 8, "training__eval_strategy": "no"}
    subjects = [
        work.pretrain("zero2", training__eval_steps=None, **shared),
        work.pretrain("zero2_adamw", training__eval_steps=None, run__optimizer=None, **shared),
    ]
    return survive(work, Plan("kills_zero2", 10, 3, cold_every=5), subjects)


def no_deepspeed() -> str | None:
    """Why DeepSpeed cannot run on CPUs here; None when it can."""
    import importlib.util
    import os

    if importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed"
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache/torch_extensions"))
    if not any(cache.glob("**/deepspeed_shm_comm/*.so")):
        return "DeepSpeed's part for CPUs is not compiled; one run under accelerate_configs/zero2.yaml does it"
    return None
