"""A study: its options, its claim, and the steps from jobs to report.

Each study is a module that defines `STUDY`. Worker processes measure its jobs, and the
rows of each job are written to a separate file, so that an interrupted study resumes.
The figure and the findings depend on the table alone, so they can be made again
without training.
"""

import dataclasses
import functools
import itertools
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from keras_resnet.studies.lib import jobs, report, tables
from keras_resnet.studies.lib.report import Provenance, Section
from keras_resnet.studies.lib.style import KINDS
from keras_resnet.studies.lib.tables import Row, Rows, file_stem
from keras_resnet.support import InputError, option, progress_bar, to_png, write_file

if TYPE_CHECKING:
    from keras_resnet.data import Dataset


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a study, which are also its flags."""

    dataset: str = option("digits", "Dataset whose images have one size; see train.")
    data_dir: str | None = option(None, "Folder of prepared TFDS datasets.")
    images: int = option(
        0, "Number of training images, plus a fifth for testing; 0 is all.", minimum=0
    )
    depths: tuple[int, ...] = option((8, 20, 44), "Depths in layers, each 6n+2.")
    seeds: int = option(3, "Number of runs, which differ in their seed.", minimum=1)
    epochs: int = option(24, "Epochs of each run; 0: the recipe's number.", minimum=0)
    recipe: str | None = option(None, "Recipe; default: digits or paper_cifar.")
    output: str = option("studies", "Folder for all results.")
    # Each process uses one thread, so that results do not depend on the number of CPUs.
    workers: int | None = option(
        None,
        "Worker processes; default: one for each CPU. 0 uses this process. "
        "Each takes about 1.2 GB plus activations.",
        minimum=0,
    )

    @property
    def folder(self) -> str:
        """Folder of all studies of the dataset."""
        return os.path.join(
            self.output, file_stem({"": self.dataset, "images": self.images or None})
        )

    @property
    def settings(self) -> Row:
        """Settings that are part of the name of each run folder and job file."""
        return {"epochs": self.epochs or None, "recipe": self.recipe}

    @property
    def recipe_name(self) -> str:
        """Recipe name. Default: `"digits"` for characters, else `"paper_cifar"`."""
        from keras_resnet.spec import allows_flips

        default = "paper_cifar" if allows_flips(self.dataset) else "digits"
        return self.recipe or default

    def describe(self) -> dict[str, str]:
        """Returns the values that the format string `Study.budget` uses, as text."""
        return {
            "images": f"{self.images} training images of " if self.images else "",
            "dataset": self.dataset,
            "depths": option_to_text(self.depths),
            "seeds": str(self.seeds),
            "epochs": str(self.epochs or "the recipe's"),
        }

    def load(self) -> "Dataset":
        """Returns the dataset or, if `images` is set, a fixed subset of it."""
        return jobs.load_images(self.dataset, self.data_dir, self.images)

    def train(
        self,
        model: str,
        seed: int,
        *,
        dataset: "Dataset | None" = None,
        folder: str | None = None,
        **changes: Any,
    ) -> str:
        """Trains a network unless an equal run is complete, and returns its run folder.

        Args:
            model: Name of the variant.
            seed: Random seed of the run.
            dataset: Dataset to train on. Default: the study's own.
            folder: Run folder. Default: named after the other arguments.
            **changes: Further arguments of `keras_resnet.training.train`.
        """
        from keras_resnet.training import train

        name = file_stem({"": model, **self.settings, **changes, "seed": seed})
        folder = folder or os.path.join(self.folder, "runs", name)
        if "iterations" not in changes:
            changes = {"epochs": self.epochs or None, **changes}
        train(
            model, dataset or self.load(), recipe=self.recipe_name, seed=seed,
            strategy="one_device", model_dir=folder, verbose=0, validation=0.0,
            **changes,
        )  # fmt: skip
        return folder


Verdict = tuple[str, bool]
"""Result of an expectation: measured values as text, and whether they confirm it."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A claim of the paper and the experiment that tests it.

    Attributes:
        name: Name of the study's module.
        title: Title of the report.
        claim: The paper's claim with its source, and a description of the figure.
        expected: Expectations for every seed, stated before the measurement.
        jobs: Function that lists the jobs. The columns of a job start each of its rows.
        measure: Function that measures a job, usually in a worker process, and returns
            the remaining columns of its rows.
        draw: Function that draws the rows of all jobs.
        check_expectations: Function that returns a verdict on each expectation.
        defaults: Default options, for a run of at most ten minutes on two CPU cores.
        min_depth_count: Minimum number of depths to compare.
        shallowest: Smallest accepted depth.
        deepest: Largest accepted depth. Networks above 362 layers have sub-models.
        budget: Format string of settings in the report; see `Options.describe`.
        sequential: Whether jobs are measured one at a time, to get comparable times.
    """

    name: str
    title: str
    claim: str
    expected: tuple[str, ...]
    jobs: Callable[[Options], Rows]
    measure: Callable[[Options, Row], Rows]
    draw: Callable[[Rows], Figure]
    check_expectations: Callable[[Rows], list[Verdict]]
    defaults: Options = Options()
    min_depth_count: int = 1
    shallowest: int = 8
    deepest: int | None = None
    budget: str = "{images}{dataset}; {depths} layers, {seeds} seeds, {epochs} epochs"
    sequential: bool = False

    def check_options(self, options: Options) -> Options:
        """Checks the options and returns them with sorted depths.

        Raises:
            InputError: If the number or range of depths does not suit this study, a
                depth is not 6n+2, or the dataset or the recipe does not exist.
        """
        from keras_resnet.spec import find_recipe, find_variant

        depths = tuple(sorted(set(options.depths)))
        if len(depths) < self.min_depth_count:
            raise InputError(
                f"{self.name} compares at least {self.min_depth_count} depths, such as "
                f"--depths=14,20. Received: {option_to_text(options.depths)}"
            )
        deepest = self.deepest or depths[-1]
        if not self.shallowest <= depths[0] <= depths[-1] <= deepest:
            raise InputError(
                f"The depths of {self.name} must be from {self.shallowest} to "
                f"{self.deepest or 'any'}. Received: {option_to_text(options.depths)}"
            )
        if not self.sequential:
            for depth in depths:
                find_variant(f"cifar_resnet{depth}")
            if options.recipe:
                find_recipe(options.recipe)
            if options.load().shape is None:
                raise InputError(
                    "Studies need a dataset whose images have one size, such as digits, "
                    f"fashion_mnist or cifar10. Received: dataset={options.dataset!r}"
                )
        return dataclasses.replace(options, depths=depths)

    def run(self, options: Options | None = None, report_only: bool = False) -> Section:
        """Measures the missing jobs, writes all results and returns a report section.

        Args:
            options: Options of the study. Default: `defaults`.
            report_only: Whether to use the existing table and measure nothing.

        Raises:
            InputError: If an option is invalid or the table is missing.
        """
        chosen = options or self.defaults
        folder = os.path.join(chosen.folder, self.name)
        table = os.path.join(folder, f"{self.name}.csv")
        if report_only:
            rows = tables.read_table(table)
            provenance, chosen = report.read_provenance(folder, Options)
        else:
            chosen = self.check_options(chosen)
            print(f"{self.title}\n{self.claim}\n")
            for expected in self.expected:
                print(f"Expected for every seed: {expected}", flush=True)
            rows = self._measure_jobs(chosen, folder)
            tables.write_table(table, rows)
            provenance = report.write_provenance(folder, self.command(chosen), chosen)
        try:
            section = self._make_section(rows, table, provenance, chosen)
        except (LookupError, TypeError, ValueError) as error:
            if not report_only:
                raise
            raise InputError(
                f"{table} is damaged or belongs to another study ({error!r})"
            ) from None
        self._publish(section, folder)
        return section

    def _measure_jobs(self, options: Options, folder: str) -> Rows:
        """Returns the rows of all jobs, and measures those that have no file yet."""
        scratch = os.path.join(folder, "jobs")
        os.makedirs(scratch, exist_ok=True)
        paths = {
            os.path.join(scratch, f"{file_stem({**job, **options.settings})}.csv"): job
            for job in self.jobs(options)
        }
        missing = {p: job for p, job in paths.items() if not tables.is_table(p)}
        if len(missing) < len(paths):
            print(f"{len(paths) - len(missing)} of {len(paths)} jobs measured before")
        workers = min(jobs.worker_count(options.workers, self.sequential), len(missing))
        start = time.monotonic()
        with progress_bar(self.name, len(missing)) as advance:
            measure = functools.partial(self.measure, options)
            results = jobs.measure_jobs(measure, missing, workers)
            for done, (path, rows) in enumerate(results, 1):
                job = missing[path]
                tables.write_table(path, [{**job, **row} for row in rows])
                left = (time.monotonic() - start) * (len(missing) - done) / done / 60
                finished = f"{done}/{len(missing)}: {jobs.describe_job(job)}"
                print(f"{finished}; about {left:.1f} min left", flush=True)
                advance()
        return [row for path in paths for row in tables.read_table(path)]

    def _make_section(
        self, rows: Rows, table: str, provenance: Provenance, options: Options
    ) -> Section:
        pairs = zip(self.expected, self.check_expectations(rows), strict=True)
        findings = [(expected, result, holds) for expected, (result, holds) in pairs]
        png, budget = to_png(self.draw(rows)), self.budget.format(**options.describe())
        return Section(self.title, self.claim, findings, png, provenance, table, budget)

    def _publish(self, section: Section, folder: str) -> None:
        write_file(os.path.join(folder, f"{self.name}.png"), section.figure_png)
        page = os.path.join(folder, "report.html")
        write_file(page, report.render_page(self.title, [section]))
        print(f"\n{self.title}: {section.budget}")
        for expected, result, holds in section.findings:
            verdict = "Confirmed" if holds else "NOT confirmed"
            print(f"{verdict}: {expected}\n    {result}")
        print(f"Report: {page}", flush=True)

    def command(self, options: Options) -> str:
        """Returns the command line that runs this study with these options."""
        command = ["python", "-m", f"keras_resnet.studies.{self.name}"]
        for name, value in vars(options).items():
            if value != getattr(self.defaults, name):
                command.append(f"--{name}={option_to_text(value)}")
        return shlex.join(command)


def make_job_grid(**columns: Iterable[Any] | None) -> Callable[[Options], Rows]:
    """Returns a function that lists one job for each combination of column values.

    For `depth` and `seed`, `None` stands for the values in the options.
    """

    def jobs(options: Options) -> Rows:
        values: dict[str, Any] = {"seed": range(options.seeds), "depth": options.depths}
        values |= {name: v for name, v in columns.items() if v is not None}
        combinations = itertools.product(*values.values())
        rows = [dict(zip(values, row, strict=True)) for row in combinations]
        return [{name: row[name] for name in columns} for row in rows]

    return jobs


plain_and_residual_jobs = make_job_grid(kind=KINDS, depth=None, seed=None)


def option_to_text(value: Any) -> str:
    """Returns an option's value in the syntax of its flag."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def mean_and_deviation(values: Iterable[float], unit: str = " %") -> str:
    """Formats mean and standard deviation, such as `4.2 ± 0.3 % (n = 3)`."""
    values = list(map(float, values))
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{deviation}{unit} (n = {len(values)})"
