"""Steps of distillation from an online teacher with TRL's loss, in the peers' environment.

    python -m benchmarks.online_trl TEACHER LAYERS BATCH_ROWS ROW_LENGTH STEPS THREADS

Prints TRL's version, then, for every line it reads, the seconds of so many steps: what GKDTrainer
does for fixed sequences, which is both forwards, `generalized_jsd_loss` with beta 0 (forward KL) on
all logits, cross-entropy as half of the objective, backward, AdamW.
"""

import sys
import time
from importlib.metadata import version
from pathlib import Path

# TRL imports torchvision where it is installed, and PyPI's needs a torch built for CUDA.
sys.modules["torchvision"] = None  # type: ignore[assignment]

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.experimental.gkd import GKDTrainer


def main(teacher_folder: Path, layers: int, rows: int, length: int, steps: int) -> None:
    """Serve turns until the input ends."""
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32).eval()
    shape = AutoConfig.from_pretrained(teacher_folder)
    shape.num_hidden_layers = layers
    student = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    print(version("trl"), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(steps):
            ids = torch.randint(shape.vocab_size, (rows, length), generator=generator)
            _step(teacher, student, optimiser, ids)
        print(time.perf_counter() - started, flush=True)


def _step(
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    ids: torch.Tensor,
) -> None:
    found = student(input_ids=ids, labels=ids, use_cache=False)
    with torch.no_grad():
        logits = teacher(input_ids=ids, use_cache=False).logits
    distillation = GKDTrainer.generalized_jsd_loss(
        student_logits=found.logits[:, :-1], teacher_logits=logits[:, :-1], beta=0.0
    )
    (0.5 * distillation + 0.5 * found.loss).backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[6]))
    main(Path(sys.argv[1]), *map(int, sys.argv[2:6]))
