"""The chart of docs/performance.md: a panel a measure, a bar a path."""

from xml.sax.saxutils import escape

import paths
from report import number, shown_paths

COLUMNS, WIDTH, BAR, GAP, TOP, LABEL, VALUE = 2, 460, 15, 5, 44, 134, 80
COLOURS = {"alps": "#1f6feb", "kernel": "#57606a", "limit": "#8b949e"}
OTHERS = "#c8cdd3"


def panel(results, measure, columns):
    """Lines of SVG, and how high they are."""
    figure = measure.figures[0]
    bars = [(column, results.cell(measure.key, column.key, figure.key)) for column in columns]
    bars = [(column, cell) for column, cell in bars if cell.values]
    longest = max((max(cell.values) for _, cell in bars), default=0)
    if longest <= 0:
        return [], 0
    room = WIDTH - LABEL - VALUE
    better = "more is better" if figure.higher_is_better else "less is better"
    lines = [f'<text x="0" y="14" class="title">{escape(measure.title)}</text>',
             f'<text x="0" y="30" class="unit">{escape(figure.unit)}, {better}</text>']
    for index, (column, cell) in enumerate(bars):
        y = TOP + index * (BAR + GAP)
        length = room * cell.median / longest
        low, high = room * min(cell.values) / longest, room * max(cell.values) / longest
        middle = y + BAR / 2
        lines += [
            f'<text x="{LABEL - 8}" y="{y + 12}" class="path">{escape(column.title)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{COLOURS.get(column.key, OTHERS)}"/>',
            f'<line x1="{LABEL + low:.1f}" y1="{middle}" x2="{LABEL + high:.1f}" y2="{middle}" class="range"/>',
            f'<text x="{LABEL + max(length, high) + 6:.1f}" y="{y + 12}" class="value">'
            f'{number(cell.median, figure.digits)}</text>',
        ]
    return lines, TOP + len(bars) * (BAR + GAP) + 18


def svg(results, measures):
    panels = []
    for measure in measures:
        lines, height = panel(results, measure, shown_paths(results, [measure]))
        if lines:
            panels.append((lines, height))
    y, body = 20, []
    for row in range(0, len(panels), COLUMNS):
        for column, (lines, _) in enumerate(panels[row:row + COLUMNS]):
            body.append(f'<g transform="translate({20 + column * (WIDTH + 30)},{y})">')
            body += lines
            body.append("</g>")
        y += max(height for _, height in panels[row:row + COLUMNS])
    width = 40 + COLUMNS * WIDTH + 30
    about = f"Linux {results.machine['kernel']}, {results.machine['processor']}, Alps at {results.machine['commit']}"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 24}" viewBox="0 0 {width} {y + 24}">',
        "<style>text{font:12px sans-serif;fill:#24292f}.title{font-weight:bold}.unit{fill:#57606a}"
        ".path{text-anchor:end}.range{stroke:#24292f;stroke-width:1.5}</style>",
        f'<rect width="{width}" height="{y + 24}" fill="#fff"/>',
        *body,
        f'<text x="20" y="{y + 10}" class="unit">{escape(about)}</text>',
        "</svg>", ""])
