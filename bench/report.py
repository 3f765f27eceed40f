"""The table for the terminal, and docs/performance.md."""

import paths
from results import target_met

TITLES = {path.key: path.title for path in paths.ALL}


def number(value, digits):
    if value is None:
        return ""
    if digits == 0:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def spread(cell, digits):
    """Median and range."""
    if not cell.values:
        return "failed" if cell.failure else ""
    text = number(cell.median, digits)
    if len(cell.values) > 1:
        text += f" [{number(min(cell.values), digits)}..{number(max(cell.values), digits)}]"
    return text


def shown_paths(results, measures):
    return [path for path in paths.ALL
            if any(results.runs.get(measure.key, {}).get(path.key) for measure in measures)]


def verdict(measure, figure, results):
    told = []
    for target in figure.targets:
        text, met = target_met(target, figure, results, measure.key)
        if met is not None:
            told.append(f"{text}: {'yes' if met else 'no'}")
    return "; ".join(told)


def ratio_text(results, measure, figure, path):
    value = results.ratio(measure.key, figure.key, path)
    return "" if value is None else f"{value:.2f}"


def rows(results, measures, columns, detail=None):
    """Header and rows. `detail`: only figures that are details, or only those that are none."""
    ratios = [path for path in ("kernel", "limit", "gvisor", "gvisor-gso") if any(column.key == path for column in columns)]
    header = ["measure", "unit", *(column.title for column in columns), *(f"Alps / {TITLES[path]}" for path in ratios),
              "target"]
    table = [header]
    for measure in measures:
        if measure.key not in results.runs:
            continue
        for index, figure in enumerate(measure.figures):
            if detail is not None and figure.detail != detail:
                continue
            cells = [results.cell(measure.key, column.key, figure.key) for column in columns]
            if not any(cell.values or cell.failure for cell in cells):
                continue
            title = measure.title if index == 0 and figure.title in ("throughput", "rate") else \
                f"{measure.title}: {figure.title}"
            texts = [spread(cell, figure.digits) if column.key in measure.paths else ""
                     for cell, column in zip(cells, columns)]
            table.append([title, figure.unit, *texts, *(ratio_text(results, measure, figure, path) for path in ratios),
                          verdict(measure, figure, results)])
    return table


def aligned(table):
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def markdown_table(table):
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines.insert(1, "|" + "---|" * len(table[0]))
    return "\n".join(lines)


def failures(results, measures):
    told = [f"{TITLES[path]}: {reason}" for path, reason in sorted(results.unavailable.items())]
    for measure in measures:
        for path, entry in sorted(results.runs.get(measure.key, {}).items()):
            for reason in sorted(set(entry["failures"])):
                count = entry["failures"].count(reason)
                told.append(f"{measure.title}, {TITLES[path]}: {reason}" + (f" ({count} times)" if count > 1 else ""))
    return told


def about(results):
    machine, settings = results.machine, results.settings
    text = (f"{machine['processor']}, {machine['cpus']} CPUs{', a virtual machine' if machine['virtual'] else ''}, "
            f"{machine['memory']}; Linux {machine['kernel']}, {machine['system']}; Alps at {machine['commit']}; "
            f"{settings['rounds']} rounds of {settings['seconds']:g} s, begun {settings['begun']}.")
    if results.noisy:
        text += f" {results.noisy} of {results.total} runs began while the machine was busy with something else."
    return text


def print_report(results, measures):
    print(about(results))
    print(aligned(rows(results, measures, shown_paths(results, measures))))
    for line in failures(results, measures):
        print(line)


def markdown(results, groups):
    """docs/performance.md. `groups`: titles and lists of measures."""
    everything = [measure for _, measures in groups for measure in measures]
    parts = [
        "# Performance", "",
        "Made by `bench/run`; [bench/README.md](../bench/README.md) tells what each measure is and what it does not show. "
        "Figures are for ratios within this page: another machine has others.", "",
        about(results), "",
        "Cells are the median and the range of all rounds, ratios the median of the rounds' ratios (a machine that others use, too, "
        "has another speed a minute later). *Sends* and *receives* are the stack's.", "",
        "![Alps beside the kernel and the peers](performance.svg)", "",
    ]
    for title, measures in groups:
        columns = shown_paths(results, measures)
        table = rows(results, measures, columns, detail=False)
        if len(table) == 1:
            continue
        parts += [f"## {title}", "", markdown_table(table), ""]
        parts += [f"{measure.title}: {measure.note}\n" for measure in measures if measure.note and measure.key in results.runs]
    table = rows(results, everything, shown_paths(results, everything), detail=True)
    if len(table) > 1:
        # The targets are all in the tables before.
        parts += ["## CPU time, and what was sent", "", markdown_table([row[:-1] for row in table]), ""]
    told = failures(results, everything)
    if told:
        parts += ["## Not measured", "", *(f"- {line}" for line in told), ""]
    versions = results.machine["versions"]
    if versions:
        parts += ["## Versions", "", ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + ".", ""]
    return "\n".join(parts).rstrip() + "\n"
