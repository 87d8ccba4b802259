"""Arguments of `transformers.Trainer` that a distillation refuses."""

from transformers import TrainingArguments

from kdscale.errors import KdscaleError


def check_arguments(args: TrainingArguments) -> None:
    """Refuse what would train on something else, or was never tried. Raises KdscaleError."""
    refused = {
        "label_smoothing_factor": (args.label_smoothing_factor != 0, "0; see kd_weight"),
        "fsdp": (bool(args.fsdp), "nothing; deepspeed shards by ZeRO"),
        "torch_compile": (args.torch_compile, "False"),
        "auto_find_batch_size": (args.auto_find_batch_size, "False"),
        "use_liger_kernel": (args.use_liger_kernel, "False; head and loss are fused already"),
        "parallelism_config": (args.parallelism_config is not None, "None; DDP or deepspeed"),
    }
    for name, (given, instead) in refused.items():
        if given:
            raise KdscaleError(
                f"DistillationTrainer does not take TrainingArguments.{name}.",
                f"Set {name} to {instead}.",
            )
    if args.n_gpu > 1:
        raise KdscaleError(
            f"One process has {args.n_gpu} GPUs, which Trainer would share by DataParallel.",
            f"Start a process for each: torchrun --nproc-per-node {args.n_gpu} SCRIPT.",
        )
