"""What studies share: options, runs that are trained once, a table, a picture, a page.

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
from collections.abc import Callable
from typing import Any

from keras_resnet.studies.lib import jobs, report
from keras_resnet.studies.lib.style import KINDS
from keras_resnet.studies.lib.tables import (
    Rows,
    is_table,
    read_table,
    run_key,
    write_table,
)
from keras_resnet.support import InputError, progress_bar, to_png, write_file


@dataclasses.dataclass(frozen=True)
class Options:
    """What a study is run with: its flags.

    Attributes:
        dataset: see `keras_resnet.data.load_dataset`.
        data_dir: where TFDS keeps its sets.
        images: training images that are used, and a fifth as many held-out ones,
            the same in every run; 0 is all of them.
        depths: weighted layers of the nets, each 6n+2.
        seeds: number of runs that differ by their seed alone.
        epochs: passes over the training images; 0 is the recipe's.
        recipe: key of `keras_resnet.recipes.RECIPES`; `None` is `"digits"` for
            digits and letters, the paper's `"paper_cifar"` for others, with no
            training image held out.
        output: folder that gets a folder for each data set.
        workers: processes, each of one thread, so that what comes out does not depend
            on their number; `None` is one for each CPU that memory allows (with a
            GPU a single one), 0 this very process.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    images: int = 0
    depths: tuple[int, ...] = (8, 20, 44)
    seeds: int = 3
    epochs: int = 24
    recipe: str | None = None
    output: str = "studies"
    workers: int | None = None

    @property
    def folder(self):
        """The folder of all studies of the data set."""
        return os.path.join(
            self.output, run_key({"": self.dataset, "images": self.images or None})
        )

    @property
    def budget(self):
        """What tells one run or job from those of another budget."""
        return {"epochs": self.epochs or None, "recipe": self.recipe}

    @property
    def recipe_name(self):
        """The recipe, where it is chosen by data set too."""
        from keras_resnet.spec import may_be_mirrored

        by_data = "paper_cifar" if may_be_mirrored(self.dataset) else "digits"
        return self.recipe or by_data

    def words(self):
        """What a study may say of its budget."""
        return {
            "images": f"{self.images} training images of " if self.images else "",
            "dataset": self.dataset,
            "depths": _text(self.depths),
            "seeds": self.seeds,
            "epochs": self.epochs or "the recipe's",
        }

    def load(self):
        """Returns the data set, a `keras_resnet.data.Dataset`."""
        return jobs.load_images(self.dataset, self.data_dir, self.images)

    def train(self, model, seed, *, dataset=None, folder=None, **changes):
        """Trains a network, or finds it trained: studies share their runs.

        Args:
            model: its name.
            seed: of the run.
            dataset: another one than the study's.
            folder: of the run; `None` is one named after the arguments.
            **changes: further arguments of `keras_resnet.training.train`.

        Returns:
            The run folder.
        """
        from keras_resnet.training import train

        about = run_key({"": model, **self.budget, **changes, "seed": seed})
        folder = folder or os.path.join(self.folder, "runs", about)
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

    def check(self):
        """Refuses what no study could be run with.

        Raises:
            InputError: a depth is not 6n+2, there are no such data or recipe.
        """
        from keras_resnet.spec import find_recipe, find_variant

        for depth in self.depths:
            find_variant(f"cifar_resnet{depth}")
        if self.recipe:
            find_recipe(self.recipe)
        found = self.load()
        if found.shape is None:
            raise InputError(
                "Studies need images that are all of one size, such as digits, "
                f"fashion_mnist or cifar10. Received: dataset={self.dataset!r}"
            )


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was seen of one thing that was expected.

    Attributes:
        expected: said beforehand.
        seen: with figures.
        holds: whether it was borne out.
    """

    expected: str
    seen: str
    holds: bool

    def __str__(self):
        verdict = "borne out" if self.holds else "NOT borne out"
        return f"{verdict}: {self.expected}\n    {self.seen}"


@dataclasses.dataclass(frozen=True)
class Study:
    """A claim of the paper and how it is put to the test.

    Attributes:
        name: of its module.
        title: of its page.
        claim: what the paper says, where, and what the figure shows.
        expected: what should be seen with every seed, said beforehand.
        jobs: function of `Options`; what is measured, a dict each, which begins
            each of its rows.
        measure: function of (`Options`, job); further columns of its rows.
        draw: function of all rows; a matplotlib figure.
        judge: function of all rows; pairs of what was seen and whether it bears
            out what is `expected`, in that order.
        defaults: of its flags; they end within ten minutes on two CPU cores.
        least_depths: number of depths that it compares.
        shallowest: net that it can be done with.
        deepest: likewise; above 362 layers, networks have sub-models.
        budget: what its numbers depend on, of `Options.words`.
        alone: whether jobs are measured one after the other, for their times.
    """

    name: str
    title: str
    claim: str
    expected: tuple[str, ...]
    jobs: Callable[[Options], Rows]
    measure: Callable[[Options, dict], Rows]
    draw: Callable[[Rows], Any]
    judge: Callable[[Rows], list[tuple[str, bool]]]
    defaults: Options = Options()
    least_depths: int = 1
    shallowest: int = 8
    deepest: int | None = None
    budget: str = "{images}{dataset}; {depths} layers, {seeds} seeds, {epochs} epochs"
    alone: bool = False

    def checked(self, options):
        """Returns the options with their depths in order.

        Raises:
            InputError: this study cannot be run with them.
        """
        depths = tuple(sorted(set(options.depths)))
        if len(depths) < self.least_depths:
            raise InputError(
                f"{self.name} compares depths: give {self.least_depths} or more, such "
                f"as --depths=14,20. Received: {_text(options.depths)}"
            )
        deepest = self.deepest or depths[-1]
        if not self.shallowest <= depths[0] <= depths[-1] <= deepest:
            raise InputError(
                f"{self.name} needs depths from {self.shallowest} to "
                f"{self.deepest or 'any'}. Received: {_text(options.depths)}"
            )
        if not self.alone:
            options.check()
        return dataclasses.replace(options, depths=depths)

    def run(self, options=None, measured=False):
        """Measures what is not there yet, and writes table, picture and page.

        Args:
            options: an `Options`; `None` is the study's own.
            measured: whether to take the table that is there, and measure nothing.

        Returns:
            A `keras_resnet.studies.report.Section`.

        Raises:
            InputError: an option cannot be used, memory is not enough, or there is no
                table.
        """
        options = options or self.defaults
        folder = os.path.join(options.folder, self.name)
        table = os.path.join(folder, f"{self.name}.csv")
        if measured:
            rows = read_table(table)
            about, options = report.read_about(folder, Options)
        else:
            options = self.checked(options)
            workers = jobs.worker_count(options, self.alone)
            print(f"{self.title}\n{self.claim}\n")
            for expected in self.expected:
                print(f"expected with every seed: {expected}", flush=True)
            rows = self._measure(options, folder, workers)
            write_table(table, rows)
            about = report.write_about(folder, self.command(options), options)
        try:
            seen, picture = self.judge(rows), to_png(self.draw(rows))
        except (LookupError, TypeError, ValueError) as error:
            if not measured:
                raise
            raise InputError(
                f"{table} is damaged, or not a table of this study ({error!r})"
            ) from None
        found = [
            Finding(expected, *each)
            for expected, each in zip(self.expected, seen, strict=True)
        ]
        write_file(os.path.join(folder, f"{self.name}.png"), picture)
        budget = self.budget.format(**options.words())
        section = report.Section(
            self.title, self.claim, found, picture, about, table, budget
        )
        page = os.path.join(folder, "report.html")
        write_file(page, report.render_page(self.title, [section]))
        print(f"\n{self.title}: {budget}")
        for each in found:
            print(each)
        print(f"see {page}", flush=True)
        return section

    def _measure(self, options, folder, workers):
        """All rows; those of each job lie in a file once it is done."""
        scratch = os.path.join(folder, "jobs")
        os.makedirs(scratch, exist_ok=True)
        paths = {
            os.path.join(scratch, f"{run_key({**job, **options.budget})}.csv"): job
            for job in self.jobs(options)
        }
        missing = [path for path in paths if not is_table(path)]
        if len(missing) < len(paths):
            print(f"{len(paths) - len(missing)} of {len(paths)} measured before")
        begun, done = time.monotonic(), 0
        with progress_bar(self.name, len(missing)) as advance:
            for path, rows in jobs.measure_each(
                self.measure,
                options,
                {path: paths[path] for path in missing},
                min(workers, len(missing)),
            ):
                write_table(path, [{**paths[path], **row} for row in rows])
                done += 1
                left = (time.monotonic() - begun) * (len(missing) - done) / done
                what = ", ".join(f"{name} {text}" for name, text in paths[path].items())
                print(
                    f"{done}/{len(missing)}: {what}; about {left / 60:.1f} min left",
                    flush=True,
                )
                advance()
        return [row for path in paths for row in read_table(path)]

    def command(self, options):
        """The command that makes this study with these options."""
        changed = [
            f"--{field.name}={_text(getattr(options, field.name))}"
            for field in dataclasses.fields(options)
            if getattr(options, field.name) != getattr(self.defaults, field.name)
        ]
        return shlex.join(
            ["python", "-m", f"keras_resnet.studies.{self.name}", *changed]
        )


def plain_and_residual(options):
    """Jobs of a plain and a residual net of each depth, with each seed."""
    return [
        {"kind": kind, "depth": depth, "seed": seed}
        for seed in range(options.seeds)
        for depth in options.depths
        for kind in KINDS
    ]


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def mean_and_deviation(values, unit=" %"):
    """Mean and standard deviation in words, such as `4.2 ± 0.3 % (n = 3)`."""
    values = list(map(float, values))
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{deviation}{unit} (n = {len(values)})"
