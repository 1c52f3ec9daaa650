"""The class `Study`, an experiment that tests one claim, and the class `Options`.

Each study is a module that defines `STUDY`. A study consists of jobs; a job is usually
one training run. Worker processes measure the jobs. The rows of each job are saved in a
CSV file, so that an interrupted study resumes after its finished jobs. The rows of all
jobs form the table of the study, from which the figure and the report are drawn.
"""

import contextlib
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
from keras_resnet.studies.lib.report import Section, StudyRecord
from keras_resnet.studies.lib.style import KINDS
from keras_resnet.studies.lib.tables import Row, Rows, file_stem
from keras_resnet.support import InputError, option, progress_bar, to_png, write_file

if TYPE_CHECKING:
    from keras_resnet.data import Dataset


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a study. Each field is also a flag of the study's command."""

    dataset: str = option("digits", "Dataset name. All images must have equal size.")
    data_dir: str | None = option(None, "Folder that contains prepared TFDS datasets.")
    images: int = option(
        0, "Number of training images. Test images: a fifth as many. 0: all.", minimum=0
    )
    depths: tuple[int, ...] = option((8, 20, 44), "Depths (layers). Each must be 6n+2.")
    seeds: int = option(3, "Number of runs per network, one per seed.", 1, 1000)
    epochs: int = option(24, "Epochs per run. 0 uses the recipe's epochs.", minimum=0)
    recipe: str | None = option(None, "Recipe name. The default fits the dataset.")
    output: str = option("studies", "Folder to write all results to.")
    # Each worker uses one thread, so that results do not depend on the number of CPUs.
    workers: int | None = option(
        None,
        "Number of worker processes. Each needs 1.2 GB plus activations. 0 runs all jobs "
        "in this process. Default: one per CPU, or one in total if there is a GPU.",
        minimum=0,
    )

    @property
    def folder(self) -> str:
        """Folder that contains the results of all studies on the dataset."""
        return os.path.join(
            self.output, file_stem({"": self.dataset, "images": self.images or None})
        )

    @property
    def name_settings(self) -> Row:
        """Options that are part of the name of each run folder and job file."""
        return {"epochs": self.epochs or None, "recipe": self.recipe}

    @property
    def recipe_name(self) -> str:
        """`recipe` or, if it is not set, the default recipe for the dataset."""
        from keras_resnet.spec import allows_flips

        default = "paper_cifar" if allows_flips(self.dataset) else "digits"
        return self.recipe or default

    def describe(self) -> dict[str, str]:
        """Returns the values that the format string `Study.settings` can contain."""
        return {
            "images": f"{self.images} training images of " if self.images else "",
            "dataset": self.dataset,
            "depths": option_to_text(self.depths),
            "seeds": str(self.seeds),
            "epochs": str(self.epochs or "the recipe's"),
        }

    def load(self) -> "Dataset":
        """Loads the dataset or, if `images` is positive, a fixed subset of it."""
        return jobs.load_subset(self.dataset, self.data_dir, self.images)

    def train(
        self,
        model: str,
        seed: int,
        *,
        dataset: "Dataset | None" = None,
        folder: str | None = None,
        **changes: Any,
    ) -> str:
        """Trains a network unless its run folder is complete, and returns the folder.

        Args:
            model: Variant name, such as `"cifar_resnet20"`.
            seed: Random seed of the run.
            dataset: Dataset to train on. Default: the dataset of these options.
            folder: Run folder. Its default name consists of the other arguments.
            **changes: Further arguments of `keras_resnet.training.train`.
        """
        from keras_resnet.training import train

        name = file_stem({"": model, **self.name_settings, **changes, "seed": seed})
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
"""Measured values as text, and whether they confirm an expectation."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A claim of the paper and the experiment that tests it.

    Attributes:
        name: Name of the study's module.
        title: Title of the report.
        claim: The paper's claim with its source, and a description of the figure.
        expectations: Expectations for every seed, stated before the measurement.
        list_jobs: Function that returns the jobs, which are dicts of column values.
        measure: Function that measures a job, usually in a worker process, and returns
            rows without the columns of the job.
        draw: Function that draws the figure from the rows of all jobs.
        check_expectations: Function that returns a verdict on each expectation.
        defaults: Default options, for a run of at most ten minutes on two CPU cores.
        min_depth_count: Minimum number of depths to compare.
        min_depth: Minimum depth in layers.
        max_depth: Maximum depth in layers. Networks above 362 layers have sub-models.
        settings: Format string for the settings in the report; see `Options.describe`.
        sequential: Whether jobs run one at a time, so that times can be compared.
    """

    name: str
    title: str
    claim: str
    expectations: tuple[str, ...]
    list_jobs: Callable[[Options], Rows]
    measure: Callable[[Options, Row], Rows]
    draw: Callable[[Rows], Figure]
    check_expectations: Callable[[Rows], list[Verdict]]
    defaults: Options = Options()
    min_depth_count: int = 1
    min_depth: int = 8
    max_depth: int | None = None
    settings: str = "{images}{dataset}; {depths} layers, {seeds} seeds, {epochs} epochs"
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
                f"--depths=14,20. Received: --depths={option_to_text(options.depths)}"
            )
        limit = f"to {self.max_depth}" if self.max_depth else "upwards"
        if depths[0] < self.min_depth or depths[-1] > (self.max_depth or depths[-1]):
            raise InputError(
                f"The depths of {self.name} must be from {self.min_depth} {limit}. "
                f"Received: --depths={option_to_text(options.depths)}"
            )
        if not self.sequential:
            for depth in depths:
                find_variant(f"cifar_resnet{depth}")
            if options.recipe:
                find_recipe(options.recipe)
            if options.load().shape is None:
                raise InputError(
                    "Studies need a dataset whose images all have the same size, such as "
                    f"digits or cifar10. Received: dataset={options.dataset!r}"
                )
        return dataclasses.replace(options, depths=depths)

    def run(self, options: Options | None = None, report_only: bool = False) -> Section:
        """Runs the study, writes its results and returns a section for a common report.

        Args:
            options: Options of the study. Default: `defaults`.
            report_only: Whether to redraw figure and report from an existing table.

        Raises:
            InputError: If an option is invalid, the table to redraw does not exist, or
                another process runs a study in the same folder.
        """
        opts = options or self.defaults
        folder = os.path.join(opts.folder, self.name)
        table_path = os.path.join(folder, f"{self.name}.csv")
        with contextlib.ExitStack() as stack:
            if report_only:
                rows = tables.read_table(table_path)
                record, opts = report.read_record(folder, Options)
            else:
                from keras_resnet.training import lock_folder

                opts = self.check_options(opts)
                os.makedirs(folder, exist_ok=True)
                stack.enter_context(lock_folder(opts.folder))  # It contains all runs.
                print(f"{self.title}\n{self.claim}\n")
                for expectation in self.expectations:
                    print(f"Expected for every seed: {expectation}", flush=True)
                rows = self._measure_jobs(opts, folder)
                tables.write_table(table_path, rows)
                record = report.write_record(folder, self.format_command(opts), opts)
            try:
                section = self._make_section(rows, table_path, record, opts)
            except (LookupError, TypeError, ValueError) as error:
                if not report_only:
                    raise
                raise InputError(
                    f"{table_path} is damaged or belongs to another study ({error!r}). "
                    "Run the study without --report to write the table again"
                ) from None
            self._publish(section, folder)
        return section

    def _measure_jobs(self, options: Options, folder: str) -> Rows:
        """Measures the jobs that have no CSV file, and returns the rows of all jobs."""
        job_folder = os.path.join(folder, "jobs")
        os.makedirs(job_folder, exist_ok=True)
        all_jobs = {
            f"{job_folder}/{file_stem({**job, **options.name_settings})}.csv": job
            for job in self.list_jobs(options)
        }
        new_jobs = {p: job for p, job in all_jobs.items() if not tables.is_table(p)}
        if num_measured := len(all_jobs) - len(new_jobs):
            print(f"{num_measured} of {len(all_jobs)} jobs measured before")
        num_workers = jobs.count_workers(options.workers, self.sequential)
        start, num_new = time.monotonic(), len(new_jobs)
        with progress_bar(self.name, num_new) as advance:
            measure = functools.partial(self.measure, options)
            results = jobs.measure_jobs(measure, new_jobs, min(num_workers, num_new))
            for n, (path, rows) in enumerate(results, 1):
                job = new_jobs[path]
                tables.write_table(path, [{**job, **row} for row in rows])
                minutes = (time.monotonic() - start) * (num_new - n) / n / 60
                progress = f"{n}/{num_new}: {jobs.describe_job(job)}"
                print(f"{progress}; about {minutes:.1f} min left", flush=True)
                advance()
        return [row for path in all_jobs for row in tables.read_table(path)]

    def _make_section(
        self, rows: Rows, path: str, record: StudyRecord, options: Options
    ) -> Section:
        verdicts = self.check_expectations(rows)
        findings = [(e, *v) for e, v in zip(self.expectations, verdicts, strict=True)]
        settings = self.settings.format(**options.describe())
        png = to_png(self.draw(rows))
        return Section(self.title, self.claim, findings, png, record, path, settings)

    def _publish(self, section: Section, folder: str) -> None:
        write_file(os.path.join(folder, f"{self.name}.png"), section.figure_png)
        report_path = os.path.join(folder, "report.html")
        write_file(report_path, report.render_page(self.title, [section]))
        print(f"\n{self.title}: {section.settings}")
        for expectation, result, holds in section.findings:
            print(
                f"{'Confirmed' if holds else 'NOT confirmed'}: {expectation}\n    {result}"
            )
        print(f"Report: {report_path}", flush=True)

    def format_command(self, options: Options) -> str:
        """Returns the shell command that runs this study with the options."""
        command = ["python", "-m", f"keras_resnet.studies.{self.name}"]
        for name, value in vars(options).items():
            if value != getattr(self.defaults, name):
                command.append(f"--{name}={option_to_text(value)}")
        return shlex.join(command)


def make_job_lister(**columns: Iterable[Any] | None) -> Callable[[Options], Rows]:
    """Returns a function for `Study.list_jobs`.

    The function lists one job for each combination of the values in `columns`. `None`,
    which is accepted for `depth` and `seed`, stands for the values in the options.
    """

    def list_jobs(options: Options) -> Rows:
        values: dict[str, Any] = {"seed": range(options.seeds), "depth": options.depths}
        values |= {name: v for name, v in columns.items() if v is not None}
        combinations = itertools.product(*values.values())
        rows = [dict(zip(values, row, strict=True)) for row in combinations]
        return [{name: row[name] for name in columns} for row in rows]

    return list_jobs


list_plain_and_residual_jobs = make_job_lister(kind=KINDS, depth=None, seed=None)


def option_to_text(value: Any) -> str:
    """Returns the value of an option as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def format_mean(values: Iterable[float], unit: str = " %") -> str:
    """Formats mean and sample standard deviation, such as `4.2 ± 0.3 % (n = 3)`."""
    values = list(map(float, values))
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{deviation}{unit} (n = {len(values)})"
