"""Tables of a plan for the terminal."""

import math

from kdscale.cache.fidelity.codec_families import label
from kdscale.plan.cost import Money
from kdscale.plan.plan import Plan, StagePlan, assumptions
from kdscale.plan.ranges import Range
from kdscale.report.formatting import count, duration, number, percent, size
from kdscale.utils.text_table import aligned, wrapped

Row = list[str]

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_THOUSANDS = ("", "k", "M", "B")


def render(plan: Plan, width: int | None = None) -> str:
    """Return all tables, one under the other; lists instead where they are wider than `width`."""
    inputs = plan.inputs
    parts = [
        f"{inputs.config.name} on {inputs.hardware.name}",
        wrapped("\n".join(assumptions(inputs)), width, "  "),
        _models(plan, width),
        _stages(plan, width),
        wrapped(_overhead(plan), width, "  "),
        *_memory(plan, width),
        wrapped(_advice(plan), width, "  "),
        wrapped(_remarks(plan), width, "  "),
        _lora(plan, width),
        _caches(plan, width),
        wrapped(_store(plan), width, "  "),
        wrapped(_break_even(plan), width, "  "),
        _scaling(plan, width),
    ]
    return "\n\n".join(part for part in parts if part)


def _models(plan: Plan, width: int | None) -> str:
    inputs = plan.inputs
    length = inputs.tokens.seq_len
    rows = [
        [
            *("Model", "parameters", "a token meets", "layers", "hidden"),
            *("FLOPs a token", "attention"),
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
    return aligned(rows, width)


def _stages(plan: Plan, width: int | None) -> str:
    """Return a table of time and money in ranges, and one of where the time goes."""
    rows = [["Stage", "workers", "time", "device hours", "on demand", "spot"]]
    parts = [["Stage", "positions", "FLOPs", "time", "start-up", "computing", "rest"]]
    for stage in plan.stages:
        seconds, hours = stage.seconds, stage.device_hours_range
        if not seconds.total:
            continue
        wall = hours.times(3600 / (stage.workers or 1))
        rows.append([stage.name, str(stage.workers or "-"), _wall(wall), *_costs(hours, plan)])
        rest = max(0.0, seconds.total - seconds.start_up - seconds.compute)
        parts.append(
            [
                stage.name,
                count(stage.positions),
                f"{stage.flops:.3g}",
                *map(duration, (seconds.total, seconds.start_up, seconds.compute, rest)),
            ]
        )
    walls = [stage.device_hours_range.times(1 / (stage.workers or 1)) for stage in plan.stages]
    wall = Range(sum(each.low for each in walls), sum(each.high for each in walls)).times(3600)
    rows.append(["total", "", _wall(wall), *_costs(plan.device_hours_range, plan)])
    return f"{aligned(rows, width)}\n\n{aligned(parts, width)}"


def _costs(hours: Range, plan: Plan) -> Row:
    """Return device hours, and their price on demand and spot."""
    hardware = plan.inputs.hardware
    on_demand, spot = (hours.times(price) for price in (hardware.on_demand, hardware.spot))
    return [between(hours), f"${between(on_demand)}", f"${between(spot)}"]


def _wall(seconds: Range) -> str:
    """Format a range of seconds in one unit."""
    unit, name = next((u, n) for u, n in _UNITS if seconds.high >= 2 * u or u == 1)
    return f"{between(seconds.times(1 / unit))} {name}"


def between(found: Range) -> str:
    """Format a range in two significant digits, `12k-25k`; no figure of a plan is surer than that.

    One number where both ends look alike.
    """
    power = 0
    while found.high >= 999.5 * 1000**power and power < len(_THOUSANDS) - 1:
        power += 1
    low, high = (_two_digits(value / 1000**power) for value in (found.low, found.high))
    suffix = _THOUSANDS[power]
    return f"{high}{suffix}" if low == high else f"{low}{suffix}-{high}{suffix}"


def _two_digits(value: float) -> str:
    if not value:
        return "0"
    value = float(f"{value:.1e}")
    return f"{value:,.{min(max(0, 1 - math.floor(math.log10(value))), 4)}f}"


def _overhead(plan: Plan) -> str:
    """Return what the run pays beside its teacher and its student, a line each."""
    hardware, lines = plan.inputs.hardware, []
    prices = [
        f"{stage.name} {_dollars(price.on_demand)}"
        for stage in plan.stages
        if stage.name in ("teacher", "cache", "distill")
        and (price := stage.billion_tokens) is not None
        and price.on_demand
    ]
    if prices:
        lines.append(f"A billion tokens, on demand, each model: {', '.join(prices)}.")
    if (cost := plan.baseline) is not None:
        lines.append(
            f"Baseline: {_hours_and_money(cost.device_hours, cost.money)} of it are for the same "
            "student on labels alone, the report's measure of what distillation gains. Leave it "
            "out: --set distill.baseline=false"
        )
    for idle in plan.idle:
        lines.append(
            f"Idle: {idle.devices:,} devices wait during {idle.stage}, "
            f"{_hours_and_money(idle.device_hours, idle.money)}, if the run holds all of them from "
            "start to end."
        )
    for found in plan.interruptions:
        lines.append(
            f"Spot, {found.stage}: {found.expected:,.2g} interruptions expected, at "
            f"{hardware.interruptions:g} an hour for each of {found.machines:,} machines; each "
            f"costs {duration(found.seconds_each)}, {_hours(found.device_hours)} device hours "
            "together."
        )
    return "\n".join(lines)


def _hours_and_money(hours: float, money: Money) -> str:
    return f"about {_hours(hours)} device hours ({_dollars(money.on_demand)} on demand)"


def _hours(hours: float) -> str:
    """Format device hours: no plan knows hundredths of many."""
    return number(hours, 2 if hours < 100 else 0)


def _dollars(price: float) -> str:
    return f"${between(Range(price, price))}"


def _remarks(plan: Plan) -> str:
    lines = [
        f"- {remark.text}{''.join(f' --set {change}' for change in remark.changes)}"
        for remark in plan.remarks
    ]
    return "\n".join(["Remarks", *lines]) if lines else ""


def _memory(plan: Plan, width: int | None) -> list[str]:
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
        tables.append(aligned(rows, width))
    return tables


def _advice(plan: Plan) -> str:
    """Return the cheapest setting of each stage, a line each; "" where the run has none of them."""
    lines = []
    for found in plan.advice:
        hours = f"{_hours(found.device_hours)} device hours"
        share = f"{percent(found.computing)} of them computing"
        if not found.changes:
            lines.append(f"{found.stage}: as cheap as any that fits, {hours}, {share}.")
            continue
        flags = " ".join(f"--set {change}" for change in found.changes)
        before = _hours(found.before)
        lines.append(f"{found.stage}: {flags}\n  {hours} instead of {before}, {share}.")
    return "\n".join(["Cheapest settings that fit", *lines]) if lines else ""


def _parts(stage: StagePlan, where: str) -> dict[str, int]:
    assert stage.memory is not None
    found: dict[str, int] = getattr(stage.memory, where)
    return found


def _lora(plan: Plan, width: int | None) -> str:
    """Return a table of LoRA beside training all weights, "" without LoRA."""
    if not plan.lora:
        return ""
    rows = [["Training the student", "trained", "memory of a rank", "a step", "checkpoint"]]
    for row in plan.lora:
        step = f"{row.step_seconds:.3g} s"
        rows.append([row.name, count(row.trained), size(row.memory), step, size(row.checkpoint)])
    return aligned(rows, width)


def _caches(plan: Plan, width: int | None) -> str:
    rows = [["Cache, by codec; bytes a position", "in memory", "stored", "in all"]]
    for index, each in enumerate(plan.caches):
        chosen = " (this run)" if index == 0 else ""
        in_memory, stored = number(each.in_memory_position, 1), number(each.stored_position, 1)
        rows.append([label(each.codec) + chosen, in_memory, stored, size(each.stored)])
    return aligned(rows, width)


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
    more = f"saves {_hours(saved)}" if saved >= 0 else f"costs {_hours(-saved)} more"
    capture, online = map(_hours, (found.capture_device_hours, found.online_device_hours_a_pass))
    return (
        f"Break-even: the capture takes {capture} device hours, an online teacher {online} in each "
        f"pass of each student: the cache pays from {found.passes:.2f} passes on. This run makes "
        f"{found.passes_of_this_run:.2f}: it {more} device hours."
    )


def _scaling(plan: Plan, width: int | None) -> str:
    rows = [["Devices", "capture", "efficiency", "distill", "efficiency", "on demand", "spot"]]
    for row in plan.scaling:
        rows.append(
            [
                f"{row.devices:,}",
                duration(3600 * row.capture_hours) if row.capture_fits else "does not fit",
                percent(row.capture_efficiency) if row.capture_fits else "",
                duration(3600 * row.distill_hours) if row.distill_fits else "does not fit",
                percent(row.distill_efficiency) if row.distill_fits else "",
                *(
                    f"${between(Range(price, price))}"
                    for price in (row.money.on_demand, row.money.spot)
                ),
            ]
        )
    return aligned(rows, width)
