"""What the runs add up to: medians, verdicts, Markdown and plots."""

import statistics
from xml.sax.saxutils import escape

CPU_TARGET = 10
COLUMNS = {
    "rate": "msg/s",
    "p50": "p50 µs",
    "p99": "p99 µs",
    "cpu": "CPU µs a message",
    "jit": "and JIT",
    "rss": "peak RSS MiB",
    "generator": "generator busy",
}
PANELS = {"rate": "messages a second", "p99": "p99, µs", "cpu": "CPU of the broker, µs a message"}
SYSTEM_COLOURS = {
    "RingMQ": ("#0b6bcb", "#4aa3ff"),
    "RocketMQ": ("#c2410c", "#fb923c"),
    "Kafka": ("#6b7280", "#9ca3af"),
    "NATS": ("#15803d", "#4ade80"),
}


class Side:
    """All runs of one row on one system with one client and one durability."""

    def __init__(self, runs):
        self.system, self.client, self.flush = runs[0]["system"], runs[0]["client"], runs[0]["flush"]
        self.label = f"{self.system} {self.flush}"
        self.runs = [run for run in runs if run["failure"] is None]
        self.failures = [run["failure"] for run in runs if run["failure"] is not None]
        self.errors = sum(sum(run["summary"]["errors"].values()) for run in self.runs)
        self.words = {}
        for run in self.runs:
            self.words |= run["summary"]["first_errors"]
        self.values = {column: [] for column in COLUMNS}
        for run in self.runs:
            for column, value in figures(run["summary"]).items():
                if value is not None:
                    self.values[column].append(value)

    def median(self, column):
        return statistics.median(self.values[column]) if self.values[column] else None

    def cell(self, column):
        values = self.values[column]
        if not values:
            return "–"
        unit = " %" if column == "generator" else ""
        if column in ("jit", "rss", "generator") or len(values) == 1:
            return number(statistics.median(values)) + unit
        return f"{number(statistics.median(values))} ({number(min(values))} – {number(max(values))})"


def figures(summary):
    messages, broker = summary["messages"], summary["brokers"][0]
    jit = sum(thread["cpu_us"] for thread in broker.get("threads", []) if thread["name"].startswith(("C1 Compiler", "C2 Compiler")))
    latency = summary["latency_us"] or {}
    generator = summary["generator"]["user_us"] + summary["generator"]["system_us"]
    return {
        "rate": summary["messages_per_second"],
        "p50": latency.get("p50"),
        "p99": latency.get("p99"),
        "cpu": (broker["user_us"] + broker["system_us"] - jit) / messages,
        "jit": jit / messages or None,
        "rss": broker["peak_rss_bytes"] / 2**20,
        "generator": generator / summary["seconds"] / 1e4,
    }


def number(value):
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def sides_of(row, runs):
    """In the order in which they were measured first."""
    by_side = {}
    for run in runs:
        if run["row"] == row.name:
            by_side.setdefault((run["flush"], run["client"], run["system"]), []).append(run)
    return [Side(runs) for runs in by_side.values()]


def verdicts(row, sides):
    """Each target: what is compared, how, and whether it is met; `None` if a side has no figures."""

    def find(system, client, flush):
        return next((side for side in sides if (side.system, side.client, side.flush) == (system, client, flush)), None)

    def judge(ours, theirs, columns):
        for column, target in columns:
            a, b = ours.median(column), theirs.median(column)
            ratio = None
            if a and b:
                ratio = a / b if column == "rate" else b / a
            # More is better in all ratios.
            found.append(
                {
                    "row": row.name,
                    "compared": f"{ours.label} with {theirs.label}",
                    "clients": ours.client if ours.client == theirs.client else f"{ours.client}, {theirs.client}",
                    "column": column,
                    "ours": a,
                    "theirs": b,
                    "ratio": ratio,
                    "target": target,
                    "met": None if ratio is None else ratio >= target if target != 1 else ratio > 1,
                }
            )

    found = []
    better = [("rate", 1), ("p99", 1)]
    for ours in sides:
        if ours.system != "RingMQ":
            continue
        for flush in "sync", "async":
            theirs = find("RocketMQ", ours.client, flush)
            if theirs and flush == ours.flush:
                judge(ours, theirs, [*better, ("cpu", CPU_TARGET)])
            elif theirs and flush == "async":
                judge(ours, theirs, better)
        if ours.client == "ringmq-perf":
            for theirs in sides:
                if theirs.system in ("Kafka", "NATS") and theirs.flush == ours.flush:
                    # A poll of Kafka's consumer takes from what was fetched ahead: it says nothing of the broker.
                    judge(ours, theirs, better if row.mode == "produce" or theirs.system == "NATS" else better[:1])
    return found


