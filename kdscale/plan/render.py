"""Tables of a plan for the terminal."""

from kdscale.cache.fidelity.codec_families import label
from kdscale.plan.cost import Money
from kdscale.plan.plan import Plan, StagePlan, assumptions
from kdscale.report.formatting import count, duration, number, percent, size

Row = list[str]


def render(plan: Plan) -> str:
    """Return all tables, one under the other."""
    inputs = plan.inputs
    parts = [
        f"{inputs.config.name} on {inputs.hardware.name}",
        "\n".join(assumptions(inputs)),
        _models(plan),
        _stages(plan),
        *_memory(plan),
        _advice(plan),
        _lora(plan),
        _caches(plan),
        _store(plan),
        _break_even(plan),
        _scaling(plan),
    ]
    return "\n\n".join(part for part in parts if part)


def _models(plan: Plan) -> str:
    inputs = plan.inputs
    length = inputs.tokens.seq_len
    rows = [
        [
            *("Model", "parameters", "a token meets", "layers", "hidden"),
            *("FLOPs a token, forward", "of it attention"),
        ]
    ]
    for name, shape in (("teacher", inputs.teacher), ("student", inputs.student)):
        flops = shape.forward_flops(length)
        share = shape.attention_flops(length) / flops
        rows.append(
            [
                name,
                count(shape.parameters),
                count(shape.active),
                str(shape.layers),
                str(shape.hidden),
                count(flops),
                percent(share),
            ]
        )
    return _aligned(rows)


def _stages(plan: Plan) -> str:
    head = "Stage|workers|positions|FLOPs|time|start-up|computing|rest|device hours|on demand|spot"
    rows = [head.split("|")]
    for stage in plan.stages:
        seconds = stage.seconds
        if not seconds.total:
            continue
        rest = max(0.0, seconds.total - seconds.start_up - seconds.compute)
        rows.append(
            [
                stage.name,
                str(stage.workers or "-"),
                count(stage.positions),
                f"{stage.flops:.3g}",
                duration(seconds.total),
                duration(seconds.start_up),
                duration(seconds.compute),
                duration(rest),
                number(stage.device_hours, 2),
                *_dollars(stage.money),
            ]
        )
    total = sum(stage.seconds.total for stage in plan.stages)
    hours = number(plan.device_hours, 2)
    rows.append(["total", "", "", "", duration(total), "", "", "", hours, *_dollars(plan.money)])
    return _aligned(rows)


def _memory(plan: Plan) -> list[str]:
    """Return a table each of a rank's device and host memory, by part and stage."""
    on = [stage for stage in plan.stages if stage.memory is not None]
    tables = []
    for place, where in enumerate(("device", "host")):
        parts = list(dict.fromkeys(part for stage in on for part in _parts(stage, where)))
        if not parts:
            continue
        name = "the GPU" if plan.inputs.is_gpu else "the machine"
        title = f"Memory of a rank, {name if place == 0 else 'the host'}"
        rows = [[title, *(stage.name for stage in on)]]
        for part in parts:
            held = [_parts(stage, where).get(part, 0) for stage in on]
            rows.append([part, *(size(each) if each else "" for each in held)])
        rows.append(["total", *(size(sum(_parts(stage, where).values())) for stage in on)])
        rows.append(["usable", *(size(stage.usable[place]) for stage in on if stage.usable)])
        tables.append(_aligned(rows))
    return tables


def _advice(plan: Plan) -> str:
    """Return the cheapest setting of each stage, a line each; "" where the run has none of them."""
    lines = []
    for found in plan.advice:
        hours = f"{number(found.device_hours, 2)} device hours"
        share = f"{percent(found.computing)} of them computing"
        if not found.changes:
            lines.append(f"{found.stage}: as cheap as any that fits, {hours}, {share}.")
            continue
        flags = " ".join(f"--set {change}" for change in found.changes)
        before = number(found.before, 2)
        lines.append(f"{found.stage}: {flags}\n  {hours} instead of {before}, {share}.")
    return "\n".join(["Cheapest settings that fit", *lines]) if lines else ""


def _parts(stage: StagePlan, where: str) -> dict[str, int]:
    assert stage.memory is not None
    found: dict[str, int] = getattr(stage.memory, where)
    return found


def _lora(plan: Plan) -> str:
    """Return a table of LoRA beside training all weights, "" without LoRA."""
    if not plan.lora:
        return ""
    rows = [["Training the student", "trained", "memory of a rank", "a step", "checkpoint"]]
    for row in plan.lora:
        step = f"{row.step_seconds:.3g} s"
        rows.append([row.name, count(row.trained), size(row.memory), step, size(row.checkpoint)])
    return _aligned(rows)


def _caches(plan: Plan) -> str:
    rows = [["Cache, by codec", "in memory, bytes a position", "stored", "in all"]]
    for index, each in enumerate(plan.caches):
        chosen = " (this run)" if index == 0 else ""
        in_memory, stored = number(each.in_memory_position, 1), number(each.stored_position, 1)
        rows.append([label(each.codec) + chosen, in_memory, stored, size(each.stored)])
    return _aligned(rows)


def _store(plan: Plan) -> str:
    found, money = plan.requests, plan.store_money
    return (
        f"Store: {found.puts:,} puts, {found.heads:,} heads, {found.lists:,} lists, "
        f"{found.gets:,} gets (${money.requests:,.2f}); {size(found.written_bytes)} written, "
        f"{size(found.read_bytes)} read by a student; ${money.month:,.2f} a month to keep."
    )


def _break_even(plan: Plan) -> str:
    found = plan.break_even
    if found is None:
        return "Break-even: the cache exists already, every pass is free of the teacher."
    saved = found.online_saved_device_hours
    more = f"saves {saved:,.2f}" if saved >= 0 else f"costs {-saved:,.2f} more"
    return (
        f"Break-even: the capture takes {found.capture_device_hours:,.2f} device hours, an online "
        f"teacher {found.online_device_hours_a_pass:,.2f} in each pass of each student: the cache "
        f"pays from {found.passes:.2f} passes on. This run makes {found.passes_of_this_run:.2f}: "
        f"it {more} device hours."
    )


def _scaling(plan: Plan) -> str:
    rows = [["Devices", "capture", "efficiency", "distill", "efficiency", "on demand", "spot"]]
    for row in plan.scaling:
        rows.append(
            [
                f"{row.devices:,}",
                duration(3600 * row.capture_hours) if row.capture_fits else "does not fit",
                percent(row.capture_efficiency) if row.capture_fits else "",
                duration(3600 * row.distill_hours) if row.distill_fits else "does not fit",
                percent(row.distill_efficiency) if row.distill_fits else "",
                *_dollars(row.money),
            ]
        )
    return _aligned(rows)


def _dollars(money: Money) -> Row:
    return [f"${money.on_demand:,.2f}", f"${money.spot:,.2f}"]


def _aligned(rows: list[Row]) -> str:
    """Align rows in columns, the first one flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
