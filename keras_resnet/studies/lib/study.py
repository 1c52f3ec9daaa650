"""What a study is: its options, its claim, and how it is run.

A study is a module with a `STUDY`. Its jobs are measured one by one, several at a time,
each into a file of its own, so that an interrupted study goes on where it was. Its
picture and its findings are made of the table alone, and can be made again without
training.
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
from keras_resnet.studies.lib.report import About, Section
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
            folder: Run folder, which is returned; `None` names it after the arguments.
            **changes: Further arguments of `keras_resnet.training.train`.
        """
        from keras_resnet.training import train

        name = run_key({"": model, **self.budget, **changes, "seed": seed})
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
"""What the rows show of a prediction, with figures, and whether they confirm it."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A claim of the paper and how it is put to the test.

    Attributes:
        name: Name of its module.
        title: Title of its page.
        claim: What the paper says, where, and what the figure shows.
        expected: Predictions for every seed, stated before the measurement.
        jobs: Makes the jobs. A job is a dict that begins each of its rows.
        measure: Measures a job, perhaps in a process of its own. Returns the further
            columns.
        draw: Draws the rows of all jobs.
        judge: Judges these rows: a verdict for each prediction, in their order.
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
    jobs: Callable[[Options], Rows]
    measure: Callable[[Options, Row], Rows]
    draw: Callable[[Rows], Figure]
    judge: Callable[[Rows], list[Verdict]]
    defaults: Options = Options()
    least_depths: int = 1
    shallowest: int = 8
    deepest: int | None = None
    budget: str = "{images}{dataset}; {depths} layers, {seeds} seeds, {epochs} epochs"
    alone: bool = False

    def checked(self, options: Options) -> Options:
        """Returns the options with their depths in order.

        Raises:
            InputError: This study cannot be run with their depths, or none with a depth
                that is not 6n+2, or there are no such data or recipe.
        """
        from keras_resnet.spec import find_recipe, find_variant

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
            for depth in depths:
                find_variant(f"cifar_resnet{depth}")
            if options.recipe:
                find_recipe(options.recipe)
            if options.load().shape is None:
                raise InputError(
                    "Studies need images that are all of one size, such as digits, "
                    f"fashion_mnist or cifar10. Received: dataset={options.dataset!r}"
                )
        return dataclasses.replace(options, depths=depths)

    def run(self, options: Options | None = None, measured: bool = False) -> Section:
        """Measures what is not there yet, and writes table, picture and page.

        Without options, the study's own are taken. With `measured`, it takes the table
        that is there and measures nothing. Returns the study's section of a page.

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
        missing = {p: job for p, job in paths.items() if not tables.is_table(p)}
        if len(missing) < len(paths):
            print(f"{len(paths) - len(missing)} of {len(paths)} measured before")
        workers = min(jobs.worker_count(options.workers, self.alone), len(missing))
        begun = time.monotonic()
        with progress_bar(self.name, len(missing)) as advance:
            measure = functools.partial(self.measure, options)
            results = jobs.measure_each(measure, missing, workers)
            for done, (path, rows) in enumerate(results, 1):
                job = missing[path]
                tables.write_table(path, [{**job, **row} for row in rows])
                left = (time.monotonic() - begun) * (len(missing) - done) / done / 60
                words = f"{done}/{len(missing)}: {jobs.describe(job)}"
                print(f"{words}; about {left:.1f} min left", flush=True)
                advance()
        return [row for path in paths for row in tables.read_table(path)]

    def _section(
        self, rows: Rows, table: str, about: About, options: Options
    ) -> Section:
        pairs = zip(self.expected, self.judge(rows), strict=True)
        findings = [(expected, seen, holds) for expected, (seen, holds) in pairs]
        picture, budget = to_png(self.draw(rows)), self.budget.format(**options.words())
        return Section(self.title, self.claim, findings, picture, about, table, budget)

    def _publish(self, section: Section, folder: str) -> None:
        """Writes picture and page, and prints the findings."""
        write_file(os.path.join(folder, f"{self.name}.png"), section.picture)
        page = os.path.join(folder, "report.html")
        write_file(page, report.render_page(self.title, [section]))
        print(f"\n{self.title}: {section.budget}")
        for expected, seen, holds in section.findings:
            print(f"{'borne' if holds else 'NOT borne'} out: {expected}\n    {seen}")
        print(f"see {page}", flush=True)

    def command(self, options: Options) -> str:
        """Returns the command that makes this study with these options."""
        command = ["python", "-m", f"keras_resnet.studies.{self.name}"]
        for name, value in vars(options).items():
            if value != getattr(self.defaults, name):
                command.append(f"--{name}={as_text(value)}")
        return shlex.join(command)


def combine(**columns: Iterable[Any] | None) -> Callable[[Options], Rows]:
    """Returns a function that makes a job of each combination of values.

    The columns `depth` and `seed`, given as `None`, have the values of the options.
    """

    def jobs(options: Options) -> Rows:
        values: dict[str, Any] = {"seed": range(options.seeds), "depth": options.depths}
        values |= {name: v for name, v in columns.items() if v is not None}
        combinations = itertools.product(*values.values())
        rows = [dict(zip(values, row, strict=True)) for row in combinations]
        return [{name: row[name] for name in columns} for row in rows]

    return jobs


plain_and_residual = combine(kind=KINDS, depth=None, seed=None)


def as_text(value: Any) -> str:
    """Returns the value of an option as its flag takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def mean_and_deviation(values: Iterable[float], unit: str = " %") -> str:
    """Returns mean and standard deviation in words, such as `4.2 ± 0.3 % (n = 3)`."""
    values = list(map(float, values))
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{deviation}{unit} (n = {len(values)})"
