# SPDX-License-Identifier: MIT
"""From a result (the JSON) to the table, the plots and the section of docs/performance.md."""

from . import plots
from .figures import MISSED, NOT_RUN, Missing, calculate, judge, median, number
from .rows import ROWS, SIDES

BEGIN = "<!-- compare: begin -->"
END = "<!-- compare: end -->"
OTHER_LOAD_MAX = 0.3  # of a core; above it times are not to be trusted


def _shown(expression, figures, unit):
    if not expression:
        return ""
    try:
        middle, low, high = calculate(expression, figures)
    except Missing:
        return ""
    tail = f" {unit}" if unit and unit != "/s" else unit
    if low == high:
        return number(middle) + tail
    return f"{number(middle)}{tail} ({number(low)}..{number(high)})"


def lines_of(result):
    """One dict a target: row, asks, target, ours, peer, ratio, state, why."""
    out = []
    for row in ROWS:
        measured = result["rows"].get(row.name)
        if measured is None:
            continue
        figures = measured["figures"]
        for target in row.targets:
            outcome = judge(target.holds, figures)
            why = outcome.why
            if outcome.state == NOT_RUN:
                # What is known of the side says more than what became of the row.
                reasons = sorted(measured["not_run"], key=lambda r: r["side"] is not None)
                for reason in reasons:
                    if reason["side"] is None or f"{reason['side']}." in target.holds:
                        why = reason["why"]
            ratio = number(outcome.value)
            if outcome.value is not None and outcome.low != outcome.high:
                ratio += f" ({number(outcome.low)}..{number(outcome.high)})"
            out.append({
                "row": row.name, "asks": row.asks, "target": target.text,
                "ours": _shown(target.ours, figures, target.unit),
                "peer": _shown(target.peer, figures, target.unit),
                "ratio": ratio, "value": outcome.value, "state": outcome.state, "why": why,
            })
    return out


def table(result):
    """The Markdown table; a missed target stands in bold."""
    out = ["| row | target | DistKV | beside it | value | |", "| --- | --- | ---: | ---: | ---: | --- |"]
    before = None
    for line in lines_of(result):
        asks = f"`{line['row']}` {line['asks']}" if line["row"] != before else ""
        before = line["row"]
        state = f"**{line['state']}**" if line["state"] == MISSED else line["state"]
        if line["why"]:
            state += f": {line['why']}"
        out.append(f"| {asks} | {line['target']} | {line['ours']} | {line['peer']} "
                   f"| {line['ratio']} | {state} |")
    return "\n".join(out) + "\n"


def summary(result):
    states = [line["state"] for line in lines_of(result)]
    return ", ".join(f"{states.count(s)} {s}" for s in ("reached", MISSED, NOT_RUN))


def _machine(result):
    m = result["machine"]
    disk = m.get("disk", {})
    out = [
        f"{m['cores']} cores of {m['cpu']}, {m['memory_bytes'] / (1 << 30):.0f} GiB, {m['kernel']}, "
        f"clock {m['clocksource']}; {disk.get('filesystem', '?')} on {disk.get('device', '?')}."]
    if "random_reads" in disk:
        out.append(
            f"The disk, by fio before the run: {number(disk['random_reads'])} random reads of 4 KiB "
            f"a second (64 under way), {number(disk['sequential_mb_s'])} MB/s in sequence, a direct "
            f"DSYNC write of 4 KiB in {number(disk['dsync_write_us'])} us (median).")
    load = result["load"]
    out.append(f"Load average before the run: {load['average_before']}. Other processes took "
               f"{load['other_median']:.2f} of a core (median), {load['other_max']:.2f} at most, "
               "over a row.")
    if load["other_median"] > OTHER_LOAD_MAX:
        out.append("\n**The machine was not free: rates, times and their ratios of this run say little; "
                   "bytes and reads that were counted do.**")
    return out


def merged(results):
    """One result of several, of which each measured some rows: of a row the last one's counts."""
    whole = dict(results[-1])
    whole["rows"], whole["versions"] = {}, {}
    for result in results:
        whole["versions"] |= result["versions"]
        for name, row in result["rows"].items():
            if not row["figures"] and name in whole["rows"]:
                continue
            row = dict(row)
            if result["commit"] != whole["commit"]:
                row["notes"] = [*row["notes"], f"at commit `{result['commit']}`"]
            whole["rows"][name] = row
    whole["command"] = "\n".join(result["command"] for result in results)
    whole["seconds"] = sum(result["seconds"] for result in results)
    loads = [result["load"] for result in results]
    whole["load"] = {"average_before": loads[0]["average_before"],
                     "other_max": max(load["other_max"] for load in loads),
                     "other_median": median([load["other_median"] for load in loads])}
    return whole


def section(result):
    """What docs/performance.md shows of a run."""
    out = [f"Measured {result['time'][:10]} at commit `{result['commit']}` by", "",
           "```", result["command"], "```", ""]
    out += _machine(result)
    out += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v) + ".",
            f"Rounds: {result['rounds']}; {result['seconds'] / 60:.0f} minutes in all. "
            f"Targets: {summary(result)}.", "", table(result)]
    notes = [f"* `{row.name}`: {note}" for row in ROWS if row.name in result["rows"]
             for note in notes_of(row, result)]
    if notes:
        out += ["Notes", "", *notes, ""]
    out += ["Commands (`DIR` is the data directory, ports are free ones)", "", "```"]
    seen = set()
    for row in ROWS:
        for side, commands in result["rows"].get(row.name, {}).get("commands", {}).items():
            for command in commands:
                if command not in seen:
                    seen.add(command)
                    out.append(f"{row.name} {side}: {command}")
    return "\n".join(out + ["```", ""])


def notes_of(row, result):
    notes = list(result["rows"][row.name]["notes"])
    if result["quick"] and row.quick:
        notes.insert(0, f"--quick: {row.quick}.")
    return notes


def publish(text, result):
    """The document with the part between the two marks replaced."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} ... {END}")
    return f"{head}{BEGIN}\n\n{section(result)}\n{END}{tail}"


def plots_of(result):
    """{file name: SVG} of everything that was measured."""
    out = {}
    for row in ROWS:
        measured = result["rows"].get(row.name)
        if measured is None:
            continue
        figures = measured["figures"]
        if row.bars:
            sides = []
            wanted = row.bars.split()
            for side, values in figures.items():
                for key in wanted:
                    label = SIDES.get(side, side) + (f", {key}" if len(wanted) > 1 else "")
                    each = values.get(key) or (values.get("rate") if len(wanted) == 1 else None)
                    if each:
                        sides.append((label, median(each), min(each), max(each)))
            if sides:
                title = f"{row.asks} ({', '.join(wanted)})"
                out[f"{row.name}.svg"] = plots.bars(title, row.bars_unit, sides)
        for name, chart in measured["charts"].items():
            out[f"{row.name}-{name}.svg"] = plots.lines(chart["title"], chart["x"], chart["y"],
                                                        chart["names"], chart["series"])
    return out
