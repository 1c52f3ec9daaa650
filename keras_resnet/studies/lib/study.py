"""What a study is: its options, its claim, and how it is run.

A study is a module with a `STUDY`. Its jobs are measured one by one, several at a time,
each into a file of its own, so that an interrupted study goes on where it was. Its
picture and its findings are made of the table alone, and can be made again without
training.
"""

import dataclasses
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from keras_resnet.studies.lib import jobs, report, tables
from keras_resnet.studies.lib.style import KINDS
from keras_resnet.studies.lib.tables import Row, Rows, run_key
from keras_resnet.support import InputError, option, progress_bar, to_png, write_file

if TYPE_CHECKING:
    from keras_resnet.data import Dataset


@dataclasses.dataclass(frozen=True)
class Options:
    """What a study is run with: its flags."""

    dataset: str = option("digits", "Images of one size: see train.")
    data_dir: str | None = option(None, "Folder of prepared TFDS sets.")
    images: int = option(
        0, "Training images, and a fifth as many held out; 0 is all.", lower=0
    )
    depths: tuple[int, ...] = option((8, 20, 44), "Layers of the nets, each 6n+2.")
    seeds: int = option(3, "Runs that differ by their seed.", lower=1)
    epochs: int = option(24, "Of each run; 0 is the recipe's.", lower=0)
    recipe: str | None = option(None, "digits, paper_cifar, ...; chosen by data set.")
    output: str = option("studies", "Folder of what is written.")
    # Each process has one thread, so that results do not depend on their number.
    workers: int | None = option(
        None,
        "Processes; one for each CPU. 0: none but this. "
        "Each takes about 1.2 GB plus activations.",
        lower=0,
    )

    @property
    def folder(self) -> str:
        """The folder of all studies of the data set."""
        return os.path.join(
            self.output, run_key({"": self.dataset, "images": self.images or None})
        )

    @property
    def budget(self) -> Row:
        """What tells one run or job from those of another budget."""
        return {"epochs": self.epochs or None, "recipe": self.recipe}

    @property
    def recipe_name(self) -> str:
        """The recipe: `"digits"` for digits and letters, the paper's for others."""
        from keras_resnet.spec import may_be_mirrored

        by_data = "paper_cifar" if may_be_mirrored(self.dataset) else "digits"
        return self.recipe or by_data

    def words(self) -> dict[str, str]:
        """Returns what a study may say of its budget."""
        return {
            "images": f"{self.images} training images of " if self.images else "",
            "dataset": self.dataset,
            "depths": as_text(self.depths),
            "seeds": str(self.seeds),
            "epochs": str(self.epochs or "the recipe's"),
        }

    def load(self) -> "Dataset":
        """Returns the images, the same part of the data set in every run."""
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
        """Trains a network, or finds it trained: studies share their runs.

        Args:
            model: Name of the network.
            seed: Seed of the run.
            dataset: Images; `None` is the study's own.
            folder: Run folder; `None` is one named after the arguments.
            **changes: Further arguments of `keras_resnet.training.train`.

        Returns:
            The run folder.
        """
        from keras_resnet.training import train

        name = run_key({"": model, **self.budget, **changes, "seed": seed})
        folder = folder or os.path.join(self.folder, "runs", name)
        if "iterations" not in changes:
            changes = {"epochs": self.epochs or None, **changes}
        train(
            model,
            dataset or self.load(),
            recipe=self.recipe_name,
            seed=seed,
            strategy="one_device",
            model_dir=folder,
            verbose=0,
            validation=0.0,
            **changes,
        )
        return folder

    def check(self) -> None:
        """Refuses what no study could be run with.

        Raises:
            InputError: A depth is not 6n+2, or there are no such data or recipe.
        """
        from keras_resnet.spec import find_recipe, find_variant

        for depth in self.depths:
            find_variant(f"cifar_resnet{depth}")
        if self.recipe:
            find_recipe(self.recipe)
        if self.load().shape is None:
            raise InputError(
                "Studies need images that are all of one size, such as digits, "
                f"fashion_mnist or cifar10. Received: dataset={self.dataset!r}"
            )


MakeJobs = Callable[[Options], Rows]
"""Makes the jobs of a study. A job is a dict that begins each of its rows."""

Measure = Callable[[Options, Row], Rows]
"""Measures a job, perhaps in a process of its own. Returns the further columns."""

Draw = Callable[[Rows], Figure]
"""Draws the rows of all jobs."""

Verdict = tuple[str, bool]
"""What the rows show of a prediction, with figures, and whether they confirm it."""

