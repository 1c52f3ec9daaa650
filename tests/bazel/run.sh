#!/usr/bin/env bash
# Runs Debian's Bazel 4.2.3 on this checkout, without network access:
#
#   tests/bazel/run.sh test //tests:test_variants
#
# A current Bazel downloads the repositories that MODULE.bazel lists. This script replaces
# them with the substitutes in tests/bazel. Python and its packages come from the environment
# $VENV (default: .venv).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
venv=$(realpath -ms "${VENV:-$root/.venv}")
generated=$root/.bazel
lock=$root/requirements-dev.lock

fail() {
  echo "error: $*" >&2
  exit 1
}

for required in /usr/bin/bazel-4 /usr/share/bazel/rules/{java,proto}; do
  [ -e "$required" ] || fail "Debian's bazel-bootstrap, bazel-rules-java and" \
    "bazel-rules-proto must be installed. A current Bazel does not need this script. Missing: $required"
done
[ -x "$venv/bin/python3" ] || fail "VENV must be an environment with the packages of" \
  "$lock; make creates .venv. Received: $venv"
# If keras_resnet were installed in VENV, tests would pass although their targets lack deps.
if (cd / && PYTHONPATH='' "$venv/bin/python3" -c 'import keras_resnet' 2>/dev/null); then
  fail "VENV must not contain this project, which would hide missing deps. Received: $venv"
fi

# Create the repository @pypi with a target for each package in the lock file. The targets
# have the same names as those of pip.parse in MODULE.bazel.
if [ ! "$generated/hub" -nt "$lock" ]; then
  rm -rf "$generated"/hub*
  mkdir -p "$generated/hub.part"
  echo 'workspace(name = "pypi")' >"$generated/hub.part/WORKSPACE"
  sed -nE 's/^([A-Za-z0-9._-]+)==.*/\L\1/p' "$lock" | tr .- __ | sort -u |
    while read -r name; do
      mkdir "$generated/hub.part/$name"
      echo "py_library(name = '$name', visibility = ['//visibility:public'])" \
        >"$generated/hub.part/$name/BUILD"
    done
  mv "$generated/hub.part" "$generated/hub"
fi

# A current Bazel gets the setting explicit_init_py from MODULE.bazel and PYTHONSAFEPATH from
# rules_python. For Bazel 4, the lines below set both.
cat >"$generated/bazelrc.$$" <<END
common --override_repository=pypi=$generated/hub
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
mv "$generated/bazelrc.$$" "$generated/bazelrc"
PATH=$venv/bin:$PATH PYTHONSAFEPATH=1 exec bazel --bazelrc="$generated/bazelrc" "$@"
