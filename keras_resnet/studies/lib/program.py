"""How every study is started: its flags, then one call."""

import dataclasses

from absl import flags

from keras_resnet.support import InputError, run_command

# What is defined here belongs to the program that calls it, for --helpshort.
flags.disclaim_key_flags()


def run_with_options(run, defaults=None):
    """Defines the flags, parses them and runs.

    Args:
        run: function of (changes, measured): a dict of those fields of `Options` that
            were given, and whether the report alone is to be made.
        defaults: the study's `Options`, for the help; `None` where each has its own.
    """

    def default(field):
        if defaults is None:
            return "each study's own"
        value = getattr(defaults, field)
        return ",".join(map(str, value)) if isinstance(value, tuple) else value

    flags.DEFINE_string(
        "dataset", None, f"Images of one size: see train. ({default('dataset')})"
    )
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS sets.")
    flags.DEFINE_integer(
        "images", None, "Training images, and a fifth as many held out; 0 is all.", 0
    )
    flags.DEFINE_list(
        "depths", None, f"Layers of the nets, each 6n+2. ({default('depths')})"
    )
    flags.DEFINE_integer(
        "seeds", None, f"Runs that differ by their seed. ({default('seeds')})", 1
    )
    flags.DEFINE_integer(
        "epochs", None, f"Of each run; 0 is the recipe's. ({default('epochs')})", 0
    )
    flags.DEFINE_string("recipe", None, "digits, paper_cifar, ...; chosen by data set.")
    flags.DEFINE_string("output", None, "Folder of what is written. (studies)")
    flags.DEFINE_integer(
        "workers", None, "Processes; one for each CPU. 0: none but this.", 0
    )
    flags.DEFINE_boolean(
        "report", False, "Make the report again from its CSV; train nothing."
    )

    def begin(argv):
        del argv
        from keras_resnet.studies.lib.study import Options

        given = {
            field.name: value
            for field in dataclasses.fields(Options)
            if (value := flags.FLAGS[field.name].value) is not None
        }
        if "depths" in given:
            try:
                given["depths"] = tuple(int(each) for each in given["depths"])
            except ValueError:
                given["depths"] = ()
            if not given["depths"]:
                raise InputError(
                    "depths must be whole numbers with commas between, such as "
                    f"--depths=8,20. Received: {','.join(flags.FLAGS['depths'].value)!r}"
                )
        run(given, flags.FLAGS["report"].value)

    run_command(begin)


def run_study(study):
    """Runs one study as a program."""

    def run(changes, measured):
        study.run(dataclasses.replace(study.defaults, **changes), measured)

    run_with_options(run, study.defaults)