def markdown(results, rows, command):
    lines = ["# RingMQ beside its peers", "", *machine(results), ""]
    lines += ["| system | version | settings |", "|---|---|---|"]
    lines += [f"| {system['name']} | {system['version']} | {system['settings']} |" for system in results["systems"]]
    lines += ["", "| | what an acknowledgement means |", "|---|---|"]
    for system in results["systems"]:
        lines += [f"| {system['name']} {flush} | {text} |" for flush, text in system["durability"].items()]
    for reason in results["skipped"]:
        lines += ["", f"Not measured: {reason}."]
    lines += ["", *results["notes"]]
    judged = []
    for row in rows:
        sides = sides_of(row, results["runs"])
        if not sides:
            continue
        lines += ["", f"## {row.name}: {row.title}", "", f"![{row.name}]({row.name}.svg)", ""]
        lines += ["| | client | " + " | ".join(COLUMNS.values()) + " | errors |", "|---|---|" + "---:|" * len(COLUMNS) + "---|"]
        for side in sides:
            said = "; ".join(f"{kind}: {words[:100]}" for kind, words in sorted(side.words.items()))
            errors = f"{side.errors:,} ({said})" if side.errors else "none"
            errors += f"; {len(side.failures)} runs failed: {side.failures[0]}" if side.failures else ""
            errors = errors.replace("|", "/").replace("\n", " ")
            lines.append(f"| {side.label} | {side.client} | " + " | ".join(side.cell(column) for column in COLUMNS) + f" | {errors} |")
        judged += verdicts(row, sides)
    lines += ["", "## Targets", "", *targets(judged), "", "## Commands", "", f"    {command}", ""]
    lines += ["`DIR` is the folder of a broker and its data, `CACHE` where peers are installed, `PROGRAMS` where RingMQ's programs are; all ports are any that are free.", ""]
    for name, text in results["commands"].items():
        lines += [f"{name}:", "", f"    {text}", ""]
    return "\n".join(lines) + "\n", judged


def machine(results):
    about = results["machine"]
    return [
        f"{results['date']}; {about['cpu']}, {about['cores']} cores, {about['memory_gib']:.0f} GiB, Linux {about['kernel']}, {about['filesystem']} at the data; "
        f"load average at the start {about['load']}. {about['java']}. {results['rounds']} round{'s' if results['rounds'] > 1 else ''}, in each of which all systems were started in turn with empty folders; "
        f"{results['options']['seconds']:g} s measured for each figure. Medians of the rounds, least and greatest in parentheses."
    ]


def targets(judged):
    count = sum(1 for one in judged if one["met"])
    known = sum(1 for one in judged if one["met"] is not None)
    columns = {"rate": "msg/s", "p99": "p99", "cpu": f"CPU, at least {CPU_TARGET} times"}
    lines = [f"{count} of {known} met. How many times better RingMQ is, from the medians; what has no figures here was no target or not measured.", ""]
    lines += ["| row | compared | client | " + " | ".join(columns.values()) + " |", "|---|---|---|" + "---|" * len(columns)]
    by_line = {}
    for one in judged:
        if one["met"] is not None:
            line = by_line.setdefault((one["row"], one["compared"], one["clients"]), {})
            line[one["column"]] = f"{number(one['ratio'])} {'met' if one['met'] else '**missed**'}"
    lines += ["| " + " | ".join([*key, *(line.get(column, "") for column in columns)]) + " |" for key, line in by_line.items()]
    return lines


def plot(row, runs):
    """Horizontal bars of all sides, a panel for each column; the colours follow the reader's light or dark mode."""
    sides = [side for side in sides_of(row, runs) if side.runs]
    label_width, panel_width, bar_height, top = 230, 240, 20, 58
    width = label_width + len(PANELS) * panel_width
    height = top + len(sides) * bar_height + 12
    light = "".join(f".{name} {{ fill: {colours[0]} }} " for name, colours in SYSTEM_COLOURS.items())
    dark = "".join(f".{name} {{ fill: {colours[1]} }} " for name, colours in SYSTEM_COLOURS.items())
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<title>{escape(row.title)}</title>",
        "<style>text { font: 12px sans-serif; fill: #1f2328 } .head { font-weight: bold } .async { opacity: 0.55 }",
        f"{light}",
        f"@media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} {dark} }}</style>",
        f'<text class="head" x="8" y="18">{escape(row.title)}</text>',
    ]
    for index, title in enumerate(PANELS.values()):
        out.append(f'<text x="{label_width + index * panel_width}" y="44">{escape(title)}</text>')
    for line, side in enumerate(sides):
        y = top + line * bar_height
        out.append(f'<text x="8" y="{y + 12}">{escape(side.label)}, {escape(side.client)}</text>')
        for index, column in enumerate(PANELS):
            value = side.median(column)
            if value is None:
                continue
            most = max(other.median(column) or 0 for other in sides)
            length = value / most * (panel_width - 80) if most else 0
            x = label_width + index * panel_width
            out.append(f'<rect class="{side.system} {side.flush}" x="{x}" y="{y}" width="{max(length, 1):.1f}" height="{bar_height - 5}" rx="2"/>')
            out.append(f'<text x="{x + length + 5:.1f}" y="{y + 12}">{number(value)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
