"""Runs that do not fit are refused, with the part, the size and a change that fits."""

import re

import pytest

from kdscale.config import dump_config, parse_config
from kdscale.errors import KdscaleError
from kdscale.plan.fit import check_fits, shortage
from kdscale.plan.inputs import PlanInputs
from tests.unit.plan.settings import setting

BILLIONS = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
EIGHT = {"count": 8, "gpus": 1}


def large(part: str, **changes: object) -> PlanInputs:
    """Return a run whose `part` has 7 B parameters, on 8 workers a stage.

    `part` is teacher or distill__student.
    """
    model = {"architecture": "llama", "options": BILLIONS}
    changes = {f"{part}__model": model, "distill__workers": EIGHT, **changes}
    changes = {"cache__capture__workers": EIGHT, "teacher__workers": EIGHT, **changes}
    changes = {"evaluate": {"workers": EIGHT}, **changes}
    return setting("A100-80", data__seq_len=2048, tokens=2048 * 640, **changes)


def refused(found: PlanInputs) -> KdscaleError:
    with pytest.raises(KdscaleError) as caught:
        check_fits(found)
    return caught.value


def test_a_run_that_fits_is_not_refused() -> None:
    check_fits(setting("H100"))
    check_fits(setting("cpu"))


def test_the_text_says_which_stage_by_how_much_through_what_and_what_helps() -> None:
    found = large("distill__student")
    error = refused(found)
    pattern = (
        r"The stage 'distill' does not fit on A100-80: a rank needs ([\d.]+) GiB of the device's "
        r"([\d.]+) GiB, ([\d.]+) GiB too many; the largest part is (\w+), ([\d.]+) GiB\."
    )
    matched = re.fullmatch(pattern, error.problem)
    assert matched is not None, error.problem
    needed, usable, over = (float(matched[index]) for index in (1, 2, 3))
    assert over == pytest.approx(needed - usable, abs=0.11)
    assert matched[4] == "optimiser"
    assert usable == pytest.approx(0.92 * 80, abs=0.05)
    # 7 B parameters: 16 bytes each of states alone are 105 GiB.
    assert needed > 105


def test_the_change_it_names_makes_it_fit() -> None:
    found = large("distill__student")
    flags = re.findall(r"--set (\S+)", refused(found).fix)
    assert flags
    changed = found.with_config(parse_config(dump_config(found.config), flags))
    check_fits(changed)


def test_one_change_is_preferred_to_several() -> None:
    # Sharding alone is enough here: micro-batches and checkpointing stay as they are.
    fix = refused(large("distill__student")).fix
    assert re.fullmatch(r"--set distill\.training\.zero\.stage=\d fits, with [\d.]+ GiB\.", fix)


def test_activations_are_met_with_checkpointing_first() -> None:
    training = {"steps": 20, "global_batch_size": 256, "micro_batch_size": 32, "zero": {"stage": 3}}
    fix = refused(large("distill__student", distill__training=training)).fix
    assert "distill.training.activation_checkpointing=true" in fix


def test_waiting_hidden_states_are_met_with_a_shorter_queue() -> None:
    capture = {"workers": EIGHT, "micro_batch_size": 32, "queue_batches": 20_000}
    found = setting(
        "A100-80",
        data={"seq_len": 2048, "tokenizer": {"kind": "train", "vocab_size": 50000}},
        tokens=2048 * 640,
        cache__capture=capture,
    )
    error = refused(found)
    assert "The stage 'cache'" in error.problem
    assert "the largest part is hidden states" in error.problem
    assert error.fix.startswith("--set cache.capture.queue_batches=")


def test_what_nothing_helps_is_said() -> None:
    model = {"architecture": "llama", "options": BILLIONS | {"num_hidden_layers": 400}}
    found = setting("L4", teacher__model=model, data__seq_len=512, tokens=512 * 640)
    assert refused(found).fix.startswith("No ZeRO stage, micro-batch, checkpointing or offload")


def test_a_shortage_of_the_host_is_one_too() -> None:
    found = setting("L4", tokens=1e9, distill__cache_memory_mib=20 << 10)
    short = shortage("distill", found)
    assert short is not None
    assert (short.where, short.largest[0]) == ("host", "cache reader")
    assert short.over == short.needed - short.usable
