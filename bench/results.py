"""Results of runs: medians, spread, ratios, targets."""

import dataclasses
import json
import pathlib
import statistics

import builds


@dataclasses.dataclass
class Cell:
    """A figure of one path: the values of all rounds, or why there is none."""

    values: list[float]
    failure: str | None = None

    @property
    def median(self):
        return statistics.median(self.values) if self.values else None


class Results:
    """Values by measure, path and figure. Everything in it can be written as JSON."""

    def __init__(self, machine=None, settings=None):
        self.machine = machine or {}
        self.settings = settings or {}
        self.unavailable = {}
        self.runs = {}
        self.noisy = 0
        self.total = 0

    def add(self, measure, path, values=None, failure=None):
        entry = self.runs.setdefault(measure, {}).setdefault(path, {"values": {}, "failures": []})
        for figure, value in (values or {}).items():
            entry["values"].setdefault(figure, []).append(value)
        if failure:
            entry["failures"].append(failure)

    def cell(self, measure, path, figure):
        entry = self.runs.get(measure, {}).get(path)
        if entry is None:
            return Cell([], self.unavailable.get(path))
        failures = entry["failures"]
        return Cell(entry["values"].get(figure, []), failures[0] if failures else None)

    def ratio(self, measure, figure, over, of=None):
        """Alps over another path: the median of the rounds' ratios, or where no round has both (the measure `of`, failures) the
        ratio of the medians. None if one is missing."""
        own, other = self.cell(measure, "alps", figure).values, self.cell(of or measure, over, figure).values
        if not of and len(own) == len(other):
            ratios = [mine / its for mine, its in zip(own, other) if its > 0]
        else:
            ratios = [mine / its for mine, its in [(Cell(own).median, Cell(other).median)] if mine is not None and its]
        value = Cell(ratios).median
        return value if value is not None and value >= 0 else None

    def derive(self):
        """What follows from two paths: the kernel's memory for Alps without the peer's end of each connection."""
        own = self.runs.get("memory", {}).get("alps", {}).get("values", {})
        both = self.runs.get("memory", {}).get("kernel", {}).get("values", {}).get("kernel")
        if both and own.get("kernel"):
            slabs = statistics.median(own["kernel"]) - statistics.median(both) / 2
            own["stack"] = [statistics.median(own["host"]) + slabs]
        for values in (entry["values"] for entry in self.runs.get("growth", {}).values()):
            for kind in ("packet", "connection"):
                medians = [statistics.median(of) for key, of in values.items()
                           if key.startswith(f"{kind}-") and not key.endswith("-growth") and of]
                if len(medians) > 1:
                    values[f"{kind}-growth"] = [max(medians) / min(medians)]

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.__dict__, indent=1, sort_keys=True) + "\n")

    def take(self, path):
        """Adds what another run has saved; for measures in both, the later file counts."""
        saved = json.loads(pathlib.Path(path).read_text())
        for own, other, name in ((self.machine, saved["machine"], "commit"), (self.settings, saved["settings"], "rounds")):
            before, now = own.get(name), other[name]
            if before not in (None, now):
                other[name] = f"{now} ({', '.join(saved['runs'])}) and {before} (the rest)"
        self.runs.update(saved["runs"])
        self.unavailable.update(saved["unavailable"])
        self.machine, self.settings = saved["machine"], saved["settings"]
        self.noisy += saved["noisy"]
        self.total += saved["total"]


def target_met(target, figure, results, measure):
    """(text of the target, whether it is met); the second is None if it cannot be told."""
    sign = ">=" if figure.higher_is_better else "<="
    if target.path is None:
        own = results.cell(measure, "alps", figure.key).median
        text, value = f"{sign} {target.factor:g}{' ' + figure.unit if figure.unit else ''}", own
    else:
        value = results.ratio(measure, figure.key, target.path, target.measure)
        text = f"{sign} {target.factor:g} x {target.measure or target.path}"
    if value is None:
        return text, None
    return text, value >= target.factor if figure.higher_is_better else value <= target.factor


def saved_results():
    return builds.CACHE / "results"
