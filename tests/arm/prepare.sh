#!/bin/sh
# Prepares an emulated ARM machine with qemu, Debian's arm64 Python and LiteRT's wheel.
#
# Usage, on Debian 12: tests/arm/prepare.sh FOLDER PYTHON
#
# FOLDER receives the program qemu-aarch64-static and the folder root for qemu's option -L.
# The pip of PYTHON downloads the wheels that requirements.lock lists. PYTHON must be
# Python 3.11, the version of Debian 12. Nothing is installed on the system and no
# privileges are needed, because apt works in a temporary folder next to FOLDER. The
# temporary folder is renamed to FOLDER at the end.
set -eu

folder=$(realpath -m "$1")
python=$2
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
lock=$(dirname "$0")/../../requirements.lock
temporary=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
root=$temporary/root
apt=$temporary/apt
mkdir -p "$root/proc" "$apt/lists/partial" "$apt/archives/partial"

# apt uses the package sources of the system, but treats no package as installed. So it
# downloads every dependency.
touch "$apt/status"
cat > "$apt/conf" << END
APT::Architecture "arm64";
APT::Architectures { "arm64"; "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
END
export APT_CONFIG="$apt/conf"
apt-get update -qq
apt-get install -qq --download-only "python$version-minimal" \
    "libpython$version-stdlib" libstdc++6 qemu-user-static:amd64 > /dev/null
for package in "$apt"/archives/*_arm64.deb; do
    dpkg-deb -x "$package" "$root"
done
dpkg-deb --fsys-tarfile "$apt"/archives/qemu-user-static_*.deb |
    tar -x -C "$temporary" --strip-components=3 ./usr/bin/qemu-aarch64-static

# LiteRT reads the features of the CPU from this file, and crashes if it describes an x86 CPU.
cat > "$root/proc/cpuinfo" << END
processor	: 0
BogoMIPS	: 50.00
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0b
CPU revision	: 1

END

# LiteRT's wheel and the wheels that it requires.
for wheel in ai-edge-litert backports-strenum flatbuffers ml-dtypes numpy protobuf \
    tqdm typing-extensions; do
    sed -n "/^$wheel==/,/[^\\\\]\$/p" "$lock"
done > "$apt/requirements.txt"
"$python" -m pip install --quiet --require-hashes --only-binary=:all: \
    --platform=manylinux_2_28_aarch64 --platform=manylinux_2_27_aarch64 \
    --platform=manylinux2014_aarch64 \
    --target="$root/site-packages" --requirement="$apt/requirements.txt"

rm -rf "$apt" "$folder"
chmod 755 "$temporary"
mv "$temporary" "$folder"