Judge = Callable[[Rows], list[Verdict]]
"""Judges the rows of all jobs: a verdict for each prediction, in their order."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A claim of the paper and how it is put to the test.

    Attributes:
        name: Name of its module.
        title: Title of its page.
        claim: What the paper says, where, and what the figure shows.
        expected: Predictions for every seed, stated before the measurement.
        jobs: Makes the jobs.
        measure: Measures a job.
        draw: Draws the figure.
        judge: Compares the rows with `expected`.
        defaults: Defaults of its flags; they end within ten minutes on two CPU cores.
        least_depths: Number of depths that it compares.
        shallowest: Smallest depth that it can be done with.
        deepest: Largest such depth. Networks above 362 layers have sub-models.
        budget: What its numbers depend on, with fields of `Options.words`.
        alone: Whether jobs are measured one after the other, for their times.
    """

    name: str
    title: str
    claim: str
    expected: tuple[str, ...]
    jobs: MakeJobs
    measure: Measure
    draw: Draw
    judge: Judge
    defaults: Options = Options()
    least_depths: int = 1
    shallowest: int = 8
    deepest: int | None = None
    budget: str = "{images}{dataset}; {depths} layers, {seeds} seeds, {epochs} epochs"
    alone: bool = False

    def checked(self, options: Options) -> Options:
        """Returns the options with their depths in order.

        Raises:
            InputError: This study cannot be run with them.
        """
        depths = tuple(sorted(set(options.depths)))
        if len(depths) < self.least_depths:
            raise InputError(
                f"{self.name} compares depths: give {self.least_depths} or more, such "
                f"as --depths=14,20. Received: {as_text(options.depths)}"
            )
        deepest = self.deepest or depths[-1]
        if not self.shallowest <= depths[0] <= depths[-1] <= deepest:
            raise InputError(
                f"{self.name} needs depths from {self.shallowest} to "
                f"{self.deepest or 'any'}. Received: {as_text(options.depths)}"
            )
        if not self.alone:
            options.check()
        return dataclasses.replace(options, depths=depths)

    def run(
        self, options: Options | None = None, measured: bool = False
    ) -> report.Section:
        """Measures what is not there yet, and writes table, picture and page.

        Args:
            options: Options; `None` is the study's own.
            measured: Whether to take the table that is there, and measure nothing.

        Returns:
            The study's section of a page.

        Raises:
            InputError: An option cannot be used, or there is no table.
        """
        chosen = options or self.defaults
        folder = os.path.join(chosen.folder, self.name)
        table = os.path.join(folder, f"{self.name}.csv")
        if measured:
            rows = tables.read_table(table)
            about, chosen = report.read_about(folder, Options)
        else:
            chosen = self.checked(chosen)
            print(f"{self.title}\n{self.claim}\n")
            for expected in self.expected:
                print(f"expected with every seed: {expected}", flush=True)
            rows = self._measure_jobs(chosen, folder)
            tables.write_table(table, rows)
            about = report.write_about(folder, self.command(chosen), chosen)
        try:
            section = self._section(rows, table, about, chosen)
        except (LookupError, TypeError, ValueError) as error:
            if not measured:
                raise
            raise InputError(
                f"{table} is damaged, or not a table of this study ({error!r})"
            ) from None
        self._publish(section, folder)
        return section

    def _measure_jobs(self, options: Options, folder: str) -> Rows:
        """Returns all rows; those of each job lie in a file once it is done."""
        scratch = os.path.join(folder, "jobs")
        os.makedirs(scratch, exist_ok=True)
        paths = {
            os.path.join(scratch, f"{run_key({**job, **options.budget})}.csv"): job
            for job in self.jobs(options)
        }
        missing = {
            path: job for path, job in paths.items() if not tables.is_table(path)
        }
        if len(missing) < len(paths):
            print(f"{len(paths) - len(missing)} of {len(paths)} measured before")
        workers = min(jobs.worker_count(options.workers, self.alone), len(missing))
        begun = time.monotonic()
        with progress_bar(self.name, len(missing)) as advance:
            results = jobs.measure_each(self.measure, options, missing, workers)
            for done, (path, rows) in enumerate(results, 1):
                job = missing[path]
                tables.write_table(path, [{**job, **row} for row in rows])
                left = (time.monotonic() - begun) * (len(missing) - done) / done
                print(
                    f"{done}/{len(missing)}: {jobs.describe(job)}; about "
                    f"{left / 60:.1f} min left",
                    flush=True,
                )
                advance()
        return [row for path in paths for row in tables.read_table(path)]

    def _section(
        self, rows: Rows, table: str, about: report.About, options: Options
    ) -> report.Section:
        findings = [
            report.Finding(expected, seen, holds)
            for expected, (seen, holds) in zip(
                self.expected, self.judge(rows), strict=True
            )
        ]
        picture, budget = to_png(self.draw(rows)), self.budget.format(**options.words())
        return report.Section(
            self.title, self.claim, findings, picture, about, table, budget
        )

    def _publish(self, section: report.Section, folder: str) -> None:
        """Writes picture and page, and prints the findings."""
        write_file(os.path.join(folder, f"{self.name}.png"), section.picture)
        page = os.path.join(folder, "report.html")
        write_file(page, report.render_page(self.title, [section]))
        print(f"\n{self.title}: {section.budget}")
        for finding in section.findings:
            print(finding)
        print(f"see {page}", flush=True)

    def command(self, options: Options) -> str:
        """Returns the command that makes this study with these options."""
        changed = [
            f"--{name}={as_text(value)}"
            for name, value in vars(options).items()
            if value != getattr(self.defaults, name)
        ]
        return shlex.join(
            ["python", "-m", f"keras_resnet.studies.{self.name}", *changed]
        )


def plain_and_residual(options: Options) -> Rows:
    """Returns jobs of a plain and a residual net of each depth, with each seed."""
    return [
        {"kind": kind, "depth": depth, "seed": seed}
        for seed in range(options.seeds)
        for depth in options.depths
        for kind in KINDS
    ]


def as_text(value: Any) -> str:
    """Returns the value of an option as its flag takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def mean_and_deviation(values: Iterable[float], unit: str = " %") -> str:
    """Returns mean and standard deviation in words, such as `4.2 ± 0.3 % (n = 3)`."""
    values = list(map(float, values))
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{deviation}{unit} (n = {len(values)})"
