#!/usr/bin/env bash
# Debian's Bazel 4.2.3 on this checkout, without a network:
#
#   tests/bazel/run.sh test //tests:test_variants
#
# Stand-ins beside this script take the place of the repositories that a current Bazel
# fetches for MODULE.bazel. Python and its packages are those of $VENV (.venv).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
venv=$(realpath -ms "${VENV:-$root/.venv}")
made=$root/.bazel
lock=$root/requirements-dev.lock

fail() {
  echo "error: $*" >&2
  exit 1
}

for needed in /usr/bin/bazel-4 /usr/share/bazel/rules/{java,proto}; do
  [ -e "$needed" ] || fail "Debian's bazel-bootstrap, bazel-rules-java and" \
    "bazel-rules-proto are needed; with a current Bazel run that itself. Missing: $needed"
done
[ -x "$venv/bin/python3" ] || fail "VENV must be an environment with the packages of" \
  "$lock, such as make sets up. Received: $venv"
# Or a test whose BUILD rule lacks a dep would find the module all the same.
if (cd / && PYTHONPATH='' "$venv/bin/python3" -c 'import keras_resnet' 2>/dev/null); then
  fail "VENV must not hold this project, or a missing dep would pass. Received: $venv"
fi

# @pypi: a target for each distribution of the lock file, as pip.parse names them.
if [ ! "$made/hub" -nt "$lock" ]; then
  rm -rf "$made"/hub*
  mkdir -p "$made/hub.part"
  echo 'workspace(name = "pypi")' >"$made/hub.part/WORKSPACE"
  sed -nE 's/^([A-Za-z0-9._-]+)==.*/\L\1/p' "$lock" | tr .- __ | sort -u |
    while read -r name; do
      mkdir "$made/hub.part/$name"
      echo "py_library(name = '$name', visibility = ['//visibility:public'])" \
        >"$made/hub.part/$name/BUILD"
    done
  mv "$made/hub.part" "$made/hub"
fi

# explicit_init_py is MODULE.bazel's; PYTHONSAFEPATH is what current rules_python sets.
cat >"$made/bazelrc.$$" <<END
common --override_repository=pypi=$made/hub
common --override_repository=remote_coverage_tools=$here/remote_coverage_tools
common --override_repository=rules_cc=$here/rules_cc
common --override_repository=rules_java=/usr/share/bazel/rules/java
common --override_repository=rules_proto=/usr/share/bazel/rules/proto
common --override_repository=rules_python=$here/rules_python
common --experimental_repository_disable_download
build --incompatible_default_to_explicit_init_py
build --nosandbox_debug
build --symlink_prefix=/
build --test_env=PATH
build --test_env=PYTHONSAFEPATH=1
test --test_output=errors
END
mv "$made/bazelrc.$$" "$made/bazelrc"
PATH=$venv/bin:$PATH PYTHONSAFEPATH=1 exec bazel --bazelrc="$made/bazelrc" "$@"
